//! How far an `add` or a `get` is: a bar on a terminal, a plain line now and then elsewhere, nothing with `-q`.

use std::{
    cell::{Cell, RefCell},
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{args::Global, text};
use crate::{report::Progress, settings::units::show_size};

/// How often a plain line is written where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// How often the bar is drawn, a second.
const DRAWS_PER_SECOND: u8 = 10;
/// How often the spinner turns where nothing moves.
const TURN_EVERY: Duration = Duration::from_millis(250);
/// Characters of the thing worked on that fit beside a bar.
const NAME_CHARS: usize = 30;

/// Shows the progress of one path.
pub(super) struct Meter {
    verb: &'static str,
    subject: String,
    shape: Shape,
}

enum Shape {
    Bar(ProgressBar, Cell<bool>),
    Lines(RefCell<Instant>, Instant),
    Silent,
}

impl Meter {
    /// For `verb` on `subject`; nothing is drawn yet.
    pub(super) fn new(verb: &'static str, subject: &str, global: &Global) -> Self {
        let shape = if global.quiet > 0 {
            Shape::Silent
        } else if io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
            Shape::Bar(bar, Cell::new(false))
        } else {
            let now = Instant::now();
            Shape::Lines(RefCell::new(now), now)
        };
        Self { verb, subject: text::shown(subject), shape }
    }

    /// Shows `now`.
    pub(super) fn show(&self, now: &Progress) {
        match &self.shape {
            Shape::Silent => {}
            Shape::Bar(bar, started) => {
                if !started.replace(true) {
                    bar.set_style(style(false));
                    bar.set_prefix(self.verb);
                    bar.enable_steady_tick(TURN_EVERY);
                }
                if let Some(total) = now.total_bytes.filter(|total| bar.length() != Some((*total).max(now.bytes))) {
                    bar.set_style(style(true));
                    bar.set_length(total.max(now.bytes));
                }
                bar.set_position(now.bytes);
                bar.set_message(self.message(now));
            }
            Shape::Lines(last, started) => {
                if last.borrow().elapsed() >= LINE_EVERY {
                    last.replace(Instant::now());
                    let _unread = writeln!(io::stderr(), "{}", self.line(now, started.elapsed()));
                }
            }
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Shape::Bar(bar, _) = &self.shape {
            bar.finish_and_clear();
        }
    }

    fn message(&self, now: &Progress) -> String {
        let copies = match now.copies {
            0 => String::new(),
            1 => "1 copy made  ".to_owned(),
            some => format!("{some} copies made  "),
        };
        let name = now.current.as_deref().map_or_else(|| self.subject.clone(), text::shown);
        let skipped = name.chars().count().saturating_sub(NAME_CHARS);
        let name: String = if skipped > 0 {
            // The end of a path tells more than its start.
            std::iter::once('…').chain(name.chars().skip(skipped + 1)).collect()
        } else {
            name
        };
        format!("{copies}{name}")
    }

    fn line(&self, now: &Progress, elapsed: Duration) -> String {
        let rate = (now.bytes as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
        let of = now.total_bytes.map(|total| format!(" of {}", show_size(total))).unwrap_or_default();
        let copies = if now.copies > 0 { format!(", {} copies made", now.copies) } else { String::new() };
        format!("{} {}: {}{of}, {}/s{copies}", self.verb, self.subject, show_size(now.bytes), show_size(rate))
    }
}

/// Templates are constants that indicatif accepts; were one not, its default shows.
fn style(total_known: bool) -> ProgressStyle {
    let template = if total_known {
        "{prefix} [{bar:24}] {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}"
    } else {
        "{prefix} {spinner} {binary_bytes}  {binary_bytes_per_sec}  {msg}"
    };
    let fallback = if total_known { ProgressStyle::default_bar() } else { ProgressStyle::default_spinner() };
    ProgressStyle::with_template(template).unwrap_or(fallback).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(subject: &str) -> Meter {
        Meter { verb: "add", subject: text::shown(subject), shape: Shape::Silent }
    }

    #[test]
    fn a_plain_line_says_bytes_rate_and_copies() {
        let now = Progress { bytes: 3 << 20, total_bytes: Some(6 << 20), copies: 7, ..Progress::default() };
        let line = meter("a\u{1b}b").line(&now, Duration::from_secs(3));
        assert_eq!(line, "add a\\u{1b}b: 3.0 MiB of 6.0 MiB, 1.0 MiB/s, 7 copies made");
    }

    #[test]
    fn a_long_name_keeps_its_end() {
        let now = Progress { copies: 1, current: Some(format!("{}/end", "x".repeat(90))), ..Progress::default() };
        let message = meter("s").message(&now);
        assert!(message.starts_with("1 copy made  …x") && message.ends_with("/end"), "{message}");
        assert_eq!(message.chars().count(), "1 copy made  ".len() + NAME_CHARS);
    }

    #[test]
    fn the_templates_are_accepted() {
        for known in [true, false] {
            let bar = ProgressBar::hidden();
            bar.set_style(style(known));
            bar.set_length(10);
            bar.set_position(20);
            bar.finish_and_clear();
        }
        assert!(ProgressStyle::with_template("{prefix} [{bar:24}] {binary_bytes_per_sec} {eta} left {msg}").is_ok());
    }
}
