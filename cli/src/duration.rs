//! Durations on the command line.

use std::time::Duration;

/// Now, in Unix seconds.
#[must_use]
pub fn unix_now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.ok().and_then(|d| i64::try_from(d.as_secs()).ok()).unwrap_or_default()
}

/// Parses `30s`, `1h 30m`, `7d`; up to ten years. A number without a unit is refused: some tools
/// mean seconds, others hours.
///
/// # Errors
/// A text that says what is wrong.
pub fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(3650 * 24 * 3600);
    if let Ok(number @ 1..) = text.parse::<u64>() {
        return Err(format!("a unit is missing: {number}s, {number}m, {number}h or {number}d"));
    }
    let parsed = match text.trim_start_matches('0') {
        "" if !text.is_empty() => Duration::ZERO,
        _ => humantime::parse_duration(text).map_err(|_| "a duration looks like 30s, 15m, 24h or 7d".to_owned())?,
    };
    if parsed.is_zero() || parsed > LONGEST {
        return Err("longer than 0 and at most 10 years".into());
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_bounds() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("24").unwrap_err(), "a unit is missing: 24s, 24m, 24h or 24d");
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "x", "-1s", "0", "0s", "100y", "99999999999999999999"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
