//! Methods beside the usual seven: a service lists them, and policies decide on them.

use seks_tests::raw::exchange;

use crate::rig::Rig;

const METHODS: &str =
    r#"methods = ["LIST", "LOCK", "UNLOCK", "PROPFIND", "REPORT", "SEARCH", "QUERY", "PURGE", "FETCH:read"]"#;

#[test]
fn a_listed_method_is_passed() {
    let rig = Rig::start(METHODS);
    for method in ["LIST", "LOCK", "UNLOCK", "PROPFIND", "REPORT", "SEARCH", "QUERY", "PURGE", "FETCH"] {
        let reply = rig.ask(method, "/v1/secret", "", "{\"a\":1}");
        assert_eq!(reply.status, 200, "{method}: {}", reply.text());
        let seen = &rig.upstream.requests()[0];
        assert_eq!((seen.method(), seen.body.as_slice()), (method.to_owned(), &b"{\"a\":1}"[..]));
    }
    for method in ["MKCOL", "list", "List", "TRACE", "TRACK", "trace", "CONNECTS"] {
        let reply = rig.ask(method, "/v1/secret", "", "");
        rig.assert_refused(&reply, 405, "request_invalid");
        assert!(reply.header("allow").unwrap().starts_with("GET, HEAD, OPTIONS, POST"), "{method}");
    }
    assert!(rig.ask("MKCOL", "/", "", "").header("allow").unwrap().ends_with("PURGE, FETCH"));
    let anonymous = rig.ask_without_token("LIST", "/v1/secret", "", "");
    rig.assert_refused(&anonymous, 401, "token_missing");
}

#[test]
fn no_service_has_connect_or_trace() {
    let rig = Rig::start(METHODS);
    for method in ["CONNECT", "TRACE"] {
        let request =
            format!("{method} /api/acme/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n", rig.token);
        let reply = exchange(rig.sandbox.proxy(), request);
        assert!([400, 405].contains(&reply.status), "{method}: {}", reply.status);
        assert!(rig.upstream.requests().is_empty());
    }
}

#[test]
fn policies_decide_on_any_method() {
    let rig = Rig::start(METHODS);
    rig.sandbox.cli().json(&["policy", "delete", "granted-services", "--yes"]);
    rig.sandbox.cli().apply_policies(
        "@id(\"list\") permit (principal, action == Seks::Action::\"LIST\", resource) when { context.path like \"/v1/*\" };\n\
         @id(\"reads\") permit (principal, action in Seks::Action::\"read\", resource) when { context.path like \"/r/*\" };\n\
         @id(\"own\") forbid (principal, action == Seks::Action::\"FETCH\", resource) when { context.path like \"/r/x*\" };",
    );
    for (method, path, status) in [
        ("LIST", "/v1/x", 200),
        ("LIST", "/v2/x", 403),
        ("PROPFIND", "/r/a", 200),
        ("FETCH", "/r/a", 200),
        ("FETCH", "/r/x", 403),
        ("LOCK", "/r/a", 403),
        ("GET", "/r/a", 200),
    ] {
        assert_eq!(rig.ask(method, path, "", "").status, status, "{method} {path}");
        let simulate =
            ["policy", "simulate", "--agent", "agent", "--service", "acme", "--method", method, "--path", path];
        let decision = rig.sandbox.cli().json(&simulate);
        assert_eq!(decision["decision"], if status == 200 { "allow" } else { "deny" }, "{method} {path}: {decision}");
    }
    let unknown = rig.sandbox.cli().json(&[
        "policy",
        "simulate",
        "--agent",
        "agent",
        "--service",
        "acme",
        "--method",
        "MKCOL",
        "--path",
        "/r/a",
    ]);
    assert!(unknown["errors"][0].as_str().unwrap().contains("methods"), "{unknown}");
}

#[test]
fn an_action_of_no_service_is_a_mistake() {
    let rig = Rig::start(METHODS);
    let check = |action: &str| {
        let policy = format!("@id(\"p\") permit (principal, action == Seks::Action::\"{action}\", resource);");
        rig.sandbox.cli().run(&["policy", "check", "-f", "-"], &policy)
    };
    for known in ["LIST", "FETCH", "MKCOL"] {
        let checked = check(known);
        assert_eq!(checked.code, Some(0), "{known}: {}", checked.stderr);
    }
    for typo in ["GTE", "STEAL", "list"] {
        let checked = check(typo);
        assert_eq!(checked.code, Some(2), "{typo}: {}", checked.stderr);
        assert!(checked.stderr.contains(typo), "{}", checked.stderr);
    }
}
