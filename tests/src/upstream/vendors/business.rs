//! Code, payments, chat.

use serde_json::json;

use super::{GREETING, answer, refusal};
use crate::upstream::{Answer, Request};

pub(super) fn github(request: &Request) -> Answer {
    if request.header("user-agent").is_none() {
        return refusal(
            403,
            "Request forbidden by administrative rules. Please make sure your request has a User-Agent header",
        );
    }
    let (method, path) = (request.method(), request.path());
    match (method.as_str(), path.as_str()) {
        ("GET", "/user") => answer(&json!({"login": "stand-in", "id": 1})),
        ("GET", path) if path.starts_with("/repos/seks/") => {
            let name = path.trim_start_matches("/repos/");
            answer(&json!({"id": 1, "full_name": name, "private": true, "description": GREETING.concat()}))
        }
        _ => Answer::json(404, r#"{"message":"Not Found"}"#),
    }
}

pub(super) fn stripe(request: &Request) -> Answer {
    match (request.method().as_str(), request.path().strip_prefix("/v1/customers/")) {
        ("GET", Some(id)) => answer(&json!({"id": id, "object": "customer", "name": GREETING.concat()})),
        _ => refusal(404, "Unrecognized request URL"),
    }
}

/// Slack answers 200 to nearly everything.
pub(super) fn slack(request: &Request) -> Answer {
    match (request.method().as_str(), request.path().as_str()) {
        ("POST", "/api/chat.postMessage") => {
            let message = json!({"type": "message", "text": GREETING.concat(), "ts": "1.1"});
            answer(&json!({"ok": true, "channel": "C1", "ts": "1.1", "message": message}))
        }
        ("POST" | "GET", "/api/auth.test") => answer(&json!({"ok": true, "user": "stand-in"})),
        _ => answer(&json!({"ok": false, "error": "unknown_method"})),
    }
}
