//! Frames of the audit protocol `/p2p-node/<network>/audit/<version>` (`SPEC.md`, "Audits").
//!
//! Both sides begin with a greeting. Then the opener of the stream asks and the acceptor answers, one frame at a time:
//! COMPARE is answered by COMPARED, PROVE by PROOFS. The acceptor keeps nothing between two questions.

use bytes::Bytes;

use super::{
    frame::{GREETING, GROWING_LIMIT, UNSUPPORTED},
    turns::{Turn, TurnError, read_greeting},
    version::Hello,
};
use crate::{
    Multihash,
    audit::{NONCE_BYTES, PROOF_BYTES},
    cid::MULTIHASH_BYTES,
    duty::ASK_KEYS,
    reconcile::Fingerprint,
};

/// The longest message of set reconciliation in a frame: some two hundred fingerprints or ids, which bounds what one
/// question costs the side that answers it.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024;
/// The most chunks of one question.
pub const MAX_PROVED: usize = ASK_KEYS;
/// Bytes of chunks after which the acceptor ends an answer, the first chunk counting whatever its length: it reads no more
/// than these and one chunk for one question.
pub const PROVED_BYTES: u64 = 8 * 1024 * 1024;

const COMPARE: u8 = 0x10;
const COMPARED: u8 = 0x11;
const PROVE: u8 = 0x20;
const PROOFS: u8 = 0x21;
/// A row of PROOFS: whether it is here, and the proof.
const ROW_BYTES: usize = 1 + PROOF_BYTES;
/// In COMPARED: the two are apart.
const APART: u8 = 1;

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// The first of both sides (request 0).
    Greeting(Hello),
    /// What the opener should find, against what the acceptor holds.
    Compare {
        /// Of all publications that stand.
        catalogue: Fingerprint,
        /// Of the common range ([`crate::audit::Common`]).
        range: Fingerprint,
        /// A message of set reconciliation over the keys.
        message: Bytes,
    },
    /// The answer.
    Compared {
        /// Chunks that the acceptor should hold and is about to fetch, over all of its part.
        missing: u32,
        /// The response of set reconciliation; `None`: its catalogue or its range is another one, or it has none yet.
        message: Option<Bytes>,
    },
    /// The acceptor is to prove that it has these.
    Prove {
        /// What the proofs are keyed by.
        nonce: [u8; NONCE_BYTES],
        /// 1 to [`MAX_PROVED`] chunks.
        hashes: Vec<Multihash>,
    },
    /// Proofs of the first ones, in order, at least one; `None`: it is not here.
    Proofs(Vec<Option<[u8; PROOF_BYTES]>>),
    /// The request is not understood.
    Unsupported,
}

impl Turn for Frame {
    const UNSUPPORTED: Self = Self::Unsupported;

    fn greeting(hello: Hello) -> Self {
        Self::Greeting(hello)
    }

    fn as_greeting(&self) -> Option<Hello> {
        match self {
            Self::Greeting(hello) => Some(*hello),
            _ => None,
        }
    }

    fn limit(kind: u8) -> Option<u32> {
        Some(match kind {
            GREETING | UNSUPPORTED => GROWING_LIMIT,
            COMPARE => (2 * 16 + MAX_MESSAGE_BYTES) as u32,
            COMPARED => (1 + 4 + MAX_MESSAGE_BYTES) as u32,
            PROVE => (NONCE_BYTES + MAX_PROVED * MULTIHASH_BYTES) as u32,
            PROOFS => (MAX_PROVED * ROW_BYTES) as u32,
            _ => return None,
        })
    }

    fn put(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::Greeting(hello) => {
                hello.encode(out);
                GREETING
            }
            Self::Compare { catalogue, range, message } => {
                out.extend_from_slice(&catalogue.0);
                out.extend_from_slice(&range.0);
                out.extend_from_slice(message);
                COMPARE
            }
            Self::Compared { missing, message } => {
                out.push(if message.is_some() { 0 } else { APART });
                out.extend_from_slice(&missing.to_be_bytes());
                out.extend_from_slice(message.as_deref().unwrap_or_default());
                COMPARED
            }
            Self::Prove { nonce, hashes } => {
                out.extend_from_slice(nonce);
                hashes.iter().for_each(|hash| out.extend_from_slice(&hash.to_bytes()));
                PROVE
            }
            Self::Proofs(proofs) => {
                for proof in proofs {
                    out.push(u8::from(proof.is_some()));
                    out.extend_from_slice(&proof.unwrap_or_default());
                }
                PROOFS
            }
            Self::Unsupported => UNSUPPORTED,
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, TurnError> {
        Ok(match kind {
            GREETING => Self::Greeting(read_greeting(&payload)?),
            COMPARE => {
                let Some((prints, _)) = payload.split_first_chunk::<32>() else {
                    return Err(TurnError::Malformed("no fingerprints"));
                };
                let half = |from: usize| Fingerprint(std::array::from_fn(|at| prints[from + at]));
                Self::Compare { catalogue: half(0), range: half(16), message: payload.slice(32..) }
            }
            COMPARED => {
                let Some(([state, missing @ ..], rest)) = payload.split_first_chunk::<5>() else {
                    return Err(TurnError::Malformed("no state"));
                };
                let message = match (state, rest.len()) {
                    (0, _) => Some(payload.slice(5..)),
                    (&APART, 0) => None,
                    _ => return Err(TurnError::Malformed("a state that there is not")),
                };
                Self::Compared { missing: u32::from_be_bytes(*missing), message }
            }
            PROVE => {
                let Some((nonce, rest)) = payload.split_first_chunk() else {
                    return Err(TurnError::Malformed("no nonce"));
                };
                let (rows, cut) = rest.as_chunks::<MULTIHASH_BYTES>();
                if rows.is_empty() || !cut.is_empty() {
                    return Err(TurnError::Malformed("no hashes, or one that is cut off"));
                }
                let hashes = rows.iter().map(|row| Multihash::from_bytes(row)).collect::<Result<_, _>>();
                match hashes {
                    Ok(hashes) => Self::Prove { nonce: *nonce, hashes },
                    Err(_) => return Err(TurnError::Malformed("a hash of another kind")),
                }
            }
            PROOFS => {
                let (rows, cut) = payload.as_chunks::<ROW_BYTES>();
                if rows.is_empty() || !cut.is_empty() {
                    return Err(TurnError::Malformed("no proofs, or one that is cut off"));
                }
                let row = |[here, proof @ ..]: &[u8; ROW_BYTES]| match here {
                    1 => Ok(Some(*proof)),
                    0 if proof.iter().all(|byte| *byte == 0) => Ok(None),
                    _ => Err(TurnError::Malformed("a state that there is not")),
                };
                Self::Proofs(rows.iter().map(row).collect::<Result<_, _>>()?)
            }
            UNSUPPORTED => Self::Unsupported,
            kind => return Err(TurnError::Unsupported(kind)),
        })
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
