//! The attacks of issue 14 on whole systems: a control plane and a node over etcd, and somebody
//! with `etcdctl`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::{Etcd, Sandbox, Upstream, runtime, sandbox::Options};
use serde_json::json;

const SECRET: &str = "sk-real-writer-key-00000000000001";
const PATH: &str = "/api/svc/v1/models";

fn put(etcd: &Etcd, key: &str, value: &[u8]) {
    let body = json!({ "key": STANDARD.encode(format!("/seks/{key}")), "value": STANDARD.encode(value) });
    runtime().block_on(etcd.call("kv/put", body));
}

fn get(etcd: &Etcd, key: &str) -> Vec<u8> {
    let body = json!({ "key": STANDARD.encode(format!("/seks/{key}")) });
    let found = runtime().block_on(etcd.call("kv/range", body));
    STANDARD.decode(found["kvs"][0]["value"].as_str().unwrap()).unwrap()
}

fn replaced(value: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len(), "or the lengths in the record change");
    let at = memchr::memmem::find(value, from.as_bytes()).unwrap();
    let mut value = value.to_vec();
    value[at..at + to.len()].copy_from_slice(to.as_bytes());
    value
}

/// Two upstreams whose origins are equally long.
fn upstreams() -> (Upstream, Upstream) {
    loop {
        let pair = (Upstream::ok(), Upstream::ok());
        if pair.0.origin().len() == pair.1.origin().len() {
            return pair;
        }
    }
}

fn start() -> (Etcd, Sandbox) {
    let etcd = runtime().block_on(Etcd::start());
    let store =
        format!("kind = \"etcd\"\nendpoints = [\"{}\"]\nprefix = \"/seks\"\nallow_plaintext = true\n", etcd.url());
    let sandbox = Sandbox::with(Options::planes(store));
    (etcd, sandbox)
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_service_record_with_another_upstream_takes_no_credential_there() {
    let (etcd, mut sandbox) = start();
    let (right, evil) = upstreams();
    sandbox.cli().enable("openai", "svc", &right);
    sandbox.cli().put_credential("key", "svc", SECRET);
    let token = sandbox.token("agent", &["svc"]).secret;
    assert_eq!(sandbox.get(PATH, &token).status, 200);
    let record = get(&etcd, "in/default/service/svc");
    put(&etcd, "in/default/service/svc", &replaced(&record, &right.origin(), &evil.origin()));
    seks_tests::process::wait_for("the forged service is refused", || {
        (sandbox.get(PATH, &token).status != 200).then_some(())
    });
    assert_eq!(evil.received().len(), 0);
    sandbox.restart();
    assert_ne!(sandbox.get(PATH, &token).status, 200);
    assert_eq!(evil.received().len(), 0);
    // Applied again, it is as it was.
    sandbox.cli().enable("openai", "svc", &right);
    assert_eq!(sandbox.get(PATH, &token).status, 200);
    // And the same while nothing of SEKS runs.
    let record = get(&etcd, "in/default/service/svc");
    sandbox.control().kill();
    put(&etcd, "in/default/service/svc", &replaced(&record, &right.origin(), &evil.origin()));
    sandbox.crash();
    assert_ne!(sandbox.get(PATH, &token).status, 200);
    assert_eq!(evil.received().len(), 0);
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_revoked_token_that_is_put_back_stays_revoked() {
    let (etcd, mut sandbox) = start();
    let upstream = Upstream::ok();
    sandbox.cli().enable("openai", "svc", &upstream);
    sandbox.cli().put_credential("key", "svc", SECRET);
    let (token, other) = (sandbox.token("agent", &["svc"]), sandbox.cli().issue("agent", &["svc"], &[]));
    let key = format!("in/default/token/{}", token.id);
    let record = get(&etcd, &key);
    assert_eq!(sandbox.get(PATH, &token.secret).status, 200);
    sandbox.cli().revoke(&token.id);
    put(&etcd, &key, &record);
    let body = json!({ "key": STANDARD.encode(format!("/seks/in/default/tombstone/{}", token.id)) });
    runtime().block_on(etcd.call("kv/deleterange", body));
    sandbox.cli().json(&["agent", "create", "later"]); // the node has everything that was before
    for _ in 0..3 {
        assert_eq!(sandbox.get(PATH, &token.secret).status, 401);
    }
    sandbox.restart();
    assert_eq!(sandbox.get(PATH, &token.secret).status, 401);
    assert_eq!(sandbox.get(PATH, &other.secret).status, 200);
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_forbid_that_is_deleted_from_the_store_permits_nothing() {
    let (etcd, sandbox) = start();
    let upstream = Upstream::ok();
    sandbox.cli().enable("openai", "svc", &upstream);
    sandbox.cli().put_credential("key", "svc", SECRET);
    let token = sandbox.token("agent", &["svc"]).secret;
    assert_eq!(sandbox.get(PATH, &token).status, 200);
    let forbid = "@id(\"closed\") forbid (principal, action, resource);";
    sandbox.cli().apply_policies(forbid);
    assert_eq!(sandbox.get(PATH, &token).code(), "policy_denied");
    let body = json!({ "key": STANDARD.encode("/seks/in/default/policy/closed") });
    runtime().block_on(etcd.call("kv/deleterange", body));
    sandbox.cli().json(&["agent", "create", "later"]); // the node has everything that was before
    assert_eq!(sandbox.get(PATH, &token).code(), "policy_denied");
    // What is there isn't taken for what was meant.
    let refused = sandbox.cli().run(&["policy", "delete", "granted-services", "--yes"], "");
    assert!(refused.code == Some(5) && refused.stderr.contains("`closed`"), "{}", refused.stderr);
    sandbox.cli().apply_policies(forbid);
    sandbox.cli().json(&["policy", "delete", "closed", "--yes"]);
    assert_eq!(sandbox.get(PATH, &token).status, 200);
}
