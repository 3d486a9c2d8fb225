//! What went wrong while a tree was read: the first few in words, the rest as a number.

use std::fmt::Display;

use crate::error::Error;

/// How many are told in full; the rest are counted.
const SHOWN: usize = 20;

/// Faults of one add.
#[derive(Debug, Default)]
pub(super) struct Faults {
    shown: Vec<String>,
    count: usize,
}

impl Faults {
    /// Notes that `path` could not be added, and why.
    pub(super) fn add(&mut self, path: &str, why: impl Display) {
        if self.shown.len() < SHOWN {
            self.shown.push(format!("{path}: {why}"));
        }
        self.count += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The failure that the caller sees; `None` if there was no fault.
    pub(super) fn error(&self, shown: &str) -> Option<Error> {
        let hint = "put that right, or leave it out, and add again";
        match self.shown.as_slice() {
            [] => None,
            [only] => Some(Error::failed(format!("{only}; nothing was published")).hint(hint)),
            several => {
                let mut message = format!(
                    "{} things in {shown} could not be added, and nothing was published:\n  {}",
                    self.count,
                    several.join("\n  ")
                );
                let more = self.count - several.len();
                if more > 0 {
                    message.push_str(&format!("\n  and {more} more"));
                }
                Some(Error::failed(message).hint(hint))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_are_told_and_the_rest_counted() {
        let mut faults = Faults::default();
        assert!(faults.error("tree").is_none());
        faults.add("tree/a", "permission denied");
        assert!(faults.error("tree").expect("one").message.starts_with("tree/a: permission denied; nothing"));
        (0..24).for_each(|number| faults.add(&format!("tree/{number}"), "it changed"));
        let message = faults.error("tree").expect("some").message;
        assert!(message.starts_with("25 things in tree"));
        assert!(message.contains("tree/18: it changed") && !message.contains("tree/19:"));
        assert!(message.ends_with("and 5 more"));
    }
}
