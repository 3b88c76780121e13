//! A secret in Google Cloud's Secret Manager.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::header;
use seks_types::secret::Secret;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Access, MintError, Minted,
    endpoint::{Endpoint, sensitive},
    reference,
    source::{Kind, Source},
};
use crate::clock::unix_now;

/// The only scope that Secret Manager takes.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// What an operator stores: which secret, and a service account that may read it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    /// `projects/P/secrets/S` or `projects/P/locations/L/secrets/S`, and `/versions/V` behind it.
    /// Default of the version: `latest`.
    name: String,
    /// The service account's key file.
    service_account: Value,
    /// A key, when the secret is a JSON object. Default: the whole secret.
    #[serde(default)]
    field: String,
    /// Another address than the public one, such as Private Service Connect's.
    #[serde(default)]
    api_url: String,
    /// Seconds between two reads. Default: 300.
    #[serde(default = "reference::default_refresh")]
    refresh_seconds: u64,
}

/// Reads a secret of Secret Manager.
pub(super) async fn read(secret: &Secret, access: &Access) -> Result<Minted, MintError> {
    let expects = "name, service_account; optionally field, api_url, refresh_seconds";
    let mut reference: Reference = reference::parse(secret, expects)?;
    reference::check_refresh(reference.refresh_seconds)?;
    let endpoint = Endpoint::parse(&url(&reference.name, &reference.api_url)?, access.rules.clone())?;
    let account = reference.service_account.as_object_mut();
    let account = account.ok_or_else(|| MintError::Invalid("field `service_account` is no JSON object".into()))?;
    account.insert("scope".into(), SCOPE.into());
    let account = Secret::new(reference.service_account.to_string().into_bytes());
    let login = Source::parse(Kind::ServiceAccount, &account, access.rules.clone())?.mint(unix_now()).await?;
    let token = std::str::from_utf8(login.token.expose()).map_err(|_| MintError::Endpoint("gave no token"))?;
    let mut headers = endpoint.head()?;
    headers.insert(header::AUTHORIZATION, sensitive(&format!("Bearer {token}"))?);
    let answer = endpoint.ask(endpoint.get(headers)?).await?;
    let data = answer.pointer("/payload/data").and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
    let data = data.ok_or(MintError::Endpoint("gave no secret"))?;
    access.select(&reference.field, reference.refresh_seconds).of_document(&data)
}

/// The URL of `:access`.
fn url(name: &str, api_url: &str) -> Result<String, MintError> {
    let wrong = || MintError::Invalid("field `name` is projects/P/secrets/S, with /versions/V behind it or not".into());
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_:.".contains(&b);
    let parts: Vec<&str> = name.split('/').collect();
    let is_plain = |part: &&str| !part.is_empty() && *part != "." && *part != ".." && part.bytes().all(plain);
    if name.len() > 512 || !parts.iter().all(is_plain) {
        return Err(wrong());
    }
    let (location, version) = match parts.as_slice() {
        ["projects", _, "secrets", _] => (None, "/versions/latest"),
        ["projects", _, "secrets", _, "versions", _] => (None, ""),
        ["projects", _, "locations", location, "secrets", _] => (Some(*location), "/versions/latest"),
        ["projects", _, "locations", location, "secrets", _, "versions", _] => (Some(*location), ""),
        _ => return Err(wrong()),
    };
    let origin = match (api_url, location) {
        ("", None) => "https://secretmanager.googleapis.com".into(),
        ("", Some(location)) => format!("https://secretmanager.{location}.rep.googleapis.com"),
        (given, _) => given.trim_end_matches('/').to_owned(),
    };
    Ok(format!("{origin}/v1/{name}{version}:access"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_secret_of_a_project_and_nothing_else() {
        let google = "https://secretmanager.googleapis.com/v1";
        for (name, want) in [
            ("projects/p/secrets/s", format!("{google}/projects/p/secrets/s/versions/latest:access")),
            ("projects/p/secrets/s/versions/3", format!("{google}/projects/p/secrets/s/versions/3:access")),
            (
                "projects/p/locations/europe-west3/secrets/s",
                "https://secretmanager.europe-west3.rep.googleapis.com/v1/projects/p/locations/europe-west3/secrets/s/versions/latest:access"
                    .into(),
            ),
        ] {
            assert_eq!(url(name, "").unwrap(), want);
        }
        for bad in [
            "",
            "projects/p",
            "projects/../secrets/s",
            "projects/p/secrets/s?x",
            "projects//secrets/s",
            "a/p/secrets/s",
        ] {
            assert!(url(bad, "").is_err(), "{bad}");
        }
    }
}
