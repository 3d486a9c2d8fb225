//! The asking side: what a neighbour lacks of what it should hold, and whether it has what it claims.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use p2p_protocol::{
    Key, Multihash, PeerId,
    audit::{Challenge, Common, PROOF_BYTES},
    duty::{Audited, EXTRA},
    manifest::Entry,
    reconcile::{Bound, IdRanges as _, Initiator, ReconcileLimits, Step},
    wire::audit::{Frame, MAX_MESSAGE_BYTES, MAX_PROVED},
};

use super::{Asker, Shared, Standing};
use crate::service::{
    turns::{SessionError, out_of_turn},
    wanted::{InRange, Side},
};

/// Chunks that are proved in one audit: whoever has half of what it claims is found out with one audit of 256.
const PROOFS: usize = 8;
/// Other holders that are asked for one proof, one after the other.
const WITNESSES: usize = 3;
/// Answers of *not here* to what was claimed a moment ago that make a lie of it, if they are over half of all: a disk that
/// fails so is not to be counted on either.
const NOT_HERE: usize = 3;

/// This node does not know yet who is in view, or lost what was asked about meanwhile.
const NOT_READY: SessionError = SessionError::NotReady("this node is not ready for it");

type Proof = [u8; PROOF_BYTES];

/// What a comparison of sets found.
enum Compared {
    /// The two see another catalogue or another range.
    Apart,
    /// It lacks these; it says that so many chunks are missing there.
    Lacks(Vec<Key>, u32),
}

/// One audit.
pub(super) async fn compare(shared: &Arc<Shared>, peer: PeerId) -> Result<Audited, SessionError> {
    let standing = shared.standing().ok_or(NOT_READY)?;
    let common = Arc::new(standing.common(&shared.network.local(), &peer));
    let mut asker = shared.open(peer).await?;
    let outcome = audit(shared, peer, &standing, &common, &mut asker).await?;
    asker.end().await;
    Ok(outcome)
}

async fn audit(
    shared: &Arc<Shared>,
    peer: PeerId,
    standing: &Standing,
    common: &Arc<Common>,
    asker: &mut Asker,
) -> Result<Audited, SessionError> {
    match differences(shared, common, asker).await? {
        Compared::Apart => return Ok(Audited::Apart),
        Compared::Lacks(keys, missing) if !keys.is_empty() => {
            return Ok(Audited::Lacks { keys, filling: missing > 0 });
        }
        Compared::Lacks(..) => {}
    }
    let picked = picks(shared, common).await?;
    if picked.is_empty() {
        return Ok(Audited::Equal);
    }
    let (mut lied, absent) = check(shared, peer, standing, asker, &picked).await?;
    if absent.len() >= NOT_HERE && absent.len() * 2 > picked.len() {
        lied.extend(absent);
    } else if !absent.is_empty() {
        match differences(shared, common, asker).await? {
            // It may have been freed there by right.
            Compared::Apart if lied.is_empty() => return Ok(Audited::Apart),
            Compared::Lacks(keys, missing) => {
                let still = shared.within(common, Side::Wanted, {
                    let claimed: Vec<Key> = absent.into_iter().filter(|key| !keys.contains(key)).collect();
                    move |set| claimed.into_iter().filter(|key| set.contains(key)).collect::<Vec<_>>()
                });
                lied.extend(still.await?);
                if lied.is_empty() && !keys.is_empty() {
                    return Ok(Audited::Lacks { keys, filling: missing > 0 });
                }
            }
            Compared::Apart => {}
        }
    }
    Ok(if lied.is_empty() { Audited::Equal } else { Audited::Lied(lied) })
}

/// What the peer lacks of the range, by set reconciliation.
async fn differences(shared: &Arc<Shared>, common: &Arc<Common>, asker: &mut Asker) -> Result<Compared, SessionError> {
    let range = common.fingerprint();
    let limits = ReconcileLimits { message_bytes: MAX_MESSAGE_BYTES, ..ReconcileLimits::default() };
    let begin = move |set: &InRange<'_>| {
        let mut initiator = Initiator::new(limits);
        let message = initiator.initiate(set);
        (initiator, message)
    };
    let (mut initiator, mut message) = shared.within(common, Side::Wanted, begin).await?;
    loop {
        let catalogue = shared.catalogue_print();
        let answer = asker.ask(&Frame::Compare { catalogue, range, message: message.into() }).await?;
        shared.compared_bytes.fetch_add(asker.take_bytes(), Ordering::Relaxed);
        let Frame::Compared { missing, message: response } = answer else { return Err(out_of_turn()) };
        let Some(response) = response else { return Ok(Compared::Apart) };
        let handle = move |set: &InRange<'_>| {
            let step = initiator.handle(set, &response);
            (initiator, step)
        };
        let (went_on, step) = shared.within(common, Side::Wanted, handle).await?;
        initiator = went_on;
        match step? {
            Step::Send(next) => message = next,
            Step::Done => {
                let lacking = initiator.have().to_vec();
                // What went meanwhile is not looked for any more.
                let still = move |set: &InRange<'_>| -> Vec<Key> {
                    lacking.into_iter().map(Key).filter(|key| set.contains(key)).collect()
                };
                return Ok(Compared::Lacks(shared.within(common, Side::Wanted, still).await?, missing));
            }
        }
    }
}

