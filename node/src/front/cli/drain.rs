//! `drain`.

use clap::Args;

use super::{
    args::Global,
    output::{Failure, Output, one, warn_of_version},
    progress::Meter,
};
use crate::{
    front::{api::client::Client, verbs::drain::DrainRequest},
    report::Drained,
    settings::units::show_size,
};

/// Arguments of `drain`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Drain {
    /// Stay after all: take this node's share again
    #[arg(long)]
    pub cancel: bool,
}

/// Hands over, and says what it was.
pub(super) async fn run(verb: Drain, client: &Client, global: &Global, output: &mut Output) -> Result<(), Failure> {
    let answer = client.call(&DrainRequest { cancel: verb.cancel }).await?;
    warn_of_version(answer.version_difference());
    let meter = Meter::new("drain", "this node", global);
    let drained: Result<Drained, _> = one(answer, |now| meter.show(now)).await;
    meter.finish();
    let drained = drained?;
    if output.is_json() { output.json(&drained) } else { output.line(&line(&drained)) }
}

fn line(drained: &Drained) -> String {
    if !drained.draining {
        return "this node stays, and takes its share again".to_owned();
    }
    let off = "this machine can be switched off for good";
    let size = show_size(drained.bytes);
    match drained.chunks {
        0 => format!("nothing that is listed was here: {off}"),
        1 => format!("the 1 chunk ({size}) that is listed and was here has its copies on other peers: {off}"),
        all => {
            format!("all {all} chunks ({size}) that are listed and were here have their copies on other peers: {off}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_that_it_can_go() {
        let drained = |draining, chunks| Drained { draining, chunks, bytes: 3 << 20, seconds: 1.0 };
        assert!(line(&drained(true, 12)).starts_with("all 12 chunks (3.0 MiB) that"));
        assert!(line(&drained(true, 1)).starts_with("the 1 chunk (3.0 MiB) that is"));
        for chunks in [0, 1, 12] {
            assert!(line(&drained(true, chunks)).ends_with("this machine can be switched off for good"));
        }
        assert_eq!(line(&drained(false, 0)), "this node stays, and takes its share again");
    }
}
