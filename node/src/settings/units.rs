//! Sizes as people write them, and as they read them.

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
