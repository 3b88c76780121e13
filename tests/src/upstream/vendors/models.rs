//! Language models.

use serde_json::{Value, json};

use super::{GREETING, answer, refusal, stream};
use crate::upstream::{Answer, Request};

/// `PREFIX/v1/…`, and nothing without it: the proxy's `base_path` rule is what brings both
/// spellings here.
pub(super) fn openai(request: &Request, prefix: &str) -> Answer {
    let body = request.json();
    let piece = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        (
            "",
            json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"], "choices": [choice]}),
        )
    };
    let path = request.path();
    match (request.method().as_str(), path.strip_prefix(prefix).unwrap_or_default()) {
        ("GET", "/v1/models") => answer(&json!({"object": "list", "data": [
            {"id": "gpt-4o-mini", "object": "model", "created": 1, "owned_by": "stand-in"}]})),
        ("POST", "/v1/chat/completions") if body["stream"] == true => stream(
            &[
                piece(json!({"role": "assistant", "content": ""}), Value::Null),
                piece(json!({"content": GREETING[0]}), Value::Null),
                piece(json!({"content": GREETING[1]}), Value::Null),
                piece(json!({}), json!("stop")),
            ],
            Some("[DONE]"),
        ),
        ("POST", "/v1/chat/completions") => {
            let message = json!({"role": "assistant", "content": GREETING.concat(), "refusal": null});
            answer(&json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": null}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}}))
        }
        ("POST", "/v1/responses") => responses(&body),
        ("POST", "/v1/embeddings") => answer(&json!({"object": "list", "model": body["model"],
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
            "usage": {"prompt_tokens": 1, "total_tokens": 1}})),
        _ => refusal(404, &format!("Invalid URL ({} {path})", request.method())),
    }
}

/// OpenAI's Responses API, which coding agents use.
fn responses(body: &Value) -> Answer {
    let part = |text: &str| json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
    let message = |content: Value, status: &str| json!({"type": "message", "id": "msg_1", "status": status, "role": "assistant", "content": content});
    let whole = message(json!([part(&GREETING.concat())]), "completed");
    let response = |status: &str, output: Value| {
        json!({"id": "resp_1", "object": "response", "created_at": 1, "status": status, "model": body["model"], "output": output,
            "error": null, "incomplete_details": null, "instructions": null, "metadata": {}, "parallel_tool_calls": true,
            "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "tools": [],
            "usage": {"input_tokens": 1, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 4,
                "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 5}})
    };
    if body["stream"] != true {
        return answer(&response("completed", json!([whole])));
    }
    let delta =
        |text: &str| json!({"item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": text, "logprobs": []});
    let events = [
        ("response.created", json!({"response": response("in_progress", json!([]))})),
        ("response.output_item.added", json!({"output_index": 0, "item": message(json!([]), "in_progress")})),
        (
            "response.content_part.added",
            json!({"item_id": "msg_1", "output_index": 0, "content_index": 0, "part": part("")}),
        ),
        ("response.output_text.delta", delta(GREETING[0])),
        ("response.output_text.delta", delta(GREETING[1])),
        (
            "response.output_text.done",
            json!({"item_id": "msg_1", "output_index": 0, "content_index": 0,
            "text": GREETING.concat(), "logprobs": []}),
        ),
        (
            "response.content_part.done",
            json!({"item_id": "msg_1", "output_index": 0, "content_index": 0,
            "part": part(&GREETING.concat())}),
        ),
        ("response.output_item.done", json!({"output_index": 0, "item": whole})),
        ("response.completed", json!({"response": response("completed", json!([whole]))})),
    ];
    let numbered = events.into_iter().enumerate().map(|(number, (name, mut data))| {
        data["type"] = json!(name);
        data["sequence_number"] = json!(number);
        (name, data)
    });
    stream(&numbered.collect::<Vec<_>>(), None)
}

pub(super) fn anthropic(request: &Request) -> Answer {
    let body = request.json();
    match (request.method().as_str(), request.path().as_str()) {
        ("GET", "/v1/models") => return answer(&json!({"data": [], "has_more": false})),
        ("POST", "/v1/messages/count_tokens") => return answer(&json!({"input_tokens": 1})),
        ("POST", "/v1/messages") => {}
        _ => return refusal(404, "not_found"),
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
        return answer(&message(json!([{"type": "text", "text": GREETING.concat()}]), json!("end_turn")));
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
            ("content_block_delta", delta(GREETING[0])),
            ("content_block_delta", delta(GREETING[1])),
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

pub(super) fn gemini(request: &Request) -> Answer {
    let candidate = |text: &str| {
        let content = json!({"role": "model", "parts": [{"text": text}]});
        let usage = json!({"promptTokenCount": 1, "candidatesTokenCount": 4, "totalTokenCount": 5});
        json!({"candidates": [{"content": content, "finishReason": "STOP", "index": 0}], "modelVersion": "stand-in",
            "usageMetadata": usage})
    };
    let path = request.path();
    if request.method() == "POST" && path.ends_with(":generateContent") {
        return answer(&candidate(&GREETING.concat()));
    }
    if request.method() == "POST" && path.ends_with(":streamGenerateContent") {
        return stream(&[("", candidate(GREETING[0])), ("", candidate(GREETING[1]))], None);
    }
    refusal(404, &format!("not found: {path}"))
}

pub(super) fn cohere(request: &Request) -> Answer {
    if (request.method().as_str(), request.path().as_str()) != ("POST", "/v2/chat") {
        return refusal(404, "not found");
    }
    if request.json()["stream"] != true {
        let message = json!({"role": "assistant", "content": [{"type": "text", "text": GREETING.concat()}]});
        return answer(&json!({"id": "1", "finish_reason": "COMPLETE", "message": message}));
    }
    let delta = |text: &str| {
        let content = json!({"message": {"content": {"text": text}}});
        ("content-delta", json!({"type": "content-delta", "index": 0, "delta": content}))
    };
    stream(
        &[
            delta(GREETING[0]),
            delta(GREETING[1]),
            ("message-end", json!({"type": "message-end", "delta": {"finish_reason": "COMPLETE"}})),
        ],
        None,
    )
}
