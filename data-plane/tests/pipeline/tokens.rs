//! One token, in one place, once; and never any of it at the upstream.

use base64::Engine as _;
use seks_data_plane::table::Change;
use seks_proto::wire::{self, injection, token_slot::At};

use crate::rig::{CREDENTIAL, Rig, header_site, name, ok, upstream};

fn basic(pair: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(pair)
}

fn request(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: broker\r\n{fields}\r\n")
}

#[tokio::test]
async fn a_token_is_taken_from_every_slot_of_its_service() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let t = rig.token.as_str();
    for (target, fields) in [
        ("/api/openai/models", format!("Authorization: Bearer {t}\r\n")),
        ("/api/openai/models", format!("authorization: bEARER {t} \t\r\n")),
        ("/api/openai/models", format!("X-Api-Key: {t}\r\n")),
        ("/api/openai/models", format!("X-Api-Key: sk-ant-{t}\r\n")),
        ("/api/openai/models", format!("Authorization: Basic {}\r\n", basic(&format!("{t}:")))),
        ("/api/openai/models", format!("Authorization: Basic {}\r\n", basic(&format!("user:{t}")))),
        (&format!("/api/openai/models?a=1&key={t}&b=2"), String::new()),
    ] {
        let reply = rig.send(&request(target, &fields)).await;
        assert_eq!(reply.status, 200, "{fields} {reply:?}");
    }
    let text = seen.text();
    assert_eq!(text.matches(&format!("authorization: Bearer {CREDENTIAL}\r\n")).count(), 7);
    assert!(text.contains("GET /v1/models?a=1&b=2 HTTP/1.1"), "{text}");
    assert!(!text.contains("seks_token_") && !text.to_lowercase().contains("x-api-key"), "{text}");
}

#[tokio::test]
async fn more_than_one_credential_is_ambiguous() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let (a, b) = (rig.token.as_str(), rig.other.as_str());
    for (target, fields) in [
        ("/api/openai/models", format!("Authorization: Bearer {a}\r\nX-Api-Key: {a}\r\n")),
        ("/api/openai/models", format!("Authorization: Bearer {a}\r\nX-Api-Key: {b}\r\n")),
        ("/api/openai/models", format!("Authorization: Bearer {a}\r\nAuthorization: Bearer {b}\r\n")),
        ("/api/openai/models", format!("X-Api-Key: {a}\r\nX-Api-Key: {a}\r\n")),
        ("/api/openai/models", format!("Authorization: Basic {}\r\n", basic(&format!("{a}:{b}")))),
        (&format!("/api/openai/models?key={a}&k%65y={a}"), String::new()),
        (&format!("/api/openai/models?key={a}"), format!("Authorization: Bearer {a}\r\n")),
    ] {
        let reply = rig.send(&request(target, &fields)).await;
        assert_eq!((reply.status, reply.code().as_str()), (401, "token_ambiguous"), "{target} {fields} {reply:?}");
        assert!(!reply.text.contains(a) && !reply.text.contains(b));
    }
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn what_is_no_honoured_token_is_refused_by_name() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let unknown = seks_types::token::FreshToken::generate().unwrap();
    for (fields, code) in [
        ("".to_owned(), "token_missing"),
        ("X-Debug: {T1}\r\n".into(), "token_missing"),
        ("Authorization: Token {T1}\r\n".into(), "token_missing"),
        ("Authorization: Bearer sk-real\r\n".into(), "token_malformed"),
        ("Authorization: Bearer {T1_MINUS_1}\r\n".into(), "token_malformed"),
        ("Authorization: Bearer  {T1}\r\n".into(), "token_malformed"),
        ("Authorization: Bearer\t{T1}\r\n".into(), "token_malformed"),
        ("Authorization: Bearer {T1}, Bearer {T1}\r\n".into(), "token_malformed"),
        ("Authorization: Basic @@@\r\n".into(), "token_malformed"),
        (format!("Authorization: Basic {}\r\n", basic("nocolon")), "token_malformed"),
        (format!("Authorization: Basic {}\r\n", basic(&format!("a:b:{}:", rig.token.as_str()))), "token_malformed"),
        (format!("Authorization: Bearer {}\r\n", unknown.as_str()), "token_unknown"),
        ("Authorization: Bearer {T_EXPIRED}\r\n".into(), "token_expired"),
    ] {
        let reply = rig.send(&request("/api/openai/models", &fields)).await;
        assert_eq!((reply.status, reply.code().as_str()), (401, code), "{fields} {reply:?}");
    }
    rig.revoke();
    let reply = rig.get("/api/openai/models").await;
    assert_eq!((reply.status, reply.code().as_str()), (401, "token_revoked"));
    rig.apply(vec![Change::Agent {
        tenant: name("default"),
        name: name("bot"),
        attributes: Default::default(),
        disabled: true,
    }]);
    let reply = rig.send(&request("/api/openai/models", "Authorization: Bearer {T2}\r\n")).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "agent_disabled"));
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn a_token_outside_its_slot_is_neither_used_nor_passed_on() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let fields = "Authorization: Bearer {T1}\r\nX-Debug: {T2}\r\nCookie: a=b\r\nX-Goog-Api-Key: sk-mine\r\n\
                  Proxy-Authorization: Basic eDp5\r\nX_Api_Key: evil\r\nX-Kept: yes\r\n";
    let reply = rig.send(&request("/api/openai/models?x=1&trace={T2}", fields)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = seen.text().to_lowercase();
    assert!(text.contains("x-kept: yes") && text.starts_with("get /v1/models?x=1 http/1.1"), "{text}");
    for absent in ["seks_token_", "cookie", "goog", "proxy-", "x_api", "x-debug"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
}

/// A service whose key goes into the query, with the token in a header: `?key=` of the agent's own
/// never survives.
#[tokio::test]
async fn the_query_holds_exactly_one_key_and_it_is_the_real_one() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let site = injection::Site {
        at: Some(injection::site::At::Query(injection::NamedValue { name: "key".into(), value: "{key}".into() })),
    };
    let change = |s: &mut wire::Service| {
        s.injection = Some(wire::Injection { sites: vec![site.clone()], ..Default::default() });
        s.slots.push(wire::TokenSlot { at: Some(At::Header("x-goog-api-key".into())) });
    };
    let rig = Rig::with(address, change, |_| {}).await;
    let target = "/api/openai/models?key=evil&k%65y=evil2&key=&KEY=evil3&a=b;key=evil4";
    let reply = rig.send(&request(target, "x-goog-api-key: {T1}\r\n")).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = seen.text();
    let escaped = "sk-REAL-9f3c%2FA%2Bb%3DZq%227%5CKx-DEADBEEF0123456789";
    assert!(text.starts_with(&format!("GET /v1/models?key={escaped} HTTP/1.1\r\n")), "{text}");
    assert!(!text.contains("authorization"), "{text}");
}

