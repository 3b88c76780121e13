//! Real secrets: the only type that may hold them, and the encoding of a credential's fields.

use zeroize::Zeroize;

/// The bytes of a real secret. No `Debug`, `Display`, `Serialize`, `Clone` or `PartialEq`. Wiped
/// when dropped.
///
/// `expose()` is called only where a secret is sealed, encoded for a node, injected or searched
/// for. `rg 'expose\(\)'` lists every such place.
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Takes ownership of the bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into_boxed_slice())
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A credential's named fields, encoded as one secret:
/// `count u8, (name_len u8, name, value_len u16 LE, value)…`. Reading a field copies nothing.
pub struct Fields(Secret);

/// Why a credential's secret is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldsError {
    /// The secret is empty.
    #[error("the secret is empty")]
    Empty,
    /// More than 255 fields, a name over 255 bytes or a value over 16 KiB.
    #[error("the secret is too large: at most 255 fields of at most 16 KiB each")]
    TooLarge,
    /// Bytes that no HTTP header or URL can hold.
    #[error("field `{0}` holds a control character, or begins or ends with white space")]
    Unusable(String),
    /// A credential with several fields that is no JSON object of strings.
    #[error("a credential of this service is a JSON object of strings with the fields {0}")]
    NotAnObject(String),
    /// A field stands in the object more than once.
    #[error("field `{0}` is given twice")]
    Duplicate(String),
    /// A field of the service is missing.
    #[error("field `{0}` is missing")]
    Missing(String),
    /// A field that the service does not have.
    #[error("the service has no field `{0}`")]
    Unknown(String),
    /// The stored bytes are no valid encoding.
    #[error("the stored credential is not readable")]
    Corrupt,
}

/// Longest value of one field, in bytes. Twice the largest key of the catalogue's vendors (JWTs of
/// 8 KiB).
pub const MAX_FIELD_BYTES: usize = 16 * 1024;

impl Fields {
    /// Parses an operator's input. For one field the input is the value, without one trailing line
    /// break. For several fields the input is a JSON object of strings.
    ///
    /// # Errors
    /// When a field is missing, unknown, too long or cannot be sent. The error never holds the
    /// value.
    pub fn parse(names: &[impl AsRef<str>], input: &Secret) -> Result<Self, FieldsError> {
        let bytes = input.expose();
        let bytes = bytes.strip_suffix(b"\n").map_or(bytes, |b| b.strip_suffix(b"\r").unwrap_or(b));
        if bytes.is_empty() {
            return Err(FieldsError::Empty);
        }
        if let [name] = names {
            return Self::encode(&[(name.as_ref(), bytes)]);
        }
        // `name?` may be left out.
        let bare = |n: &str| n.strip_suffix('?').unwrap_or(n).to_owned();
        let list = || names.iter().map(|n| format!("`{}`", n.as_ref())).collect::<Vec<_>>().join(", ");
        let Pairs(mut object) = serde_json::from_slice(bytes).map_err(|_| FieldsError::NotAnObject(list()))?;
        let result = (|| {
            if let Some((unknown, _)) = object.iter().find(|(k, _)| !names.iter().any(|n| bare(n.as_ref()) == *k)) {
                return Err(FieldsError::Unknown(unknown.chars().take(64).collect()));
            }
            let mut fields = Vec::with_capacity(names.len());
            for name in names {
                let (name, optional) = name.as_ref().strip_suffix('?').map_or((name.as_ref(), false), |n| (n, true));
                let mut values = object.iter().filter(|(k, _)| k == name);
                match (values.next(), values.next()) {
                    (Some((_, value)), None) => fields.push((name, value.as_bytes())),
                    (Some(_), Some(_)) => return Err(FieldsError::Duplicate(name.into())),
                    (None, _) if optional => {}
                    (None, _) => return Err(FieldsError::Missing(name.into())),
                }
            }
            Self::encode(&fields)
        })();
        object.iter_mut().for_each(|(_, value)| value.zeroize());
        result
    }

    fn encode(fields: &[(&str, &[u8])]) -> Result<Self, FieldsError> {
        let count = u8::try_from(fields.len()).map_err(|_| FieldsError::TooLarge)?;
        let size = 1 + fields.iter().map(|(n, v)| 3 + n.len() + v.len()).sum::<usize>();
        let mut out = Vec::with_capacity(size); // exact capacity: a growing Vec leaves copies of the secret in freed memory
        out.push(count);
        for (name, value) in fields {
            if value.is_empty() {
                return Err(FieldsError::Missing((*name).into()));
            }
            if value.len() > MAX_FIELD_BYTES {
                return Err(FieldsError::TooLarge);
            }
            let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_whitespace());
            if value.iter().any(|b| *b < 0x20 || *b == 0x7f) || edge(value.first()) || edge(value.last()) {
                return Err(FieldsError::Unusable((*name).into()));
            }
            out.push(u8::try_from(name.len()).map_err(|_| FieldsError::TooLarge)?);
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&u16::try_from(value.len()).map_err(|_| FieldsError::TooLarge)?.to_le_bytes());
            out.extend_from_slice(value);
        }
        Ok(Self(Secret::new(out)))
    }

    /// The fields with one more at the end. It replaces an older field of that name.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), for the value.
    pub fn with(&self, name: &str, value: &Secret) -> Result<Self, FieldsError> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| FieldsError::Corrupt);
        let mut fields = Vec::new();
        for (have, old) in self.iter().filter(|(have, _)| *have != name.as_bytes()) {
            fields.push((text(have)?, old));
        }
        fields.push((name, value.expose()));
        Self::encode(&fields)
    }

    /// Decodes the stored form.
    ///
    /// # Errors
    /// [`FieldsError::Corrupt`] when the bytes are not one.
    pub fn decode(secret: Secret) -> Result<Self, FieldsError> {
        let fields = Self(secret);
        let count = usize::from(*fields.0.expose().first().ok_or(FieldsError::Corrupt)?);
        let mut rest = fields.0.expose().get(1..).unwrap_or_default();
        for _ in 0..count {
            rest = Self::split(rest).ok_or(FieldsError::Corrupt)?.2;
        }
        if rest.is_empty() { Ok(fields) } else { Err(FieldsError::Corrupt) }
    }

    /// The encoded form, for sealing.
    #[must_use]
    pub fn encoded(&self) -> &Secret {
        &self.0
    }

    /// The value of a field.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(n, _)| *n == name.as_bytes()).map(|(_, v)| v)
    }

    /// Name and value of every field, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = self.0.expose().get(1..).unwrap_or_default();
        std::iter::from_fn(move || {
            let (name, value, tail) = Self::split(rest)?;
            rest = tail;
            Some((name, value))
        })
    }

    fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
        let (name_len, rest) = bytes.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*name_len))?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
        Some((name, value, rest))
    }
}

