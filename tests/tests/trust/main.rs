//! Identity exchange: an agent with a token of a trusted issuer needs no stored secret, and what
//! ends the trust ends its tokens.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod certificate;
mod issuer;

use seks_tests::{
    Sandbox, Upstream,
    process::wait_for,
    raw::{Connection, Reply, exchange},
    upstream::{
        Answer,
        answer::{Step, chunk},
    },
};
use serde_json::{Value, json};

use self::issuer::Issuer;

const KEY: &str = "sk-real-trust-key-00000000000000001";
const PATH: &str = "/api/openai/v1/models";
const GRANT: &str = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange\
                     &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt";

struct World {
    sandbox: Sandbox,
    upstream: Upstream,
    issuer: Issuer,
}

impl World {
    fn start() -> Self {
        Self::with(Upstream::ok(), &[])
    }

    fn with(upstream: Upstream, more: &[&str]) -> Self {
        let (sandbox, issuer) = (Sandbox::start(), Issuer::start());
        sandbox.service("openai", &upstream, KEY);
        sandbox.cli().create_agent("ci-prod");
        let world = Self { sandbox, upstream, issuer };
        let created = world.create("ci", more);
        assert_eq!((&created["id"], &created["enforced"]), (&json!("trust-ci"), &json!(true)), "{created}");
        world
    }

    fn create(&self, name: &str, more: &[&str]) -> Value {
        let url = self.issuer.url();
        let arguments = [
            "trust",
            "create",
            name,
            "--issuer",
            &url,
            "--audience",
            "seks",
            "--match",
            "sub repo:acme/*:ref:refs/heads/main",
            "--agent",
            "ci-{environment}",
            "--service",
            "openai",
        ];
        self.sandbox.cli().json(&[&arguments, more].concat())
    }

    fn exchange(&self, subject_token: &str, more: &str) -> Reply {
        let body = format!("{GRANT}&subject_token={subject_token}{more}");
        exchange(
            self.sandbox.proxy(),
            format!(
                "POST /token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\n\r\n{body}",
                body.len()
            ),
        )
    }

    /// A token of the node for a fresh token of the issuer.
    fn exchanged(&self) -> String {
        let reply = self.exchange(&self.issuer.token(json!({})), "");
        assert_eq!(reply.status, 200, "{}", reply.text());
        let answer: Value = serde_json::from_str(&reply.text()).unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    }

    fn get(&self, token: &str) -> (u16, String) {
        let reply = self.sandbox.get(PATH, token);
        (reply.status, if reply.status == 200 { String::new() } else { reply.code() })
    }
}

