//! The transit engine of HashiCorp Vault and OpenBao.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use http::HeaderName;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{KeyService, KeyServiceError, away, dial_rules, is_safe, read_roots, read_secret};
use crate::{
    mint::{
        MintError,
        endpoint::{Endpoint, sensitive},
    },
    seal::SealError,
};

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");

/// `[seal.transit]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransitConfig {
    /// `https://vault.example:8200`; plain `http` only to this machine. No default.
    pub address: String,
    /// Where the engine is mounted. Default: `transit`.
    pub mount: String,
    /// The key's name. No default.
    pub key: String,
    /// A file with a token that may encrypt and decrypt with the key. Read at each call.
    pub token_file: PathBuf,
    /// An AppRole, instead of a token; `secret_id_file` belongs to it.
    pub role_id: String,
    /// A file with the AppRole's secret id. Read at each call.
    pub secret_id_file: PathBuf,
    /// A role of the Kubernetes auth method, instead of a token.
    pub kubernetes_role: String,
    /// The service account's token. Default:
    /// `/var/run/secrets/kubernetes.io/serviceaccount/token`.
    pub kubernetes_token_file: PathBuf,
    /// Where the auth method is mounted. Default: `approle` or `kubernetes`.
    pub auth_mount: String,
    /// Of Vault Enterprise and OpenBao. Default: none.
    pub namespace: String,
    /// PEM roots that verify the server. Default: the system's.
    pub ca_file: PathBuf,
}

impl Default for TransitConfig {
    fn default() -> Self {
        Self {
            address: String::new(),
            mount: "transit".into(),
            key: String::new(),
            token_file: PathBuf::new(),
            role_id: String::new(),
            secret_id_file: PathBuf::new(),
            kubernetes_role: String::new(),
            kubernetes_token_file: "/var/run/secrets/kubernetes.io/serviceaccount/token".into(),
            auth_mount: String::new(),
            namespace: String::new(),
            ca_file: PathBuf::new(),
        }
    }
}

impl TransitConfig {
    pub(in crate::seal) fn check(&self) -> Result<(), SealError> {
        let wrong = |key, reason| Err(SealError::Config { key, reason });
        if !is_safe(&self.address) {
            return wrong("transit.address", "is an https URL, or an http URL of this machine");
        }
        if self.key.is_empty() {
            return wrong("transit.key", "is missing");
        }
        if [&self.mount, &self.key].iter().any(|part| !crate::mint::is_path(part)) {
            return wrong("transit.key", "and `mount` are segments of letters, digits, `-`, `_` and `.`");
        }
        let has_role = !self.role_id.is_empty() && !self.secret_id_file.as_os_str().is_empty();
        let logins = [!self.token_file.as_os_str().is_empty(), has_role, !self.kubernetes_role.is_empty()];
        match logins.iter().filter(|has| **has).count() {
            1 => Ok(()),
            _ => wrong("transit.token_file", "or `role_id` with `secret_id_file`, or `kubernetes_role`: exactly one"),
        }
    }
}

/// One key of the engine.
pub(super) struct Transit {
    config: TransitConfig,
}

impl Transit {
    pub(super) fn new(config: &TransitConfig) -> Self {
        Self { config: config.clone() }
    }

    async fn call(&self, operation: &str, body: Value) -> Result<Value, KeyServiceError> {
        let token = self.token().await?;
        let TransitConfig { mount, key, .. } = &self.config;
        self.post(&format!("{mount}/{operation}/{key}"), Some(&token), &body).await
    }

    async fn token(&self) -> Result<Zeroizing<String>, KeyServiceError> {
        let config = &self.config;
        if !config.token_file.as_os_str().is_empty() {
            return read_secret(&config.token_file);
        }
        let (method, body) = if config.role_id.is_empty() {
            let failed = |error| KeyServiceError::Away(format!("cannot read the service account's token: {error}"));
            let jwt = std::fs::read_to_string(&config.kubernetes_token_file).map_err(failed)?;
            ("kubernetes", json!({ "role": config.kubernetes_role, "jwt": jwt.trim() }))
        } else {
            let secret_id = read_secret(&config.secret_id_file)?;
            ("approle", json!({ "role_id": config.role_id, "secret_id": secret_id.as_str() }))
        };
        let mount = if config.auth_mount.is_empty() { method } else { &config.auth_mount };
        let answer = self.post(&format!("auth/{mount}/login"), None, &body).await?;
        let token = answer.pointer("/auth/client_token").and_then(Value::as_str);
        token
            .map(|token| Zeroizing::new(token.to_owned()))
            .ok_or_else(|| KeyServiceError::Away("it gave no token".into()))
    }

    async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Result<Value, KeyServiceError> {
        let url = format!("{}/v1/{path}", self.config.address.trim_end_matches('/'));
        let roots = read_roots(&self.config.ca_file)?;
        let asked = async {
            let endpoint = Endpoint::parse(&url, dial_rules())?.with_roots(&roots);
            let mut headers = endpoint.post("application/json")?;
            if let Some(token) = token {
                headers.insert(TOKEN, sensitive(token)?);
            }
            if !self.config.namespace.is_empty() {
                headers.insert(NAMESPACE, sensitive(&self.config.namespace)?);
            }
            endpoint.ask(endpoint.request(headers, body.to_string())?).await
        };
        asked.await.map_err(|error| match &error {
            // 400: the key was deleted, or its version is not to be used any more. 503: sealed.
            MintError::Refused { status: status @ (400 | 403 | 404), .. } => {
                KeyServiceError::Refused(format!("the transit engine answered {status}"))
            }
            MintError::Invalid(why) => KeyServiceError::Refused(why.clone()),
            error => away(error),
        })
    }
}

impl KeyService for Transit {
    fn wrap<'a>(&'a self, kek: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, KeyServiceError>> {
        Box::pin(async move {
            let answer = self.call("encrypt", json!({ "plaintext": STANDARD.encode(kek) })).await?;
            let text = answer.pointer("/data/ciphertext").and_then(Value::as_str);
            text.map(|text| text.as_bytes().to_vec())
                .ok_or_else(|| KeyServiceError::Away("it gave no ciphertext".into()))
        })
    }

    fn unwrap<'a>(&'a self, wrapped: &'a [u8]) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, KeyServiceError>> {
        Box::pin(async move {
            let answer = self.call("decrypt", json!({ "ciphertext": String::from_utf8_lossy(wrapped) })).await?;
            let text = answer.pointer("/data/plaintext").and_then(Value::as_str);
            let kek = text.and_then(|text| STANDARD.decode(text).ok());
            kek.map(Zeroizing::new).ok_or_else(|| KeyServiceError::Away("it gave no plaintext".into()))
        })
    }
}
