//! The query of an address, as forms write it.

use percent_encoding::percent_decode_str;

/// Names and values.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn read(query: &str) -> Self {
        let part = |text: &str| decoded(&text.replace('+', " "));
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        Self(pairs.filter_map(|(name, value)| Some((part(name)?, part(value)?))).collect())
    }

    /// The first value of that name; `""`: none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(have, _)| have == name).map_or("", |(_, value)| value.trim())
    }
}

/// Percent-decoded text. `None`: it is not UTF-8.
pub(super) fn decoded(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(Into::into)
}
