//! Every attack of `data/attacks.json` and of `data/more-attacks.json` (other members of the same
//! classes), byte for byte on a fresh connection each, against a running node.
//!
//! A case says what must come back (`status`; 0 is a connection closed without an answer), how many
//! requests the upstream may see (`upstream`; `upstream_complete` where a head may already have
//! been streamed), what must not be among the bytes it sees (`upstream_absent`), whether the node
//! closes the connection (`closed`), whether the upstream request is framed in exactly one way
//! (`single_framing`). `or_status` is the other acceptable outcome, with nothing sent upstream;
//! `any_of` lists outcomes. Whatever the outcome: the credential comes back to nobody, a token
//! reaches no upstream, and the next honest request is served.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{net::SocketAddr, time::Duration};

use seks_tests::{
    Sandbox, Upstream, oracle,
    process::wait_for,
    raw::{Connection, Reply},
    sandbox::Options,
    upstream::{Framing, Request},
};
use serde::Deserialize;

const CREDENTIAL: &str = r#"sk-REAL-9f3c/A+b=Zq"7\Kx-DEADBEEF0123456789"#;

/// One agent may do what the attacks are aimed at; the other's requests are decided by what is in
/// their bodies.
const POLICIES: &str = r#"
@id("v1-get-post")
permit (principal, action in [Seks::Action::"GET", Seks::Action::"POST"], resource == Seks::Service::"openai")
when { context.path like "/v1/*" };

@id("no-admin")
forbid (principal, action, resource) when { context.path == "/v1/admin" || context.path like "/v1/admin/*" };

@id("no-delete")
forbid (principal, action == Seks::Action::"DELETE", resource);

@id("small-models-only")
forbid (principal == Seks::Agent::"inspected", action == Seks::Action::"POST", resource)
unless { context has body && context.body has model && context.body.model == "small" };
"#;

#[derive(Deserialize)]
struct Case {
    id: String,
    title: String,
    /// Latin-1.
    raw: String,
    #[serde(default)]
    token: String,
    assert: Expectation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectation {
    #[serde(default)]
    status: Vec<u16>,
    upstream: Option<usize>,
    upstream_complete: Option<usize>,
    #[serde(default)]
    upstream_absent: Vec<String>,
    #[serde(default)]
    closed: bool,
    #[serde(default)]
    single_framing: bool,
    #[serde(default)]
    or_status: Vec<u16>,
    #[serde(default)]
    any_of: Vec<Expectation>,
}

/// What an attack came to.
struct Outcome {
    reply: Reply,
    closed: bool,
    seen: Vec<Request>,
}

struct AttackedSandbox {
    sandbox: Sandbox,
    openai: Upstream,
    github: Upstream,
    evil: Upstream,
    good: String,
    inspected: String,
    revoked: String,
    expired: String,
    foreign: String,
}

impl AttackedSandbox {
    fn start() -> Self {
        let sandbox = Sandbox::with(Options { hosts: vec!["broker".into()], ..Options::default() });
        let (openai, github, evil) = (Upstream::ok(), Upstream::ok(), Upstream::ok());
        sandbox.service("openai", &openai, CREDENTIAL);
        sandbox.service("github", &github, "ghp_another-real-credential-0001");
        sandbox.cli().run(&["policy", "delete", "granted-services", "--yes"], "");
        sandbox.cli().apply_policies(POLICIES);
        let good = sandbox.token("good", &["openai"]).secret;
        let inspected = sandbox.token("inspected", &["openai"]).secret;
        let revoked = sandbox.cli().issue("good", &["openai"], &[]);
        sandbox.cli().revoke(&revoked.id);
        let expired = sandbox.cli().issue("good", &["openai"], &["--ttl", "1s"]).secret;
        wait_for("a token to expire", || {
            (seks_tests::raw::get(sandbox.proxy(), "/api/openai/v1/x", &expired).status == 401).then_some(())
        });
        let foreign = other_tenant(&sandbox);
        Self { sandbox, openai, github, evil, good, inspected, revoked: revoked.secret, expired, foreign }
    }

    fn bytes(&self, case: &Case) -> Vec<u8> {
        let token = if case.token == "inspected" { &self.inspected } else { &self.good };
        let text = case
            .raw
            .replace("{T1_MINUS_1}", &token[..token.len() - 1])
            .replace("{T1_TAIL}", token.trim_start_matches("seks_token_"))
            .replace("{T1}", token)
            .replace("{C}", CREDENTIAL)
            .replace("{T_REVOKED}", &self.revoked)
            .replace("{T_EXPIRED}", &self.expired)
            .replace("{T2}", &self.foreign)
            .replace("{EVIL}", &self.evil.address().to_string());
        text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
    }

