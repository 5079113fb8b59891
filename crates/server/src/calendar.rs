//! The clock, and dates for chat templates, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Whole seconds since the beginning of 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A moment as `strftime` writes it, `seconds` after 1970.
///
/// # Errors
/// A conversion that is not known, or a pattern of more than 256 bytes.
pub(crate) fn format(seconds: u64, pattern: &str) -> Result<String, String> {
    if pattern.len() > 256 {
        return Err(format!(
            "strftime_now: a pattern of {} bytes, expected at most 256",
            pattern.len()
        ));
    }
    let days = seconds / 86_400;
    let Date { year, month, day } = Date::of(days);
    let hour = seconds / 3600 % 24;
    let minute = seconds / 60 % 60;
    let second = seconds % 60;
    let weekday = DAYS[((days + 4) % 7) as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let year_day = days - days_before(year) + 1;
    let mut out = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (plain, code) = match chars.next() {
            Some('-') => (true, chars.next()),
            other => (false, other),
        };
        let number = |value: u64, width: usize| {
            if plain { value.to_string() } else { format!("{value:0width$}") }
        };
        let text = match code {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => number(year_day, 3),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('s') => seconds.to_string(),
            Some('%') => "%".to_owned(),
            other => return Err(format!("strftime_now: conversion {other:?} is not known")),
        };
        out.push_str(&text);
    }
    Ok(out)
}

/// Days from 1970 to the first of January of `year`.
fn days_before(year: u64) -> u64 {
    let y = year - 1;
    y * 365 + y / 4 - y / 100 + y / 400 - 719_162
}

/// A date of the Gregorian calendar; month and day count from 1.
struct Date {
    year: u64,
    month: u64,
    day: u64,
}

impl Date {
    /// The date `days` days after the first of January 1970.
    fn of(days: u64) -> Self {
        let mut year = 1970 + days / 366;
        while days_before(year + 1) <= days {
            year += 1;
        }
        let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut rest = days - days_before(year);
        let mut month = 1;
        for length in lengths {
            if rest < length {
                break;
            }
            rest -= length;
            month += 1;
        }
        Self { year, month, day: rest + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        let all = "%Y-%m-%d %H:%M:%S %A %b %j %-d %I%p";
        assert_eq!(format(0, all).unwrap(), "1970-01-01 00:00:00 Thursday Jan 001 1 12AM");
        assert_eq!(
            format(951_827_696, all).unwrap(),
            "2000-02-29 12:34:56 Tuesday Feb 060 29 12PM"
        );
        assert_eq!(
            format(1_735_689_599, all).unwrap(),
            "2024-12-31 23:59:59 Tuesday Dec 366 31 11PM"
        );
        assert_eq!(format(4_102_444_800, "%F %T %y%%").unwrap(), "2100-01-01 00:00:00 00%");
        assert!(
            format(0, "%Q").is_err()
                && format(0, "%").is_err()
                && format(0, &"x".repeat(300)).is_err()
        );
    }
}
