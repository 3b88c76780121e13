//! Limits: what is over one is refused before the service sees it, and says until when.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use seks_tests::{
    Sandbox, Upstream,
    process::wait_for,
    raw::Reply,
    sandbox::Options,
    upstream::{
        Answer,
        answer::{Gate, Step},
    },
};
use serde_json::Value;

const KEY: &str = "sk-real-limits-key-0000000000000001";
const PATH: &str = "/api/openai/v1/models";

fn world(upstream: &Upstream) -> Sandbox {
    let sandbox = Sandbox::start();
    sandbox.service("openai", upstream, KEY);
    sandbox
}

fn set(sandbox: &Sandbox, name: &str, options: &[&str]) {
    let set = sandbox.cli().json(&[&["limit", "set", name], options].concat());
    assert_eq!((&set["name"], &set["enforced"]), (&Value::from(name), &Value::from(true)), "{set}");
}

fn statuses(sandbox: &Sandbox, token: &str, count: usize) -> Vec<u16> {
    (0..count).map(|_| sandbox.get(PATH, token).status).collect()
}

/// A refusal by the limit `name`.
fn assert_over(reply: &Reply, name: &str) {
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((reply.status, reply.code().as_str()), (429, "limit_exceeded"), "{body}");
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.starts_with(&format!("limit `{name}`: ")), "{detail}");
    assert_eq!(body["error"]["message"], body["detail"], "as SDKs show it");
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=31 * 24 * 3600).contains(&seconds), "{seconds}");
}

#[test]
fn what_is_over_a_limit_is_refused_before_the_service_sees_it() {
    let upstream = Upstream::ok();
    let sandbox = world(&upstream);
    let (bot, other) = (sandbox.token("bot", &["openai"]), sandbox.token("other", &["openai"]));
    // A month: no window ends while the test runs, but for one minute in a month.
    set(&sandbox, "bot-month", &["--agent", "bot", "--service", "openai", "--requests", "3/month"]);
    assert_eq!(statuses(&sandbox, &bot.secret, 3), [200, 200, 200]);
    let over = sandbox.get(PATH, &bot.secret);
    assert_over(&over, "bot-month");
    assert!(over.text().contains("3 requests/month are used up; the next window begins at 2"), "{}", over.text());
    assert_eq!(over.header("x-should-retry"), Some("false"), "no SDK waits for a month");
    assert_eq!(upstream.requests().len(), 3);
    // A limit is an agent's: another token changes nothing, another agent has no part in it.
    let rotated = sandbox.cli().issue("bot", &["openai"], &[]);
    assert_over(&sandbox.get(PATH, &rotated.secret), "bot-month");
    assert_eq!(statuses(&sandbox, &other.secret, 5), [200; 5]);
    let id = over.header("x-seks-request-id").unwrap().to_owned();
    let record = wait_for("the record", || {
        let records = sandbox.cli().json(&["audit", "search", "--since", "1h"]);
        records.as_array().unwrap().iter().find(|record| record["request_id"] == id.as_str()).cloned()
    });
    assert_eq!((&record["decision"], &record["reason"]), (&"deny".into(), &"limit_exceeded".into()), "{record}");
    assert!(record["policies"].as_array().unwrap().contains(&"bot-month".into()), "{record}");
    // More at once.
    set(&sandbox, "bot-month", &["--agent", "bot", "--requests", "5/month"]);
    assert_eq!(statuses(&sandbox, &bot.secret, 3), [200, 200, 429], "what was used counts");
    sandbox.cli().json(&["limit", "delete", "bot-month", "--yes"]);
    assert_eq!(statuses(&sandbox, &bot.secret, 3), [200; 3]);
}

#[test]
fn a_budget_outlives_the_process() {
    let upstream = Upstream::ok();
    let mut sandbox = world(&upstream);
    let bot = sandbox.token("bot", &["openai"]);
    set(&sandbox, "few", &["--requests", "4/month"]);
    assert_eq!(statuses(&sandbox, &bot.secret, 2), [200; 2]);
    sandbox.restart();
    let after = statuses(&sandbox, &bot.secret, 4);
    assert!(after.iter().filter(|status| **status == 200).count() <= 2, "{after:?}");
    assert_eq!(after[3], 429);
}

