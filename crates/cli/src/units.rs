//! Sizes and dates as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

/// `512 B`, `1.5 KiB`, `24.0 GiB`.
pub fn human_bytes(bytes: f64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (bytes, None);
    for larger in UNITS {
        // What would be rounded to 1024.0 is one of the next unit.
        if size < 1023.95 {
            break;
        }
        (size, unit) = (size / 1024.0, Some(larger));
    }
    unit.map_or_else(|| format!("{size:.0} B"), |unit| format!("{size:.1} {unit}"))
}

/// A time in seconds since 1970 as `2026-11-26 07:20`, in UTC.
pub fn utc(seconds: f64) -> String {
    let minutes = (seconds / 60.0).floor() as i64;
    let (days, minute) = (minutes.div_euclid(24 * 60), minutes.rem_euclid(24 * 60));
    let (year, month, day) = civil(days);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}", minute / 60, minute % 60)
}

/// The seconds since 1970; negative before.
pub fn seconds_since_1970(time: SystemTime) -> f64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

/// Year, month and day of a number of days since 1970. Years are counted from March on, so that the leap day is their last, and
/// in eras of 400 years, of 146,097 days each.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_BEFORE_1970: i64 = 719_468; // from March 1 of year 0
    let days = days + DAYS_BEFORE_1970;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (400 * era + year_of_era + i64::from(month <= 2), month, day)
}

/// A perplexity in a few digits: `12.345`, `1.2e9`, `inf`.
pub fn perplexity(value: f64) -> String {
    if value < 1e6 || !value.is_finite() { format!("{value:.3}") } else { format!("{value:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_keeps_them_below_1024() {
        for (bytes, text) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1024.0, "1.0 KiB"),
            (1536.0, "1.5 KiB"),
            (1_048_575.0, "1.0 MiB"),
            (24.0 * 1024f64.powi(3), "24.0 GiB"),
            (5000.0 * 1024f64.powi(4), "5000.0 TiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0.0, "1970-01-01 00:00"),
            (-1.0, "1969-12-31 23:59"),
            (951_782_400.0, "2000-02-29 00:00"),
            (951_868_800.0, "2000-03-01 00:00"),
            (1_795_677_599.9, "2026-11-26 07:19"),
            (4_107_542_400.0, "2100-03-01 00:00"),
        ] {
            assert_eq!(utc(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn a_large_perplexity_takes_few_digits() {
        let shown = [5.0124, 999_999.4, 1.25e9, 1e150, f64::INFINITY].map(perplexity);
        assert_eq!(shown, ["5.012", "999999.400", "1.2e9", "1.0e150", "inf"]);
    }
}
