//! The request of an exchange: a form (RFC 8693, 2.1).

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use seks_trust::MAX_JWT_BYTES;
use seks_types::id::ServiceName;

use super::Failure;
use crate::{
    code::Code,
    http::server::RequestBody,
    pipeline::{identity::granted_services, refusal::Refusal},
    table::TokenEntry,
};

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// Longest form: a token, every byte of it escaped, and the rest.
const MAX_BYTES: usize = 4 * MAX_JWT_BYTES;
/// How long a form may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);
/// In `scope`: the trust that is asked for.
const TRUST: &str = "trust:";

/// A form with the parameters that are known.
#[derive(Default)]
pub(super) struct ExchangeForm {
    pub(super) subject_token: String,
    /// The trust that is asked for.
    pub(super) trust: Option<String>,
    /// The services that are asked for; empty: all.
    wanted: Vec<String>,
}

impl ExchangeForm {
    /// Reads the body whole, within bounds of size and time.
    pub(super) async fn read(headers: &HeaderMap, body: RequestBody) -> Result<Result<Self, Failure>, Refusal> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
        {
            return Ok(Err(Failure::request("the content type must be application/x-www-form-urlencoded")));
        }
        let read = Limited::new(body, MAX_BYTES).collect();
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(whole)) => Ok(Self::parse(&whole.to_bytes())),
            Ok(Err(_)) => Err(Code::RequestTooLarge.into()),
            Err(_) => {
                Err(Refusal::invalid("the request's body came too slowly").with_status(StatusCode::REQUEST_TIMEOUT))
            }
        }
    }

    fn parse(body: &[u8]) -> Result<Self, Failure> {
        let body = std::str::from_utf8(body).map_err(|_| Failure::request("the form is not UTF-8"))?;
        let mut known: [(&str, Option<String>); 6] =
            ["grant_type", "subject_token", "subject_token_type", "scope", "resource", "requested_token_type"]
                .map(|name| (name, None));
        for pair in body.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name).ok_or_else(|| Failure::request("the form is not percent-encoded UTF-8"))?;
            if matches!(&*name, "actor_token" | "actor_token_type") {
                return Err(Failure::request("actor_token is not supported"));
            }
            let Some((_, place)) = known.iter_mut().find(|(known, _)| *known == name) else { continue };
            let value = decoded(value).ok_or_else(|| Failure::request("the form is not percent-encoded UTF-8"))?;
            if place.replace(value).is_some() {
                return Err(Failure::request("a parameter stands twice")); // RFC 6749, 3.2
            }
        }
        let [grant_type, subject_token, kind, scope, resource, requested] = known.map(|(_, value)| value);
        if grant_type.as_deref() != Some(GRANT_TYPE) {
            let detail = "grant_type must be urn:ietf:params:oauth:grant-type:token-exchange".into();
            return Err(Failure { error: "unsupported_grant_type", code: Code::RequestInvalid, detail });
        }
        if !matches!(kind.as_deref(), Some(JWT | ID_TOKEN)) {
            return Err(Failure::request(
                "subject_token_type must be urn:ietf:params:oauth:token-type:jwt or …:id_token",
            ));
        }
        if !matches!(requested.as_deref(), None | Some(ACCESS_TOKEN)) {
            return Err(Failure::request("requested_token_type must be urn:ietf:params:oauth:token-type:access_token"));
        }
        let subject_token = subject_token.filter(|token| !token.is_empty());
        let mut form = Self {
            subject_token: subject_token.ok_or_else(|| Failure::request("subject_token is missing"))?,
            ..Self::default()
        };
        for word in scope.iter().flat_map(|scope| scope.split(' ')).filter(|word| !word.is_empty()) {
            match word.strip_prefix(TRUST) {
                Some(name) => form.trust = Some(name.to_owned()),
                None => form.wanted.push(word.to_owned()),
            }
        }
        if let Some(resource) = resource {
            let (_, service) = resource.rsplit_once("/api/").ok_or_else(|| Failure {
                error: "invalid_target",
                code: Code::ServiceUnknown,
                detail: "resource must be a base URL such as https://NODE/api/SERVICE".into(),
            })?;
            form.wanted.push(service.split('/').next().unwrap_or_default().to_owned());
        }
        Ok(form)
    }

    /// The services of the new token: those that are asked for, or all that the trust grants.
    pub(super) fn services(&self, trust: &TokenEntry) -> Result<Vec<ServiceName>, Failure> {
        let granted = granted_services(trust);
        if self.wanted.is_empty() {
            return Ok(granted);
        }
        if !self.wanted.iter().all(|wanted| granted.iter().any(|name| name.as_str() == wanted)) {
            let detail = "the trust does not grant a service that scope or resource names".into();
            return Err(Failure { error: "invalid_scope", code: Code::ServiceNotGranted, detail });
        }
        Ok(granted.into_iter().filter(|name| self.wanted.iter().any(|wanted| name.as_str() == wanted)).collect())
    }
}

fn decoded(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced).decode_utf8().ok().map(|text| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token=a.b.c\
                        &subject_token_type=urn:ietf:params:oauth:token-type:jwt";

    #[test]
    fn a_form_has_each_parameter_once_and_the_kinds_that_are_known() {
        let form = ExchangeForm::parse(GOOD.as_bytes()).ok().unwrap();
        assert_eq!((form.subject_token.as_str(), form.trust, form.wanted.len()), ("a.b.c", None, 0));
        let more = format!("{GOOD}&scope=trust:ci+openai%20github&resource=https://node/api/slack/v1&audience=x&y");
        let form = ExchangeForm::parse(more.as_bytes()).ok().unwrap();
        assert_eq!(
            (form.trust.as_deref(), form.wanted),
            (Some("ci"), vec!["openai".into(), "github".into(), "slack".into()])
        );
        let error = |form: String| ExchangeForm::parse(form.as_bytes()).err().map(|failure| failure.error);
        for (want, form) in [
            ("unsupported_grant_type", String::new()),
            ("unsupported_grant_type", GOOD.replace("token-exchange", "jwt-bearer")),
            ("invalid_request", GOOD.replace("token-type:jwt", "token-type:saml2")),
            ("invalid_request", GOOD.replace("subject_token=a.b.c", "subject_token=")),
            ("invalid_request", GOOD.replace("&subject_token=a.b.c", "")),
            ("invalid_request", format!("{GOOD}&subject_token=a.b.c")),
            ("invalid_request", format!("{GOOD}&subject%5Ftoken=a.b.c")),
            ("invalid_request", format!("{GOOD}&actor_token=a.b.c")),
            ("invalid_request", format!("{GOOD}&requested_token_type=urn:ietf:params:oauth:token-type:jwt")),
            ("invalid_request", format!("{GOOD}&scope=%ff")),
            ("invalid_target", format!("{GOOD}&resource=https://node/openai")),
        ] {
            assert_eq!(error(form.clone()), Some(want), "{form}");
        }
    }
}
