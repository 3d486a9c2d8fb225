//! What people call a machine: a few words that a node says of itself, and that prove nothing.

use std::fmt;

/// The most bytes of a label: as long as a host's name may be on Linux.
pub const MAX_LABEL_BYTES: usize = 64;

/// Up to [`MAX_LABEL_BYTES`] of UTF-8 that can be shown: no control characters, none that turn the direction of writing
/// or hide, no spaces at either end. It may be empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Label(String);

impl Label {
    /// As much of `text` as a label may be.
    pub fn new(text: &str) -> Self {
        let kept: String = text.chars().filter(|c| !acts(*c)).collect();
        let kept = kept.trim();
        let mut end = kept.len().min(MAX_LABEL_BYTES);
        while !kept.is_char_boundary(end) {
            end -= 1;
        }
        Self(kept[..end].trim_end().to_owned())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a terminal would do something else with it than show it.
fn acts(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}');
    c.is_control() || turns || c == '\u{feff}'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_drives_a_terminal_is_left_out_and_what_is_too_long_is_cut() {
        for (text, label) in [
            ("nas", "nas"),
            ("  Ann's laptop \n", "Ann's laptop"),
            ("a\u{1b}[31mb", "a[31mb"),
            ("gpj\u{202e}exe", "gpjexe"),
            ("\u{feff}\u{200b}", ""),
        ] {
            assert_eq!(Label::new(text).as_str(), label);
        }
        assert_eq!(Label::new(&"é".repeat(40)).as_str(), "é".repeat(32));
        assert_eq!(Label::new(&format!("{}é", "x".repeat(63))).as_str(), "x".repeat(63));
        assert!(Label::new(" \t ").is_empty());
    }

    proptest! {
        #[test]
        fn a_label_is_bounded_and_making_it_again_changes_nothing(text in "\\PC{0,80}|.{0,80}") {
            let label = Label::new(&text);
            prop_assert!(label.as_str().len() <= MAX_LABEL_BYTES && !label.as_str().chars().any(acts));
            prop_assert_eq!(Label::new(label.as_str()), label);
        }
    }
}
