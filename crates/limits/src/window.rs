//! Windows of the wall clock, in UTC: a minute begins at second 0, a month on its first day.

use std::fmt;

/// The period that an amount is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// One second.
    Second,
    /// From second 0.
    Minute,
    /// From minute 0.
    Hour,
    /// From 00:00 UTC.
    Day,
    /// From the first day, 00:00 UTC.
    Month,
}

/// One window: from `start` up to `end`, in Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first millisecond.
    pub start: u64,
    /// The first millisecond after it.
    pub end: u64,
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

impl Window {
    const NAMES: [(Self, &'static str, &'static str); 5] = [
        (Self::Second, "second", "s"),
        (Self::Minute, "minute", "m"),
        (Self::Hour, "hour", "h"),
        (Self::Day, "day", "d"),
        (Self::Month, "month", "mo"),
    ];

    /// The window of a name such as `minute`, or of its short form.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let is = |(_, long, short): &&(Self, &str, &str)| name == *long || name == *short || name == format!("{long}s");
        Self::NAMES.iter().find(is).map(|(window, ..)| *window)
    }

    /// The window that `unix_ms` is in.
    #[must_use]
    pub fn span(self, unix_ms: u64) -> Span {
        let fixed = |length: u64| {
            let start = unix_ms - unix_ms % length;
            Span { start, end: start + length }
        };
        match self {
            Self::Second => fixed(1000),
            Self::Minute => fixed(60_000),
            Self::Hour => fixed(3_600_000),
            Self::Day => fixed(DAY_MS),
            Self::Month => month(unix_ms),
        }
    }
}

/// The month of the Gregorian calendar, from the day's number since 1970 (H. Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms"): years begin in March, so that a leap day is
/// last.
fn month(unix_ms: u64) -> Span {
    let days = unix_ms / DAY_MS + DAYS_TO_1970;
    let (era, day_of_era) = (days / DAYS_OF_ERA, days % DAYS_OF_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - first_day(year_of_era);
    let month = (5 * day_of_year + 2) / 153;
    let start =
        |year: u64, month: u64| (era * DAYS_OF_ERA + first_day(year) + (153 * month + 2) / 5 - DAYS_TO_1970) * DAY_MS;
    let end = match month {
        11 => start(year_of_era + 1, 0),
        _ => start(year_of_era, month + 1),
    };
    Span { start: start(year_of_era, month), end }
}

/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: u64 = 719_468;
/// Days of 400 years.
const DAYS_OF_ERA: u64 = 146_097;

/// The day of an era on which a year begins.
const fn first_day(year_of_era: u64) -> u64 {
    365 * year_of_era + year_of_era / 4 - year_of_era / 100 + year_of_era / 400
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(window, ..)| window == self).map_or("", |(_, name, _)| name);
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29 23:59:59.999 UTC.
    const LEAP: u64 = 1_709_251_199_999;

    #[test]
    fn windows_begin_where_the_calendar_does() {
        let length = |window: Window| {
            let span = window.span(LEAP);
            assert!(span.start <= LEAP && LEAP < span.end, "{window}");
            assert_eq!(window.span(span.end).start, span.end, "{window}: the next one begins where it ends");
            assert_eq!(window.span(span.start), span, "{window}");
            span.end - span.start
        };
        assert_eq!(length(Window::Second), 1000);
        assert_eq!(length(Window::Minute), 60_000);
        assert_eq!(length(Window::Hour), 3_600_000);
        assert_eq!(length(Window::Day), DAY_MS);
        assert_eq!(length(Window::Month), 29 * DAY_MS);
        // 2000-02-29 12:00 UTC: the last day of an era.
        assert_eq!(Window::Month.span(951_825_600_000), Span { start: 949_363_200_000, end: 951_868_800_000 });
        assert_eq!(Window::Month.span(1_735_689_599_000).end, 1_735_689_600_000, "December ends with the year");
    }

    #[test]
    fn every_name_reads_back() {
        for (window, long, short) in Window::NAMES {
            assert_eq!(Window::parse(&window.to_string()), Some(window));
            assert_eq!((Window::parse(long), Window::parse(short)), (Some(window), Some(window)));
        }
        assert_eq!(Window::parse("week"), None);
    }
}
