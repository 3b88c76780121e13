//! Stand-ins that the vendors' own SDKs accept: a few endpoints of each API, and the check that
//! matters: the real key has arrived where the vendor wants it, and no byte of a token has arrived
//! anywhere.
//!
//! A request that holds `check-bad-request`, `check-server-error` or `check-retry` (as a model, a
//! customer, a repository) is answered with that, in the vendor's own form and with the key in it:
//! what a careless vendor would send back.

mod business;
mod models;

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{Answer, Request, Upstream, answer::chunk};
use crate::oracle;

/// What each of them says when all is well, whole and in the pieces of a stream.
pub const GREETING: [&str; 2] = ["Hello from ", "the stand-in"];
/// What each of them says, before the key, when it fails on demand.
pub const FAULT: &str = "the stand-in is unwell, says";

/// Which API to stand in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Chat completions, models, embeddings.
    OpenAi,
    /// Messages.
    Anthropic,
    /// A user, a repository, Git's smart protocol far enough for Basic.
    GitHub,
    /// `generateContent`.
    Gemini,
    /// Chat completions, as OpenAI's.
    Mistral,
    /// Chat completions, as OpenAI's, below `/openai`.
    Groq,
    /// Chat, the second version.
    Cohere,
    /// Customers.
    Stripe,
    /// `chat.postMessage`.
    Slack,
}

impl Vendor {
    /// The stand-in for a catalogue entry.
    #[must_use]
    pub fn of(service: &str) -> Option<Self> {
        Some(match service {
            "openai" => Self::OpenAi,
            "anthropic" => Self::Anthropic,
            "github" => Self::GitHub,
            "gemini" => Self::Gemini,
            "mistral" => Self::Mistral,
            "groq" => Self::Groq,
            "cohere" => Self::Cohere,
            "stripe" => Self::Stripe,
            "slack" => Self::Slack,
            _ => return None,
        })
    }

    /// Starts a stand-in that accepts `key` only.
    pub fn start(self, key: &str) -> Upstream {
        let (key, retried) = (key.to_owned(), AtomicBool::new(false));
        Upstream::start(move |request| self.answer(request, &key, &retried))
    }

    fn answer(self, request: &Request, key: &str, retried: &AtomicBool) -> Answer {
        if oracle::contains(&request.bytes(), b"seks_token_") {
            return refusal(418, "a token of the broker has arrived at the vendor");
        }
        if !self.has_key(request, key) {
            return refusal(401, "Incorrect API key provided");
        }
        let asked_for = |what: &str| oracle::contains(&request.bytes(), what.as_bytes());
        if asked_for("check-bad-request") {
            return self.fault(400, key);
        }
        if asked_for("check-server-error") {
            return self.fault(500, key);
        }
        if asked_for("check-retry") && !retried.swap(true, Ordering::Relaxed) {
            return self.fault(429, key);
        }
        match self {
            Self::OpenAi | Self::Mistral => models::openai(request, ""),
            Self::Groq => models::openai(request, "/openai"),
            Self::Anthropic => models::anthropic(request),
            Self::Gemini => models::gemini(request),
            Self::Cohere => models::cohere(request),
            Self::GitHub => business::github(request),
            Self::Stripe => business::stripe(request),
            Self::Slack => business::slack(request),
        }
    }

    /// The key stands where this vendor wants it, once, and nowhere else.
    fn has_key(self, request: &Request, key: &str) -> bool {
        let header = |name: &str| request.header(name).unwrap_or_default();
        let bearer = header("authorization") == format!("Bearer {key}");
        let there = match self {
            Self::Anthropic => header("x-api-key") == key,
            Self::GitHub => bearer || header("authorization") == format!("token {key}"),
            Self::Gemini => header("x-goog-api-key") == key && request.query("key").is_none(),
            Self::OpenAi | Self::Mistral | Self::Groq | Self::Cohere | Self::Stripe | Self::Slack => bearer,
        };
        let times = request.bytes().windows(key.len()).filter(|w| *w == key.as_bytes()).count();
        there && times == 1
    }

    /// An error as this vendor forms it. The vendor's SDKs may retry 429.
    fn fault(self, status: u16, key: &str) -> Answer {
        let message = format!("{FAULT} {key}");
        let body = match self {
            Self::OpenAi | Self::Groq => json!({"error": {"message": message, "type": "stand_in", "code": "unwell"}}),
            Self::Anthropic => json!({"type": "error", "error": {"type": "api_error", "message": message}}),
            Self::Gemini => json!({"error": {"code": status, "message": message, "status": "UNWELL"}}),
            Self::Stripe => json!({"error": {"type": "invalid_request_error", "message": message}}),
            // Slack says what is wrong in a 200.
            Self::Slack if status == 400 => {
                let body = json!({"ok": false, "error": "unwell", "response_metadata": {"messages": [message]}});
                return answer(&body);
            }
            Self::Slack => json!({"ok": false, "error": message}),
            Self::Mistral => json!({"object": "error", "message": message, "type": "unwell", "code": "1"}),
            Self::Cohere => json!({"id": "1", "message": message}),
            Self::GitHub if status == 429 => json!({"message": "You have exceeded a secondary rate limit."}),
            Self::GitHub => json!({"message": message, "documentation_url": "https://example.com"}),
        };
        let mut headers = vec![("Content-Type", "application/json"), ("x-stand-in-saw", key)];
        if status == 429 {
            headers.extend([("Retry-After", "1"), ("Stripe-Should-Retry", "true")]);
        }
        Answer::with(status, &headers, body.to_string())
    }
}

fn refusal(status: u16, message: &str) -> Answer {
    let body = json!({"error": {"message": message, "type": "invalid_request_error", "code": "invalid_api_key"}});
    Answer::json(status, &body.to_string())
}

fn answer(body: &Value) -> Answer {
    Answer::json(200, &body.to_string())
}

fn stream(events: &[(&str, Value)], last: Option<&str>) -> Answer {
    let event = |(name, data): &(&str, Value)| match *name {
        "" => format!("data: {data}\n\n"),
        name => format!("event: {name}\ndata: {data}\n\n"),
    };
    let events: Vec<String> = events.iter().map(event).chain(last.map(|l| format!("data: {l}\n\n"))).collect();
    let chunks = events.iter().map(|e| chunk(e.as_bytes())).collect();
    Answer::chunked(200, &[("Content-Type", "text/event-stream")], chunks, &[])
}
