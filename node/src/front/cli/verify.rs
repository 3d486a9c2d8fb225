//! `verify [REF]`.

use clap::Args;

use super::{
    args::Global,
    output::{Failure, Output, one, warn_of_version},
    progress::Meter,
    text,
};
use crate::{
    error::Error,
    front::{
        api::client::Client,
        verbs::verify::{VerifyReferenceRequest, VerifyRequest},
    },
    report::{Manifest, Verified, VerifiedDag},
    settings::units::{show_seconds, show_size},
};

/// Arguments of `verify`.
#[derive(Args, Clone, Debug)]
pub struct Verify {
    /// What to check as a whole, wherever its chunks are: CID, CID/path/inside, NAME or PEER/NAME [default: the chunks of this node]
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
}

/// A summary; a failure where something is damaged or missing.
pub(super) async fn run(verb: Verify, client: &Client, global: &Global, output: &mut Output) -> Result<(), Failure> {
    let meter = Meter::new("verify", verb.reference.as_deref().unwrap_or("every chunk here"), global);
    let answer = match verb.reference {
        Some(reference) => client.call(&VerifyReferenceRequest { reference }).await?,
        None => client.call(&VerifyRequest {}).await?,
    };
    warn_of_version(answer.version_difference());
    let found: Result<Verified, _> = one(answer, |now| meter.show(now)).await;
    meter.finish();
    let found = found?;
    if output.is_json() {
        output.json(&found)?
    } else {
        output.text(&page(&found))?
    }
    output.flush()?;
    let Some(failure) = failure(&found) else { return Ok(()) };
    // The result stands on stdout already.
    output.told(&failure);
    Err(Failure::Reported(failure.kind))
}

fn page(found: &Verified) -> String {
    let Verified { chunks, bytes, damaged, repaired, missing, seconds, dag } = found;
    let rate = show_size((*bytes as f64 / seconds.max(0.001)) as u64);
    let (bytes, time) = (show_size(*bytes), show_seconds(*seconds));
    let damage = match damaged {
        0 => "0".to_owned(),
        some => format!("{some}, of which {repaired} made good"),
    };
    let damage = ("Damaged", damage);
    let missing = ("Missing", missing.to_string());
    let Some(dag) = dag else {
        return text::table(&[
            ("Read", format!("{}, {bytes} in {time}, {rate}/s", text::chunks(*chunks))),
            damage,
            missing,
        ]);
    };
    let manifest = match dag.manifest {
        Manifest::None => "nothing of this root is published".to_owned(),
        Manifest::Equal => "all of it, and nothing else".to_owned(),
        Manifest::Unreadable => "not all of what lists it can be read".to_owned(),
        Manifest::Differs => format!("{} too few, {} too many", text::chunks(dag.unlisted), dag.surplus),
    };
    let copies = match dag.under_replicated {
        0 => format!("{} wanted, and there are as many", dag.wanted),
        1 => format!("{} wanted; 1 chunk has fewer", dag.wanted),
        few => format!("{} wanted; {few} chunks have fewer", dag.wanted),
    };
    let mut rows = vec![
        ("CID", text::shown(&dag.cid)),
        ("Looked at", format!("{}, {bytes} in {time}", text::chunks(*chunks))),
        ("Listed", manifest),
        ("Copies", copies),
        damage,
        missing,
    ];
    for (index, (peer, chunks)) in dag.holders.iter().enumerate() {
        let peer = text::peer(peer, dag.labels.get(peer).map(String::as_str));
        rows.push((if index == 0 { "Holders" } else { "" }, format!("{peer} {}", text::chunks(*chunks))));
    }
    text::table(&rows)
}

fn failure(found: &Verified) -> Option<Error> {
    let open = found.damaged.saturating_sub(found.repaired);
    let mut wrong = Vec::new();
    if open > 0 {
        wrong.push(format!("{} damaged here", count(open)));
    }
    match (&found.dag, found.missing) {
        (_, 0) => {}
        (None, missing) => wrong.push(format!("{} missing that should be here", count(missing))),
        (Some(_), missing) => wrong.push(format!("{} missing: nobody who answers has them", count(missing))),
    }
    let differs = |dag: &VerifiedDag| dag.manifest == Manifest::Differs;
    let listed = found.dag.as_ref().is_some_and(differs);
    if listed {
        wrong.push("what is listed of it is not what it has".to_owned());
    }
    if wrong.is_empty() {
        return None;
    }
    let error = Error::failed(wrong.join("; "));
    Some(if open == 0 && found.missing == 0 {
        error.hint("add it again where it came from, so that it is published with what it has")
    } else {
        error.hint(
            "start the machines that have copies (`p2p-node peers` shows who is connected), or add the files again where \
             they came from; what comes is kept by itself, and `p2p-node verify` then says so",
        )
    })
}

fn count(chunks: u64) -> String {
    if chunks == 1 { "1 chunk is".to_owned() } else { format!("{chunks} chunks are") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::error::Kind;

    fn found(damaged: u64, repaired: u64, missing: u64) -> Verified {
        Verified { chunks: 3, bytes: 2 << 20, damaged, repaired, missing, seconds: 2.0, dag: None }
    }

    fn of(manifest: Manifest, missing: u64) -> Verified {
        let holders = BTreeMap::from([("12D3".to_owned(), 3)]);
        let labels = BTreeMap::from([("12D3".to_owned(), "nas".to_owned())]);
        let (cid, unlisted) = ("bafk".to_owned(), u64::from(manifest == Manifest::Differs));
        let dag = VerifiedDag { cid, under_replicated: 2, wanted: 3, holders, labels, manifest, unlisted, surplus: 0 };
        Verified { dag: Some(dag), ..found(0, 0, missing) }
    }

    #[test]
    fn what_is_still_damaged_or_missing_is_a_failure() {
        for fine in [found(0, 0, 0), found(2, 2, 0), of(Manifest::Equal, 0), of(Manifest::None, 0)] {
            assert_eq!(failure(&fine), None);
        }
        for (found, says) in [
            (found(2, 1, 0), "1 chunk is damaged here"),
            (found(0, 0, 4), "4 chunks are missing that should be here"),
            (found(1, 0, 1), "1 chunk is damaged here; 1 chunk is missing"),
            (of(Manifest::Equal, 2), "2 chunks are missing: nobody"),
            (of(Manifest::Differs, 0), "is not what it has"),
        ] {
            let error = failure(&found).expect("something is wrong");
            assert!(error.kind == Kind::Failed && error.message.contains(says) && error.hint.is_some(), "{error}");
        }
    }

    #[test]
    fn the_summary_is_a_short_page() {
        assert_eq!(
            page(&found(1, 1, 0)),
            "Read     3 chunks, 2.0 MiB in 2 s, 1.0 MiB/s\nDamaged  1, of which 1 made good\nMissing  0\n"
        );
        assert_eq!(
            page(&of(Manifest::Differs, 0)),
            "CID        bafk\nLooked at  3 chunks, 2.0 MiB in 2 s\nListed     1 chunk too few, 0 too many\n\
             Copies     3 wanted; 2 chunks have fewer\nDamaged    0\nMissing    0\n\
             Holders    nas (12D3) 3 chunks\n"
        );
    }
}
