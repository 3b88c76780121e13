//! Mutated input for every format that SEKS reads from somebody else: requests, signatures,
//! answers, envelopes, backups.
//!
//! Bounded and seeded: the same inputs in every run.
//! `SEKS_FUZZ_SEED=7 SEKS_FUZZ_ROUNDS=100000 cargo test -p seks-tests --test fuzz` goes on for
//! longer, elsewhere.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::fs;

use seks_control_plane::{
    backup,
    seal::{RecordId, SealConfig, Sealer, envelope::Header},
    store,
};
use seks_tests::{
    ControlPlaneHost, Sandbox, Upstream,
    mutation::{Mutator, Run},
    oracle,
    raw::Connection,
    runtime,
    sandbox::Options,
    upstream::Answer,
};
use seks_types::secret::Secret;

const KEY: &str = "sk-REAL-fuzzed-0123456789-DEADBEEF";
const AWS_KEY: &str =
    r#"{"access_key_id":"AKIAREALREALREAL0001","secret_access_key":"real/secret/access+key/0000000000000001"}"#;

/// A broker that doesn't limit wrong tokens, with a service for bearer tokens and one for
/// signatures.
fn sandbox(upstream: &Upstream) -> Sandbox {
    let config = "[proxy.limits]\nwrong_tokens_per_second = 1000000\n".to_owned();
    let sandbox = Sandbox::with(Options { config, ..Options::default() });
    sandbox.service("openai", upstream, KEY);
    sandbox.cli().apply_service(&format!(
        "name = \"s3\"\nupstream = \"{}\"\nallow_private = true\n\
         inject = {{ aws_sigv4 = {{ service = \"s3\", region = \"eu-central-1\" }} }}\n",
        upstream.origin()
    ));
    sandbox.cli().put_credential("s3", "s3", AWS_KEY);
    sandbox
}

/// All that comes back for these bytes, until the node closes.
fn exchange(sandbox: &Sandbox, bytes: &[u8]) -> Vec<u8> {
    let mut connection = Connection::open(sandbox.proxy());
    connection.send(bytes);
    connection.finish();
    connection.drain_to_end();
    connection.wire().to_vec()
}

/// The node serves, has said nothing of the key, and no part of it has panicked.
fn assert_unharmed(sandbox: &mut Sandbox, token: &str) {
    assert_eq!(sandbox.get("/api/openai/v1/models", token).status, 200);
    assert!(sandbox.process().is_alive());
    let emitted = sandbox.everything_emitted();
    assert_eq!(oracle::find(emitted.as_bytes(), KEY), None);
    assert!(!emitted.contains("panicked"), "{emitted}");
}

/// Well-formed requests of many kinds; attacks, too: a mutation of one is another.
fn requests(token: &str, access_key_id: &str) -> Vec<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Case {
        raw: String,
    }
    let attacks = [include_str!("../data/attacks.json"), include_str!("../data/more-attacks.json")];
    let attacks = attacks.iter().flat_map(|text| serde_json::from_str::<Vec<Case>>(text).unwrap());
    let latin1 = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<_>>();
    let mut all: Vec<_> = attacks.map(|case| latin1(&case.raw.replace("{T1}", token))).collect();
    let signed = format!(
        "GET /api/s3/bucket/key?list-type=2&prefix=a%2Fb HTTP/1.1\r\nHost: localhost\r\nx-amz-date: 20260101T000000Z\r\n\
         x-amz-content-sha256: UNSIGNED-PAYLOAD\r\nAuthorization: AWS4-HMAC-SHA256 \
         Credential={access_key_id}/20260101/eu-central-1/s3/aws4_request, \
         SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={}\r\n\r\n",
        "0".repeat(64)
    );
    let posted = format!(
        "POST /api/openai/v1/chat HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX: y\r\n\r\n"
    );
    // As many as the attacks: these are where a mutation gets furthest.
    for _ in 0..all.len() / 2 {
        all.extend([signed.clone().into_bytes(), posted.clone().into_bytes()]);
    }
    all
}

#[test]
fn mutated_requests_and_signatures_leave_the_node_serving_and_carry_nothing_out() {
    let run = Run::of(600);
    let upstream = Upstream::ok();
    let mut sandbox = sandbox(&upstream);
    sandbox.cli().create_agent("agent");
    let token = sandbox.cli().issue("agent", &["openai"], &[]).secret;
    let aws = sandbox.cli().json(&["token", "issue", "--agent", "agent", "--service", "s3"]);
    let corpus = requests(&token, aws["aws"]["access_key_id"].as_str().unwrap());
    for round in 0..run.rounds {
        let mut mutator = run.mutator(round);
        let bytes = {
            let seed = mutator.pick(&corpus).clone();
            mutator.mutate(&seed)
        };
        let reply = exchange(&sandbox, &bytes);
        assert_eq!(oracle::find(&reply, KEY), None, "round {round} of {run:?}: {}", String::from_utf8_lossy(&bytes));
    }
    let received = upstream.received();
    assert!(!oracle::contains(&received, &token.as_bytes()[..20]), "a token reached the upstream");
    for request in upstream.requests().iter().filter(|request| request.header("x-amz-date").is_none()) {
        assert_eq!(request.headers("authorization"), [format!("Bearer {KEY}")], "{request:?}");
    }
    assert_unharmed(&mut sandbox, &token);
}

