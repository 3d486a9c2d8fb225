//! `gc`.

use super::{
    args::Global,
    output::{Failure, Output, one, warn_of_version},
    progress::Meter,
    text,
};
use crate::{
    front::{api::client::Client, verbs::gc::GcRequest},
    report::Freed,
    settings::units::show_size,
};

/// Frees what is over, and says how much that was.
pub(super) async fn run(client: &Client, global: &Global, output: &mut Output) -> Result<(), Failure> {
    let answer = client.call(&GcRequest {}).await?;
    warn_of_version(answer.version_difference());
    let meter = Meter::new("gc", "this node", global);
    let freed: Result<Freed, _> = one(answer, |now| meter.show(now)).await;
    meter.finish();
    let freed = freed?;
    if output.is_json() { output.json(&freed) } else { output.line(&line(&freed)) }
}

fn line(freed: &Freed) -> String {
    let kept = match freed.kept_in_grace {
        0 => String::new(),
        1 => "; 1 more that nothing lists stays until its grace is over".to_owned(),
        some => format!("; {some} more that nothing lists stay until their grace is over"),
    };
    format!("freed {}, {}{kept}", text::chunks(freed.chunks_freed), show_size(freed.bytes_freed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_was_freed_and_what_waits() {
        let freed =
            |chunks_freed, kept_in_grace| Freed { chunks_freed, bytes_freed: 1 << 20, kept_in_grace, seconds: 0.1 };
        assert_eq!(line(&freed(1, 0)), "freed 1 chunk, 1.0 MiB");
        let waiting = "freed 2 chunks, 1.0 MiB; 1 more that nothing lists stays until its grace is over";
        assert_eq!(line(&freed(2, 1)), waiting);
    }
}
