//! Sizes, durations and rates for people.
#![forbid(unsafe_code)]

use core::fmt;

/// Bytes, shown in the largest binary unit with one decimal where it is not whole.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut unit = 0;
        while unit + 1 < UNITS.len() && self.0 >> (10 * (unit + 1)) > 0 {
            unit += 1;
        }
        let shift = 10 * unit as u32;
        let whole = self.0 >> shift;
        let tenth = if unit == 0 {
            0
        } else {
            ((self.0 >> (shift - 10)) & 1023) * 10 / 1024
        };
        let mut text: heapless::String<24> = heapless::String::new();
        use fmt::Write;
        // 24 bytes hold every u64.
        let _ = match tenth {
            0 => write!(text, "{whole} {}", UNITS[unit]),
            _ => write!(text, "{whole}.{tenth} {}", UNITS[unit]),
        };
        f.pad(&text)
    }
}

/// Nanoseconds, shown in the unit that leaves one to three digits before the point.
pub struct Duration(pub u64);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text: heapless::String<24> = heapless::String::new();
        use fmt::Write;
        let ns = self.0;
        // 24 bytes hold every u64.
        let _ = match ns {
            0..1_000 => write!(text, "{ns} ns"),
            1_000..1_000_000 => write!(text, "{}.{} us", ns / 1_000, ns / 100 % 10),
            1_000_000..1_000_000_000 => write!(text, "{}.{} ms", ns / 1_000_000, ns / 100_000 % 10),
            1_000_000_000..120_000_000_000 => {
                write!(text, "{}.{} s", ns / 1_000_000_000, ns / 100_000_000 % 10)
            }
            120_000_000_000..7_200_000_000_000 => write!(text, "{} min", ns / 60_000_000_000),
            7_200_000_000_000..172_800_000_000_000 => write!(text, "{} h", ns / 3_600_000_000_000),
            _ => write!(text, "{} days", ns / 86_400_000_000_000),
        };
        f.pad(&text)
    }
}

/// Reads a size such as `512`, `4k`, `1m`, `2g`.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn sizes_and_durations_read_well() {
        assert_eq!(format!("{}", Size(0)), "0 B");
        assert_eq!(format!("{}", Size(1023)), "1023 B");
        assert_eq!(format!("{}", Size(1536)), "1.5 KiB");
        assert_eq!(format!("{}", Size(64 << 20)), "64 MiB");
        assert_eq!(format!("{}", Size(u64::MAX)), "15.9 EiB");
        assert_eq!(format!("{:>9}|", Size(1 << 30)), "    1 GiB|");
        assert_eq!(format!("{}", Duration(55_400)), "55.4 us");
        assert_eq!(format!("{}", Duration(30_000_000_000)), "30.0 s");
        assert_eq!(format!("{}", Duration(u64::MAX)), "213503 days");
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("4k"), Some(4096));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("1M"), Some(1 << 20));
        for bad in ["", "k", "-1", "4kk", "99999999999999999999", "17179869184g"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
