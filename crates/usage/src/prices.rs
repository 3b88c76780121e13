//! What tokens cost: a file of prices, with the day from which each is valid and where it was read.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Tokens;

/// Millionths of a US dollar in a dollar.
pub const MICROS_PER_USD: u64 = 1_000_000;
/// Tokens that a price is for.
const TOKENS_PER_PRICE: u128 = 1_000_000;
/// Most dollars that a million tokens cost, against mistakes in a file.
const MOST: f64 = 1_000_000.0;

/// Prices of models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// By provider.
    models: BTreeMap<String, Vec<Price>>,
}

/// What a model costs from a day on, in millionths of a dollar for a million tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Price {
    /// A name, or with `*` the beginning of names.
    model: String,
    from: String,
    rates: Rates,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rates {
    input: u64,
    cached: u64,
    cache_written: u64,
    output: u64,
}

/// A price as a file has it, in dollars for a million tokens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// As `usage` of a service.
    provider: String,
    model: String,
    /// The first day, in UTC.
    from: String,
    /// Where the price was read.
    source: String,
    input: f64,
    /// Of input that is read from a cache. Default: `input`.
    cached: Option<f64>,
    /// Of input that is written to a cache. Default: `input`.
    cache_written: Option<f64>,
    output: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    price: Vec<Entry>,
}

/// Why a file of prices cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PricesError {
    /// It is no TOML, or has other keys.
    #[error("{0}")]
    Format(String),
    /// A value is wrong.
    #[error("price {at} (`{model}`): {what}")]
    Entry {
        /// Which `[[price]]`, from 1.
        at: usize,
        /// Its model.
        model: String,
        /// What is wrong.
        what: &'static str,
    },
}

impl Prices {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`PricesError`]: the text is no file of prices.
    pub fn parse(text: &str) -> Result<Self, PricesError> {
        let file: File = toml::from_str(text).map_err(|error| PricesError::Format(error.message().to_owned()))?;
        let mut models: BTreeMap<String, Vec<Price>> = BTreeMap::new();
        for (at, entry) in file.price.into_iter().enumerate() {
            let (provider, model) = (entry.provider.clone(), entry.model.clone());
            let price = entry.price().map_err(|what| PricesError::Entry { at: at + 1, model, what })?;
            models.entry(provider).or_default().push(price);
        }
        // The one to use comes last: a longer name before a shorter, then a later day.
        for prices in models.values_mut() {
            prices.sort_by(|a, b| (a.rank(), &a.from).cmp(&(b.rank(), &b.from)));
        }
        Ok(Self { models })
    }

    /// The most that tokens cost at a provider, whatever the model and day; at any provider, where
    /// this one has no price. In millionths of a dollar, rounded up.
    #[must_use]
    pub fn cost_at_most(&self, provider: &str, tokens: u64) -> u64 {
        let dearest = |prices: &Vec<Price>| prices.iter().map(|price| price.rates.dearest()).max();
        let own = self.models.get(provider).and_then(dearest);
        let rate = own.or_else(|| self.models.values().filter_map(dearest).max()).unwrap_or_default();
        Rates { output: rate, ..Rates::default() }.of(&Tokens { output: tokens, ..Tokens::default() })
    }

    /// What tokens cost on a day (`2026-12-01`, in UTC), in millionths of a dollar, rounded up.
    /// `None`: the model has no price on that day.
    #[must_use]
    pub fn cost(&self, provider: &str, model: &str, day: &str, tokens: &Tokens) -> Option<u64> {
        let valid = |price: &&Price| price.is_of(model) && price.from.as_str() <= day;
        let price = self.models.get(provider)?.iter().rev().find(valid)?;
        Some(price.rates.of(tokens))
    }
}

impl Entry {
    fn price(self) -> Result<Price, &'static str> {
        let Self { provider, model, from, source, input, cached, cache_written, output } = self;
        if provider.is_empty() || model.is_empty() || source.is_empty() {
            return Err("provider, model and source are not empty");
        }
        if model.find('*').is_some_and(|at| at + 1 != model.len()) {
            return Err("`*` is at the end of a model's name");
        }
        if !is_day(&from) {
            return Err("from is a day, such as 2026-12-01");
        }
        let rates = Rates {
            input: micros(input)?,
            cached: micros(cached.unwrap_or(input))?,
            cache_written: micros(cache_written.unwrap_or(input))?,
            output: micros(output)?,
        };
        Ok(Price { model, from, rates })
    }
}

impl Price {
    fn is_of(&self, model: &str) -> bool {
        match self.model.strip_suffix('*') {
            Some(beginning) => model.starts_with(beginning),
            None => self.model == model,
        }
    }

