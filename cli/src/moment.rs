//! Times in the past on the command line: as durations before now, or as dates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{
    duration::duration,
    error::{CliError, Result},
};

/// Dates before this one are mistakes: no trail is older.
const EARLIEST: Duration = Duration::from_secs(946_684_800); // 2000-01-01

/// A time in the past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self::of(SystemTime::now())
    }

    fn of(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
    }

    /// Unix microseconds.
    #[must_use]
    pub fn unix_us(self) -> u64 {
        self.0
    }
}

/// Parses `24h` as the time 24 hours ago, and `2026-11-30` or `2026-11-30T12:00:00Z` as that time
/// in UTC.
///
/// # Errors
/// A text that says what is wrong.
pub fn moment(text: &str) -> std::result::Result<Moment, String> {
    let is_date = text.len() >= 10 && text.get(4..5) == Some("-");
    if !is_date {
        let ago = duration(text).map_err(|why| match why.as_str() {
            "a duration looks like 30s, 15m, 24h or 7d" => {
                format!("{why}, a time like 2026-11-30 or 2026-11-30T12:00:00Z")
            }
            _ => why,
        })?;
        return Ok(Moment(Moment::now().0.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX))));
    }
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = humantime::parse_rfc3339_weak(&whole)
        .map_err(|_| "a time looks like 2026-11-30 or 2026-11-30T12:00:00Z, in UTC".to_owned())?;
    if time < UNIX_EPOCH + EARLIEST {
        return Err("before the year 2000".into());
    }
    if time > SystemTime::now() {
        return Err("in the future".into());
    }
    Ok(Moment::of(time))
}

/// The period from `since` until `until` (`None`: now), in Unix microseconds; 0 as its end: no end.
///
/// # Errors
/// Exit code 2 if the period ends before it begins.
pub fn period(since: Moment, until: Option<Moment>) -> Result<(u64, u64)> {
    match until {
        Some(until) if until <= since => {
            Err(CliError::usage("--until", "not after --since: the period would be empty"))
        }
        until => Ok((since.unix_us(), until.map_or(0, Moment::unix_us))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_durations_before_now_or_dates() {
        let day = 24 * 3600 * 1_000_000;
        let yesterday = moment("1d").unwrap().0;
        assert!(Moment::now().0.abs_diff(yesterday + day) < 60_000_000);
        let noon = 1_769_774_400_000_000; // 2026-01-30T12:00:00Z
        for (text, expected) in [
            ("2026-01-30", noon - day / 2),
            ("2026-01-30T12:00:00Z", noon),
            ("2026-01-30T12:00:00", noon),
            ("2026-01-30 12:00:00.5", noon + 500_000),
        ] {
            assert_eq!(moment(text), Ok(Moment(expected)), "{text}");
        }
        for bad in [
            "",
            "x",
            "0s",
            "-1h",
            "24",
            "2026-13-01",
            "2026-02-30",
            "2026-01-30T25:00:00Z",
            "1969-01-01",
            "2999-01-01",
            "2026-01-3ü",
        ] {
            assert!(moment(bad).is_err(), "{bad}");
        }
        assert_eq!(moment("2999-01-01").unwrap_err(), "in the future");
        assert!(moment("yesterday").unwrap_err().contains("a time like 2026-11-30"));
    }

    #[test]
    fn a_period_ends_after_it_begins() {
        assert_eq!(period(Moment(5), Some(Moment(9))).unwrap(), (5, 9));
        assert_eq!(period(Moment(5), None).unwrap(), (5, 0));
        for until in [4, 5] {
            assert!(period(Moment(5), Some(Moment(until))).unwrap_err().why.contains("--since"));
        }
    }
}
