//! Every way in which an API wants its key: the agent's token goes where the SDK puts it, the real
//! key arrives where the API wants it, and an upstream that echoes all of it gives nothing away.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::{
    Sandbox, Upstream, oracle,
    raw::{self, Reply},
    upstream::{Answer, Request},
};

/// One shape of injection.
struct Shape {
    name: &'static str,
    /// The definition, without name and upstream.
    definition: &'static str,
    /// What is stored.
    credential: &'static str,
    /// The values in it that must not come back.
    secrets: &'static [&'static str],
    /// How an agent presents its token: header lines, and the path after `/api/NAME`; `{T}` and
    /// `{T64}` (Basic) are the token.
    headers: &'static str,
    path: &'static str,
    /// Whether the key has arrived where it should.
    arrived: fn(&Request) -> bool,
}

const KEY: &str = "sk-real+shape/key=0001\"x\\y";

fn basic(text: &str) -> String {
    format!("Basic {}", STANDARD.encode(text))
}

const SHAPES: &[Shape] = &[
    Shape {
        name: "bearer",
        definition: r#"inject = "bearer""#,
        credential: KEY,
        secrets: &[KEY],
        headers: "Authorization: Bearer {T}\r\n",
        path: "/v1/things",
        arrived: |r| r.header("authorization") == Some(format!("Bearer {KEY}")),
    },
    Shape {
        name: "raw",
        definition: r#"inject = { header = "Authorization", value = "{key}" }"#,
        credential: KEY,
        secrets: &[KEY],
        headers: "Authorization: {T}\r\n",
        path: "/v1/things",
        arrived: |r| r.header("authorization") == Some(KEY.into()),
    },
    Shape {
        name: "prefixed",
        definition: r#"inject = { header = "Authorization", value = "Key {key}" }"#,
        credential: KEY,
        secrets: &[KEY],
        headers: "Authorization: Key {T}\r\n",
        path: "/v1/things",
        arrived: |r| r.header("authorization") == Some(format!("Key {KEY}")),
    },
    Shape {
        name: "named-header",
        definition: r#"inject = { header = "X-Acme-Key" }"#,
        credential: KEY,
        secrets: &[KEY],
        headers: "X-Acme-Key: {T}\r\n",
        path: "/v1/things",
        arrived: |r| r.header("x-acme-key") == Some(KEY.into()),
    },
    Shape {
        name: "two-headers",
        definition: "slots = [\"header:X-Api-Key\"]\n[inject.headers]\nX-Api-Key = \"{key}\"\nX-App-Key = \"{app}\"",
        credential: r#"{"key":"sk-real-abc-first","app":"sk-real-abc-first-and-longer"}"#,
        secrets: &["sk-real-abc-first", "sk-real-abc-first-and-longer"],
        headers: "X-Api-Key: {T}\r\n",
        path: "/v1/things",
        arrived: |r| {
            r.header("x-api-key") == Some("sk-real-abc-first".into())
                && r.header("x-app-key") == Some("sk-real-abc-first-and-longer".into())
        },
    },
    Shape {
        name: "basic",
        definition: "inject = { basic = \"{user}:{password}\" }\nslots = [\"basic:password\"]",
        credential: r#"{"user":"real-user-name-1","password":"real-password-0001"}"#,
        secrets: &["real-password-0001"],
        headers: "Authorization: Basic {T64}\r\n",
        path: "/v1/things",
        arrived: |r| r.header("authorization") == Some(basic("real-user-name-1:real-password-0001")),
    },
    Shape {
        name: "query",
        definition: "inject = { query = { key = \"{key}\" } }",
        credential: KEY,
        secrets: &[KEY],
        headers: "",
        path: "/v1/things?a=1&key={T}&b=2",
        arrived: |r| {
            let key = r.query("key").unwrap_or_default();
            key.contains("sk-real") && !key.contains('"') && r.query("a").is_some() && r.query("b").is_some()
        },
    },
    Shape {
        name: "path",
        definition: "inject = { path = \"/bot{key}\" }\nslots = [\"path:/bot{token}\"]",
        credential: "1234567:real-bot-key-0001",
        secrets: &["1234567:real-bot-key-0001"],
        headers: "",
        path: "/bot{T}/getMe",
        arrived: |r| r.path() == "/bot1234567:real-bot-key-0001/getMe",
    },
];