#[tokio::test]
async fn a_path_slot_is_replaced_and_two_headers_are_both_written() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let path = injection::Site { at: Some(injection::site::At::Path("/bot{key}".into())) };
    let change = |s: &mut wire::Service| {
        s.base_path = String::new();
        let sites = vec![path.clone(), header_site("x-key", "{key}"), header_site("authorization", "Token t={key}")];
        s.injection = Some(wire::Injection { sites, ..Default::default() });
        s.slots = vec![wire::TokenSlot { at: Some(At::Path("/bot{token}".into())) }];
    };
    let rig = Rig::with(address, change, |_| {}).await;
    rig.apply(vec![crate::rig::tenant_policies(&[("all", "permit (principal, action, resource);")])]);
    let reply = rig.send(&request("/api/openai/bot{T1}/sendMessage?chat=1", "X-Key: mine\r\n")).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = seen.text();
    let escaped = "sk-REAL-9f3c%2FA+b=Zq%227%5CKx-DEADBEEF0123456789";
    assert!(text.starts_with(&format!("GET /bot{escaped}/sendMessage?chat=1 HTTP/1.1\r\n")), "{text}");
    assert!(text.contains(&format!("x-key: {CREDENTIAL}\r\n")), "{text}");
    assert!(text.contains(&format!("authorization: Token t={CREDENTIAL}\r\n")), "{text}");
    assert!(!text.contains("seks_token_") && !text.contains("mine"), "{text}");
    let reply = rig.send(&request("/api/openai/bot{T1}x/sendMessage", "")).await;
    assert_eq!(reply.status, 401, "{reply:?}");
}

#[tokio::test]
async fn the_list_of_services_is_what_the_token_grants() {
    let (address, _) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    let reply = rig.get("/api/").await;
    let body = reply.text.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(body, r#"{"services":[{"name":"openai","base_url":"http://broker/api/openai"}]}"#);
    assert_eq!(rig.send("GET /api/ HTTP/1.1\r\nHost: broker\r\n\r\n").await.code(), "token_missing");
}