/// Some chunks of the range, at random; each may stand in it twice.
async fn picks(shared: &Arc<Shared>, common: &Arc<Common>) -> Result<Vec<Entry>, SessionError> {
    let pick = |set: &InRange<'_>| {
        let count = set.count(&(Bound::START..Bound::End));
        let mut places: Vec<usize> = (0..PROOFS.min(count)).map(|_| rand::random_range(0..count)).collect();
        places.sort_unstable();
        places.dedup();
        places.into_iter().filter_map(|place| set.pick(place)).collect()
    };
    shared.within(common, Side::Wanted, pick).await
}

/// Has the peer prove these: what it lied about, and what it says it has not.
async fn check(
    shared: &Arc<Shared>,
    peer: PeerId,
    standing: &Standing,
    asker: &mut Asker,
    picked: &[Entry],
) -> Result<(Vec<Key>, Vec<Key>), SessionError> {
    let challenge = Challenge { nonce: rand::random(), asker: shared.network.local() };
    let hashes: Vec<Multihash> = picked.iter().map(|entry| entry.cid.hash).collect();
    let mut proofs: Vec<Option<Proof>> = Vec::with_capacity(hashes.len());
    while proofs.len() < hashes.len() {
        proofs.extend(proofs_of(shared, asker, challenge, &hashes[proofs.len()..]).await?);
    }
    let (mut lied, mut absent, mut unsure) = (Vec::new(), Vec::new(), Vec::new());
    for (entry, proof) in picked.iter().zip(proofs) {
        let Some(proof) = proof else {
            absent.push(entry.key());
            continue;
        };
        match shared.own_proof(challenge, &entry.cid.hash).await? {
            Some(own) if own == proof => {}
            Some(_) => lied.push(entry.key()),
            None => unsure.push((*entry, proof)),
        }
    }
    lied.extend(witnessed(shared, peer, standing, challenge, unsure).await);
    Ok((lied, absent))
}

/// Of proofs for what is not here, which are wrong: another holder is asked the same, and where it says something else the
/// chunk is fetched. Where nobody else answers, nothing follows.
async fn witnessed(
    shared: &Arc<Shared>,
    peer: PeerId,
    standing: &Standing,
    challenge: Challenge,
    mut unsure: Vec<(Entry, Proof)>,
) -> Vec<Key> {
    let mut lied = Vec::new();
    let local = shared.network.local();
    for turn in 0..WITNESSES {
        let mut asked: BTreeMap<PeerId, Vec<(Entry, Proof)>> = BTreeMap::new();
        for (entry, proof) in std::mem::take(&mut unsure) {
            let near = standing.ranking.nearest(&entry.key(), usize::from(standing.most_copies) + EXTRA);
            let witness = near.into_iter().filter(|other| *other != peer && *other != local).nth(turn);
            if let Some(witness) = witness {
                asked.entry(witness).or_default().push((entry, proof));
            }
        }
        for (witness, about) in asked {
            let hashes: Vec<Multihash> = about.iter().map(|(entry, _)| entry.cid.hash).collect();
            let said = async {
                let mut asker = shared.open(witness).await?;
                let said = proofs_of(shared, &mut asker, challenge, &hashes).await?;
                asker.end().await;
                Ok(said)
            };
            let said = shared.settle(witness, said.await).await.unwrap_or_default();
            // One that answers for a part is not asked for the rest: others may be.
            let said = said.into_iter().chain(std::iter::repeat(None));
            for ((entry, proof), other) in about.into_iter().zip(said) {
                match other {
                    Some(other) if other == proof => {}
                    Some(_) => match shared.transfer.fetch(witness, entry.cid).await {
                        Ok(Some(chunk)) if challenge.proof(chunk.bytes()) == proof => {}
                        Ok(Some(_)) => lied.push(entry.key()),
                        Ok(None) | Err(_) => unsure.push((entry, proof)),
                    },
                    None => unsure.push((entry, proof)),
                }
            }
        }
    }
    lied
}

/// The peer's proofs of the first of these, at least one.
async fn proofs_of(
    shared: &Shared,
    asker: &mut Asker,
    challenge: Challenge,
    hashes: &[Multihash],
) -> Result<Vec<Option<Proof>>, SessionError> {
    let hashes = &hashes[..hashes.len().min(MAX_PROVED)];
    let question = Frame::Prove { nonce: challenge.nonce, hashes: hashes.to_vec() };
    let Frame::Proofs(proofs) = asker.ask(&question).await? else { return Err(out_of_turn()) };
    shared.proved_bytes.fetch_add(asker.take_bytes(), Ordering::Relaxed);
    if proofs.len() > hashes.len() {
        return Err(SessionError::Hostile("it proved more than it was asked for".to_owned()));
    }
    Ok(proofs)
}

/// Has a peer prove what is here, with a fresh nonce for each answer.
pub(super) async fn prove(shared: &Arc<Shared>, peer: PeerId, entries: &[Entry]) -> Result<Vec<bool>, SessionError> {
    let mut asker = shared.open(peer).await?;
    let hashes: Vec<Multihash> = entries.iter().map(|entry| entry.cid.hash).collect();
    let mut proved = Vec::with_capacity(hashes.len());
    while proved.len() < hashes.len() {
        let challenge = Challenge { nonce: rand::random(), asker: shared.network.local() };
        let rest = &hashes[proved.len()..];
        let proofs = proofs_of(shared, &mut asker, challenge, rest).await?;
        for (hash, proof) in rest.iter().zip(proofs) {
            let own = shared.own_proof(challenge, hash).await?.ok_or(NOT_READY)?;
            proved.push(proof == Some(own));
        }
    }
    asker.end().await;
    Ok(proved)
}
