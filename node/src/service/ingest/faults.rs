//! What went wrong while a tree was read: the first few in words, the rest as a number.

use std::fmt::{self, Display};

/// How many are told in full; the rest are counted.
const SHOWN: usize = 20;

/// Faults of one add.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// What was added, as its asker wrote it.
    tree: String,
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

    /// All of them, of `tree`.
    pub(super) fn of(self, tree: String) -> Self {
        Self { tree, ..self }
    }
}

impl Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.shown.as_slice() {
            return write!(f, "{only}; nothing was published");
        }
        let (count, tree) = (self.count, &self.tree);
        write!(f, "{count} things in {tree} could not be added, and nothing was published:")?;
        self.shown.iter().try_for_each(|fault| write!(f, "\n  {fault}"))?;
        match count - self.shown.len() {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_are_told_and_the_rest_counted() {
        let mut faults = Faults::default();
        assert!(faults.is_empty());
        faults.add("tree/a", "permission denied");
        assert!(faults.to_string().starts_with("tree/a: permission denied; nothing"));
        (0..24).for_each(|number| faults.add(&format!("tree/{number}"), "it changed"));
        let message = faults.of("tree".to_owned()).to_string();
        assert!(message.starts_with("25 things in tree"));
        assert!(message.contains("tree/18: it changed") && !message.contains("tree/19:"));
        assert!(message.ends_with("and 5 more"));
    }
}
