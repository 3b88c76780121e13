//! Limits: what is over one is refused before the service sees it, and says until when.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use seks_tests::{
    Sandbox, Upstream,
    process::wait_for,
    raw::Reply,
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
