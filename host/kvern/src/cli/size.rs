//! Sizes as an operator writes them.

const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Bytes of `512KiB`, `16MiB`, `2GiB` or a plain number. `MB` is 10^6 bytes, `MiB` 2^20.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let factor = match unit {
        "" => Some(1),
        _ => UNITS.iter().find(|u| u.0.eq_ignore_ascii_case(unit)).map(|u| u.1),
    };
    let bytes = number.parse::<u64>().ok().zip(factor).and_then(|(n, f)| n.checked_mul(f));
    bytes
        .ok_or_else(|| format!("a size is expected, as 512KiB, 16MiB, 2GiB or bytes, not `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_and_decimal_units_differ() {
        assert_eq!(parse_size("512KiB"), Ok(512 * 1024));
        assert_eq!(parse_size("2gib"), Ok(2 << 30));
        assert_eq!(parse_size("16 MB"), Ok(16_000_000));
        assert_eq!(parse_size("4096"), Ok(4096));
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "MiB", "-1", "1.5GiB", "3 apples", "99999999999TiB"] {
            assert!(parse_size(text).is_err_and(|e| e.contains("16MiB")), "{text}");
        }
    }
}
