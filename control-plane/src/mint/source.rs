//! What tokens are minted from: four kinds of long-lived secret, each a JSON object as its vendor
//! hands it out.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, header};
use seks_network::address::DialRules;
use seks_service::UpstreamError;
use seks_types::secret::Secret;
use serde::Deserialize;
use serde_json::Value;

use super::{
    MintError,
    endpoint::{Endpoint, encoded, sensitive},
    jwt,
};

/// How tokens are minted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `token_url`, `client_id`, `refresh_token`; optionally `client_secret`, `scope`, `auth`. The
    /// token may rotate.
    OAuth2Refresh,
    /// `token_url`, `client_id`, `client_secret`; optionally `scope`, `audience`, `auth`.
    OAuth2Client,
    /// A Google service account's key file with a `scope`; optionally `subject`. RFC 7523.
    ServiceAccount,
    /// `app_id`, `installation_id`, `private_key`; optionally `api_url`, `repositories`,
    /// `permissions`.
    GithubApp,
    /// A reference to a secret in Vault or OpenBao; see [`super::vault`], as all that follow.
    VaultKv,
    /// A file of this machine.
    File,
    /// The output of a command.
    Command,
    /// AWS Secrets Manager.
    AwsSecretsManager,
    /// Google Cloud's Secret Manager.
    GcpSecretManager,
    /// 1Password Connect.
    OnePasswordConnect,
}

impl Kind {
    pub(crate) const NAMES: &[(&str, Self)] = &[
        ("oauth2-refresh", Self::OAuth2Refresh),
        ("oauth2-client", Self::OAuth2Client),
        ("service-account", Self::ServiceAccount),
        ("github-app", Self::GithubApp),
        ("vault-kv", Self::VaultKv),
        ("file", Self::File),
        ("command", Self::Command),
        ("aws-secrets-manager", Self::AwsSecretsManager),
        ("gcp-secret-manager", Self::GcpSecretManager),
        ("1password-connect", Self::OnePasswordConnect),
    ];

    /// Whether it reads a secret that others may have left unchanged. Such a secret makes no new
    /// version.
    pub(crate) fn is_reference(name: &str) -> bool {
        Self::parse(name).is_ok_and(|kind| {
            !matches!(kind, Self::OAuth2Refresh | Self::OAuth2Client | Self::ServiceAccount | Self::GithubApp)
        })
    }

    pub(crate) fn parse(name: &str) -> Result<Self, MintError> {
        let found = Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, kind)| *kind);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::NAMES.iter().map(|(n, _)| *n).collect();
            MintError::Invalid(format!("credentials are fetched by one of {}", names.join(", ")))
        })
    }
}

/// What was minted.
pub(crate) struct Minted {
    /// The short-lived token.
    pub(crate) token: Secret,
    /// Its lifetime in seconds.
    pub(crate) lifetime: i64,
    /// The long-lived secret as it is to be kept from now on, when it has changed.
    pub(crate) rotated: Option<Secret>,
}

/// A checked long-lived secret.
pub(crate) struct Source {
    kind: Kind,
    fields: Fields,
    document: Value,
    endpoint: Endpoint,
}

/// All fields of all kinds; which are needed is looked at afterwards, so that an error can name the
/// field.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Fields {
    token_url: String,
    client_id: String,
    client_secret: String,
    refresh_token: String,
    scope: String,
    audience: String,
    auth: String,
    // Google's names
    client_email: String,
    private_key: String,
    private_key_id: String,
    token_uri: String,
    subject: String,
    // GitHub's
    app_id: Value,
    installation_id: Value,
    api_url: String,
    repositories: Value,
    permissions: Value,
}

/// RFC 6749 says that `expires_in` is recommended; who leaves it out gets this many seconds.
const LIFETIME_UNSAID: i64 = 3600;
const GOOGLE: &str = "https://oauth2.googleapis.com/token";
const GITHUB: &str = "https://api.github.com";
const GRANT_JWT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

