//! What all references have in common: how they are read, how often, and which part of a document
//! is the secret.

use std::collections::BTreeMap;

use seks_types::secret::Secret;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{MintError, Minted};

/// How often a secret is read when its reference does not say, in seconds.
const REFRESH: u64 = 300;
/// Bounds of the same. An upstream's rejection causes a read ahead of time.
const REFRESH_BOUNDS: std::ops::RangeInclusive<u64> = 10..=86_400;

/// Fields that say where a secret is and how often it is read. All other fields may be secrets.
const PUBLIC: &[&str] = &[
    "address",
    "api_url",
    "argument",
    "auth_mount",
    "command",
    "endpoint",
    "field",
    "item",
    "login",
    "mount",
    "name",
    "namespace",
    "path",
    "refresh_seconds",
    "region",
    "secret_name",
    "vault",
    "version_stage",
];

/// `refresh_seconds` when a reference leaves it out.
pub(super) fn default_refresh() -> u64 {
    REFRESH
}

/// Reads a reference. The error of `serde` is not repeated, because it can quote a value.
pub(super) fn parse<T: DeserializeOwned>(secret: &Secret, fields: &str) -> Result<T, MintError> {
    serde_json::from_slice(secret.expose()).map_err(|error| {
        let why = if error.is_data() { "has a field that is missing or unknown" } else { "is no JSON object" };
        MintError::Invalid(format!("the reference {why}: {fields}"))
    })
}

/// The part of a reference that may be shown: JSON with sorted keys. `""` for what is no object.
pub(crate) fn public_part(secret: &Secret) -> String {
    let Ok(Value::Object(all)) = serde_json::from_slice(secret.expose()) else { return String::new() };
    let public: BTreeMap<String, Value> = all.into_iter().filter(|(name, _)| PUBLIC.contains(&name.as_str())).collect();
    serde_json::to_string(&public).unwrap_or_default()
}

pub(super) fn check_refresh(seconds: u64) -> Result<(), MintError> {
    if REFRESH_BOUNDS.contains(&seconds) {
        return Ok(());
    }
    Err(MintError::Invalid("field `refresh_seconds` is 10 to 86400".into()))
}

/// Which part of what a source holds is the credential.
#[derive(Clone, Copy)]
pub(super) struct Selection<'a> {
    /// The reference's `field`; `""`: the whole.
    pub(super) field: &'a str,
    /// The service's credentials have several fields, and an object has them all.
    pub(super) has_several_fields: bool,
    /// Seconds between two reads.
    pub(super) refresh_seconds: u64,
}

impl Selection<'_> {
    /// From an object whose entries are the source's own, as in Vault.
    pub(super) fn of_object(&self, data: &Map<String, Value>) -> Result<Minted, MintError> {
        let value = match (self.field, data.len()) {
            ("", _) if self.has_several_fields => {
                return self.minted(Value::Object(data.clone()).to_string().as_bytes());
            }
            ("", 1) => data.values().next(),
            ("", _) => return Err(MintError::Invalid("the secret has several keys: say which in `field`".into())),
            (field, _) => data.get(field),
        };
        let value = value.and_then(Value::as_str).filter(|text| !text.is_empty());
        let value = value.ok_or_else(|| MintError::Invalid("the secret has no such key, or it is no text".into()))?;
        self.minted(value.as_bytes())
    }

    /// From a document: the whole without one line break at its end, or a field of a JSON object.
    pub(super) fn of_document(&self, document: &[u8]) -> Result<Minted, MintError> {
        if !self.field.is_empty() {
            let object: Map<String, Value> = serde_json::from_slice(document).map_err(|_| {
                MintError::Invalid("the secret is no JSON object, and `field` names a key of one".into())
            })?;
            return self.of_object(&object);
        }
        let text = document.strip_suffix(b"\n").map_or(document, |line| line.strip_suffix(b"\r").unwrap_or(line));
        if text.iter().all(u8::is_ascii_whitespace) {
            return Err(MintError::Invalid("the secret is empty".into()));
        }
        self.minted(text)
    }

    /// The next read is due after two thirds of the lifetime.
    fn minted(&self, secret: &[u8]) -> Result<Minted, MintError> {
        let lifetime = i64::try_from(self.refresh_seconds.saturating_mul(3) / 2).unwrap_or(i64::MAX);
        Ok(Minted { token: Secret::new(secret.to_vec()), lifetime, rotated: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(field: &str, has_several_fields: bool, document: &[u8]) -> Result<String, String> {
        let selection = Selection { field, has_several_fields, refresh_seconds: 300 };
        let minted = selection.of_document(document).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(minted.token.expose().to_vec()).unwrap())
    }

    #[test]
    fn a_document_is_the_secret_without_one_line_break_at_its_end() {
        assert_eq!(selected("", false, b"key\n").unwrap(), "key");
        assert_eq!(selected("", false, b"key\r\n").unwrap(), "key");
        assert_eq!(selected("", false, b"key\n\n").unwrap(), "key\n");
        assert_eq!(selected("", true, br#"{"a":"b"}"#).unwrap(), r#"{"a":"b"}"#);
        assert_eq!(selected("a", false, br#"{"a":"b","c":"d"}"#).unwrap(), "b");
        for (field, document, why) in [
            ("", &b" \n"[..], "empty"),
            ("a", b"SECRET", "no JSON object"),
            ("x", br#"{"a":"SECRET"}"#, "no such key"),
            ("a", br#"{"a":{"b":"SECRET"}}"#, "no text"),
        ] {
            let error = selected(field, false, document).unwrap_err();
            assert!(error.contains(why) && !error.contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn only_the_place_of_a_secret_is_shown() {
        let reference = r#"{"token":"SECRET","path":"a","secret_id":"SECRET","address":"https://v.test","x":"SECRET"}"#;
        let shown = public_part(&Secret::new(reference.into()));
        assert_eq!(shown, r#"{"address":"https://v.test","path":"a"}"#);
    }
}
