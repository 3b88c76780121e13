//! AWS KMS: a symmetric key of the service.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{KeyService, KeyServiceError, away, read_roots, read_secret};
use crate::{
    mint::{
        MintError,
        aws::{AwsKey, AwsService},
    },
    seal::key_service_config::{AwsKmsConfig, dial_rules},
};

/// Exceptions by which KMS says that this key may not be used.
const REFUSALS: [&str; 6] = [
    "AccessDeniedException",
    "DisabledException",
    "IncorrectKeyException",
    "InvalidCiphertextException",
    "KMSInvalidStateException",
    "NotFoundException",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    session_token: String,
}

/// One key of the service.
pub(super) struct AwsKms {
    config: AwsKmsConfig,
}

impl AwsKms {
    pub(super) fn new(config: &AwsKmsConfig) -> Self {
        Self { config: config.clone() }
    }

    fn credentials(&self) -> Result<Credentials, KeyServiceError> {
        let path = &self.config.credentials_file;
        if !path.as_os_str().is_empty() {
            let text = read_secret(path)?;
            let wrong = |_| KeyServiceError::Away(format!("`{}` is no JSON of an AWS key", path.display()));
            return serde_json::from_str(&text).map_err(wrong);
        }
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let credentials = Credentials {
            access_key_id: variable("AWS_ACCESS_KEY_ID"),
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY"),
            session_token: variable("AWS_SESSION_TOKEN"),
        };
        if credentials.access_key_id.is_empty() || credentials.secret_access_key.is_empty() {
            let text = "neither seal.aws_kms.credentials_file nor AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set";
            return Err(KeyServiceError::Away(text.into()));
        }
        Ok(credentials)
    }

    async fn call(&self, target: &'static str, mut body: Value) -> Result<Value, KeyServiceError> {
        if let Some(body) = body.as_object_mut() {
            body.insert("KeyId".into(), self.config.key_id.as_str().into());
            body.insert("EncryptionContext".into(), json!({ "purpose": "seks-kek" }));
        }
        let credentials = self.credentials()?;
        let key = AwsKey {
            access_key_id: &credentials.access_key_id,
            secret_access_key: &credentials.secret_access_key,
            session_token: &credentials.session_token,
        };
        let roots = read_roots(&self.config.ca_file)?;
        let service = AwsService::new("kms", &self.config.region, &self.config.endpoint, dial_rules());
        let service = service.map_err(|error| away(&error))?.with_roots(&roots);
        service.call(&key, target, &body).await.map_err(|error| match &error {
            MintError::Refused { code, .. } if REFUSALS.contains(&code.as_str()) => {
                KeyServiceError::Refused(format!("KMS answered {code}"))
            }
            error => away(error),
        })
    }
}

impl KeyService for AwsKms {
    fn wrap<'a>(&'a self, kek: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, KeyServiceError>> {
        Box::pin(async move {
            let answer = self.call("TrentService.Encrypt", json!({ "Plaintext": STANDARD.encode(kek) })).await?;
            let text = answer.get("CiphertextBlob").and_then(Value::as_str);
            let wrapped = text.and_then(|text| STANDARD.decode(text).ok());
            wrapped.ok_or_else(|| KeyServiceError::Away("it gave no ciphertext".into()))
        })
    }

    fn unwrap<'a>(&'a self, wrapped: &'a [u8]) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, KeyServiceError>> {
        Box::pin(async move {
            let body = json!({ "CiphertextBlob": STANDARD.encode(wrapped) });
            let answer = self.call("TrentService.Decrypt", body).await?;
            let kek = answer.get("Plaintext").and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
            kek.map(Zeroizing::new).ok_or_else(|| KeyServiceError::Away("it gave no plaintext".into()))
        })
    }
}