    /// Exact names come last, and long beginnings behind short ones.
    fn rank(&self) -> (bool, usize) {
        (!self.model.ends_with('*'), self.model.len())
    }
}

impl Rates {
    fn dearest(&self) -> u64 {
        let Self { input, cached, cache_written, output } = *self;
        [input, cached, cache_written, output].into_iter().max().unwrap_or_default()
    }

    fn of(&self, tokens: &Tokens) -> u64 {
        let Tokens { input, output, cached, cache_written, .. } = *tokens;
        let fresh = input.saturating_sub(cached).saturating_sub(cache_written);
        let parts =
            [(fresh, self.input), (cached, self.cached), (cache_written, self.cache_written), (output, self.output)];
        let sum: u128 = parts.iter().map(|(tokens, rate)| u128::from(*tokens) * u128::from(*rate)).sum();
        u64::try_from(sum.div_ceil(TOKENS_PER_PRICE)).unwrap_or(u64::MAX)
    }
}

/// Dollars in millionths.
fn micros(dollars: f64) -> Result<u64, &'static str> {
    if !(0.0..=MOST).contains(&dollars) {
        return Err("a price is 0 to 1000000 dollars for a million tokens");
    }
    Ok((dollars * MICROS_PER_USD as f64).round() as u64)
}

fn is_day(text: &str) -> bool {
    let is_right = |(at, byte): (usize, u8)| if matches!(at, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() };
    text.len() == 10 && text.bytes().enumerate().all(is_right)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [[price]]
        provider = "openai"
        model = "gpt-4o*"
        from = "2024-05-13"
        source = "https://openai.com/api/pricing"
        input = 5
        output = 15

        [[price]]
        provider = "openai"
        model = "gpt-4o*"
        from = "2024-10-02"
        source = "https://openai.com/api/pricing"
        input = 2.5
        cached = 1.25
        output = 10

        [[price]]
        provider = "openai"
        model = "gpt-4o-mini"
        from = "2024-07-18"
        source = "https://openai.com/api/pricing"
        input = 0.15
        cached = 0.075
        output = 0.6
    "#;

    #[test]
    fn the_price_of_the_day_and_of_the_longest_name_counts() {
        let prices = Prices::parse(FILE).unwrap();
        let tokens = Tokens { input: 1_000_000, output: 1_000_000, cached: 400_000, ..Tokens::default() };
        let cost = |model, day| prices.cost("openai", model, day, &tokens);
        assert_eq!(cost("gpt-4o-2024-08-06", "2024-10-01"), Some(20_000_000));
        assert_eq!(cost("gpt-4o-2024-08-06", "2024-10-02"), Some(1_500_000 + 500_000 + 10_000_000));
        assert_eq!(cost("gpt-4o-mini", "2026-12-01"), Some(90_000 + 30_000 + 600_000));
        assert_eq!(cost("gpt-4o", "2024-05-12"), None, "before its first day");
        assert_eq!(cost("gpt-4", "2026-12-01"), None);
        assert_eq!(prices.cost("x_ai", "gpt-4o", "2026-12-01", &tokens), None);
        assert_eq!(prices.cost_at_most("openai", 1_000_000), 15_000_000);
        assert_eq!(prices.cost_at_most("x_ai", 1_000_000), 15_000_000, "the dearest of all");
        let one = Tokens { input: 1, ..Tokens::default() };
        assert_eq!(prices.cost("openai", "gpt-4o-mini", "2026-12-01", &one), Some(1), "rounded up");
    }

    #[test]
    fn what_is_no_file_of_prices_is_named() {
        let entry = |key: &str, value: &str| {
            let first = FILE.split("[[price]]").nth(1).unwrap();
            let lines = first.lines().map(|line| match line.trim().strip_prefix(key) {
                Some(rest) if rest.starts_with(" =") => format!("{key} = {value}\n"),
                _ => format!("{line}\n"),
            });
            Prices::parse(&format!("[[price]]\n{}", lines.collect::<String>())).unwrap_err().to_string()
        };
        for (key, value, expected) in [
            ("from", "\"1 May 2024\"", "from is a day"),
            ("input", "-1", "a price is 0 to"),
            ("input", "nan", "a price is 0 to"),
            ("output", "\"5\"", "invalid type"),
            ("model", "\"a*b\"", "`*` is at the end"),
            ("source", "\"\"", "are not empty"),
            ("source", "\"x\"\ncurrency = \"EUR\"", "unknown field `currency`"),
        ] {
            let error = entry(key, value);
            assert!(error.contains(expected), "{key} = {value}: {error}");
        }
        assert!(Prices::parse("prices = 1").is_err());
    }
}
