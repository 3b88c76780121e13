//! AWS: one signed call of a JSON protocol, and a secret in AWS Secrets Manager.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings},
    sign::v4,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, header};
use seks_network::address::DialRules;
use seks_types::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Access, MintError, Minted, endpoint::Endpoint, reference};

const TARGET: HeaderName = HeaderName::from_static("x-amz-target");
const JSON: &str = "application/x-amz-json-1.1";

/// A key pair of AWS.
pub(crate) struct AwsKey<'a> {
    pub(crate) access_key_id: &'a str,
    pub(crate) secret_access_key: &'a str,
    /// Of temporary credentials; `""`: none.
    pub(crate) session_token: &'a str,
}

/// An AWS service in a region.
pub(crate) struct AwsService<'a> {
    /// The name in signatures: `kms`.
    pub(crate) name: &'a str,
    pub(crate) region: &'a str,
    endpoint: Endpoint,
}

impl<'a> AwsService<'a> {
    /// At its public address, or at `endpoint` when that is not `""`.
    pub(crate) fn new(name: &'a str, region: &'a str, endpoint: &str, rules: DialRules) -> Result<Self, MintError> {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if region.is_empty() || region.len() > 63 || !region.bytes().all(word) {
            return Err(MintError::Invalid("field `region` is a name such as `eu-central-1`".into()));
        }
        let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
        let url = match endpoint {
            "" => format!("https://{name}.{region}.amazonaws.com{suffix}/"),
            given => format!("{}/", given.trim_end_matches('/')),
        };
        Ok(Self { name, region, endpoint: Endpoint::parse(&url, rules)? })
    }

    /// The same, whose server is verified by these PEM roots, unless they are `""`.
    pub(crate) fn with_roots(self, roots: &str) -> Self {
        Self { endpoint: self.endpoint.with_roots(roots), ..self }
    }

    /// One call. `target` is `trentservice.Decrypt`.
    pub(crate) async fn call(&self, key: &AwsKey<'_>, target: &'static str, body: &Value) -> Result<Value, MintError> {
        let request = self.signed(key, target, body.to_string())?;
        let (status, answer) = self.endpoint.exchange_json(request).await?;
        if status.is_success() && answer.is_object() {
            return Ok(answer);
        }
        if status.is_success() {
            return Err(MintError::Endpoint("gave no JSON"));
        }
        Err(MintError::Refused { status: status.as_u16(), code: exception(&answer) })
    }

    fn signed(&self, key: &AwsKey<'_>, target: &'static str, body: String) -> Result<Request<Bytes>, MintError> {
        let cannot = || MintError::Invalid("the AWS key can't sign".into());
        let mut headers = self.endpoint.post(JSON)?;
        headers.insert(TARGET, HeaderValue::from_static(target));
        let token = Some(key.session_token).filter(|token| !token.is_empty()).map(str::to_owned);
        let identity = Credentials::new(key.access_key_id, key.secret_access_key, token, None, "seks").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.name)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|_| cannot())?
            .into();
        let names = [header::HOST, header::CONTENT_TYPE, TARGET];
        let signable = names.iter().filter_map(|name| Some((name.as_str(), headers.get(name)?.to_str().ok()?)));
        let request = SignableRequest::new("POST", self.endpoint.url(), signable, SignableBody::Bytes(body.as_bytes()));
        let signed = aws_sigv4::http_request::sign(request.map_err(|_| cannot())?, &params).map_err(|_| cannot())?;
        let (made, _) = signed.into_parts().0.into_parts();
        for made in made {
            let mut value = HeaderValue::from_str(made.value()).map_err(|_| cannot())?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static(made.name()), value);
        }
        self.endpoint.request(headers, body)
    }
}

/// The name of an exception, `com.amazon.coral.service#AccessDeniedException` without what is in
/// front of it; never a text.
fn exception(answer: &Value) -> String {
    let name = answer.get("__type").and_then(Value::as_str).unwrap_or_default();
    let name = name.rsplit('#').next().unwrap_or_default();
    let known = name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if known { name.to_owned() } else { String::new() }
}

/// What an operator stores: which secret, and a key that may read it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    region: String,
    /// The secret's name or ARN.
    secret_name: String,
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    session_token: String,
    /// A key, when the secret is a JSON object. Default: the whole secret.
    #[serde(default)]
    field: String,
    /// Default: `AWSCURRENT`.
    #[serde(default)]
    version_stage: String,
    /// Another address than the public one, such as a VPC endpoint.
    #[serde(default)]
    endpoint: String,
    /// Seconds between two reads. Default: 300.
    #[serde(default = "reference::default_refresh")]
    refresh_seconds: u64,
}

/// Reads a secret of AWS Secrets Manager.
pub(super) async fn read(secret: &Secret, access: &Access) -> Result<Minted, MintError> {
    let reference: Reference = reference::parse(
        secret,
        "region, secret_name, access_key_id, secret_access_key; optionally session_token, field, version_stage, endpoint, \
         refresh_seconds",
    )?;
    reference::check_refresh(reference.refresh_seconds)?;
    let service = AwsService::new("secretsmanager", &reference.region, &reference.endpoint, access.rules.clone())?;
    let key = AwsKey {
        access_key_id: &reference.access_key_id,
        secret_access_key: &reference.secret_access_key,
        session_token: &reference.session_token,
    };
    let mut body = json!({ "SecretId": reference.secret_name });
    if let (false, Some(body)) = (reference.version_stage.is_empty(), body.as_object_mut()) {
        body.insert("VersionStage".into(), reference.version_stage.as_str().into());
    }
    let answer = service.call(&key, "secretsmanager.GetSecretValue", &body).await?;
    let selection = access.select(&reference.field, reference.refresh_seconds);
    if let Some(text) = answer.get("SecretString").and_then(Value::as_str) {
        return selection.of_document(text.as_bytes());
    }
    let binary = answer.get("SecretBinary").and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
    selection.of_document(&binary.ok_or(MintError::Endpoint("gave no secret"))?)
}
