//! Approvals: what a policy with `@approval` refuses until an operator approves it, and every way
//! around that.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{sync::atomic::Ordering::Relaxed, thread, time::Duration};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::{
    Sandbox, Upstream,
    process::wait_for,
    raw::{Connection, Reply},
    sandbox::{Cli, Token},
};
use serde_json::Value;

const KEY: &str = "sk-real-approvals-key-00000000000001";
/// A value that no operator and no record sees.
const AMOUNT: &str = "amount=424242171717";
const POLICY: &str = "@id(\"refunds\") @approval(\"payments\")\n\
     forbid (principal, action, resource) when { context.path like \"/v1/refunds*\" };";
const PATH: &str = "/api/openai/v1/refunds/r-1";

struct World {
    upstream: Upstream,
    sandbox: Sandbox,
    bot: Token,
}

fn world() -> World {
    let upstream = Upstream::ok();
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let bot = sandbox.token("bot", &["openai"]);
    sandbox.cli().apply_policies(POLICY);
    World { upstream, sandbox, bot }
}

impl World {
    fn cli(&self) -> &Cli {
        self.sandbox.cli()
    }

    fn send(&self, method: &str, path: &str, token: &str) -> Reply {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n",
            self.sandbox.proxy()
        );
        let mut connection = Connection::open(self.sandbox.proxy());
        connection.send(head.as_bytes());
        connection.read_reply(false)
    }

    fn post(&self, path: &str) -> Reply {
        self.send("POST", path, &self.bot.secret)
    }

    /// The id of the approval that a refusal names.
    fn asks(&self, reply: &Reply) -> String {
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!((reply.status, reply.code().as_str()), (403, "approval_required"), "{body}");
        let detail = body["detail"].as_str().unwrap();
        assert_eq!(body["error"]["message"], body["detail"], "as SDKs show it");
        let id = detail.split('`').find(|word| word.starts_with("apr-"));
        id.unwrap_or_else(|| panic!("no id: {detail}")).to_owned()
    }

    fn approve(&self, id: &str, options: &[&str]) -> Value {
        let approved = self.cli().json(&[&["approval", "approve", id], options].concat());
        assert_eq!((&approved["state"], &approved["enforced"]), (&"approved".into(), &true.into()), "{approved}");
        approved
    }

    /// Approves what a POST of `path` asks for.
    fn approved(&self, path: &str, options: &[&str]) -> String {
        let id = self.asks(&self.post(path));
        self.approve(&id, options);
        id
    }

    fn state(&self, id: &str) -> String {
        self.cli().json(&["approval", "show", id])["state"].as_str().unwrap().to_owned()
    }

    /// Another operator's command line.
    fn operator(&self, name: &str, role: &str) -> (tempfile::TempDir, Cli) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("context.toml");
        self.cli().json(&["operator", "create", name, "--role", role, "--out", file.to_str().unwrap()]);
        let cli = Cli::new(directory.path(), &file);
        (directory, cli)
    }
}

/// The exit code of a command, and what it says.
fn exit(cli: &Cli, arguments: &[&str]) -> (Option<i32>, String) {
    let finished = cli.run(arguments, "");
    (finished.code, finished.stderr)
}

