//! Text on a terminal: what came from others cannot drive it, and columns line up.

use std::{collections::VecDeque, fmt::Write as _, path::Path};

use super::output::{Failure, Output};

/// Rows that are looked at for the widths of columns; longer ones after them push the rest of their line.
const ROWS_MEASURED: usize = 1000;
/// The widest that a column is made for the sake of alignment.
const MAX_WIDTH: usize = 100;

/// `text` with everything escaped that a terminal would act on: control characters, and those that turn the direction
/// of writing or hide.
pub(super) fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// As [`shown`], but lines stay lines: for messages.
pub(super) fn shown_lines(text: &str) -> String {
    text.split('\n').map(shown).collect::<Vec<_>>().join("\n")
}

/// A peer for people: its label, where it has one, and its id.
pub(super) fn peer(id: &str, label: Option<&str>) -> String {
    match label {
        Some(label) => format!("{} ({})", shown(label), shown(id)),
        None => shown(id),
    }
}

/// How many chunks, in words.
pub(super) fn chunks(count: u64) -> String {
    if count == 1 { "1 chunk".to_owned() } else { format!("{count} chunks") }
}

/// A path for people.
pub(super) fn path(path: &Path) -> String {
    shown(&path.to_string_lossy())
}

fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// JSON in which every character that [`shown`] would escape is escaped too; `json` is valid, so such characters stand
/// only inside its strings.
pub(super) fn shown_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if acts(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                // Writing to a String does not fail.
                let _written = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// A table of keys and values, the values lined up.
pub(super) fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    rows.iter().map(|(key, value)| format!("{key:<width$}  {value}\n")).collect()
}

/// Rows with their columns lined up, written once enough of them are known.
pub(super) struct Columns {
    /// `<` or `>` a column.
    sides: &'static [char],
    widths: Vec<usize>,
    held: VecDeque<Vec<String>>,
    measured: bool,
}

impl Columns {
    /// Columns aligned to the left (`<`) or the right (`>`); the last is never padded.
    pub(super) fn new(sides: &'static [char]) -> Self {
        Self { sides, widths: vec![0; sides.len()], held: VecDeque::new(), measured: false }
    }

    /// Takes a row of as many cells as there are columns.
    pub(super) fn row(&mut self, row: Vec<String>, output: &mut Output) -> Result<(), Failure> {
        if self.measured {
            return self.write(&row, output);
        }
        for (width, cell) in self.widths.iter_mut().zip(&row) {
            *width = (*width).max(cell.chars().count().min(MAX_WIDTH));
        }
        self.held.push_back(row);
        if self.held.len() >= ROWS_MEASURED { self.finish(output) } else { Ok(()) }
    }

    /// Writes what is held.
    pub(super) fn finish(&mut self, output: &mut Output) -> Result<(), Failure> {
        self.measured = true;
        while let Some(row) = self.held.pop_front() {
            self.write(&row, output)?;
        }
        Ok(())
    }

    fn write(&self, row: &[String], output: &mut Output) -> Result<(), Failure> {
        output.line(&self.line(row))
    }

    fn line(&self, row: &[String]) -> String {
        let last = row.len().saturating_sub(1);
        let mut line = String::new();
        for (index, ((cell, width), side)) in row.iter().zip(&self.widths).zip(self.sides).enumerate() {
            let pad = width.saturating_sub(cell.chars().count());
            let spaces = " ".repeat(pad);
            if index > 0 {
                line.push_str("  ");
            }
            match side {
                '>' => line.extend([spaces.as_str(), cell]),
                _ if index == last => line.push_str(cell),
                _ => line.extend([cell, spaces.as_str()]),
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hostile_name_does_not_drive_the_terminal() {
        assert_eq!(shown("\u{1b}[2J\r\n\t"), "\\u{1b}[2J\\r\\n\\t");
        assert_eq!(shown("\u{9b}31m\u{7f}"), "\\u{9b}31m\\u{7f}");
        assert_eq!(shown("a\u{202e}txt.exe"), "a\\u{202e}txt.exe");
        assert_eq!(shown("Grüße 日本 🦀 'x'"), "Grüße 日本 🦀 'x'");
        assert_eq!(shown_lines("a\nb\u{7}"), "a\nb\\u{7}");
    }

    proptest! {
        #[test]
        fn json_stays_the_same_value_and_holds_nothing_that_acts(text: String) {
            let json = serde_json::to_string(&text).expect("a string encodes");
            let safe = shown_json(&json);
            prop_assert!(!safe.chars().any(acts));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).expect("it is still JSON"), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let mut columns = Columns::new(&['>', '<', '<']);
        columns.widths = vec![5, 4, 3];
        assert_eq!(columns.line(&["1 B".into(), "ab".into(), "c".into()]), "  1 B  ab    c");
        assert_eq!(columns.line(&["1234567".into(), "ü".into(), "long".into()]), "1234567  ü     long");
        assert_eq!(table(&[("A", "1".into()), ("Long", "2".into())]), "A     1\nLong  2\n");
    }
}