/// Names and values of a JSON object of strings as they were written: a map would keep one value of
/// a name.
struct Pairs(Vec<(String, String)>);

impl<'de> serde::Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(names: &[&str], input: &str) -> Result<Fields, FieldsError> {
        Fields::parse(names, &Secret::new(input.into()))
    }

    #[test]
    fn one_field_is_the_bytes_without_the_editors_newline() {
        assert_eq!(parse(&["key"], "sk-1\r\n").unwrap().get("key"), Some(&b"sk-1"[..]));
        assert_eq!(
            parse(&["key"], "{\"not\":\"json to us\"}").unwrap().get("key"),
            Some(&b"{\"not\":\"json to us\"}"[..])
        );
    }

    #[test]
    fn several_fields_are_a_json_object() {
        let fields = parse(&["sid", "token"], r#"{"token":"t","sid":"s"}"#).unwrap();
        let fields = Fields::decode(Secret::new(fields.encoded().expose().to_vec())).unwrap();
        assert_eq!((fields.get("sid"), fields.get("token"), fields.get("x")), (Some(&b"s"[..]), Some(&b"t"[..]), None));
    }

    #[test]
    fn a_field_with_a_question_mark_may_be_left_out() {
        let names = ["id", "secret", "session?"];
        let two = parse(&names, r#"{"id":"i","secret":"s"}"#).unwrap();
        assert_eq!((two.get("id"), two.get("session")), (Some(&b"i"[..]), None));
        let three = parse(&names, r#"{"id":"i","secret":"s","session":"t"}"#).unwrap();
        assert_eq!(three.get("session"), Some(&b"t"[..]));
        assert_eq!(parse(&names, r#"{"id":"i"}"#).err(), Some(FieldsError::Missing("secret".into())));
        assert_eq!(parse(&names, r#"{"id":"i","secret":"s","x":"t"}"#).err(), Some(FieldsError::Unknown("x".into())));
    }

    #[test]
    fn one_more_field_stands_beside_the_others() {
        let fields = parse(&["a", "b"], r#"{"a":"x","b":"y"}"#).unwrap();
        let with = |f: &Fields, v: &str| f.with("k", &Secret::new(v.into())).unwrap();
        let fields = with(&with(&fields, "1"), "2");
        assert_eq!(
            (fields.get("a"), fields.get("b"), fields.get("k")),
            (Some(&b"x"[..]), Some(&b"y"[..]), Some(&b"2"[..]))
        );
        assert_eq!(fields.iter().count(), 3);
    }

    #[test]
    fn bad_secrets_are_refused_without_being_repeated() {
        let cases = [
            (parse(&["key"], ""), FieldsError::Empty),
            (parse(&["key"], "\n"), FieldsError::Empty),
            (parse(&["key"], "a\nb"), FieldsError::Unusable("key".into())),
            (parse(&["key"], " a"), FieldsError::Unusable("key".into())),
            (parse(&["key"], &"x".repeat(MAX_FIELD_BYTES + 1)), FieldsError::TooLarge),
            (parse(&["a", "b"], "x"), FieldsError::NotAnObject("`a`, `b`".into())),
            (parse(&["a", "b"], r#"{"a":"x"}"#), FieldsError::Missing("b".into())),
            (parse(&["a", "b"], r#"{"a":"x","b":""}"#), FieldsError::Missing("b".into())),
            (parse(&["a", "b"], r#"{"a":"x","b":"y","c":"z"}"#), FieldsError::Unknown("c".into())),
            (parse(&["a", "b"], r#"{"a":"x","b":"y","a":"x"}"#), FieldsError::Duplicate("a".into())),
        ];
        for (got, want) in cases {
            assert_eq!(got.err(), Some(want));
        }
    }

    #[test]
    fn truncated_encodings_are_corrupt() {
        let whole = parse(&["sid", "token"], r#"{"token":"t","sid":"s"}"#).unwrap();
        let bytes = whole.encoded().expose();
        for cut in 0..bytes.len() {
            assert_eq!(Fields::decode(Secret::new(bytes[..cut].to_vec())).err(), Some(FieldsError::Corrupt), "{cut}");
        }
    }
}
