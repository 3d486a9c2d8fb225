//! `watch`.

use super::{
    output::{Failure, Output, warn_of_version},
    text,
};
use crate::{
    front::{api::client::Client, verbs::watch::WatchRequest},
    report::Update,
    settings::units::show_size,
};

/// A line an update, until it or the daemon is stopped.
pub(super) async fn run(client: &Client, output: &mut Output) -> Result<(), Failure> {
    let mut updates = client.call(&WatchRequest {}).await?;
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
        text::shown(&update.publisher),
        text::shown(&update.name),
    )
}