#[test]
fn a_request_is_refused_until_an_operator_approves_it() {
    let world = world();
    let refused = world.post(PATH);
    let id = world.asks(&refused);
    assert!(refused.text().contains(&format!("seks approval approve {id}")), "{}", refused.text());
    assert_eq!(refused.header("x-should-retry"), Some("false"), "no SDK repeats it by itself");
    assert_eq!(world.upstream.requests().len(), 0);
    assert_eq!(world.asks(&world.post(PATH)), id, "equal requests have one approval");
    let rotated = world.cli().issue("bot", &["openai"], &[]);
    assert_eq!(world.asks(&world.send("POST", PATH, &rotated.secret)), id, "whatever the token");

    let shown = world.cli().json(&["approval", "show", &id]);
    let text = |key: &str| shown[key].as_str().unwrap_or_default().to_owned();
    assert_eq!((text("state"), text("agent"), text("service")), ("waiting".into(), "bot".into(), "openai".into()));
    assert_eq!((text("method"), text("path")), ("POST".into(), "/v1/refunds/r-1".into()));
    assert_eq!((text("policy"), text("scope")), ("refunds".into(), "payments".into()));
    assert_eq!(world.cli().json(&["approval", "list", "--waiting"]).as_array().unwrap().len(), 1);

    let approved = world.approve(&id, &["--for", "30m", "--reason", "ticket 4711"]);
    assert_eq!((&approved["reason"], &approved["limit"]), (&"ticket 4711".into(), &0.into()));
    for _ in 0..3 {
        assert_eq!(world.post(PATH).status, 200);
    }
    assert_eq!(world.upstream.requests().len(), 3);
    assert_eq!(world.cli().json(&["approval", "list", "--waiting"]), serde_json::json!([]));
    wait_for("a record that names the approval", || {
        let records = world.cli().json(&["audit", "search", "--since", "1h", "--decision", "allow"]);
        let named =
            |record: &&Value| record["policies"].as_array().is_some_and(|ids| ids.contains(&id.as_str().into()));
        records.as_array().unwrap().iter().find(named).map(drop)
    });

    let revoked = world.cli().json(&["approval", "revoke", &id, "--yes"]);
    assert_eq!(revoked["enforced"], true, "{revoked}");
    assert_eq!(world.state(&id), "revoked");
    assert_ne!(world.asks(&world.post(PATH)), id, "it is asked for again");
    let trail = world.cli().json(&["audit", "admin", "--since", "1h"]).to_string();
    for verb in ["AskApproval", "GrantApproval", "RevokeApproval"] {
        assert!(trail.contains(verb), "{verb}: {trail}");
    }
}

#[test]
fn an_approval_is_for_one_agent_method_path_and_query() {
    let world = world();
    let other = world.sandbox.token("other", &["openai"]);
    let path = format!("{PATH}?{AMOUNT}&currency=eur");
    world.approved(&path, &[]);
    assert_eq!(world.post(&path).status, 200);
    let sent = world.upstream.requests().len();
    let targets = [
        PATH.to_owned(),
        format!("{PATH}?{AMOUNT}"),
        format!("{PATH}?{AMOUNT}0&currency=eur"),
        format!("{PATH}?currency=eur&{AMOUNT}"),
        format!("{PATH}?{AMOUNT}&currency=eur&force=true"),
        format!("{PATH}?{AMOUNT}&currency=EUR"),
        path.replace("r-1", "r-2"),
        path.replace("r-1", "R-1"),
        path.replace("r-1", "r-1/"),
        path.replace("r-1", "%72-1"),
        path.replace("refunds", "Refunds"),
        path.replace("refunds", "%72efunds"),
    ];
    // An agent has 10 requests waiting at most: what is refused beyond that has no id.
    for target in &targets {
        let reply = world.post(target);
        assert_eq!((reply.status, reply.code().as_str()), (403, "approval_required"), "{target}: {}", reply.text());
    }
    for method in ["GET", "PUT", "PATCH", "DELETE"] {
        let reply = world.send(method, &path, &world.bot.secret);
        assert_eq!(reply.status, 403, "{method}: {}", reply.text());
    }
    assert_eq!(world.send("POST", &path, &other.secret).status, 403);
    assert_eq!(world.upstream.requests().len(), sent);
    let waiting = world.cli().json(&["approval", "list", "--waiting"]);
    let of_bot = waiting.as_array().unwrap().iter().filter(|approval| approval["agent"] == "bot").count();
    assert_eq!(of_bot, 10, "{waiting}");
    let full = world.post(&format!("{PATH}/one-more"));
    assert!(full.text().contains("too many requests of this agent or tenant wait"), "{}", full.text());

    world.cli().json(&["policy", "list"]);
    world.cli().json(&["audit", "admin", "--since", "1h"]);
    let emitted = world.sandbox.everything_emitted();
    assert!(!emitted.contains("424242171717"), "a value of the query was shown");
    assert!(!world.cli().everything_printed().contains("request_sha256"));
}

