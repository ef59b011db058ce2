//! Numbers as a person reads them.

/// A time: three digits and the unit that suits it.
#[must_use]
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns.abs() {
        size if size < 999.5 => return format!("{ns:.0} ns"),
        size if size < 999_500.0 => (ns / 1e3, "µs"),
        size if size < 999_500_000.0 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

/// The time of day, UTC, of nanoseconds since 1970: to the microsecond.
#[must_use]
pub fn time_of_day(ns_since_1970: u64) -> String {
    let (seconds, us) = (ns_since_1970 / 1_000_000_000, ns_since_1970 / 1000 % 1_000_000);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{us:06}", seconds % 60)
}

/// A number with SI prefix, without unit: `12.3k`.
#[must_use]
pub fn scaled(value: f64) -> String {
    match value.abs() {
        size if size < 999.5 => format!("{value:.0}"),
        size if size < 999_500.0 => format!("{}k", three_digits(value / 1e3)),
        size if size < 999_500_000.0 => format!("{}M", three_digits(value / 1e6)),
        _ => format!("{}G", three_digits(value / 1e9)),
    }
}

/// A whole number with its thousands apart: `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `part` of `whole` in percent.
#[must_use]
pub fn percent(part: f64, whole: f64) -> String {
    if whole == 0.0 { "-".into() } else { format!("{:.1} %", 100.0 * part / whole) }
}

fn three_digits(value: f64) -> String {
    match value.abs() {
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (ns, text) in [
            (0.0, "0 ns"),
            (999.4, "999 ns"),
            (999.6, "1.00 µs"),
            (12_345.0, "12.3 µs"),
            (-12_345.0, "-12.3 µs"),
            (999_600.0, "1.00 ms"),
            (123_456_789.0, "123 ms"),
            (5e9, "5.00 s"),
        ] {
            assert_eq!(time(ns), text);
        }
    }

    #[test]
    fn a_day_begins_at_midnight() {
        assert_eq!(time_of_day(0), "00:00:00.000000");
        assert_eq!(time_of_day(1_000_000_000_000_001_999), "01:46:40.000001");
        assert_eq!(time_of_day(86_399_999_999_999), "23:59:59.999999");
    }

    #[test]
    fn counts_are_grouped_and_rates_scaled() {
        assert_eq!((grouped(0), grouped(999)), ("0".into(), "999".into()));
        assert_eq!((grouped(1000), grouped(1_234_567)), ("1,000".into(), "1,234,567".into()));
        assert_eq!((scaled(12.0), scaled(12_345.0)), ("12".into(), "12.3k".into()));
        assert_eq!(percent(1.0, 0.0), "-");
    }
}