/// Answers with the key in them, as a hostile upstream sends it back.
fn answers() -> Vec<Vec<u8>> {
    let body = format!("{{\"you sent\":\"{KEY}\"}}");
    let length = body.len();
    let plain = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
    let (first, second) = body.split_at(length / 2);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\nX-Trailer: {KEY}\r\n\r\n",
        first.len(),
        second.len()
    );
    let header = format!("HTTP/1.1 302 Found\r\nLocation: /{KEY}\r\nSet-Cookie: k={KEY}\r\nContent-Length: 0\r\n\r\n");
    let to_the_end = format!("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n{body}");
    let interim = format!("HTTP/1.1 103 Early Hints\r\nLink: <{KEY}>\r\n\r\n{plain}");
    let switched =
        format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n{KEY}");
    [plain, chunked, header, to_the_end, interim, switched].map(String::into_bytes).into()
}

#[test]
fn mutated_answers_leave_the_node_serving_and_the_key_masked() {
    let run = Run::of(400);
    // The agent says which round it is.
    let upstream = Upstream::start(move |request| {
        let Some(round) = request.header("x-round").and_then(|round| round.parse().ok()) else {
            return Answer::json(200, "{}");
        };
        let mut mutator: Mutator = run.mutator(round);
        let answer = mutator.pick(&answers()).clone();
        Answer::raw(mutator.mutate(&answer))
    });
    let mut sandbox = sandbox(&upstream);
    let token = sandbox.token("agent", &["openai"]).secret;
    for round in 0..run.rounds {
        let request = format!(
            "GET /api/openai/v1/models HTTP/1.1\r\nHost: localhost\r\nX-Round: {round}\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        );
        let reply = exchange(&sandbox, request.as_bytes());
        assert_eq!(oracle::find(&reply, KEY), None, "round {round} of {run:?}: {}", String::from_utf8_lossy(&reply));
    }
    assert_unharmed(&mut sandbox, &token);
}

#[tokio::test]
async fn a_mutated_envelope_opens_for_nobody() {
    let run = Run::of(5_000);
    let directory = tempfile::tempdir().unwrap();
    let kek = directory.path().join("kek");
    Sealer::create_file(&kek).unwrap();
    let sealer = Sealer::load(&SealConfig::file(&kek)).unwrap();
    let (tenant, name) = ("default".parse().unwrap(), "main".parse().unwrap());
    let id = RecordId::credential("store", &tenant, &name, 1);
    let envelope = sealer.seal(&id, &Secret::new(KEY.into())).await.unwrap();
    let record = sealer.authenticate_record(&RecordId::epoch("store"), b"a record").await.unwrap();
    for round in 0..run.rounds {
        let mut mutator = run.mutator(round);
        let (envelope_now, record_now) = (mutator.mutate(&envelope), mutator.mutate(&record));
        drop(Header::parse(&envelope_now));
        drop(sealer.rewrap(&envelope_now).await);
        let _has = sealer.has_key_of(&envelope_now);
        let opened = sealer.open(&id, &envelope_now).await.is_ok();
        assert_eq!(opened, envelope_now == envelope, "round {round} of {run:?}");
        let verified = sealer.verify_record(&RecordId::epoch("store"), &record_now).await.is_ok();
        assert_eq!(verified, record_now == record, "round {round} of {run:?}");
    }
}

#[test]
fn a_mutated_backup_is_refused_and_makes_no_store() {
    let run = Run::of(300);
    let host = ControlPlaneHost::embedded();
    host.bootstrap();
    let file = host.path("backup");
    host.done(&["backup", "--out", file.to_str().unwrap()]);
    let (whole, sealer) = (fs::read(&file).unwrap(), host.sealer());
    let other = ControlPlaneHost::embedded();
    for round in 0..run.rounds {
        let mutated = run.mutator(round).mutate(&whole);
        if mutated == whole {
            continue;
        }
        fs::write(&file, &mutated).unwrap();
        let restored = runtime().block_on(backup::restore(&other.config, &sealer, &file, false));
        assert!(restored.is_err(), "round {round} of {run:?}");
        assert!(!runtime().block_on(store::exists(&other.config)).unwrap(), "round {round} of {run:?}");
    }
}
