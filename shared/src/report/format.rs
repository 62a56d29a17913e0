//! Numbers and texts as people read them.

/// A whole number with its thousands apart: `37,611`.
pub fn count(number: u64) -> String {
    group_thousands(&number.to_string())
}

/// A number rounded to `digits` significant digits, whole digits always kept: `0.0421`, `12.3`,
/// `850`, `37,611`; with an exponent (`1.20e-5`) below 0.0001 and from 10^15.
pub fn significant(value: f64, digits: usize) -> String {
    let decimals = digits.max(1) - 1;
    let scientific = format!("{value:.decimals$e}");
    // The exponent after rounding: 9.996 to three digits is 10.0, not 10.00.
    let Some(exponent) = scientific.split_once('e').and_then(|(_, e)| e.parse::<i32>().ok()) else {
        return scientific; // NaN or an infinity
    };
    if value != 0.0 && !(-4..15).contains(&exponent) {
        return scientific;
    }
    let decimals = decimals.saturating_add_signed(-exponent as isize);
    group_thousands(&format!("{value:.decimals$}"))
}

/// A time span: `12.3 ms`, `4.20 s`, `43.0 s`, `2 min 05 s`, `3 h 12 min`, `2 d 4 h`.
pub fn duration(seconds: f64) -> String {
    let scaled = |factor: f64, unit: &str| format!("{} {unit}", significant(seconds * factor, 3));
    match seconds.abs() {
        size if !size.is_finite() || (0.9995..59.95).contains(&size) => scaled(1.0, "s"),
        0.0 => "0 s".into(),
        size if size < 0.9995e-6 => scaled(1e9, "ns"),
        size if size < 0.9995e-3 => scaled(1e6, "us"),
        size if size < 0.9995 => scaled(1e3, "ms"),
        size => {
            let sign = if seconds < 0.0 { "-" } else { "" };
            sign.to_string() + &long_duration(size)
        }
    }
}

/// A time span of about a minute or more, in the largest unit that fits and the next.
fn long_duration(seconds: f64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let to = |unit: u64| (seconds / unit as f64).round() as u64;
    if to(1) < HOUR {
        format!("{} min {:02} s", to(1) / 60, to(1) % 60)
    } else if to(MINUTE) * MINUTE < DAY {
        format!("{} h {:02} min", to(MINUTE) / 60, to(MINUTE) % 60)
    } else {
        format!("{} d {} h", count(to(HOUR) / 24), to(HOUR) % 24)
    }
}

/// A size in decimal units: `812 B`, `12.3 kB`, `8.00 MB`, `1.50 GB`.
pub fn bytes(size: u64) -> String {
    if size < 1000 {
        return format!("{size} B");
    }
    let mut value = size as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        // 999,950 bytes are 1.00 MB, not 1000 kB.
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, larger);
    }
    format!("{} {unit}", significant(value, 3))
}

/// A share from 0 to 1 in percent: `5.23 %`.
pub fn percent(share: f64, decimals: usize) -> String {
    format!("{:.decimals$} %", 100.0 * share)
}

/// A share from 0 to 1 in percent with its confidence interval: `5.23 % (4.87 to 5.61)`.
pub fn percent_with_interval(share: f64, low: f64, high: f64, decimals: usize) -> String {
    let (low, high) = (100.0 * low, 100.0 * high);
    format!("{} ({low:.decimals$} to {high:.decimals$})", percent(share, decimals))
}

/// A number with its confidence interval: `0.412 (0.387 to 0.440)`.
pub fn number_with_interval(value: f64, low: f64, high: f64, decimals: usize) -> String {
    format!("{value:.decimals$} ({low:.decimals$} to {high:.decimals$})")
}

/// The text without line breaks and other control characters, which would tear a line or steer a
/// terminal.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Puts a comma before every third of the whole digits of a decimal number.
fn group_thousands(number: &str) -> String {
    let sign_length = usize::from(number.starts_with('-'));
    let (sign, number) = number.split_at(sign_length);
    let (whole, fraction) = number.split_at(number.find('.').unwrap_or(number.len()));
    let mut grouped = sign.to_string();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (37_611, "37,611"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn significant_digits_are_kept_after_rounding() {
        for (value, digits, text) in [
            (0.0, 3, "0.00"),
            (0.042_05, 3, "0.0420"),
            (0.000_12, 2, "0.00012"),
            (0.000_012, 3, "1.20e-5"),
            (9.996, 3, "10.0"),
            (999.6, 3, "1,000"),
            (-1234.5, 2, "-1,234"),
            (-123.0, 3, "-123"),
            (37_611.0, 3, "37,611"),
            (2e15, 3, "2.00e15"),
            (7.0, 0, "7"),
            (f64::NAN, 3, "NaN"),
            (f64::NEG_INFINITY, 3, "-inf"),
        ] {
            assert_eq!(significant(value, digits), text, "{value} to {digits}");
        }
    }

    #[test]
    fn durations_change_unit_where_rounding_does() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (12.34e-9, "12.3 ns"),
            (0.9996e-6, "1.00 us"),
            (0.012_34, "12.3 ms"),
            (0.9994, "999 ms"),
            (0.9996, "1.00 s"),
            (59.94, "59.9 s"),
            (59.96, "1 min 00 s"),
            (125.4, "2 min 05 s"),
            (3599.4, "59 min 59 s"),
            (3599.6, "1 h 00 min"),
            (86_399.0, "1 d 0 h"),
            (187_300.0, "2 d 4 h"),
            (-125.0, "-2 min 05 s"),
            (f64::INFINITY, "inf s"),
            (f64::NAN, "NaN s"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds} s");
        }
    }

    #[test]
    fn sizes_change_unit_where_rounding_does() {
        for (size, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (999_499, "999 kB"),
            (999_950, "1.00 MB"),
            (8_000_000, "8.00 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn terminals_are_not_steered() {
        assert_eq!(one_line("a\r\n\u{1b}[2Jb\u{9b}c"), "a   [2Jb c");
    }

    #[test]
    fn shares_and_intervals() {
        assert_eq!(percent(0.05234, 2), "5.23 %");
        assert_eq!(percent_with_interval(0.05234, 0.0487, 0.0561, 2), "5.23 % (4.87 to 5.61)");
        assert_eq!(number_with_interval(0.4, 0.3, 0.5004, 3), "0.400 (0.300 to 0.500)");
    }
}
