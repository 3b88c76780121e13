//! Usage: what models report about tokens is in the records, and adds up.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::io::Write as _;

use seks_tests::{Sandbox, Upstream, process::wait_for, upstream::Answer};
use serde_json::{Value, json};

const KEY: &str = "sk-real-usage-key-00000000000000001";
const CHAT: &str = "/api/openai/v1/chat/completions";

const STREAM: &str = concat!(
    "data: {\"id\":\"c\",\"model\":\"gpt-4o-mini\",\"choices\":[{\"delta\":{\"content\":\"Hi\"},\"finish_reason\":null}],\"usage\":null}\n\n",
    "data: {\"id\":\"c\",\"model\":\"gpt-4o-mini\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n",
    "data: {\"id\":\"c\",\"model\":\"gpt-4o-mini\",\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":7,\"total_tokens\":27,",
    "\"prompt_tokens_details\":{\"cached_tokens\":4},\"completion_tokens_details\":{\"reasoning_tokens\":2}}}\n\n",
    "data: [DONE]\n\n"
);

fn answer(request: &seks_tests::upstream::Request) -> Answer {
    let usage = r#""usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}"#;
    let whole =
        format!(r#"{{"model":"gpt-4o","choices":[{{"message":{{"content":"x"}},"finish_reason":"stop"}}],{usage}}}"#);
    match String::from_utf8_lossy(&request.body).as_ref() {
        "stream" => Answer::with(200, &[("Content-Type", "text/event-stream")], STREAM),
        // Without the terminator: it breaks off.
        "broken" => Answer::raw(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9000\r\n\r\n{}",
            &STREAM[..110]
        )),
        "gzip" => {
            let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            coder.write_all(whole.as_bytes()).unwrap();
            let coded = coder.finish().unwrap();
            Answer::with(200, &[("Content-Type", "application/json"), ("Content-Encoding", "gzip")], coded)
        }
        // Bedrock's InvokeModel: the counts are in headers, and the path names the model.
        "titan" => Answer::with(
            200,
            &[
                ("Content-Type", "application/json"),
                ("X-Amzn-Bedrock-Input-Token-Count", "30"),
                ("X-Amzn-Bedrock-Output-Token-Count", "40"),
            ],
            r#"{"completion":"Hi"}"#,
        ),
        "models" => Answer::json(200, r#"{"object":"list","data":[{"id":"gpt-4o"}]}"#),
        _ => Answer::json(200, &whole),
    }
}

#[test]
fn what_models_report_is_recorded_and_adds_up() {
    let upstream = Upstream::start(answer);
    let sandbox = Sandbox::start();
    let cli = sandbox.cli();
    cli.enable("openai", "openai", &upstream);
    cli.put_credential("openai", "openai", KEY);
    cli.enable("github", "github", &upstream);
    cli.put_credential("github", "github", KEY);
    let bot = sandbox.token("bot", &["openai", "github"]);
    for body in ["stream", "whole", "gzip", "broken", "models"] {
        let reply = sandbox.post(CHAT, &bot.secret, body);
        assert_eq!((reply.status, reply.complete), (200, body != "broken"), "{body}");
    }
    // A stored answer shows its usage once more.
    assert_eq!(sandbox.get(CHAT, &bot.secret).status, 200);
    assert_eq!(sandbox.post("/api/github/x", &bot.secret, "whole").status, 200);
    let rows = wait_for("seven records", || {
        (cli.json(&["audit", "search"]).as_array().unwrap().len() == 7)
            .then(|| cli.json(&["usage", "--by", "agent,model"]))
    });
    let row = |model: &str, key: &str| {
        let rows = rows.as_array().unwrap().iter().filter(|row| row["model"] == model);
        rows.map(|row| row[key].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(rows.as_array().unwrap().len(), 2, "{rows}");
    assert_eq!((row("gpt-4o", "requests"), row("gpt-4o", "input_tokens"), row("gpt-4o", "output_tokens")), (2, 18, 24));
    let mini = |key| row("gpt-4o-mini", key);
    assert_eq!((mini("requests"), mini("input_tokens"), mini("output_tokens")), (2, 20, 7), "{rows}");
    assert_eq!((mini("cached_tokens"), mini("reasoning_tokens"), mini("unknown_requests")), (4, 2, 1), "{rows}");
    let bound = mini("unknown_output_tokens");
    assert!((1..=110).contains(&bound), "a byte is a token at most: {bound}");
    let records = cli.json(&["audit", "search"]);
    let usages: Vec<&Value> = records.as_array().unwrap().iter().map(|record| &record["usage"]).collect();
    assert_eq!(
        usages.iter().filter(|usage| usage["provider"] == json!("openai")).count(),
        4,
        "no list, no other service"
    );
    let page = sandbox.metrics_page();
    let labels = |model: &str| {
        format!(
            "service=\"openai\",gen_ai_provider_name=\"openai\",gen_ai_operation_name=\"chat\",gen_ai_response_model=\"{model}\""
        )
    };
    let whole = labels("gpt-4o");
    for line in [
        format!("gen_ai_client_token_usage_sum{{{whole},gen_ai_token_type=\"input\"}} 18"),
        format!("gen_ai_client_token_usage_count{{{whole},gen_ai_token_type=\"output\"}} 2"),
        format!("gen_ai_client_token_usage_bucket{{{whole},gen_ai_token_type=\"output\",le=\"16\"}} 2"),
        format!("seks_usage_unknown_total{{{}}} 1", labels("gpt-4o-mini")),
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
}

#[test]
fn bedrock_counts_in_headers_and_its_path_names_the_model() {
    let upstream = Upstream::start(answer);
    let sandbox = Sandbox::start();
    let cli = sandbox.cli();
    cli.enable("bedrock", "bedrock", &upstream);
    cli.put_credential("bedrock", "bedrock", KEY);
    let bot = sandbox.token("bot", &["bedrock"]);
    let path = "/api/bedrock/model/amazon.titan-text-express-v1%3A0/invoke";
    assert_eq!(sandbox.post(path, &bot.secret, "titan").status, 200);
    let rows = wait_for("the record", || {
        let rows = cli.json(&["usage", "--by", "model"]);
        (!rows.as_array().unwrap().is_empty()).then_some(rows)
    });
    let row = &rows[0];
    assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(30), &json!(40)), "{rows}");
    assert_eq!(row["model"], "amazon.titan-text-express-v1:0", "{rows}");
}
