//! A secret that is kept in HashiCorp Vault or OpenBao (KV version 2). The control plane reads it
//! on a schedule, and when an upstream rejects it. What it reads is an ordinary version of the
//! credential.

use std::path::Path;

use http::{HeaderName, HeaderValue};
use seks_types::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Access, MintError, Minted,
    config::VaultLoginConfig,
    endpoint::{Endpoint, sensitive},
    is_path, reference,
};

/// The largest token of a service account, in bytes.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

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
    /// `kubernetes`: the login that the control plane's configuration has for this tenant and
    /// address.
    #[serde(default)]
    login: String,
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
    #[serde(default = "reference::default_refresh")]
    refresh_seconds: u64,
}

fn default_mount() -> String {
    "secret".into()
}

fn default_auth_mount() -> String {
    "approle".into()
}

/// A checked reference.
pub(super) struct VaultSource<'a> {
    reference: Reference,
    access: &'a Access,
    secret: Endpoint,
    login: Login,
}

enum Login {
    Token,
    AppRole(Endpoint),
    Kubernetes(Endpoint, VaultLoginConfig),
}

impl<'a> VaultSource<'a> {
    /// Checks what an operator stored.
    pub(super) fn parse(secret: &Secret, access: &'a Access) -> Result<Self, MintError> {
        let reference: Reference = reference::parse(
            secret,
            "address, path, and token, role_id with secret_id, or login; optionally mount, field, auth_mount, namespace, \
             refresh_seconds",
        )?;
        for (name, value) in
            [("mount", &reference.mount), ("path", &reference.path), ("auth_mount", &reference.auth_mount)]
        {
            if !is_path(value) {
                return Err(MintError::Invalid(format!(
                    "field `{name}` is segments of letters, digits, `-`, `_` and `.`"
                )));
            }
        }
        reference::check_refresh(reference.refresh_seconds)?;
        let base = reference.address.trim_end_matches('/').to_owned();
        let url = format!("{base}/v1/{}/data/{}", reference.mount, reference.path);
        let secret = Endpoint::parse(&url, access.rules.clone())?;
        let login = login(&reference, access, &base)?;
        Ok(Self { reference, access, secret, login })
    }

    /// Reads the secret.
    pub(super) async fn read(&self) -> Result<Minted, MintError> {
        let token = match &self.login {
            Login::Token => self.reference.token.clone(),
            Login::AppRole(endpoint) => {
                let Reference { role_id, secret_id, .. } = &self.reference;
                self.log_in(endpoint, &json!({ "role_id": role_id, "secret_id": secret_id })).await?
            }
            Login::Kubernetes(endpoint, login) => {
                let jwt = read_token(&login.token_file).await?;
                self.log_in(endpoint, &json!({ "role": login.role, "jwt": jwt.as_str() })).await?
            }
        };
        let mut headers = self.secret.head()?;
        headers.insert(TOKEN, sensitive(&token)?);
        self.add_namespace(&mut headers)?;
        let answer = self.secret.ask(self.secret.get(headers)?).await?;
        let data = answer.pointer("/data/data").and_then(Value::as_object);
        let data = data.ok_or(MintError::Endpoint("gave no secret: is it a KV engine of version 2?"))?;
        self.access.select(&self.reference.field, self.reference.refresh_seconds).of_object(data)
    }

    async fn log_in(&self, login: &Endpoint, body: &Value) -> Result<String, MintError> {
        let mut headers = login.post("application/json")?;
        self.add_namespace(&mut headers)?;
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
}

/// How `reference` logs in. The control plane's own identity goes only where its configuration
/// sends it.
fn login(reference: &Reference, access: &Access, base: &str) -> Result<Login, MintError> {
    let at = |mount: &str| Endpoint::parse(&format!("{base}/v1/auth/{mount}/login"), access.rules.clone());
    let has_role = !reference.role_id.is_empty() && !reference.secret_id.is_empty();
    match (reference.login.as_str(), reference.token.is_empty(), has_role) {
        ("", false, false) => Ok(Login::Token),
        ("", true, true) => Ok(Login::AppRole(at(&reference.auth_mount)?)),
        ("kubernetes", true, false) => {
            let configured = access.sources.vault_login.iter();
            let mut of_tenant = configured.filter(|login| login.tenant == access.tenant.as_str());
            let login = of_tenant.find(|login| login.address.trim_end_matches('/') == base).ok_or_else(|| {
                MintError::Invalid(
                    "the control plane's configuration has no `[[sources.vault_login]]` of this tenant and address"
                        .into(),
                )
            })?;
            Ok(Login::Kubernetes(at(&login.auth_mount)?, login.clone()))
        }
        ("" | "kubernetes", ..) => {
            Err(MintError::Invalid("either `token`, or `role_id` with `secret_id`, or `login` = `kubernetes`".into()))
        }
        _ => Err(MintError::Invalid("field `login` is `kubernetes`".into())),
    }
}

/// A projected token of a service account. Kubernetes replaces it, so it is read at each login.
async fn read_token(path: &Path) -> Result<Zeroizing<String>, MintError> {
    let unreadable = || MintError::Source {
        text: "the token of the service account (`token_file`) cannot be read".into(),
        is_final: false,
    };
    let length = tokio::fs::metadata(path).await.map_err(|_| unreadable())?.len();
    if length > MAX_TOKEN_BYTES {
        return Err(unreadable());
    }
    let text = Zeroizing::new(tokio::fs::read_to_string(path).await.map_err(|_| unreadable())?);
    Ok(Zeroizing::new(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(reference: &Value) -> String {
        let secret = Secret::new(reference.to_string().into_bytes());
        let access = Access::of_tenant("acme".parse().unwrap());
        VaultSource::parse(&secret, &access).err().map(|error| error.to_string()).unwrap_or_default()
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
            (with("login", json!("kubernetes")), "either `token`"),
            (with("login", json!("SECRET")), "field `login`"),
            (
                json!({ "address": "https://vault.test:8200", "path": "a", "login": "kubernetes" }),
                "`[[sources.vault_login]]`",
            ),
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