fn ask(sandbox: &Sandbox, shape: &Shape, token: &str) -> Reply {
    let fill = |text: &str| text.replace("{T64}", &STANDARD.encode(format!("user:{token}"))).replace("{T}", token);
    let (path, headers) = (fill(shape.path), fill(shape.headers));
    raw::exchange(
        sandbox.proxy(),
        format!("GET /api/{}{path} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-3\r\n{headers}\r\n", shape.name),
    )
}

#[test]
fn every_shape_puts_the_key_in_and_gives_nothing_back() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::start(|r| Answer::text(&r.head)));
    let mut failures = Vec::new();
    for shape in SHAPES {
        let (name, origin) = (shape.name, upstream.origin());
        let definition =
            format!("name = \"{name}\"\nupstream = \"{origin}\"\nallow_private = true\n{}\n", shape.definition);
        sandbox.cli().apply_service(&definition);
        sandbox.cli().put_credential(name, name, shape.credential);
        let token = sandbox.token(&format!("agent-{name}"), &[name]).secret;
        upstream.forget();
        let reply = ask(&sandbox, shape, &token);
        if reply.status != 200 {
            failures.push(format!("{name}: status {} {}", reply.status, reply.text()));
            continue;
        }
        let seen = upstream.requests();
        if !(shape.arrived)(&seen[0]) {
            failures.push(format!("{name}: arrived {:?}", String::from_utf8_lossy(&seen[0].head)));
        }
        if oracle::contains(&upstream.received(), b"seks_token_") || seen[0].header("range").is_some() {
            failures.push(format!("{name}: too much arrived {:?}", String::from_utf8_lossy(&seen[0].head)));
        }
        for secret in shape.secrets {
            failures
                .extend(oracle::find(&reply.wire, secret).map(|form| format!("{name}: {secret} came back ({form})")));
        }
        let spelled = STANDARD.encode("real-user-name-1:real-password-0001");
        if oracle::contains(&reply.wire, spelled.as_bytes()) {
            failures.push(format!("{name}: the composed Basic value came back"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_failing_upstream_is_not_named_with_its_key_in_the_query() {
    let sandbox = Sandbox::start();
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let definition = format!(
        "name = \"q\"\nupstream = \"http://{dead}\"\nallow_private = true\ninject = {{ query = {{ key = \"{{key}}\" }} }}\n"
    );
    sandbox.cli().apply_service(&definition);
    sandbox.cli().put_credential("q", "q", KEY);
    let token = sandbox.token("agent", &["q"]).secret;
    let reply =
        raw::exchange(sandbox.proxy(), format!("GET /api/q/v1?key={token} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"));
    assert_eq!(oracle::find(&reply.wire, KEY), None);
    for secret in [dead.port().to_string().as_str(), "127.0.0.1", &token[..20]] {
        assert!(!reply.text().contains(secret), "{secret} in {}", reply.text());
    }
}

#[test]
fn an_answer_without_the_key_is_not_changed_by_a_byte() {
    let clean: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (body, near) = (clean.clone(), KEY[..KEY.len() - 1].to_owned());
    let upstream = Upstream::start(move |r| match r.path().as_str() {
        "/v1/near" => Answer::with(200, &[("ETag", "\"abc\""), ("X-Kept", "yes")], &near),
        _ => Answer::with(200, &[("Content-Type", "application/octet-stream")], &body),
    });
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    let reply = sandbox.get("/api/openai/v1/clean", &token);
    assert_eq!((reply.status, reply.body == clean), (200, true));
    let reply = sandbox.get("/api/openai/v1/near", &token);
    assert_eq!((reply.text().as_str(), reply.header("etag")), (&KEY[..KEY.len() - 1], Some("\"abc\"")));
    assert_eq!(reply.header("x-kept"), Some("yes"));
}
