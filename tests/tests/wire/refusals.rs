//! A refusal says what is wrong, what to do, and what it offers.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::{Upstream, raw::exchange};

use crate::rig::{KEY, Rig};

const EITHER: &str =
    "inject = { header = \"x-api-key\" }\nslots = [\"header:x-api-key\", \"bearer\", \"basic:password\"]";

fn challenges(head: &str) -> Vec<&str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(name, _)| name.eq_ignore_ascii_case("www-authenticate")).map(|(_, value)| value).collect()
}

#[test]
fn a_401_offers_what_the_service_takes() {
    let (bearer, basic) = ("Bearer realm=\"seks\"", "Basic realm=\"seks\"");
    for (definition, offered) in [
        ("inject = \"bearer\"", vec![bearer]),
        ("inject = { basic = \"u:{key}\" }", vec![basic]),
        (EITHER, vec![bearer, basic]),
        ("inject = { header = \"Authorization\", value = \"Bot {key}\" }", vec!["Bot realm=\"seks\""]),
        ("inject = { header = \"x-key\" }", vec![bearer]),
    ] {
        let rig = Rig::with(Upstream::ok(), definition);
        for lines in ["", "Authorization: Bearer wrong\r\n"] {
            let reply = rig.ask_without_token("GET", "/x", lines, "");
            assert_eq!(reply.status, 401);
            assert_eq!(challenges(&reply.head), offered, "{definition}");
        }
        let unknown = exchange(rig.sandbox.proxy(), "GET /api/nothing/x HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!((unknown.status, challenges(&unknown.head)), (401, vec![bearer]), "as if it were a service");
    }
}

#[test]
fn one_token_in_two_places_is_told_from_two_tokens() {
    let rig = Rig::with(Upstream::ok(), EITHER);
    let both = rig.ask("GET", "/x", "x-api-key: {T}\r\n", "");
    rig.assert_refused(&both, 401, "token_ambiguous");
    assert!(both.text().contains("one token was presented in two places"), "{}", both.text());
    let doubled = rig.ask("GET", "/x", "Authorization: Bearer {T}\r\n", "");
    rig.assert_refused(&doubled, 401, "token_ambiguous");
    assert!(doubled.text().contains("in two places"), "{}", doubled.text());
    let other = rig.sandbox.token("other", &["acme"]).secret;
    let two = rig.ask("GET", "/x", &format!("x-api-key: {other}\r\n"), "");
    rig.assert_refused(&two, 401, "token_ambiguous");
    assert!(!two.text().contains("in two places"), "{}", two.text());
}

#[test]
fn a_token_in_another_place_is_told_from_none() {
    let rig = Rig::with(Upstream::ok(), "inject = { header = \"X-Key\" }\nslots = [\"header:X-Key\"]");
    assert_eq!(rig.ask_without_token("GET", "/x", "X-Key: {T}\r\n", "").status, 200);
    for (rest, lines) in [("/x", "Authorization: Bearer {T}\r\n"), ("/x", "X-Other: {T}\r\n"), ("/x?key={T}", "")] {
        let reply = rig.ask_without_token("GET", rest, lines, "");
        rig.assert_refused(&reply, 401, "token_missing");
        assert!(reply.text().contains("does not take a token in this place"), "{}", reply.text());
    }
    let none = rig.ask_without_token("GET", "/x", "", "");
    rig.assert_refused(&none, 401, "token_missing");
    assert!(!none.text().contains("in this place"), "{}", none.text());
}

#[test]
fn a_real_key_is_told_from_a_typo_and_not_forwarded() {
    let rig = Rig::with(Upstream::ok(), EITHER);
    let says = |lines: &str, rest: &str| {
        let reply = rig.ask_without_token("GET", rest, lines, "");
        assert_eq!(reply.status, 401, "{lines} {rest}");
        assert!(rig.upstream.requests().is_empty());
        reply.text()
    };
    let basic = format!("Authorization: Basic {}\r\n", STANDARD.encode("u:ghp_0123456789abcdefghijklmnopqrstuvwxyz"));
    let real = [
        "Authorization: Bearer sk-proj-0123456789abcdefghij\r\n",
        "x-api-key: sk-ant-api03-0123456789abcdef\r\n",
        &basic,
    ];
    for lines in real {
        let said = says(lines, "/x");
        assert!(said.contains("this is not a SEKS token; it looks like a real key: it was not forwarded"), "{said}");
        assert!(!said.contains("0123456789"), "{said}");
    }
    let typo = format!("Authorization: Bearer {}x\r\n", rig.token);
    for lines in [typo.as_str(), "Authorization: Bearer changeme\r\n", ""] {
        assert!(!says(lines, "/x").contains("real key"), "{lines}");
    }
    let signed = says("", "/b/k?AWSAccessKeyId=AKIA0123456789ABCDEF&Signature=a%3D&Expires=1");
    assert!(signed.contains("Version 4") && signed.contains("signature_version"), "{signed}");
}

#[test]
fn a_foreign_host_names_the_settings() {
    let rig = Rig::start("");
    let reply = exchange(rig.sandbox.proxy(), "GET /api/acme/x HTTP/1.1\r\nHost: broker.example\r\n\r\n");
    assert_eq!(reply.status, 421);
    assert!(reply.text().contains("--host") && reply.text().contains("[proxy] hosts"), "{}", reply.text());
}

#[test]
fn a_token_may_stand_in_a_second_path_and_in_a_vendors_shape() {
    let definition = "inject = { path = \"/bot{key}\" }\nslots = [\"path:/bot{token}\", \"path:/file/bot{token}\"]";
    let rig = Rig::with(Upstream::ok(), definition);
    for (rest, sent) in [
        ("/bot{T}/getMe", format!("/bot{KEY}/getMe")),
        ("/file/bot{T}/photos/1.jpg?a=b", format!("/file/bot{KEY}/photos/1.jpg?a=b")),
        ("/bot123456789:{T}/getMe", format!("/bot{KEY}/getMe")),
        ("/file/bot123456789:{T}/a", format!("/file/bot{KEY}/a")),
        ("//bot{T}/getMe", format!("/bot{KEY}/getMe")),
    ] {
        let reply = rig.ask_without_token("GET", rest, "", "");
        assert_eq!(reply.status, 200, "{rest}: {}", reply.text());
        assert_eq!(rig.upstream.requests()[0].target(), sent, "{rest}");
    }
    for rest in ["/other/bot{T}/getMe", "/files/bot{T}/x", "/file/x/bot{T}/x", "/x/{T}"] {
        let reply = rig.ask_without_token("GET", rest, "", "");
        rig.assert_refused(&reply, 401, "token_missing");
    }
    // A policy about `/file/…` is about files alone.
    rig.assert_refused(&rig.ask_without_token("GET", "/bot{T}/file/x", "", ""), 400, "request_invalid");
    rig.sandbox.cli().apply_policies(
        "@id(\"no-files\") forbid (principal, action, resource) when { context.path like \"/file/*\" };",
    );
    rig.assert_refused(&rig.ask_without_token("GET", "/file/bot{T}/a", "", ""), 403, "policy_denied");
    assert_eq!(rig.ask_without_token("GET", "/bot{T}/getFile", "", "").status, 200);
    let issued = rig.sandbox.cli().issue("agent", &["acme"], &["--shape", "telegram"]).secret;
    assert!(issued.starts_with("123456789:seks_token_"), "the form that bot libraries check");
}