fn error(reply: &Reply) -> (u16, String, String) {
    let answer: Value = serde_json::from_str(&reply.text()).unwrap_or_default();
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    (reply.status, text("error"), text("error_description"))
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[test]
fn a_token_of_the_issuer_is_exchanged_once_and_the_result_is_used_as_any_token() {
    let world = World::start();
    let subject = world.issuer.token(json!({}));
    let reply = world.exchange(&subject, "");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let answer: Value = serde_json::from_str(&reply.text()).unwrap();
    assert_eq!(answer["token_type"], "Bearer");
    assert_eq!(answer["issued_token_type"], "urn:ietf:params:oauth:token-type:access_token");
    assert_eq!(answer["scope"], "openai");
    let life = answer["expires_in"].as_i64().unwrap();
    assert!((590..=600).contains(&life), "no longer than the subject token: {life}");
    let token = answer["access_token"].as_str().unwrap();
    assert!(token.starts_with("seks_token_"), "{token}");

    assert_eq!(world.get(token), (200, String::new()));
    let request = world.upstream.requests()[0].clone();
    assert_eq!(request.header("authorization").unwrap(), format!("Bearer {KEY}"));
    assert_eq!(error(&world.exchange(&subject, "")).1, "invalid_grant", "a replay");
    assert!(!String::from_utf8_lossy(&world.upstream.received()).contains(&token[..60]));

    let unnumbered = world.issuer.token(json!({ "jti": null }));
    assert_eq!(world.exchange(&unnumbered, "").status, 200);
    let again = issuer::with_other_signature(&unnumbered);
    let (status, error, detail) = error(&world.exchange(&again, ""));
    assert_eq!((status, &*error), (400, "invalid_grant"), "a replay under another signature");
    assert!(detail.contains("exchanged before"), "{detail}");

    // The issuer's token itself, any number of times.
    let direct = world.issuer.token(json!({}));
    assert_eq!((world.get(&direct), world.get(&direct)), ((200, String::new()), (200, String::new())));
    // Discovery and keys, by the control plane: at the creation, and once more within 30 s. The
    // node has verified five tokens and asked nobody.
    assert!(matches!(world.issuer.asked(), 2 | 4), "{}", world.issuer.asked());
    let emitted = world.sandbox.everything_emitted();
    for secret in [token, &subject, &direct, KEY] {
        assert!(!emitted.contains(secret), "nothing emitted holds a token or the key");
    }
}

#[test]
fn what_is_not_the_issuers_is_refused_in_the_words_of_oauth() {
    let world = World::start();
    let other = Issuer::start();
    let day = 24 * 60 * 60;
    for (claims, want) in [
        (json!({ "aud": "other" }), "no trust names"),
        (json!({ "iss": "https://issuer.example" }), "no trust names"),
        (json!({ "iss": format!("{}/", world.issuer.url()) }), "no trust names"),
        (json!({ "exp": issuer::now() - 61 }), "has expired"),
        (json!({ "nbf": issuer::now() + 120 }), "not valid yet"),
        (json!({ "exp": issuer::now() + 2 * day }), "longer than 24 h"),
        (json!({ "sub": "repo:evil/api:ref:refs/heads/main" }), "no trust matches"),
        (json!({ "environment": "dev" }), "no agent name"),
        (json!({ "environment": "Prod" }), "no agent name"),
    ] {
        let (status, kind, description) = error(&world.exchange(&world.issuer.token(claims.clone()), ""));
        assert_eq!((status, kind.as_str()), (400, "invalid_grant"), "{claims}");
        assert!(description.contains(want), "{claims}: {description}");
    }
    let forged = other.token(json!({ "iss": world.issuer.url() }));
    assert!(error(&world.exchange(&forged, "")).2.contains("signature is wrong"));
    assert_eq!(world.get(&forged), refused(401, "token_unknown"));
    assert_eq!(world.get(&other.token(json!({}))), refused(401, "token_malformed"), "nobody trusts this issuer");
    let good = world.issuer.token(json!({}));
    assert_eq!(error(&world.exchange(&good, "&scope=github")).1, "invalid_scope");
    assert_eq!(error(&world.exchange(&good, "&scope=openai&scope=openai")).1, "invalid_request");
    assert_eq!(error(&world.exchange(&good, "&scope=trust:other")).1, "invalid_grant");
    assert_eq!(world.exchange(&good, "&scope=openai+trust:ci").status, 200, "a failure does not use a token up");
    let method = exchange(world.sandbox.proxy(), "GET /token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(method.status, 405);
    assert_eq!(world.upstream.complete(), 0);
}

#[test]
fn no_character_of_an_exchanged_token_can_be_changed() {
    let world = World::start();
    let token = world.exchanged();
    for at in (11..token.len()).step_by(29) {
        let mut forged = token.clone().into_bytes();
        forged[at] = if forged[at] == b'x' { b'y' } else { b'x' };
        let (status, code) = world.get(std::str::from_utf8(&forged).unwrap());
        assert!(status == 401 && matches!(code.as_str(), "token_malformed" | "token_unknown"), "{at}: {code}");
    }
    assert_eq!(world.get(&token).0, 200);
}

#[test]
fn a_revoked_trust_ends_its_tokens_and_the_answers_in_progress() {
    let upstream = Upstream::start(|_| {
        Answer::chunked(200, &[("Content-Type", "text/event-stream")], vec![chunk(b"data: 1\n\n"), Step::Stall], &[])
    });
    let world = World::with(upstream, &[]);
    let (exchanged, direct) = (world.exchanged(), world.issuer.token(json!({})));
    let mut streams: Vec<Connection> = [&exchanged, &direct].map(|token| stream(&world, token)).into();

    let revoked = world.sandbox.cli().json(&["trust", "revoke", "ci", "--yes"]);
    assert_eq!(revoked["enforced"], true, "{revoked}");
    for stream in &mut streams {
        assert_eq!(stream.read_chunk(), None, "the answer ends");
    }
    assert_eq!(world.get(&exchanged), refused(401, "token_revoked"));
    assert_eq!(world.get(&direct).0, 401);
    assert_eq!(error(&world.exchange(&world.issuer.token(json!({})), "")).1, "invalid_grant");
    world.create("ci", &[]);
    assert_eq!(world.get(&exchanged).0, 401, "a new trust of the same name revives no token");
}

fn stream(world: &World, token: &str) -> Connection {
    let mut stream = Connection::open(world.sandbox.proxy());
    stream.send(format!("GET {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"));
    assert_eq!(stream.read_head().unwrap().0, 200);
    assert_eq!(stream.read_chunk().unwrap(), b"data: 1\n\n");
    stream
}

#[test]
fn a_denied_subject_ends_and_others_go_on() {
    let upstream = Upstream::start(|_| {
        Answer::chunked(200, &[("Content-Type", "text/event-stream")], vec![chunk(b"data: 1\n\n"), Step::Stall], &[])
    });
    let world = World::with(upstream, &[]);
    let (denied, other) = ("repo:acme/api:ref:refs/heads/main", "repo:acme/web:ref:refs/heads/main");
    let of = |subject: &str| world.issuer.token(json!({ "sub": subject }));
    let (first, second) = (of(denied), of(other));
    let (mut ends, mut stays) = (stream(&world, &first), stream(&world, &second));

    let updated = world.sandbox.cli().json(&["trust", "update", "ci", "--deny-subject", denied]);
    assert_eq!((&updated["enforced"], &updated["denied_subjects"]), (&json!(true), &json!([denied])), "{updated}");
    assert_eq!(ends.read_chunk(), None);
    assert_eq!(world.get(&first), refused(401, "token_revoked"));
    assert_eq!(world.get(&of(denied)), refused(401, "token_revoked"));
    assert!(!stays.closes(std::time::Duration::from_millis(300)), "another subject's answer goes on");
    drop(stream(&world, &second));

    world.sandbox.cli().json(&["trust", "update", "ci", "--allow-subject", denied]);
    drop(stream(&world, &of(denied)));
}

#[test]
fn keys_are_fetched_when_an_issuer_rotates_them_and_its_outage_is_not_ours() {
    let world = World::start();
    let old = world.exchanged();
    world.issuer.fail();
    assert_eq!(world.get(&old).0, 200);
    assert_eq!(world.get(&world.issuer.token(json!({}))).0, 200, "the last keys stay");

    // A key that nobody has published is not believed; one that was is fetched when a node meets
    // it.
    world.issuer.rotate();
    let new = world.issuer.token(json!({}));
    assert_eq!(world.get(&new), refused(401, "token_unknown"));
    for bad in [r#"{"keys":[]}"#, "no JSON", &format!(r#"{{"keys":[{{"x5c":"{}"}}]}}"#, "x".repeat(100_000))] {
        world.issuer.publish_text(bad);
        let refresh = world.sandbox.cli().run(&["trust", "update", "ci", "--refresh-keys"], "");
        assert_eq!(refresh.code.map(|code| code != 0), Some(true), "{}", refresh.stdout);
        assert_eq!(world.get(&old).0, 200, "the last keys stay");
    }
    world.issuer.publish();
    let refreshed = world.sandbox.cli().json(&["trust", "update", "ci", "--refresh-keys"]);
    assert_eq!((&refreshed["enforced"], &refreshed["keys"]), (&json!(true), &json!(["key-2"])), "{refreshed}");
    assert_eq!(world.get(&new).0, 200);
    assert_eq!(world.get(&old), refused(401, "token_revoked"), "its key is gone");
    assert_eq!(error(&world.exchange(&world.issuer.token(json!({})), "")).0, 200);
}

#[test]
fn a_key_that_a_node_meets_first_is_fetched_without_being_asked_for() {
    let world = World::start();
    world.issuer.rotate();
    world.issuer.publish();
    let token = world.issuer.token(json!({}));
    wait_for("the new key", || (world.get(&token).0 == 200).then_some(()));
    let page = world.sandbox.metrics_page();
    assert!(page.contains("seks_trust_key_fetches_total{outcome=\"changed\"} 1"), "{page}");
}

#[test]
fn trusts_are_listed_and_shown_without_anything_that_is_a_token() {
    let world = World::with(Upstream::ok(), &["--ttl", "5m", "--claim", "environment", "--cidr", "127.0.0.0/8"]);
    let cli = world.sandbox.cli();
    let shown = cli.json(&["trust", "show", "ci"]);
    assert_eq!((&shown["services"], &shown["ttl_seconds"]), (&json!(["openai"]), &json!(300)), "{shown}");
    assert_eq!((&shown["keys"], &shown["keys_fetched"]), (&json!(["key-1"]), &json!(true)), "{shown}");
    assert!(shown.get("digest").is_none(), "{shown}");
    assert_eq!(cli.json(&["trust", "list"]), json!([shown]));
    assert_eq!(cli.json(&["token", "list"]), json!([]), "a trust is no token");
    assert_eq!(cli.run(&["trust", "show", "other"], "").code, Some(3));
    for (more, code) in [
        (&["--match", "sub **"][..], 2),
        (&["--agent", "CI"], 2),
        (&["--ttl", "1h"], 2),
        (&["--service", "seks-exchange"], 2),
        (&["--service", "none"], 3),
    ] {
        let url = world.issuer.url();
        let mut arguments = vec!["trust", "create", "x", "--issuer", &url, "--audience", "seks"];
        for (name, value) in [("--match", "sub a"), ("--agent", "a"), ("--service", "openai")] {
            if more[0] != name {
                arguments.extend([name, value]);
            }
        }
        let finished = cli.run(&[&arguments, more].concat(), "");
        assert_eq!(finished.code, Some(code), "{more:?}: {}", finished.stderr);
    }
    assert_eq!(
        cli.run(
            &[
                "trust",
                "create",
                "ci",
                "--issuer",
                &world.issuer.url(),
                "--audience",
                "seks",
                "--match",
                "sub a",
                "--agent",
                "a",
                "--service",
                "openai"
            ],
            ""
        )
        .code,
        Some(5),
        "it exists"
    );
    let issue = cli.run(&["token", "issue", "--agent", "ci-prod", "--service", "seks-exchange"], "");
    assert_eq!(issue.code, Some(2), "no token reaches the exchange key: {}", issue.stderr);
    let put = cli.run(&["credential", "put", "x", "--service", "seks-exchange", "--from-stdin"], "{}");
    assert_eq!(put.code, Some(2), "{}", put.stderr);
    let used = cli.run(&["service", "delete", "openai", "--yes"], "");
    assert_eq!(used.code, Some(5), "{}", used.stderr);
}

#[test]
fn a_disabled_agent_and_a_policy_hold_for_exchanged_tokens() {
    let world = World::start();
    let token = world.exchanged();
    world.sandbox.cli().json(&["agent", "disable", "ci-prod"]);
    assert_eq!(world.get(&token), refused(403, "agent_disabled"));
    world.sandbox.cli().json(&["agent", "enable", "ci-prod"]);
    world.sandbox.cli().apply_policies("@id(\"no\") forbid (principal == Seks::Agent::\"ci-prod\", action, resource);");
    assert_eq!(world.get(&token), refused(403, "policy_denied"));
    world.sandbox.cli().json(&["policy", "delete", "no", "--yes"]);
    assert_eq!(world.get(&token).0, 200);
}

#[test]
fn a_token_that_two_trusts_accept_needs_a_choice_and_two_tenants_never_share_one() {
    let world = World::start();
    let cli = world.sandbox.cli();
    world.create("wide", &["--match", "environment prod"]);
    let token = world.issuer.token(json!({}));
    let (_, kind, description) = error(&world.exchange(&token, ""));
    assert!(kind == "invalid_grant" && description.contains("scope=trust:NAME"), "{description}");
    assert_eq!(world.get(&token).0, 401, "nor is one chosen for a token that is sent itself");
    assert_eq!(world.exchange(&token, "&scope=trust:wide").status, 200);
    cli.json(&["trust", "delete", "wide", "--yes"]);

    // Another tenant: an audience of its own, or none.
    cli.json(&["tenant", "create", "other"]);
    cli.json(&[
        "--tenant",
        "other",
        "service",
        "enable",
        "openai",
        "--upstream",
        &world.upstream.origin(),
        "--allow-private",
    ]);
    cli.json_with(
        &["--tenant", "other", "credential", "put", "key", "--service", "openai", "--from-stdin"],
        "sk-other-0000000000000000001",
    );
    cli.json(&["--tenant", "other", "agent", "create", "ci-prod"]);
    let url = world.issuer.url();
    let create = |audience: &str| {
        let arguments = [
            "--tenant",
            "other",
            "trust",
            "create",
            "ci",
            "--issuer",
            &url,
            "--audience",
            audience,
            "--match",
            "environment prod",
            "--agent",
            "ci-prod",
            "--service",
            "openai",
        ];
        cli.run(&arguments, "")
    };
    let taken = create("seks");
    assert_eq!(taken.code, Some(2), "{}", taken.stderr);
    assert!(!taken.stderr.contains("another") && !taken.stderr.contains("default"), "{}", taken.stderr);
    assert_eq!(create("seks-other").code, Some(0));
    assert_eq!(world.get(&world.issuer.token(json!({ "aud": "seks-other" }))).0, 200);
    let both = world.issuer.token(json!({ "aud": ["seks", "seks-other"] }));
    assert_eq!(world.get(&both).0, 401, "whose credentials would it use?");
    assert_eq!(error(&world.exchange(&both, "")).1, "invalid_grant");
}

#[test]
fn policies_see_the_trust_and_the_claims_that_it_lists() {
    let world = World::with(Upstream::ok(), &["--claim", "environment", "--claim", "actor"]);
    let (token, direct) = (world.exchanged(), world.issuer.token(json!({ "actor": "mallory" })));
    let stored = world.sandbox.token("stored", &["openai"]).secret;
    world.sandbox.cli().apply_policies(
        r#"@id("main-only") forbid (principal, action, resource)
             unless { context has trust && context.trust.name == "ci" && context.trust.subject like "repo:acme/api:*"
                      && context.trust.claims.contains("environment=prod") };
           @id("not-mallory") forbid (principal, action, resource)
             when { context has trust && context.trust.claims.contains("actor=mallory") };"#,
    );
    assert_eq!(world.get(&token).0, 200);
    assert_eq!(world.get(&direct), refused(403, "policy_denied"));
    assert_eq!(world.get(&stored), refused(403, "policy_denied"), "a stored token has no trust");
    let other = world.issuer.token(json!({ "sub": "repo:acme/web:ref:refs/heads/main" }));
    assert_eq!(world.get(&other), refused(403, "policy_denied"), "decisions are not mixed up");
    assert_eq!(world.get(&token).0, 200);
}

#[test]
fn an_exchanged_token_outlives_a_restart_of_the_node() {
    let mut world = World::start();
    let token = world.exchanged();
    world.sandbox.restart();
    assert_eq!(world.get(&token).0, 200, "any node of the tenant reads it");
}
