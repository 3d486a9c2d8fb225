//! Sizes and durations as people write them, and as they read them.

use std::time::Duration;

/// The longest duration that is understood: sums of a few stay far below what clocks can hold.
const MAX_DURATION_MILLISECONDS: u64 = 100 * 366 * 86_400_000;

/// A duration as users write it: a number and one of `ms s m h d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(format!("\"{}\" is no duration; one looks like 250ms, 30s, 5m, 2h or 7d", text.escape_debug()));
        }
    };
    let number: u64 =
        number.parse().map_err(|_| format!("\"{}\" does not begin with a number that fits", text.escape_debug()))?;
    let total = number.checked_mul(milliseconds).filter(|total| *total <= MAX_DURATION_MILLISECONDS);
    let total = total.ok_or_else(|| format!("\"{}\" is longer than a hundred years", text.escape_debug()))?;
    Ok(Duration::from_millis(total))
}

/// A duration, or `0`: never.
pub fn parse_period(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

/// The units of a size on the command line and in the settings file.
const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

/// Reads a size in bytes: a plain number, or a number with `KiB`, `MiB`, `GiB` or `TiB`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let shift = if unit.is_empty() {
        0
    } else {
        UNITS.iter().find(|(name, _)| *name == unit).map(|(_, shift)| *shift).ok_or_else(|| malformed(text))?
    };
    if number.is_empty() {
        return Err(malformed(text));
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("\"{}\" is more bytes than can be counted", text.escape_debug()))
}

fn malformed(text: &str) -> String {
    format!(
        "\"{}\" is not a size: give a whole number of bytes, or of KiB, MiB, GiB or TiB, such as 10GiB",
        text.escape_debug()
    )
}

/// A size for people: three digits or so, in the largest unit that fits.
pub fn show_size(bytes: u64) -> String {
    match UNITS.iter().rev().find(|(_, shift)| bytes >> shift > 0) {
        None => format!("{bytes} B"),
        Some((unit, shift)) => {
            // Tenths, rounded down, without floats: a full disk must not read as more than it is.
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

/// A duration for people: two units at most.
pub fn show_seconds(seconds: f64) -> String {
    // A negative or absurd number of seconds saturates: this is only shown.
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    if days > 0 {
        format!("{days} d {hours} h")
    } else if hours > 0 {
        format!("{hours} h {minutes} min")
    } else if minutes > 0 {
        format!("{minutes} min {} s", whole % 60)
    } else {
        format!("{whole} s")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (text, milliseconds) in
            [("250ms", 250), ("30s", 30_000), (" 5m ", 300_000), ("2h", 7_200_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "m", "5 m", "-5m", "1.5h", "5x", "99999999999999999999s", "40000d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_the_contract_says() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("1KiB", 1 << 10),
            ("10 MiB", 10 << 20),
            ("3GiB", 3 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "KiB", "-1", "1.5GiB", "1KB", "1kib", "1 KiB x", "18446744073709551616", "16777216TiB", "\u{1b}"]
        {
            let refused = parse_size(text);
            assert!(refused.is_err_and(|why| !why.contains('\u{1b}')), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_size((1 << 30) - 1), "1023.9 MiB");
        assert_eq!(show_size(u64::MAX), "16777215.9 TiB");
        assert_eq!(show_seconds(59.9), "59 s");
        assert_eq!(show_seconds(3_661.0), "1 h 1 min");
        assert_eq!(show_seconds(-1.0), "0 s");
    }

    proptest! {
        #[test]
        fn every_number_of_bytes_is_read_back(bytes: u64) {
            prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text: String) {
            let _outcome = parse_size(&text);
        }
    }
}
