//! A credential is used at the destination that it was stored for, and nowhere else.

use seks_tests::{Collector, Sandbox, Upstream, sandbox::Options};

const SECRET: &str = "sk-real-binding-key-0000000000001";
const PATH: &str = "/api/svc/v1/models";

/// A service `svc` at `upstream`, by a definition with further lines.
fn define(sandbox: &Sandbox, upstream: &str, more: &str) -> seks_tests::process::Finished {
    let path = sandbox.data_dir().join("svc.toml");
    let inject = if more.contains("inject") { "" } else { "inject = \"bearer\"\n" };
    let text = format!(
        "name = \"svc\"\nupstream = \"{upstream}\"\nallow_private = true\nslots = [\"bearer\"]\n{inject}{more}\n"
    );
    std::fs::write(&path, text).unwrap();
    sandbox.cli().run(&["service", "apply", "-f", path.to_str().unwrap()], "")
}

fn applied(sandbox: &Sandbox, upstream: &str, more: &str) -> String {
    let done = define(sandbox, upstream, more);
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    done.stderr
}

/// The status and the code of a request with `token`.
fn ask(sandbox: &Sandbox, token: &str) -> (u16, String) {
    let reply = sandbox.get(PATH, token);
    (reply.status, if reply.status == 200 { String::new() } else { reply.code() })
}

fn refused() -> (u16, String) {
    (403, "credential_unbound".into())
}

fn has_secret(upstream: &Upstream) -> bool {
    let received = upstream.received();
    memchr::memmem::find(&received, SECRET.as_bytes()).is_some()
}

#[test]
fn a_service_that_goes_elsewhere_takes_no_credential_along() {
    let (sandbox, right, other) = (Sandbox::start(), Upstream::ok(), Upstream::ok());
    applied(&sandbox, &right.origin(), "");
    sandbox.cli().put_credential("key", "svc", SECRET);
    let token = sandbox.token("agent", &["svc"]).secret;
    assert_eq!(ask(&sandbox, &token).0, 200);
    assert!(has_secret(&right));

    let said = applied(&sandbox, &other.origin(), "");
    assert!(said.contains("credential `key` was stored for another destination"), "{said}");
    assert_eq!(ask(&sandbox, &token), refused());
    assert_eq!(other.received().len(), 0, "not even a connection is made");
    let shown = sandbox.cli().json(&["credential", "show", "key"]);
    assert_eq!((&shown["unbound"], &shown["origin"]), (&true.into(), &right.origin().into()));

    // Back again: nothing was lost.
    applied(&sandbox, &right.origin(), "");
    assert_eq!(ask(&sandbox, &token).0, 200);

    // Stored again for the other: used there, and the version before it can't be rolled back to.
    applied(&sandbox, &other.origin(), "");
    sandbox.cli().put_credential("key", "svc", "sk-other-key-for-the-other-upstream");
    assert_eq!(ask(&sandbox, &token).0, 200);
    let rolled = sandbox.cli().run(&["credential", "rollback", "key"], "");
    assert_eq!(rolled.code, Some(5), "{}", rolled.stderr);
    assert!(rolled.stderr.contains("another destination"), "{}", rolled.stderr);
    assert!(!has_secret(&other), "the first secret never got there");
}

#[test]
fn every_part_of_a_destination_counts_and_nothing_else_does() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    let origin = upstream.origin();
    applied(&sandbox, &origin, "");
    sandbox.cli().put_credential("key", "svc", SECRET);
    let token = sandbox.token("agent", &["svc"]).secret;
    let localhost = origin.replace("127.0.0.1", "localhost");
    for (upstream, more) in [
        (&*localhost, ""),
        (&*origin, "base_path = \"/elsewhere\""),
        (&*origin, "inject = { header = \"x-other\" }"),
        (&*origin, "inject = { query = { key = \"{key}\" } }"),
        (&*origin.replace("http://", "https://"), ""),
    ] {
        applied(&sandbox, upstream, more);
        assert_eq!(ask(&sandbox, &token), refused(), "{upstream} {more}");
    }
    for more in [
        "",
        "title = \"Another\"",
        "first_byte_timeout = \"9s\"",
        "denied_paths = [\"POST /keys\"]",
        "allow_range = true",
    ] {
        applied(&sandbox, &origin, more);
        assert_eq!(ask(&sandbox, &token).0, 200, "{more}");
    }
}

#[test]
fn an_owner_binds_a_credential_again_by_saying_so() {
    let collector = Collector::start();
    let sandbox = Sandbox::with(Options::default().collector(&collector));
    let (right, other) = (Upstream::ok(), Upstream::ok());
    applied(&sandbox, &right.origin(), "");
    sandbox.cli().put_credential("key", "svc", SECRET);
    let token = sandbox.token("agent", &["svc"]).secret;
    applied(&sandbox, &other.origin(), "");
    let unasked = sandbox.cli().run(&["credential", "rebind", "key"], "");
    assert_eq!(unasked.code, Some(2), "{}", unasked.stderr);
    assert!(unasked.stderr.contains(&other.origin()) && unasked.stderr.contains(&right.origin()), "{}", unasked.stderr);
    assert_eq!(ask(&sandbox, &token), refused());
    let bound = sandbox.cli().json(&["credential", "rebind", "key", "--yes"]);
    assert_eq!((&bound["unbound"], &bound["origin"]), (&false.into(), &other.origin().into()), "{bound}");
    assert_eq!(ask(&sandbox, &token).0, 200);
    assert!(has_secret(&other));
    let span = collector.wait_for("the audit span of the rebinding", |span| {
        span.name == "seks.admin" && span.get("seks.verb") == "RebindCredential"
    });
    assert!(span.get("seks.object").contains("key") && !span.get("seks.operator").is_empty(), "{span:?}");
    assert_eq!(span.get("seks.outcome"), "ok", "{span:?}");
}

#[test]
fn a_restart_forgets_no_binding() {
    let (mut sandbox, right, other) = (Sandbox::start(), Upstream::ok(), Upstream::ok());
    applied(&sandbox, &right.origin(), "");
    sandbox.cli().put_credential("key", "svc", SECRET);
    let token = sandbox.token("agent", &["svc"]).secret;
    applied(&sandbox, &other.origin(), "");
    sandbox.crash();
    assert_eq!(ask(&sandbox, &token), refused());
    assert_eq!(other.received().len(), 0);
}
