//! An issuer's keys: two GETs, by the same rules as a POST to a token endpoint.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use seks_network::address::DialRules;
use seks_trust::{KeySet, is_trustworthy_transport};
use serde_json::Value;

use super::{MintError, endpoint::Endpoint};

/// Where discovery begins (OpenID Connect Discovery 1.0, 4).
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Where an issuer's keys are.
pub(crate) struct IssuerKeys<'a> {
    /// The issuer, a URL.
    pub(crate) issuer: &'a str,
    /// Where its keys are; empty: as its discovery document says.
    pub(crate) jwks_uri: &'a str,
    /// PEM roots that replace the system's, unless empty.
    pub(crate) roots: &'a str,
}

impl IssuerKeys<'_> {
    /// Fetches the keys, in their stored form. Nothing is followed: not a redirect, and no key's
    /// `x5u`.
    ///
    /// # Errors
    /// [`MintError`].
    pub(crate) async fn fetch(&self, rules: &DialRules) -> Result<String, MintError> {
        let discovered = match self.jwks_uri {
            "" => Some(self.discover(rules).await?),
            _ => None,
        };
        let jwks = self.get(discovered.as_deref().unwrap_or(self.jwks_uri), rules).await?;
        KeySet::canonical(&jwks).map_err(|error| MintError::Invalid(error.to_string()))
    }

    async fn discover(&self, rules: &DialRules) -> Result<String, MintError> {
        let url = format!("{}{WELL_KNOWN}", self.issuer.trim_end_matches('/'));
        let document: Value = serde_json::from_slice(&self.get(&url, rules).await?)
            .map_err(|_| MintError::Invalid("the issuer's discovery document is no JSON".into()))?;
        let text = |name: &str| document.get(name).and_then(Value::as_str);
        if text("issuer") != Some(self.issuer) {
            return Err(MintError::Invalid("the issuer's discovery document names another issuer".into()));
        }
        let uri =
            text("jwks_uri").ok_or(MintError::Invalid("the issuer's discovery document has no `jwks_uri`".into()));
        uri.map(str::to_owned)
    }

    async fn get(&self, url: &str, rules: &DialRules) -> Result<Bytes, MintError> {
        if !is_trustworthy_transport(url) {
            return Err(MintError::Invalid("the issuer's keys are not at an https URL".into()));
        }
        let endpoint = Endpoint::parse(url, rules.clone())?.with_roots(self.roots);
        let mut request = Request::builder().method(Method::GET).uri(endpoint.path()).body(Bytes::new());
        if let Ok(request) = &mut request {
            let headers = request.headers_mut();
            headers.insert(header::HOST, endpoint.host()?);
            headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
            headers.insert(header::USER_AGENT, HeaderValue::from_static("seks"));
        }
        endpoint.read(request.map_err(|_| MintError::Invalid("the issuer's URL cannot be requested".into()))?).await
    }
}
