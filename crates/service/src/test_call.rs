//! The test call of `seks service test`: a request without side effects that shows whether a key
//! works.

use http::Method;

use super::{ServiceError, invalid};

/// `METHOD /path [STATUS]… [{JSON}]`, as an agent would send it below `/api/SERVICE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestCall {
    /// `GET`, `HEAD` or `POST`.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// Statuses with which this upstream rejects a key, besides 401 and 403.
    pub rejections: Vec<u16>,
    /// The JSON body.
    pub body: Option<String>,
}

/// What the upstream's response says about the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The upstream accepted it.
    Valid,
    /// The upstream rejected it.
    Rejected,
    /// The response does not say.
    Unclear,
}

impl TestCall {
    /// Parses a test call. `None` for empty text.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub fn parse(text: &str) -> Result<Option<Self>, ServiceError> {
        let wrong = || invalid("test", "expected `METHOD /path`, then statuses of a rejected key, then a JSON object");
        let (head, body) = match text.split_once(" {") {
            Some((head, body)) => (head, Some(format!("{{{body}"))),
            None => (text, None),
        };
        let mut words = head.split_whitespace();
        let Some(method) = words.next() else { return Ok(None) };
        let method = match method {
            "GET" | "HEAD" | "POST" => Method::from_bytes(method.as_bytes()).map_err(|_| wrong())?,
            _ => {
                return Err(invalid(
                    "test",
                    "the method must be GET, HEAD or POST, and the call must not change anything",
                ));
            }
        };
        let target = words.next().filter(|t| t.starts_with('/')).ok_or_else(wrong)?.to_owned();
        if target.parse::<http::Uri>().is_err() {
            return Err(wrong());
        }
        let rejections = words.map(|w| w.parse().ok().filter(|s| (200..600).contains(s)).ok_or_else(wrong));
        let rejections = rejections.collect::<Result<_, _>>()?;
        if body.as_ref().is_some_and(|b| serde_json::from_str::<serde_json::Value>(b).is_err()) {
            return Err(wrong());
        }
        Ok(Some(Self { method, target, rejections, body }))
    }

    /// The verdict of a response. Some APIs reject a key with status 200 and `"ok": false`.
    #[must_use]
    pub fn verdict(&self, status: u16, body: &[u8]) -> Verdict {
        let not_ok = || {
            serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|json| json.get("ok") == Some(&false.into()))
        };
        match status {
            401 | 403 => Verdict::Rejected,
            status if self.rejections.contains(&status) => Verdict::Rejected,
            200..=299 if not_ok() => Verdict::Rejected,
            200..=299 => Verdict::Valid,
            _ => Verdict::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_a_call_and_what_refuses_a_key() {
        let call = TestCall::parse("GET /v1/models?limit=1 400 404").unwrap().unwrap();
        assert_eq!((call.method, call.target.as_str()), (Method::GET, "/v1/models?limit=1"));
        assert_eq!((call.rejections, call.body), (vec![400, 404], None));
        let call = TestCall::parse("POST /graphql {\"query\":\"{ viewer { id } }\"}").unwrap().unwrap();
        assert_eq!(call.body.as_deref(), Some("{\"query\":\"{ viewer { id } }\"}"));
        assert_eq!(TestCall::parse("").unwrap(), None);
        for bad in ["GET", "GET v1", "DELETE /v1", "get /v1", "GET /v1 x", "GET /v1 99", "GET /a b", "POST /v1 {x}"] {
            assert!(TestCall::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_valid_only_when_the_upstream_says_so() {
        let call = TestCall::parse("GET / 400").unwrap().unwrap();
        for (status, body, verdict) in [
            (200, "", Verdict::Valid),
            (204, "", Verdict::Valid),
            (200, r#"{"ok":true}"#, Verdict::Valid),
            (200, r#"{"ok":false,"error":"invalid_auth"}"#, Verdict::Rejected),
            (401, "", Verdict::Rejected),
            (403, "", Verdict::Rejected),
            (400, "", Verdict::Rejected),
            (302, "", Verdict::Unclear),
            (404, "", Verdict::Unclear),
            (429, "", Verdict::Unclear),
            (500, "", Verdict::Unclear),
        ] {
            assert_eq!(call.verdict(status, body.as_bytes()), verdict, "{status} {body}");
        }
    }
}