#[test]
fn any_values_is_approved_only_where_the_operator_says_so() {
    let world = world();
    world.approved(&format!("{PATH}?page=1"), &["--any-values"]);
    assert_eq!(world.post(&format!("{PATH}?page=2")).status, 200);
    assert_eq!(world.post(PATH).status, 200);
    assert_eq!(world.post(&format!("{PATH}/x")).status, 403);
}

#[test]
fn uses_are_counted_and_the_last_is_taken_once() {
    let world = world();
    let id = world.approved(PATH, &["--limit", "3"]);
    let (address, secret) = (world.sandbox.proxy(), world.bot.secret.clone());
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let secret = secret.clone();
            thread::spawn(move || seks_tests::raw::post(address, PATH, &secret, "").status)
        })
        .collect();
    let statuses: Vec<u16> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 3, "{statuses:?}");
    assert_eq!(world.upstream.requests().len(), 3);
    assert_eq!(world.state(&id), "used_up");
    let again = world.asks(&world.post(PATH));
    assert_ne!(again, id, "it is asked for again");
    let (code, said) = exit(world.cli(), &["approval", "approve", &id]);
    assert_eq!(code, Some(5), "an approval is given once: {said}");
    world.approve(&again, &["--limit", "1"]);
    assert_eq!((world.post(PATH).status, world.post(PATH).status), (200, 403));
}

#[test]
fn an_approval_ends_by_its_time() {
    let world = world();
    let id = world.approved(PATH, &["--for", "2s"]);
    assert_eq!(world.post(PATH).status, 200);
    wait_for("its end", || (world.post(PATH).status == 403).then_some(()));
    assert_eq!(world.state(&id), "expired");
    let (code, said) = exit(world.cli(), &["approval", "approve", &id]);
    assert_eq!(code, Some(5), "{said}");
}

#[test]
fn a_denied_request_is_not_asked_again_for_a_while() {
    let world = world();
    let id = world.asks(&world.post(PATH));
    world.cli().json(&["approval", "deny", &id, "--for", "3s", "--reason", "no"]);
    wait_for("the denial", || {
        let reply = world.post(PATH);
        (world.asks(&reply) == id && reply.text().contains("was denied until")).then_some(())
    });
    let (code, said) = exit(world.cli(), &["approval", "approve", &id]);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("was denied by"), "{said}");
    assert_eq!(exit(world.cli(), &["approval", "revoke", &id, "--yes"]).0, Some(5));
    wait_for("another question", || (world.asks(&world.post(PATH)) != id).then_some(()));
    assert_eq!(world.upstream.requests().len(), 0);
}

#[test]
fn who_may_not_approve_cannot() {
    let world = world();
    let id = world.asks(&world.post(PATH));
    let (_viewer_dir, viewer) = world.operator("vera", "viewer:default");
    let (_editor_dir, editor) = world.operator("ed", "editor:default");
    world.cli().json(&["tenant", "create", "acme"]);
    let (_foreign_dir, foreign) = world.operator("fay", "owner:acme");
    for verb in ["approve", "deny", "revoke"] {
        assert_eq!(exit(&viewer, &["approval", verb, &id]).0, Some(4), "{verb}");
        assert_eq!(
            exit(&foreign, &["approval", verb, &id]).0,
            Some(3),
            "{verb}: the other tenant does not exist for it"
        );
        assert_eq!(exit(&foreign, &["--tenant", "acme", "approval", verb, &id]).0, Some(3), "{verb}");
    }
    assert_eq!(exit(&viewer, &["approval", "show", &id]).0, Some(0));
    assert_eq!(exit(&editor, &["approval", "settings", "--by-another", "yes"]).0, Some(4));
    assert_eq!(exit(world.cli(), &["approval", "approve", "apr-0000000000000000"]).0, Some(3), "a guessed id");
    for time in ["0s", "8d", "10"] {
        assert_eq!(exit(world.cli(), &["approval", "approve", &id, "--for", time]).0, Some(2), "{time}");
    }
    assert_eq!(world.post(PATH).status, 403);
    assert_eq!(editor.json(&["approval", "approve", &id])["decided_by"], "ed");
    assert_eq!(world.post(PATH).status, 200);
}