#[test]
fn a_limit_in_shadow_mode_counts_and_refuses_nothing() {
    let upstream = Upstream::ok();
    let sandbox = world(&upstream);
    let bot = sandbox.token("bot", &["openai"]);
    set(&sandbox, "trial", &["--requests", "1/month", "--shadow"]);
    assert_eq!(statuses(&sandbox, &bot.secret, 4), [200; 4]);
    let page = sandbox.metrics_page();
    assert!(page.contains("seks_tenant_limited_total{limit=\"policy_shadow\"} 3\n"), "{page}");
    assert!(page.contains("seks_tenant_limited_total{limit=\"policy\"} 0\n"), "{page}");
    wait_for("three records", || {
        let records = sandbox.cli().json(&["audit", "search", "--since", "1h"]);
        let shadowed = |record: &&Value| record["audited_policies"] == serde_json::json!(["trial"]);
        (records.as_array().unwrap().iter().filter(shadowed).count() == 3).then_some(())
    });
}

#[test]
fn concurrent_requests_are_counted_until_their_answers_end() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| {
        Answer::steps(vec![
            Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{".to_vec()),
            Step::Hold(held.clone()),
            Step::Send(b"}".to_vec()),
        ])
    });
    let sandbox = world(&upstream);
    let bot = sandbox.token("bot", &["openai"]);
    set(&sandbox, "one", &["--agent", "bot", "--concurrent", "1"]);
    let (address, secret) = (sandbox.proxy(), bot.secret.clone());
    let first = std::thread::spawn(move || seks_tests::raw::get(address, PATH, &secret));
    upstream.wait("the first request", |log| !log.requests.is_empty());
    assert_over(&sandbox.get(PATH, &bot.secret), "one");
    gate.open();
    assert_eq!(first.join().unwrap().status, 200);
    wait_for("a free place", || (sandbox.get(PATH, &bot.secret).status == 200).then_some(()));
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn each_agent_has_its_own_budget_where_the_limit_says_so() {
    let upstream = Upstream::ok();
    let sandbox = world(&upstream);
    let (one, two) = (sandbox.token("one", &["openai"]), sandbox.token("two", &["openai"]));
    set(&sandbox, "fair", &["--requests", "2/month", "--each-agent"]);
    assert_eq!(statuses(&sandbox, &one.secret, 3), [200, 200, 429]);
    assert_eq!(statuses(&sandbox, &two.secret, 3), [200, 200, 429]);
    // A request that one limit refuses counts for no other.
    set(&sandbox, "all", &["--requests", "100/month"]);
    assert_eq!(statuses(&sandbox, &two.secret, 3), [429; 3]);
}

#[test]
fn limits_are_policies_that_files_hold() {
    let upstream = Upstream::ok();
    let sandbox = world(&upstream);
    let cli = sandbox.cli();
    let bot = sandbox.token("bot", &["openai"]);
    set(&sandbox, "rate", &["--group", "batch", "--requests", "10/minute", "--shadow"]);
    cli.apply_policies(
        "@id(\"by-path\") @limit(\"1 requests/month\") forbid (principal, action, resource)\n\
         when { context.path like \"/v1/models*\" };",
    );
    let limits = cli.json(&["limit", "list"]);
    let row = |at: usize| {
        (
            limits[at]["name"].as_str().unwrap(),
            limits[at]["limit"].as_str().unwrap(),
            limits[at]["mode"].as_str().unwrap(),
        )
    };
    assert_eq!(limits.as_array().unwrap().len(), 2, "{limits}");
    assert_eq!(row(0), ("by-path", "1 requests/month", "enforce"));
    assert_eq!(row(1), ("rate", "10 requests/minute", "shadow"));
    assert_eq!(statuses(&sandbox, &bot.secret, 2), [200, 429]);
    assert_eq!(sandbox.get("/api/openai/v1/files", &bot.secret).status, 200);
    let export = cli.json(&["export"]);
    assert!(export["policies"].to_string().contains("@limit(\\\"1 requests/month\\\")"), "{export}");

    let refused = cli.run(&["limit", "set", "granted-services", "--requests", "1/day"], "");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("there is a policy of this name, which is no limit"), "{}", refused.stderr);
    let none = cli.run(&["limit", "delete", "granted-services", "--yes"], "");
    assert_eq!(none.code, Some(3), "{}", none.stderr);
    let wrong = cli.run(&["limit", "set", "x", "--requests", "many"], "");
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
}