impl Source {
    /// Checks what an operator stored. `rules`: which addresses its endpoint may have.
    pub(crate) fn parse(kind: Kind, secret: &Secret, rules: DialRules) -> Result<Self, MintError> {
        let not_json = |_| MintError::Invalid("the secret is a JSON object, with the fields of its kind".into());
        let document: Value = serde_json::from_slice(secret.expose()).map_err(not_json)?;
        let fields = Fields::deserialize(&document).map_err(not_json)?;
        let text = |name: &str| document.get(name).is_some_and(|v| v.as_str().is_some_and(|s| !s.is_empty()));
        let number = |name: &str| document.get(name).is_some_and(|v| v.is_u64() || v.as_str().is_some_and(is_digits));
        let missing = match kind {
            Kind::OAuth2Refresh => ["token_url", "client_id", "refresh_token"].into_iter().find(|n| !text(n)),
            Kind::OAuth2Client => ["token_url", "client_id", "client_secret"].into_iter().find(|n| !text(n)),
            Kind::ServiceAccount => ["client_email", "private_key", "scope"].into_iter().find(|n| !text(n)),
            Kind::GithubApp if !text("private_key") => Some("private_key"),
            Kind::GithubApp => ["app_id", "installation_id"].into_iter().find(|n| !number(n)),
            _ => return Err(MintError::Invalid("a reference, and no source of tokens".into())),
        };
        if let Some(name) = missing {
            return Err(MintError::Invalid(format!("field `{name}` is missing")));
        }
        if !matches!(fields.auth.as_str(), "" | "body" | "basic") {
            return Err(MintError::Invalid("field `auth` is `body` (the default) or `basic`".into()));
        }
        if matches!(kind, Kind::ServiceAccount | Kind::GithubApp) {
            jwt::Key::parse(&fields.private_key)?;
        }
        let url = match kind {
            Kind::OAuth2Refresh | Kind::OAuth2Client => fields.token_url.clone(),
            Kind::ServiceAccount if fields.token_uri.is_empty() => GOOGLE.into(),
            Kind::ServiceAccount => fields.token_uri.clone(),
            _ => {
                let api = if fields.api_url.is_empty() { GITHUB } else { fields.api_url.trim_end_matches('/') };
                format!("{api}/app/installations/{}/access_tokens", digits(&fields.installation_id))
            }
        };
        let endpoint = Endpoint::parse(&url, rules)?;
        Ok(Self { kind, fields, document, endpoint })
    }

    /// Trades it for a token.
    pub(crate) async fn mint(&self, now: i64) -> Result<Minted, MintError> {
        let answer = self.endpoint.ask(self.request(now)?).await?;
        match self.kind {
            Kind::GithubApp => self.read_github(&answer, now),
            _ => self.read_oauth(&answer),
        }
    }

    fn request(&self, now: i64) -> Result<Request<Bytes>, MintError> {
        let f = &self.fields;
        let mut form: Vec<(&str, &str)> = Vec::with_capacity(6);
        let assertion;
        match self.kind {
            Kind::OAuth2Refresh => {
                form.extend([("grant_type", "refresh_token"), ("refresh_token", f.refresh_token.as_str())])
            }
            Kind::OAuth2Client => {
                form.extend([("grant_type", "client_credentials"), ("audience", f.audience.as_str())])
            }
            Kind::ServiceAccount => {
                let claims = serde_json::json!({
                    "iss": f.client_email, "scope": f.scope, "aud": self.endpoint.url(), "iat": now, "exp": now + 3600,
                });
                let mut claims = claims;
                if let (false, Some(object)) = (f.subject.is_empty(), claims.as_object_mut()) {
                    object.insert("sub".into(), f.subject.as_str().into());
                }
                assertion = jwt::Key::parse(&f.private_key)?.sign(&f.private_key_id, &claims)?;
                form.extend([("grant_type", GRANT_JWT), ("assertion", assertion.as_str())]);
            }
            _ => return self.github_request(now),
        }
        let mut request = self.endpoint.post("application/x-www-form-urlencoded")?;
        if self.kind != Kind::ServiceAccount {
            form.push(("scope", f.scope.as_str()));
            if f.auth == "basic" {
                // RFC 6749, 2.3.1: both halves are form-encoded first.
                let pair = [encoded(&f.client_id), encoded(&f.client_secret)].join(":");
                request.insert(header::AUTHORIZATION, sensitive(&format!("Basic {}", STANDARD.encode(pair)))?);
            } else {
                form.extend([("client_id", f.client_id.as_str()), ("client_secret", f.client_secret.as_str())]);
            }
        }
        let said = form.iter().filter(|(_, value)| !value.is_empty());
        let body: Vec<String> = said.map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        self.endpoint.request(request, body.join("&"))
    }