#[test]
fn where_the_tenant_says_so_nobody_approves_an_own_request() {
    let world = world();
    world.cli().json(&["approval", "settings", "--by-another", "yes"]);
    let (_dir, ann) = world.operator("ann", "editor:default");
    let id = world.asks(&world.post(PATH));
    let (code, said) = exit(world.cli(), &["approval", "approve", &id]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("has issued token"), "{said}");
    ann.json(&["approval", "approve", &id]);
    assert_eq!(world.post(PATH).status, 200);
    // Another token may be one that the approver has issued: the approval is not for it.
    let own = ann.issue("bot", &["openai"], &[]);
    assert_eq!(world.send("POST", PATH, &own.secret).status, 403);
    world.cli().json(&["agent", "update", "bot", "--attr", "owner=ann"]);
    let owned = world.asks(&world.post(&format!("{PATH}/owned")));
    let (code, said) = exit(&ann, &["approval", "approve", &owned]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("owns agent"), "{said}");
}

#[test]
fn an_approval_does_not_outlive_what_it_is_about() {
    let world = world();
    let id = world.approved(PATH, &[]);
    let waits = world.asks(&world.post(&format!("{PATH}/waits")));
    // The policy is edited: nobody has approved anything under the new one.
    world.cli().apply_policies(&POLICY.replace("refunds*", "*"));
    assert_eq!(world.post(PATH).status, 403);
    let (code, said) = exit(world.cli(), &["approval", "approve", &waits]);
    assert_eq!(code, Some(5), "{said}");
    world.cli().apply_policies(POLICY);
    assert_eq!(world.post(PATH).status, 200, "the text that it was approved under");
    // An agent of the same name is another agent.
    world.cli().json(&["agent", "delete", "bot", "--yes"]);
    let bot = world.sandbox.token("bot", &["openai"]);
    assert_eq!(world.send("POST", PATH, &bot.secret).status, 403);
    for old in [&id, &waits] {
        assert_eq!(exit(world.cli(), &["approval", "approve", old]).0, Some(3), "{old}");
    }
    let ids = world.cli().json(&["policy", "list"]).to_string();
    assert!(!ids.contains(&id), "{ids}");
}

#[test]
fn a_grant_permits_nothing_by_itself_and_is_no_part_of_files() {
    let world = world();
    let id = world.approved(PATH, &[]);
    let text = world.cli().json(&["policy", "show", &id])["text"].as_str().unwrap().to_owned();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text.replace(&id, "mine").replace("r-1", "r-9")).unwrap();
    let (code, said) = exit(world.cli(), &["policy", "apply", "-f", file.path().to_str().unwrap()]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is written by `seks approval approve` alone"), "{said}");
    // A file that has only what `export` says leaves the approval alone.
    let export = world.cli().run(&["export"], "").stdout;
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    assert!(!export.contains(&id) && export.contains("@approval"), "{export}");
    std::fs::write(file.path(), &export).unwrap();
    let applied = world.cli().run(&["apply", "-f", file.path().to_str().unwrap(), "--prune", "--yes"], "");
    assert_eq!(applied.code, Some(0), "{}", applied.stderr);
    assert_eq!(world.post(PATH).status, 200);
    // Without another permit, and under another forbid, it permits nothing.
    world
        .cli()
        .apply_policies("@id(\"stop\") forbid (principal, action, resource) when { context.path like \"*r-1\" };");
    assert_eq!(world.post(PATH).code(), "policy_denied");
    world.cli().json(&["policy", "delete", "stop", "--yes"]);
    world.cli().json(&["policy", "delete", "granted-services", "--yes"]);
    assert_eq!(world.post(PATH).code(), "policy_denied");
    // To delete its policy is to revoke it.
    world.cli().json(&["policy", "delete", &id, "--yes"]);
    assert_eq!(world.state(&id), "revoked");
}

