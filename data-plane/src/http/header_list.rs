//! The header fields of a request to an upstream.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Header fields in the order in which they are sent.
///
/// It is a list, because it exists for one request, is short, and is searched a few times. The
/// hashes and the allocation of a map would cost more than they save.
#[derive(Default)]
pub struct HeaderList(Vec<(HeaderName, HeaderValue)>);

impl HeaderList {
    /// Takes over the fields of `headers` that are to be kept; there will be some `more`.
    pub fn kept_of(headers: HeaderMap, more: usize, mut keep: impl FnMut(&HeaderName, &HeaderValue) -> bool) -> Self {
        let mut fields = Vec::with_capacity(headers.len() + more);
        let mut named: Option<HeaderName> = None;
        for (name, value) in headers {
            // A name is given once, before the first of its values.
            if name.is_some() {
                named = name;
            }
            if let Some(name) = &named
                && keep(name, &value)
            {
                fields.push((name.clone(), value));
            }
        }
        Self(fields)
    }

    /// The first value of `name`.
    #[must_use]
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// `value` alone, in place of whatever `name` had.
    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.retain(|(n, _)| *n != name);
        self.0.push((name, value));
    }

    /// Takes all values of `name` out.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n.as_str() != name);
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// As a map.
    #[cfg(test)]
    pub(crate) fn into_map(self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(self.0.len());
        for (name, value) in self.0 {
            headers.append(name, value);
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(fields: &HeaderList) -> Vec<String> {
        fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn every_value_of_a_name_is_kept_or_none() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("a", "5")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let mut fields = HeaderList::kept_of(headers.clone(), 1, |name, _| name != "b");
        assert_eq!(list(&fields), ["a: 1", "a: 3", "a: 5", "c: 4"]);
        fields.set(HeaderName::from_static("a"), HeaderValue::from_static("6"));
        assert_eq!(list(&fields), ["c: 4", "a: 6"]);
        fields.remove("c");
        assert!(fields.get(&HeaderName::from_static("c")).is_none());
        assert_eq!(fields.into_map()["a"], "6");
        let all = HeaderList::kept_of(headers.clone(), 0, |_, _| true).into_map();
        assert_eq!(all, headers);
        assert!(list(&HeaderList::kept_of(headers, 0, |_, value| value == "9")).is_empty());
    }
}
