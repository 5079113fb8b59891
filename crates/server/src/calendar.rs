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
    let moment = Moment::of(seconds);
    let mut out = String::new();
    moment.write(pattern, &mut out)?;
    Ok(out)
}

/// What the conversions that stand for others stand for.
const COMPOUNDS: [(char, &str); 8] = [
    ('c', "%a %b %e %H:%M:%S %Y"),
    ('x', "%m/%d/%y"),
    ('D', "%m/%d/%y"),
    ('F', "%Y-%m-%d"),
    ('X', "%H:%M:%S"),
    ('T', "%H:%M:%S"),
    ('R', "%H:%M"),
    ('r', "%I:%M:%S %p"),
];

/// A second of a day of a year.
struct Moment {
    seconds: u64,
    date: Date,
    /// Days since the last Sunday.
    weekday: u64,
    /// Days since the first of January.
    year_day: u64,
}

impl Moment {
    fn of(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let date = Date::of(days);
        let year_day = days - days_before(date.year);
        Self { seconds, date, weekday: (days + 4) % 7, year_day }
    }

    fn write(&self, pattern: &str, out: &mut String) -> Result<(), String> {
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
            if let Some((_, pattern)) = COMPOUNDS.iter().find(|(name, _)| code == Some(*name)) {
                self.write(pattern, out)?;
                continue;
            }
            let text = match code {
                Some(code) => self.number(code, plain).or_else(|| self.name(code)),
                None => None,
            };
            let Some(text) = text else {
                let found = code.map_or_else(|| "%".to_owned(), |code| format!("%{code}"));
                return Err(format!("strftime_now: the conversion `{found}` is not known"));
            };
            out.push_str(&text);
        }
        Ok(())
    }

    /// Conversions to numbers, which have a width unless they are `plain`.
    fn number(&self, code: char, plain: bool) -> Option<String> {
        let hour = self.seconds / 3600 % 24;
        let twelfth = (hour + 11) % 12 + 1;
        let monday = (self.weekday + 6) % 7;
        let (week_year, week) = self.iso_week();
        let (value, width) = match code {
            'Y' => (self.date.year, 1),
            'C' => (self.date.year / 100, 2),
            'y' => (self.date.year % 100, 2),
            'm' => (self.date.month, 2),
            'd' => (self.date.day, 2),
            'j' => (self.year_day + 1, 3),
            'H' => (hour, 2),
            'I' => (twelfth, 2),
            'M' => (self.seconds / 60 % 60, 2),
            'S' => (self.seconds % 60, 2),
            'f' => (0, 6),
            'u' => (monday + 1, 1),
            'w' => (self.weekday, 1),
            'U' => ((self.year_day + 7 - self.weekday) / 7, 2),
            'W' => ((self.year_day + 7 - monday) / 7, 2),
            'V' => (week, 2),
            'G' => (week_year, 1),
            'g' => (week_year % 100, 2),
            's' => (self.seconds, 1),
            'e' | 'k' | 'l' => {
                let value = [self.date.day, hour, twelfth]["ekl".find(code)?];
                return Some(if plain { value.to_string() } else { format!("{value:2}") });
            }
            _ => return None,
        };
        Some(if plain { value.to_string() } else { format!("{value:0width$}") })
    }

    /// Conversions to words, which have no width.
    fn name(&self, code: char) -> Option<String> {
        let day = DAYS[self.weekday as usize];
        let month = MONTHS[(self.date.month - 1) as usize];
        let half = if self.seconds / 3600 % 24 < 12 { "AM" } else { "PM" };
        let text = match code {
            'p' => half,
            'P' => return Some(half.to_lowercase()),
            'A' => day,
            'a' => &day[..3],
            'B' => month,
            'b' | 'h' => &month[..3],
            'Z' => "UTC",
            'z' => "+0000",
            'n' => "\n",
            't' => "\t",
            '%' => "%",
            _ => return None,
        };
        Some(text.to_owned())
    }

    /// The week of the international calendar, which begins with a Monday, and its year: that of
    /// its Thursday.
    fn iso_week(&self) -> (u64, u64) {
        let days = self.seconds / 86_400;
        let thursday = days + 3 - (self.weekday + 6) % 7;
        let year = Date::of(thursday).year;
        (year, (thursday - days_before(year)) / 7 + 1)
    }
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
        // The last days of a year belong to the first week of the next one, and the other way.
        assert_eq!(
            format(1_735_600_000, "%F %G-%V %U %W %u%w").unwrap(),
            "2024-12-30 2025-01 52 53 11"
        );
        assert_eq!(format(1_609_459_200, "%F %G-%V %U %W").unwrap(), "2021-01-01 2020-53 00 00");
        assert_eq!(format(0, "%G-%V").unwrap(), "1970-01");
        assert!(
            format(0, "%Q").is_err()
                && format(0, "%").is_err()
                && format(0, &"x".repeat(300)).is_err()
        );
    }
}