    fn github_request(&self, now: i64) -> Result<Request<Bytes>, MintError> {
        // A minute in the past, for GitHub's clock; ten minutes is the longest that it takes.
        let claims = serde_json::json!({ "iss": digits(&self.fields.app_id), "iat": now - 60, "exp": now + 540 });
        let token = jwt::Key::parse(&self.fields.private_key)?.sign("", &claims)?;
        let mut headers = self.endpoint.post("application/json")?;
        headers.insert(header::AUTHORIZATION, sensitive(&format!("Bearer {token}"))?);
        let mut narrowed = serde_json::Map::new();
        for (name, value) in [("repositories", &self.fields.repositories), ("permissions", &self.fields.permissions)] {
            if !value.is_null() {
                narrowed.insert(name.into(), value.clone());
            }
        }
        self.endpoint.request(headers, Value::Object(narrowed).to_string())
    }

    fn read_oauth(&self, answer: &Value) -> Result<Minted, MintError> {
        let text = |name: &str| answer.get(name).and_then(Value::as_str).filter(|s| !s.is_empty());
        let Some(token) = text("access_token") else {
            return Err(MintError::Refused { status: 200, code: super::endpoint::error_code(answer) });
        };
        let seconds = answer.get("expires_in").and_then(|v| v.as_i64().or_else(|| v.as_str()?.parse().ok()));
        let rotated =
            text("refresh_token").filter(|new| *new != self.fields.refresh_token && self.kind == Kind::OAuth2Refresh);
        let rotated = rotated.map(|new| {
            let mut document = self.document.clone();
            if let Some(object) = document.as_object_mut() {
                object.insert("refresh_token".into(), new.into());
            }
            Secret::new(document.to_string().into_bytes())
        });
        let lifetime = seconds.filter(|s| *s > 0).unwrap_or(LIFETIME_UNSAID);
        Ok(Minted { token: Secret::new(token.as_bytes().to_vec()), lifetime, rotated })
    }

    fn read_github(&self, answer: &Value, now: i64) -> Result<Minted, MintError> {
        let Some(token) = answer.get("token").and_then(Value::as_str).filter(|s| !s.is_empty()) else {
            return Err(MintError::Endpoint("gave no token"));
        };
        let ends = answer.get("expires_at").and_then(Value::as_str).and_then(|t| humantime::parse_rfc3339(t).ok());
        let ends = ends
            .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
            .and_then(|d| i64::try_from(d.as_secs()).ok());
        let lifetime = ends.map_or(LIFETIME_UNSAID, |ends| (ends - now).max(1));
        Ok(Minted { token: Secret::new(token.as_bytes().to_vec()), lifetime, rotated: None })
    }
}

impl From<UpstreamError> for MintError {
    fn from(error: UpstreamError) -> Self {
        Self::Invalid(format!("the token endpoint: {error}"))
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit())
}

/// An id that people write as a number or as a text.
fn digits(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), Into::into)
}
