//! What a limit says: `100 requests/minute`, `5 concurrent requests`, `1000 requests/day each
//! agent`.

use std::{fmt, str::FromStr};

use super::Window;

/// Largest amount of a limit: sums of it fit in 64 bits.
const MAX_AMOUNT: u64 = 1 << 53;

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Quantity {
    /// Requests that are sent to an upstream.
    Requests,
    /// Requests at the same time, counted at each node.
    Concurrent,
}

/// How much of what, in which window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// At most so many: 1 to 2^53.
    pub amount: u64,
    /// What is counted.
    pub quantity: Quantity,
    /// `None` for [`Quantity::Concurrent`].
    pub window: Option<Window>,
    /// Each agent has the whole amount. Otherwise all agents share it.
    pub each_agent: bool,
}

/// Why a text is no limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no limit: write \"100 requests/minute\" or \"5 concurrent requests\", and \" each agent\" behind it where agents do not share it; windows are second, minute, hour, day, month"
)]
pub struct LimitError(String);

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        read(text).ok_or_else(|| LimitError(text.chars().filter(|c| !c.is_control()).take(80).collect()))
    }
}

fn read(text: &str) -> Option<Limit> {
    let (text, each_agent) = match text.trim().strip_suffix(" each agent") {
        Some(shorter) => (shorter.trim_end(), true),
        None => (text.trim(), false),
    };
    let (amount, what) = text.split_once(' ')?;
    let digits = !amount.is_empty() && amount.bytes().all(|b| b.is_ascii_digit());
    let amount = amount.parse().ok().filter(|amount| digits && (1..=MAX_AMOUNT).contains(amount))?;
    let limit = |quantity, window| Limit { amount, quantity, window, each_agent };
    match what.trim().split_once('/') {
        None if matches!(what.trim(), "concurrent requests" | "concurrent request") => {
            Some(limit(Quantity::Concurrent, None))
        }
        None => None,
        Some((quantity, window)) => {
            let quantity = match quantity.trim() {
                "requests" | "request" => Quantity::Requests,
                _ => return None,
            };
            Some(limit(quantity, Some(Window::parse(window.trim())?)))
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.quantity {
            Quantity::Requests => "requests",
            Quantity::Concurrent => "concurrent requests",
        };
        write!(f, "{} {what}", self.amount)?;
        if let Some(window) = self.window {
            write!(f, "/{window}")?;
        }
        if self.each_agent { f.write_str(" each agent") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_read_back_as_they_are_written() {
        for text in ["100 requests/minute", "5 concurrent requests", "1 requests/month each agent"] {
            assert_eq!(text.parse::<Limit>().unwrap().to_string(), text);
        }
        assert_eq!("10 requests/s".parse(), "10 requests/second".parse::<Limit>());
    }

    #[test]
    fn what_is_no_limit_is_refused_with_an_example() {
        let wrong = [
            "",
            "100",
            "100 requests",
            "0 requests/minute",
            "-1 requests/minute",
            "+1 requests/minute",
            "1.5 requests/minute",
            "100 requests/week",
            "100 apples/day",
            "5 concurrent requests/minute",
            "9007199254740993 requests/day",
            "100 tokens/day",
            "99999999999999999999 requests/day",
            "100 requests/minute each group",
        ];
        for text in wrong {
            let error = text.parse::<Limit>().expect_err(text).to_string();
            assert!(error.contains("100 requests/minute"), "{error}");
        }
    }
}
