//! Stand-ins that the vendors' own SDKs accept: a few endpoints of each API, and the check that matters: the real key has
//! arrived where the vendor wants it, and no byte of a token has arrived anywhere.

use serde_json::{Value, json};

use super::{Answer, Request, Upstream, answer::chunk};
use crate::oracle;

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
}

impl Vendor {
    /// Starts a stand-in that accepts `key` only.
    pub fn start(self, key: &str) -> Upstream {
        let key = key.to_owned();
        Upstream::start(move |request| self.answer(request, &key))
    }

    fn answer(self, request: &Request, key: &str) -> Answer {
        if oracle::contains(&request.bytes(), b"seks_token_") {
            return refusal(418, "a token of the broker has arrived at the vendor");
        }
        if !self.has_key(request, key) {
            return refusal(401, "Incorrect API key provided");
        }
        match self {
            Self::OpenAi => openai(request),
            Self::Anthropic => anthropic(request),
            Self::GitHub => github(request),
            Self::Gemini => gemini(request),
        }
    }

    /// The key stands where this vendor wants it, once, and nowhere else.
    fn has_key(self, request: &Request, key: &str) -> bool {
        let header = |name: &str| request.header(name).unwrap_or_default();
        let there = match self {
            Self::OpenAi => header("authorization") == format!("Bearer {key}"),
            Self::Anthropic => header("x-api-key") == key,
            Self::GitHub => {
                header("authorization") == format!("Bearer {key}") || header("authorization") == format!("token {key}")
            }
            Self::Gemini => header("x-goog-api-key") == key && request.query("key").is_none(),
        };
        let times = request.bytes().windows(key.len()).filter(|w| *w == key.as_bytes()).count();
        there && times == 1
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

/// `/v1/…`, and nothing without it: the proxy's `base_path` rule is what brings both spellings here.
fn openai(request: &Request) -> Answer {
    let body = request.json();
    let piece = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        (
            "",
            json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"], "choices": [choice]}),
        )
    };
    match (request.method().as_str(), request.path().as_str()) {
        ("GET", "/v1/models") => answer(&json!({"object": "list", "data": [
            {"id": "gpt-4o-mini", "object": "model", "created": 1, "owned_by": "stand-in"}]})),
        ("POST", "/v1/chat/completions") if body["stream"] == true => stream(
            &[
                piece(json!({"role": "assistant", "content": ""}), Value::Null),
                piece(json!({"content": "Hello from "}), Value::Null),
                piece(json!({"content": "the stand-in"}), Value::Null),
                piece(json!({}), json!("stop")),
            ],
            Some("[DONE]"),
        ),
        ("POST", "/v1/chat/completions") => {
            let message = json!({"role": "assistant", "content": "Hello from the stand-in", "refusal": null});
            answer(&json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": null}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}}))
        }
        ("POST", "/v1/embeddings") => answer(&json!({"object": "list", "model": body["model"],
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
            "usage": {"prompt_tokens": 1, "total_tokens": 1}})),
        _ => refusal(404, &format!("Invalid URL ({} {})", request.method(), request.path())),
    }
}

fn anthropic(request: &Request) -> Answer {
    let body = request.json();
    if (request.method().as_str(), request.path().as_str()) != ("POST", "/v1/messages") {
        return refusal(404, "not_found");
    }
    if request.header("anthropic-version").is_none() {
        return refusal(400, "anthropic-version: header is required");
    }
    let usage = json!({"input_tokens": 1, "output_tokens": 4});
    let message = |content: Value, stop: Value| {
        json!({"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": content,
            "stop_reason": stop, "stop_sequence": null, "usage": usage})
    };
    if body["stream"] != true {
        return answer(&message(json!([{"type": "text", "text": "Hello from the stand-in"}]), json!("end_turn")));
    }
    let delta =
        |text: &str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    stream(
        &[
            ("message_start", json!({"type": "message_start", "message": message(json!([]), Value::Null)})),
            (
                "content_block_start",
                json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            ),
            ("content_block_delta", delta("Hello from ")),
            ("content_block_delta", delta("the stand-in")),
            ("content_block_stop", json!({"type": "content_block_stop", "index": 0})),
            (
                "message_delta",
                json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": {"output_tokens": 4}}),
            ),
            ("message_stop", json!({"type": "message_stop"})),
        ],
        None,
    )
}

fn github(request: &Request) -> Answer {
    if request.header("user-agent").is_none() {
        return refusal(
            403,
            "Request forbidden by administrative rules. Please make sure your request has a User-Agent header",
        );
    }
    match (request.method().as_str(), request.path().as_str()) {
        ("GET", "/user") => answer(&json!({"login": "stand-in", "id": 1})),
        ("GET", "/repos/seks/seks") => answer(&json!({"full_name": "seks/seks", "private": true})),
        _ => answer(&json!({"message": "Not Found"})),
    }
}

fn gemini(request: &Request) -> Answer {
    let candidate = json!({"content": {"role": "model", "parts": [{"text": "Hello from the stand-in"}]}, "finishReason": "STOP", "index": 0});
    let path = request.path();
    if request.method() == "POST" && path.ends_with(":generateContent") {
        return answer(&json!({"candidates": [candidate], "modelVersion": "stand-in"}));
    }
    if request.method() == "POST" && path.ends_with(":streamGenerateContent") {
        return stream(&[("", json!({"candidates": [candidate]}))], None);
    }
    refusal(404, &format!("not found: {path}"))
}
