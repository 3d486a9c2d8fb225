//! `pin REF` and `unpin REF`.

use clap::Args;

use super::{
    args::Global,
    output::{Failure, Output, one, warn_of_version},
    progress::Meter,
    text,
};
use crate::{
    front::{
        api::client::Client,
        verbs::pin::{PinRequest, UnpinRequest},
    },
    report::{PinnedWhole, Unpinned},
};

/// Arguments of `pin`.
#[derive(Args, Clone, Debug)]
pub struct Pin {
    /// What to keep here: NAME or PEER/NAME with its later versions; CID, CID/path/inside or NAME@VERSION as it is
    #[arg(value_name = "REF")]
    pub reference: String,
}

/// Arguments of `unpin`.
#[derive(Args, Clone, Debug)]
pub struct Unpin {
    /// What to keep no more, as it was pinned: NAME or PEER/NAME, or the CID
    #[arg(value_name = "REF")]
    pub reference: String,
}

/// Pins, waits until all of it is here, and prints the CID.
pub(super) async fn run(verb: Pin, client: &Client, global: &Global, output: &mut Output) -> Result<(), Failure> {
    let request = PinRequest { reference: verb.reference };
    let answer = client.call(&request).await?;
    warn_of_version(answer.version_difference());
    let meter = Meter::new("pin", &request.reference, global);
    let pinned: Result<PinnedWhole, _> = one(answer, |now| meter.show(now)).await;
    meter.finish();
    let pinned = pinned?;
    if output.is_json() { output.json(&pinned) } else { output.line(&text::shown(&pinned.cid)) }
}

/// Unpins, and prints the CID.
pub(super) async fn unpin(verb: Unpin, client: &Client, output: &mut Output) -> Result<(), Failure> {
    let answer = client.call(&UnpinRequest { reference: verb.reference }).await?;
    warn_of_version(answer.version_difference());
    let unpinned: Unpinned = one(answer, |_| {}).await?;
    if output.is_json() { output.json(&unpinned) } else { output.line(&text::shown(&unpinned.cid)) }
}
