//! Paths and queries that real names make: sent as they were written, whatever the spelling, and
//! covered by every policy.

use crate::rig::Rig;

#[test]
fn needless_escapes_are_sent_as_they_were_written() {
    let rig = Rig::start("allow_encoded_slash = true");
    for rest in ["/projects/g%2Fmy%2Dproject", "/files/key%2Erb", "/%7Euser", "/v1/%61bc", "/a%5f%5Fb"] {
        assert_eq!(rig.sent(rest), rest);
    }
    for rest in ["/a/%2E%2E/b", "/a/.%2e", "/%2e/b", "/a%2F%2E%2e%2Fb", "/a/..%20/b"] {
        assert!(rig.refused(rest).contains("dot segment"), "{rest}");
    }
}

#[test]
fn a_service_says_what_its_names_hold() {
    let cases = [
        ("utf8", "/docs/r%C3%A9sum%C3%A9.md"),
        ("utf8", "/T%C3%A2ches"),
        ("percent", "/50%25.txt"),
        ("semicolon", "/a;b"),
        ("semicolon", "/a%3Bb"),
        ("empty_segment", "/a//b"),
        ("backslash", "/back%5Cslash"),
        ("control", "/tab%09"),
    ];
    let (any, none) = (Rig::start("allow_in_paths = [\"any\"]"), Rig::start(""));
    for (rule, rest) in cases {
        assert_eq!(any.sent(rest), rest);
        let said = none.refused(rest);
        assert!(said.contains(rule) && said.contains("allow_in_paths"), "{rest}: {said}");
    }
    assert_eq!(any.sent("/T\u{e2}ches"), "/T%C3%A2ches", "raw, as curl sends it");
    for rest in ["/a/..;/b", "/a/%252e%252e/b", "/a%5C..%5Cb", "/%c0%ae%c0%ae/b", "/a%00"] {
        any.refused(rest);
    }
}

#[test]
fn a_final_slash_of_the_base_url_changes_nothing() {
    let plain = Rig::start("");
    assert_eq!(plain.sent("//v1/charges"), "/v1/charges");
    plain.refused("//evil.test/x");
    plain.refused("/v1//charges");
    let based = Rig::start("base_path = \"/v1\"");
    assert_eq!(based.sent("//chat"), "/v1/chat");
    assert_eq!(based.sent("/v1//chat?a=//"), "/v1/chat?a=//");
}

#[test]
fn query_characters_that_clients_send_raw_are_escaped() {
    let rig = Rig::start("");
    assert_eq!(rig.sent(r#"/q?query=up{job="a"}"#), "/q?query=up%7Bjob=%22a%22%7D");
    assert_eq!(rig.sent(r"/q?a=<b>|c\d^e`f"), "/q?a=%3Cb%3E%7Cc%5Cd%5Ee%60f");
    assert_eq!(rig.sent("/q?name=\u{fc}"), "/q?name=%C3%BC");
    assert_eq!(rig.sent("/q?filter[a]='b'&c=%7b"), "/q?filter[a]='b'&c=%7b");
    rig.refused("/q?a=b#c");
}

#[test]
fn no_spelling_gets_around_a_policy() {
    let rig = Rig::start("allow_in_paths = [\"any\"]\ndenied_paths = [\"* /v1/keys/**\"]");
    rig.sandbox.cli().apply_policies(
        "@id(\"no-admin\") forbid (principal, action, resource) when { context.path like \"/v1/admin/*\" };\n\
         @id(\"one-key\") forbid (principal, action, resource) when { context.path == \"/b/a;b\" };",
    );
    for rest in [
        "/v1/%61dmin/x",
        "/v1//admin/x",
        "/v1/;p/admin/x",
        "/v1/admin;p/x",
        "/v1%5CADMIN%5Cx",
        "/v1/%2561dmin/x",
        "/v1/admin./x",
        "/v1/%EF%BD%81dmin/x",
        "/b/a;b",
        "/b/a%3Bb",
        "/v1/%6Beys",
        "/v1//keys/7",
        "/v1;/keys;x",
    ] {
        rig.upstream.forget();
        let reply = rig.get(rest);
        assert_eq!((reply.status, reply.code().as_str()), (403, "policy_denied"), "{rest}");
        assert!(rig.upstream.requests().is_empty(), "{rest}");
    }
    assert_eq!(rig.sent("/b/a;c"), "/b/a;c", "another key of an object");
}
