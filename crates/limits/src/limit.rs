//! What a limit says: `100 requests/minute`, `5 concurrent requests`, `100000 tokens/day`, `5
//! USD/day`, `1000 requests/day each agent`.

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
    /// Tokens that models use, of input and output, as their providers count them.
    Tokens,
    /// What models' answers cost at the node's prices, in [`PER_USD`]ths of a US dollar.
    Money,
}

impl Quantity {
    /// Whether it is known only when an answer has ended.
    #[must_use]
    pub fn is_usage(self) -> bool {
        matches!(self, Self::Tokens | Self::Money)
    }
}

/// Units of [`Quantity::Money`] in a US dollar.
pub const PER_USD: u64 = 1_000_000;
/// Digits behind the point of an amount of money.
const USD_DIGITS: usize = 6;

/// How much of what, in which window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// At most so many: 1 to 2^53. Of money, in [`PER_USD`]ths of a dollar.
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
    "`{0}` is no limit: write \"100 requests/minute\", \"100000 tokens/day\", \"5 USD/day\" or \"5 concurrent requests\", and \" each agent\" behind it where agents do not share it; an amount is a whole number from 1 to 2^53 (of USD with at most 6 decimals), and windows are second, minute, hour, day, month"
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
    let (quantity, window) = match what.trim().split_once('/') {
        None => (what.trim(), None),
        Some((quantity, window)) => (quantity.trim(), Some(Window::parse(window.trim())?)),
    };
    let quantity = match (quantity, window.is_some()) {
        ("concurrent requests" | "concurrent request", false) => Quantity::Concurrent,
        ("requests" | "request", true) => Quantity::Requests,
        ("tokens" | "token", true) => Quantity::Tokens,
        ("USD", true) => Quantity::Money,
        _ => return None,
    };
    let amount = if quantity == Quantity::Money { money(amount)? } else { whole(amount)? };
    (1..=MAX_AMOUNT).contains(&amount).then_some(Limit { amount, quantity, window, each_agent })
}

/// Digits alone: `parse` would also take a sign.
fn whole(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// `5`, `0.25`: dollars.
fn money(text: &str) -> Option<u64> {
    let (dollars, parts) = text.split_once('.').unwrap_or((text, "0"));
    if parts.is_empty() || parts.len() > USD_DIGITS {
        return None;
    }
    let parts = whole(&format!("{parts:0<USD_DIGITS$}"))?;
    whole(dollars)?.checked_mul(PER_USD)?.checked_add(parts)
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quantity {
            Quantity::Requests => write!(f, "{} requests", self.amount)?,
            Quantity::Concurrent => write!(f, "{} concurrent requests", self.amount)?,
            Quantity::Tokens => write!(f, "{} tokens", self.amount)?,
            Quantity::Money => write!(f, "{} USD", Usd(self.amount))?,
        }
        if let Some(window) = self.window {
            write!(f, "/{window}")?;
        }
        if self.each_agent { f.write_str(" each agent") } else { Ok(()) }
    }
}

/// An amount of money as it is written: `5`, `0.25`.
#[derive(Clone, Copy, Debug)]
pub struct Usd(pub u64);

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dollars, parts) = (self.0 / PER_USD, self.0 % PER_USD);
        match parts {
            0 => write!(f, "{dollars}"),
            _ => f.write_str(format!("{dollars}.{parts:0USD_DIGITS$}").trim_end_matches('0')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_read_back_as_they_are_written() {
        for text in [
            "100 requests/minute",
            "5 concurrent requests",
            "1 requests/month each agent",
            "100000 tokens/day",
            "1 tokens/second each agent",
            "5 USD/day",
            "0.25 USD/hour each agent",
            "0.000001 USD/month",
        ] {
            assert_eq!(text.parse::<Limit>().unwrap().to_string(), text);
        }
        assert_eq!("10 requests/s".parse(), "10 requests/second".parse::<Limit>());
        assert_eq!("5.50 USD/day".parse(), "5.5 USD/day".parse::<Limit>());
        assert_eq!("1 USD/day".parse::<Limit>().unwrap().amount, PER_USD);
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
            "100 tokens",
            "1.5 tokens/day",
            "$5/day",
            "5 usd/day",
            "0 USD/day",
            "0.0000001 USD/day",
            "5. USD/day",
            ".5 USD/day",
            "1e3 USD/day",
            "-5 USD/day",
            "5,5 USD/day",
            "99999999999 USD/day",
            "18446744073709551615 USD/day",
            "1e3 tokens/day",
            "1_000 tokens/day",
            "1,000 tokens/day",
            "10k tokens/day",
            " tokens/day",
            "5 tokens /",
            "5 tokens/day/hour",
            "5 tokens/Day",
            "100  requests/minute per agent",
            "18446744073709551615 tokens/day",
            "5 concurrent tokens",
            "99999999999999999999 requests/day",
            "100 requests/minute each group",
        ];
        for text in wrong {
            let error = text.parse::<Limit>().expect_err(text).to_string();
            assert!(error.contains("100 requests/minute"), "{error}");
        }
    }
}