    fn attack(&self, case: &Case) -> Outcome {
        self.openai.forget();
        let bytes = self.bytes(case);
        let mut connection = Connection::open(self.sandbox.proxy());
        connection.send(&bytes);
        let reply = connection.read_reply(bytes.starts_with(b"HEAD "));
        let closed = case.assert.mentions_closing() && connection.closes(Duration::from_secs(10));
        // An honest request behind it: the node lives, and whatever the attack has set off upstream
        // was before this.
        let fence = honest(self.sandbox.proxy(), &self.good);
        assert_eq!(fence.status, 200, "after {}: {}", case.id, fence.head);
        let seen = self.openai.requests().into_iter().filter(|r| r.target() != "/v1/fence").collect();
        Outcome { reply: Reply { wire: connection.wire().to_vec(), ..reply }, closed, seen }
    }
}

/// A good token of another tenant, for a service of the same name there.
fn other_tenant(sandbox: &Sandbox) -> String {
    let (cli, upstream) = (sandbox.cli(), Upstream::ok());
    cli.json(&["tenant", "create", "other"]);
    cli.json(&["agent", "create", "agent", "--tenant", "other"]);
    let origin = upstream.origin();
    cli.json(&["service", "enable", "github", "--upstream", &origin, "--allow-private", "--tenant", "other"]);
    let put = ["credential", "put", "github", "--service", "github", "--from-stdin", "--tenant", "other"];
    cli.json_with(&put, "ghp_a-credential-of-the-other-tenant");
    cli.issue("agent", &["github"], &["--tenant", "other"]).secret
}

fn honest(proxy: SocketAddr, token: &str) -> Reply {
    seks_tests::raw::get(proxy, "/api/openai/v1/fence", token)
}

impl Expectation {
    fn mentions_closing(&self) -> bool {
        self.closed || self.any_of.iter().any(Self::mentions_closing)
    }

    /// What is wrong with an outcome; empty when nothing is.
    fn judge(&self, outcome: &Outcome) -> Vec<String> {
        if !self.any_of.is_empty() {
            let verdicts: Vec<_> = self.any_of.iter().map(|e| e.judge(outcome)).collect();
            let met = verdicts.iter().any(Vec::is_empty);
            return if met { Vec::new() } else { vec![format!("none of: {verdicts:?}")] };
        }
        let status = outcome.reply.status;
        if self.or_status.contains(&status) {
            let quiet = outcome.seen.is_empty();
            return if quiet { Vec::new() } else { vec![format!("{status}, yet the upstream saw {:?}", outcome.seen)] };
        }
        let complete = outcome.seen.iter().filter(|r| r.complete).count();
        let mut wrong = Vec::new();
        if !self.status.contains(&status) {
            wrong.push(format!("status {status} {}, not {:?}", outcome.reply.code(), self.status));
        }
        if self.upstream.is_some_and(|n| n != outcome.seen.len() || n != complete) {
            wrong.push(format!("the upstream saw {:?}, not {:?} requests", outcome.seen, self.upstream));
        }
        if self.upstream_complete.is_some_and(|n| n != complete) {
            wrong.push(format!("{complete} whole requests upstream"));
        }
        if self.closed && !outcome.closed {
            wrong.push("the connection stays open".into());
        }
        if self.single_framing && outcome.seen.iter().any(|r| r.framing == Framing::Ambiguous) {
            wrong.push("framed in two ways".into());
        }
        for absent in &self.upstream_absent {
            let found = |r: &Request| {
                let bytes = r.bytes().to_ascii_lowercase();
                oracle::contains(&bytes, absent.to_ascii_lowercase().as_bytes())
            };
            if outcome.seen.iter().any(found) {
                wrong.push(format!("{absent:?} reached the upstream"));
            }
        }
        wrong
    }
}

/// What no attack may bring about.
fn invariants(outcome: &Outcome, token: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(form) = oracle::find(&outcome.reply.wire, CREDENTIAL) {
        wrong.push(format!("the credential came back ({form})"));
    }
    if oracle::contains(&outcome.reply.wire, &token.as_bytes()[..20]) {
        wrong.push("the token came back".into());
    }
    if outcome.reply.header("access-control-allow-origin").is_some() {
        wrong.push("any web page may read the answer".into());
    }
    for request in &outcome.seen {
        if request.headers("authorization") != [format!("Bearer {CREDENTIAL}")] {
            wrong.push(format!("not exactly the credential went upstream with {:?}", request.line()));
        }
        if oracle::contains(&request.bytes(), b"seks_token_") {
            wrong.push("a token went upstream".into());
        }
    }
    wrong
}

fn run(data: &str) {
    let cases: Vec<Case> = serde_json::from_str(data).unwrap();
    let mut attacked = AttackedSandbox::start();
    let mut failures = Vec::new();
    for case in &cases {
        let outcome = attacked.attack(case);
        let mut wrong = case.assert.judge(&outcome);
        wrong.extend(invariants(&outcome, &attacked.good));
        if !wrong.is_empty() {
            failures.push(format!("{} {}: {}", case.id, case.title, wrong.join("; ")));
        }
    }
    assert_eq!(attacked.github.requests().len(), 0, "another service was reached");
    assert_eq!(attacked.evil.log().connections.len(), 0, "a foreign host was reached");
    assert!(attacked.sandbox.process().is_alive());
    let emitted = attacked.sandbox.everything_emitted();
    assert_eq!(oracle::find(emitted.as_bytes(), CREDENTIAL), None, "in what the process emitted");
    assert!(!emitted.contains(&attacked.good[..20]), "a token in what the process emitted");
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn every_attack_ends_as_it_must() {
    run(include_str!("../data/attacks.json"));
}

#[test]
fn so_does_every_other_member_of_their_classes() {
    run(include_str!("../data/more-attacks.json"));
}
