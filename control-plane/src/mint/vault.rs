//! A secret that is kept in HashiCorp Vault or OpenBao (KV version 2). The control plane reads it
//! on a schedule, and when an upstream rejects it. What it reads is an ordinary version of the
//! credential.

use http::{HeaderName, HeaderValue};
use seks_network::address::DialRules;
use seks_types::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{MintError, Minted, endpoint::Endpoint};

/// How often the secret is read when the reference does not say, in seconds.
const REFRESH: u64 = 300;
/// Bounds of the same. An upstream's rejection causes a read ahead of time.
const REFRESH_BOUNDS: std::ops::RangeInclusive<u64> = 10..=86_400;

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");

/// What an operator stores: where the secret is, and how to log in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    /// `https://vault.example:8200`.
    address: String,
    /// Where the KV engine is mounted. Default: `secret`.
    #[serde(default = "default_mount")]
    mount: String,
    /// The secret's path in the engine.
    path: String,
    /// The key in the secret. Default: its only one.
    #[serde(default)]
    field: String,
    /// A token that may read the path. Instead of an AppRole.
    #[serde(default)]
    token: String,
    /// An AppRole.
    #[serde(default)]
    role_id: String,
    #[serde(default)]
    secret_id: String,
    /// Where the AppRole method is mounted. Default: `approle`.
    #[serde(default = "default_auth_mount")]
    auth_mount: String,
    /// Of Vault Enterprise and OpenBao.
    #[serde(default)]
    namespace: String,
    /// Seconds between two reads. Default: 300.
    #[serde(default = "default_refresh")]
    refresh_seconds: u64,
}

fn default_mount() -> String {
    "secret".into()
}

fn default_auth_mount() -> String {
    "approle".into()
}

fn default_refresh() -> u64 {
    REFRESH
}

/// A checked reference.
pub(super) struct VaultSource {
    reference: Reference,
    secret: Endpoint,
    /// Of an AppRole.
    login: Option<Endpoint>,
}

impl VaultSource {
    /// Checks what an operator stored. `rules`: which addresses Vault may have.
    pub(super) fn parse(secret: &Secret, rules: DialRules) -> Result<Self, MintError> {
        let reference: Reference = serde_json::from_slice(secret.expose()).map_err(|error| {
            // The error names a field or a position, and quotes unknown field names: never a value.
            let why = if error.is_data() { "has a field that is missing or unknown" } else { "is no JSON object" };
            MintError::Invalid(format!(
                "the reference {why}: address, path, and token or role_id with secret_id; optionally mount, field, auth_mount, \
                 namespace, refresh_seconds"
            ))
        })?;
        for (name, value) in
            [("mount", &reference.mount), ("path", &reference.path), ("auth_mount", &reference.auth_mount)]
        {
            if !is_path(value) {
                return Err(MintError::Invalid(format!(
                    "field `{name}` is segments of letters, digits, `-`, `_` and `.`"
                )));
            }
        }
        let has_role = !reference.role_id.is_empty() && !reference.secret_id.is_empty();
        if has_role != reference.token.is_empty() {
            return Err(MintError::Invalid("either `token`, or `role_id` with `secret_id`".into()));
        }
        if !REFRESH_BOUNDS.contains(&reference.refresh_seconds) {
            return Err(MintError::Invalid("field `refresh_seconds` is 10 to 86400".into()));
        }
        let base = reference.address.trim_end_matches('/').to_owned();
        let url = format!("{base}/v1/{}/data/{}", reference.mount, reference.path);
        let login = has_role.then(|| format!("{base}/v1/auth/{}/login", reference.auth_mount));
        let login = login.map(|url| Endpoint::parse(&url, rules.clone())).transpose()?;
        Ok(Self { secret: Endpoint::parse(&url, rules)?, login, reference })
    }

    /// Reads the secret.
    pub(super) async fn read(&self) -> Result<Minted, MintError> {
        let token = match &self.login {
            None => self.reference.token.clone(),
            Some(login) => self.log_in(login).await?,
        };
        let mut headers = self.secret.head()?;
        headers.insert(TOKEN, sensitive(&token)?);
        self.add_namespace(&mut headers)?;
        let answer = self.secret.ask(self.secret.get(headers)?).await?;
        let value = self.field_of(&answer)?;
        // The next read is due after two thirds of this.
        let lifetime = i64::try_from(self.reference.refresh_seconds.saturating_mul(3) / 2).unwrap_or(i64::MAX);
        Ok(Minted { token: Secret::new(value.as_bytes().to_vec()), lifetime, rotated: None })
    }

    async fn log_in(&self, login: &Endpoint) -> Result<String, MintError> {
        let mut headers = login.post("application/json")?;
        self.add_namespace(&mut headers)?;
        let body = json!({ "role_id": self.reference.role_id, "secret_id": self.reference.secret_id });
        let answer = login.ask(login.request(headers, body.to_string())?).await?;
        let token = answer.pointer("/auth/client_token").and_then(Value::as_str);
        token.map(str::to_owned).ok_or(MintError::Endpoint("gave no token"))
    }

    fn add_namespace(&self, headers: &mut http::HeaderMap) -> Result<(), MintError> {
        if !self.reference.namespace.is_empty() {
            let value = HeaderValue::from_str(&self.reference.namespace)
                .map_err(|_| MintError::Invalid("field `namespace` can't be sent".into()))?;
            headers.insert(NAMESPACE, value);
        }
        Ok(())
    }

    fn field_of<'a>(&self, answer: &'a Value) -> Result<&'a str, MintError> {
        let data = answer.pointer("/data/data").and_then(Value::as_object);
        let data = data.ok_or(MintError::Endpoint("gave no secret: is it a KV engine of version 2?"))?;
        let value = match (self.reference.field.as_str(), data.len()) {
            ("", 1) => data.values().next(),
            ("", _) => return Err(MintError::Invalid("the secret has several keys: say which in `field`".into())),
            (field, _) => data.get(field),
        };
        let value = value.and_then(Value::as_str).filter(|text| !text.is_empty());
        value.ok_or_else(|| MintError::Invalid("the secret has no such key, or it is no text".into()))
    }
}

fn is_path(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let is_segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(plain);
    text.len() <= 512 && text.split('/').all(is_segment)
}

fn sensitive(text: &str) -> Result<HeaderValue, MintError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| MintError::Invalid("the token can't be sent".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(reference: &Value) -> String {
        let secret = Secret::new(reference.to_string().into_bytes());
        VaultSource::parse(&secret, DialRules::default()).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_reference_is_checked_and_its_values_are_not_repeated() {
        let good = json!({ "address": "https://vault.test:8200", "path": "apps/openai", "token": "hvs.SECRET" });
        assert_eq!(refusal(&good), "");
        let with = |key: &str, value: Value| {
            let mut changed = good.clone();
            changed[key] = value;
            changed
        };
        for (reference, expect) in [
            (with("path", json!("a/../b")), "field `path`"),
            (with("path", json!("a?b")), "field `path`"),
            (with("mount", json!("")), "field `mount`"),
            (with("role_id", json!("SECRET")), ""),
            (with("token", json!("")), "either `token`"),
            (with("refresh_seconds", json!(1)), "10 to 86400"),
            (with("tokn", json!("SECRET")), "missing or unknown"),
            (with("address", json!("http://vault.test")), "token endpoint"),
            (json!("SECRET"), "missing or unknown"),
        ] {
            let why = refusal(&reference);
            assert!(why.contains(expect) && (expect.is_empty() == why.is_empty()), "{reference}: {why}");
            assert!(!why.contains("SECRET"), "{why}");
        }
    }
}
