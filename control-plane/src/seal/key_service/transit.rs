//! The transit engine of HashiCorp Vault and OpenBao.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use http::HeaderName;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{KeyService, KeyServiceError, away, read_roots, read_secret};
use crate::{
    mint::{
        MintError,
        endpoint::{Endpoint, sensitive},
    },
    seal::key_service_config::{TransitConfig, dial_rules},
};

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");

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
