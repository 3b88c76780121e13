//! Which action of an AWS API a request asks for, where that is neither method nor path: `Action`
//! in the query or in a form (STS, IAM, SQS), or `X-Amz-Target` (DynamoDB, ECR).

use std::borrow::Cow;

use http::{HeaderMap, header, request::Parts};
use seks_service::SigV4;

use super::{Refusal, SeenBody, encoding::decode};
use crate::code::Code;

/// Most fields of a form that are looked at: the largest requests of known APIs have some hundreds.
const MAX_FIELDS: usize = 10_000;

/// Refuses actions that hand out keys, and requests that don't say in a way that we know what they
/// ask for.
pub(super) fn check(sigv4: &SigV4, parts: &Parts, target: &str, body: Option<&SeenBody>) -> Result<(), Refusal> {
    if sigv4.denied_actions.is_empty() {
        return Ok(());
    }
    let denied = |detail| Err(Refusal::from(Code::PolicyDenied).with_detail(detail));
    let Some(actions) = actions(parts, target, body).filter(|actions| !actions.is_empty()) else {
        return denied("the request doesn't say in a form that is known here which action it asks for");
    };
    // Where it says several, we can't know which counts.
    if actions.iter().any(|action| sigv4.denied_actions.iter().any(|pattern| pattern.matches(action))) {
        return denied("the service refuses actions that hand out keys");
    }
    Ok(())
}

/// Every action that the request names; `None` when it may name one that can't be seen.
fn actions<'a>(parts: &'a Parts, target: &'a str, body: Option<&'a SeenBody>) -> Option<Vec<Cow<'a, str>>> {
    let mut found = form(target.split_once('?').map_or("", |(_, query)| query))?;
    for value in parts.headers.get_all("x-amz-target") {
        found.push(Cow::Borrowed(value.to_str().ok()?.rsplit('.').next()?));
    }
    let body = body.filter(|body| !body.is_empty);
    match body {
        None => {}
        Some(_) if parts.headers.contains_key(header::CONTENT_ENCODING) => return None,
        Some(body) if is_form(&parts.headers) => found.extend(body.actions.as_ref()?.iter().map(Cow::from)),
        // Of the JSON protocols, only the header says it.
        Some(_) if is_amz_json(&parts.headers) && parts.headers.contains_key("x-amz-target") => {}
        Some(_) => return None,
    }
    Some(found)
}

/// The actions that a body names as a form; `None` when it may name one that can't be seen.
pub(super) fn of_form(body: &[u8]) -> Option<Vec<String>> {
    let actions = form(std::str::from_utf8(body).ok()?)?;
    Some(actions.into_iter().map(Cow::into_owned).collect())
}

fn form(text: &str) -> Option<Vec<Cow<'_, str>>> {
    let mut found = Vec::new();
    for (n, pair) in text.split(['&', ';']).enumerate() {
        if n == MAX_FIELDS {
            return None;
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(name)?.trim_matches(['+', ' ']).eq_ignore_ascii_case("action") {
            found.push(decode(value)?);
        }
    }
    Some(found)
}

pub(crate) fn is_form(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|t| t.eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}

fn is_amz_json(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|t| ["application/x-amz-json-1.0", "application/x-amz-json-1.1"].contains(&t))
}

/// Without a parameter but the one character set in which the body is read here.
fn content_type(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (first, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
    let (kind, parameter) = first.split_once(';').unwrap_or((first, ""));
    let parameter = parameter.trim();
    (parameter.is_empty() || parameter.eq_ignore_ascii_case("charset=utf-8")).then(|| kind.trim())
}
