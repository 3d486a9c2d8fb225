//! What is shown under a label and has no name: whoever asks for it by its label is told its CID.

use futures::StreamExt as _;
use p2p_protocol::Cid;

use super::{
    Inspect, ReadError,
    resolve::{What, parse},
};

/// Entries of the catalogue that are looked through for a label, there being no index of labels: as many as it holds by
/// default, which takes some tenths of a second.
const LOOKED_THROUGH: usize = 65_536;
/// Roots of one label that are told; the rest are counted.
const TOLD: usize = 4;
/// Roots of one label that are told apart at the most.
const COUNTED: usize = 256;

impl Inspect {
    /// What is to be said of a reference whose name is unknown, `why` saying so: where it is the label of something that
    /// has no name, which that is. Any other `why` stays as it is. Cancel-safe.
    pub async fn labelled(&self, reference: &str, why: ReadError) -> ReadError {
        let ReadError::UnknownName(name) = &why else { return why };
        let Ok(What::Name { peer, text }) = parse(reference).map(|parsed| parsed.what) else { return why };
        let mut roots: Vec<Cid> = Vec::new();
        let mut listed = self.catalogue.list().take(LOOKED_THROUGH);
        // What cannot be read may be anything: then nothing more is said than that the name is unknown.
        while let Some(Ok(entry)) = listed.next().await {
            let labelled = entry.name.is_none() && entry.label == text;
            if labelled && peer.is_none_or(|peer| entry.publisher == peer) && !roots.contains(&entry.root) {
                roots.push(entry.root);
                if roots.len() == COUNTED {
                    break;
                }
            }
        }
        if roots.is_empty() {
            return why;
        }
        let more = roots.len().saturating_sub(TOLD);
        roots.truncate(TOLD);
        ReadError::OnlyLabel { name: name.clone(), roots, more }
    }
}