/// A model that uses as many tokens as the request's body says.
fn model() -> Upstream {
    Upstream::start(|request| {
        let used = String::from_utf8_lossy(&request.body).parse::<u64>().unwrap_or(0);
        match used {
            // It breaks off, and has no count.
            0 => Answer::raw(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9000\r\n\r\ndata: {\"x\":1}\n\n",
            ),
            1 => Answer::json(500, r#"{"error":{"message":"no model has worked"}}"#),
            _ => Answer::json(
                200,
                &format!(r#"{{"model":"m","usage":{{"prompt_tokens":{},"completion_tokens":1}}}}"#, used - 1),
            ),
        }
    })
}

fn with_model(upstream: &Upstream) -> Sandbox {
    let sandbox = Sandbox::start();
    sandbox.cli().enable("openai", "openai", upstream);
    sandbox.cli().put_credential("openai", "openai", KEY);
    sandbox
}

const CHAT: &str = "/api/openai/v1/chat/completions";

#[test]
fn a_budget_of_tokens_is_what_models_used() {
    let upstream = model();
    let sandbox = with_model(&upstream);
    let bot = sandbox.token("bot", &["openai"]);
    set(&sandbox, "tokens-month", &["--agent", "bot", "--service", "openai", "--tokens", "8000/month"]);
    let post = |body: &str| sandbox.post(CHAT, &bot.secret, body).status;
    // 20 times what is reserved for a request would be more than the limit: what was used counts.
    for used in 0..20 {
        assert_eq!(post("50"), 200, "{used} requests");
    }
    // No model is asked, or none has worked: nothing is charged.
    for _ in 0..20 {
        assert_eq!(sandbox.get(PATH, &bot.secret).status, 200);
        assert_eq!(post("1"), 500);
    }
    // Used beyond its reservation. It is charged, and the next request is over.
    assert_eq!(post("7500"), 200);
    wait_for("the settlement", || (post("50") == 429).then_some(()));
    let over = sandbox.post(CHAT, &bot.secret, "50");
    assert_over(&over, "tokens-month");
    assert!(over.text().contains("8000 tokens/month are used up; the next window begins at 2"), "{}", over.text());
    assert_eq!(sandbox.get(PATH, &bot.secret).status, 200, "asks no model");
    // More at once: what was used counts, and what was used beyond the limit as well.
    set(&sandbox, "tokens-month", &["--agent", "bot", "--service", "openai", "--tokens", "100000/month"]);
    assert_eq!(post("50"), 200);
}

#[test]
fn an_answer_without_a_count_is_charged_by_its_bytes() {
    let upstream = model();
    let sandbox = with_model(&upstream);
    let bot = sandbox.token("bot", &["openai"]);
    set(&sandbox, "tokens-month", &["--tokens", "16/month"]);
    // 16 bytes of an answer that broke off, and one of the request.
    assert_eq!(sandbox.post(CHAT, &bot.secret, "0").status, 200);
    wait_for("the settlement", || (sandbox.post(CHAT, &bot.secret, "2").status == 429).then_some(()));
}

/// A million tokens of input cost 5 dollars, so 1000 of them cost half a cent.
fn opus(_: &seks_tests::upstream::Request) -> Answer {
    Answer::json(
        200,
        r#"{"type":"message","model":"claude-opus-4-5-20251101","stop_reason":"end_turn","usage":{"input_tokens":1000,"output_tokens":0}}"#,
    )
}

const MESSAGES: &str = "/api/anthropic/v1/messages";
const PRICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/prices.toml");

fn with_opus(upstream: &Upstream, options: Options) -> (Sandbox, String) {
    let sandbox = Sandbox::with(options);
    sandbox.cli().enable("anthropic", "anthropic", upstream);
    sandbox.cli().put_credential("anthropic", "anthropic", KEY);
    let bot = sandbox.token("bot", &["anthropic"]);
    set(&sandbox, "spend", &["--usd", "0.01/month"]);
    (sandbox, bot.secret)
}

#[test]
fn a_budget_of_money_is_what_answers_cost_at_the_nodes_prices() {
    let upstream = Upstream::start(opus);
    let environment = vec![("SEKS_USAGE_PRICES".to_owned(), PRICES.to_owned())];
    let (sandbox, bot) = with_opus(&upstream, Options { environment, ..Options::default() });
    assert_eq!(sandbox.post(MESSAGES, &bot, "{}").status, 200);
    assert_eq!(sandbox.post(MESSAGES, &bot, "{}").status, 200);
    wait_for("the settlement", || (sandbox.post(MESSAGES, &bot, "{}").status == 429).then_some(()));
    let over = sandbox.post(MESSAGES, &bot, "{}");
    assert_over(&over, "spend");
    assert!(over.text().contains("0.01 USD/month is used up; the next window begins at 2"), "{}", over.text());
    let served = upstream.requests().len();
    let usage = wait_for("the records", || {
        let usage = sandbox.cli().json(&["usage", "--by", "model", "--prices", PRICES]);
        (usage[0]["requests"] == served).then_some(usage)
    });
    let cost = usage[0]["cost_usd"].as_f64().unwrap();
    assert!((cost - 0.005 * served as f64).abs() < 1e-9 && usage[0]["unpriced_requests"] == 0, "{usage}");
}

#[test]
fn a_limit_of_money_refuses_where_the_node_has_no_prices() {
    let upstream = Upstream::start(opus);
    let (sandbox, bot) = with_opus(&upstream, Options::default());
    let refused = sandbox.post(MESSAGES, &bot, "{}");
    assert_eq!((refused.status, refused.code().as_str()), (503, "limit_exceeded"), "{}", refused.text());
    assert!(refused.text().contains("set [usage] prices"), "{}", refused.text());
    assert!(upstream.requests().is_empty());
}

#[test]
fn a_limit_of_usage_on_a_service_without_usage_is_warned_about() {
    let upstream = Upstream::ok();
    let sandbox = Sandbox::start();
    sandbox.service("github", &upstream, KEY);
    let limit = |name, option, amount| {
        sandbox.cli().json(&["limit", "set", name, "--service", "github", option, amount])["warnings"].to_string()
    };
    let warnings = limit("none", "--tokens", "1/month");
    assert!(warnings.contains("answers of service `github` are not read for usage"), "{warnings}");
    assert_eq!(limit("some", "--requests", "9/month"), "[]");
    let bot = sandbox.token("bot", &["github"]);
    assert_eq!(sandbox.post("/api/github/user", &bot.secret, "{}").status, 200);
}

#[test]
fn what_was_counted_in_shadow_mode_counts_when_the_limit_is_enforced() {
    let upstream = Upstream::ok();
    let sandbox = world(&upstream);
    let bot = sandbox.token("bot", &["openai"]);
    set(&sandbox, "trial", &["--requests", "3/month", "--shadow"]);
    assert_eq!(statuses(&sandbox, &bot.secret, 2), [200; 2]);
    set(&sandbox, "trial", &["--requests", "3/month"]);
    assert_eq!(statuses(&sandbox, &bot.secret, 3), [200, 429, 429]);
    // A token of another agent is no way around a limit that agents share.
    let other = sandbox.token("other", &["openai"]);
    assert_over(&sandbox.get(PATH, &other.secret), "trial");
}