#[test]
fn a_revoked_approval_ends_answers_in_progress() {
    use seks_tests::upstream::{
        Answer,
        answer::{Gate, Step},
    };
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| {
        Answer::steps(vec![
            Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{".to_vec()),
            Step::Hold(held.clone()),
            Step::Send(b"}".to_vec()),
        ])
    });
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let bot = sandbox.token("bot", &["openai"]);
    sandbox.cli().apply_policies(POLICY);
    let world = World { upstream, sandbox, bot };
    let id = world.approved(PATH, &["--limit", "1"]);
    let (address, secret) = (world.sandbox.proxy(), world.bot.secret.clone());
    let mut connection = Connection::open(address);
    connection
        .send(format!("GET {PATH} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {secret}\r\n\r\n").as_bytes());
    assert_eq!(connection.read_reply(false).status, 403, "a GET was not approved");
    let mut connection = Connection::open(address);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {secret}\r\nContent-Length: 0\r\n\r\n"
    );
    connection.send(head.as_bytes());
    assert_eq!(connection.read_head().unwrap().0, 200);
    world.cli().json(&["approval", "revoke", &id, "--yes"]);
    assert!(connection.closes(Duration::from_secs(10)), "the answer was not cut");
    gate.open();
}

#[test]
fn a_webhook_is_told_once_what_waits_and_never_a_secret() {
    use seks_tests::{sandbox::Options, upstream::Answer};
    let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("webhook-key");
    seks_tests::plane::write_private(&file, key);
    let failures = std::sync::atomic::AtomicUsize::new(1);
    let hook = Upstream::start(move |_| {
        let fails = failures.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        if fails { Answer::with(500, &[], "") } else { Answer::with(200, &[], "") }
    });
    let mut options = Options::planes("");
    options.control_environment.push(("SEKS_APPROVALS_WEBHOOK_URL".into(), format!("{}/hook", hook.origin())));
    options.control_environment.push(("SEKS_APPROVALS_WEBHOOK_KEY_FILE".into(), file.display().to_string()));
    let upstream = Upstream::ok();
    let sandbox = Sandbox::with(options);
    sandbox.service("openai", &upstream, KEY);
    let bot = sandbox.token("bot", &["openai"]);
    sandbox.cli().apply_policies(POLICY);
    let world = World { upstream, sandbox, bot };
    let path = format!("{PATH}?{AMOUNT}");
    let id = world.asks(&world.post(&path));
    assert_eq!(world.asks(&world.post(&path)), id);
    hook.wait("a second attempt", |log| log.requests.iter().filter(|request| request.complete).count() >= 2);
    let requests = hook.requests();
    let secret = STANDARD.decode(key.trim_start_matches("whsec_")).unwrap();
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    for request in &requests {
        let header = |name: &str| request.header(name).unwrap().to_owned();
        let body = String::from_utf8(request.body.clone()).unwrap();
        assert_eq!((header("webhook-id"), request.line().contains(" /hook ")), (id.clone(), true));
        let signed = format!("{}.{}.{body}", header("webhook-id"), header("webhook-timestamp"));
        let signature = STANDARD.decode(header("webhook-signature").trim_start_matches("v1,")).unwrap();
        hmac::verify(&secret, signed.as_bytes(), &signature).unwrap();
        let message: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&message["type"], &message["data"]["id"]), (&"approval.requested".into(), &id.as_str().into()));
        assert_eq!(message["data"]["query_names"], serde_json::json!(["amount"]));
        assert!(!body.contains("4242") && !body.contains(&world.bot.secret) && !body.contains(KEY), "{body}");
    }
}
