//! `rm REF…` and `restore REF`.

use clap::Args;
use serde::Serialize;

use super::{
    output::{self, Failure, Output, warn_of_version},
    text,
};
use crate::{
    error::{Error, Kind},
    front::{
        api::client::Client,
        verbs::{Verb, restore::RestoreRequest, rm::RmRequest},
    },
    report::Changed,
};

/// Arguments of `rm`.
#[derive(Args, Clone, Debug)]
pub struct Rm {
    /// What to withdraw: CID, NAME or PEER/NAME
    #[arg(value_name = "REF", required = true)]
    pub references: Vec<String>,
}

/// Arguments of `restore`.
#[derive(Args, Clone, Debug)]
pub struct Restore {
    /// What to bring back: a NAME or CID that was removed, or NAME@VERSION
    #[arg(value_name = "REF")]
    pub reference: String,
}

/// Withdraws; a line each.
pub(super) async fn run(verb: Rm, client: &Client, output: &mut Output) -> Result<(), Failure> {
    change(&RmRequest { references: verb.references }, client, output).await
}

/// Brings back; a line each.
pub(super) async fn restore(verb: Restore, client: &Client, output: &mut Output) -> Result<(), Failure> {
    change(&RestoreRequest { reference: verb.reference }, client, output).await
}

/// A line for each change; where one is short of what was asked, that is said, and is the exit code.
async fn change<V>(request: &V, client: &Client, output: &mut Output) -> Result<(), Failure>
where
    V: Verb<Answer = Changed> + Serialize,
{
    let mut lines = client.call(request).await?;
    warn_of_version(lines.version_difference());
    let mut short = false;
    while let Some(changed) = lines.next(|_| {}).await? {
        if output.is_json() {
            output.json(&changed)?;
        } else {
            output.line(&text::shown(&changed.cid))?;
        }
        for warning in &changed.warnings {
            output::warn(warning);
        }
        if let Some(why) = changed.short {
            short = true;
            output.failure(&Error::new(Kind::UnderReplicated, why))?;
        }
    }
    if short { Err(Failure::Reported(Kind::UnderReplicated)) } else { Ok(()) }
}
