//! `watch`.

use clap::Args;

use super::{
    output::{Failure, Output, warn_of_version},
    text,
};
use crate::{
    front::{api::client::Client, verbs::watch::WatchRequest},
    report::Update,
    settings::units::show_size,
};

/// Arguments of `watch`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Watch {
    /// Print first what came after this position, which an earlier update had in its JSON; 0: all that stands
    #[arg(long, value_name = "POSITION")]
    pub since: Option<u64>,
}

/// A line an update, until it or the daemon is stopped.
pub(super) async fn run(verb: &Watch, client: &Client, output: &mut Output) -> Result<(), Failure> {
    let mut updates = client.call(&WatchRequest { since: verb.since }).await?;
    warn_of_version(updates.version_difference());
    while let Some(update) = updates.next(|_| {}).await? {
        if output.is_json() {
            output.json(&update)?;
        } else {
            output.line(&line(&update))?;
        }
        // Whoever watches wants to see it now, also through a pipe.
        output.flush()?;
    }
    Ok(())
}

fn line(update: &Update) -> String {
    format!(
        "{} {:<7} {} {} v{} {} {}",
        text::shown(&update.time),
        text::shown(&update.event),
        text::shown(&update.cid),
        show_size(update.size),
        update.version,
        text::peer(&update.publisher, update.publisher_label.as_deref()),
        text::shown(&update.name),
    )
}
