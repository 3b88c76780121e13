//! What changes the meaning of a request is refused by name or passed on, never dropped. What is
//! dropped is counted.

use seks_tests::{Upstream, raw::exchange};

use crate::rig::{KEY, Rig};

#[test]
fn a_header_that_overrides_the_method_is_refused_by_name() {
    let rig = Rig::start("");
    for (line, name) in [
        ("X-HTTP-Method-Override: GET", "X-HTTP-Method-Override"),
        ("x-http-method: MERGE", "X-HTTP-Method"),
        ("X-Method-Override: DELETE", "X-Method-Override"),
        ("X_HTTP_METHOD_OVERRIDE: DELETE", "X-HTTP-Method-Override"),
        ("X-Original-Method: PUT", "X-Original-Method"),
        ("X-HTTP-Verb: DELETE", "X-HTTP-Verb"),
        ("X-Method: DELETE", "X-Method"),
        ("X-REST-Method: DELETE", "X-REST-Method"),
        ("X-Tunnel-Method: DELETE", "X-Tunnel-Method"),
        ("X_Tunnel_Method: DELETE", "X-HTTP-Method-Override"),
        ("Method-Override: DELETE", "X-HTTP-Method-Override"),
    ] {
        let reply = rig.ask("POST", "/drive/v3/files", &format!("{line}\r\n"), "q=a");
        rig.assert_refused(&reply, 400, "request_invalid");
        assert!(reply.text().contains(name), "{line}: {}", reply.text());
    }
}

#[test]
fn a_service_that_takes_overrides_has_both_methods_decided() {
    let rig = Rig::start("allow_method_override = true\nmethods = [\"MERGE\"]\ndenied_paths = [\"DELETE /keys/**\"]");
    let post = |path: &str, lines: &str| rig.ask("POST", path, lines, "q=a");
    let reply =
        post("/drive/v3/files", "X-HTTP-Method-Override: GET\r\nContent-Type: application/x-www-form-urlencoded\r\n");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let seen = &rig.upstream.requests()[0];
    assert_eq!((seen.method().as_str(), seen.header("x-http-method-override").as_deref()), ("POST", Some("GET")));
    assert_eq!(post("/x?_HttpMethod=MERGE", "").status, 200);
    assert_eq!(rig.upstream.requests()[0].target(), "/x?_HttpMethod=MERGE");
    for (method, path, lines, status, code) in [
        ("POST", "/keys/7", "X-HTTP-Method-Override: DELETE\r\n", 403, "policy_denied"),
        ("POST", "/x", "X-HTTP-Method-Override: LOCK\r\n", 405, "request_invalid"),
        ("POST", "/x", "X-HTTP-Method-Override: TRACE\r\n", 400, "request_invalid"),
        ("POST", "/x", "X-HTTP-Method-Override: GET\r\nX-HTTP-Method: PUT\r\n", 400, "request_invalid"),
        ("POST", "/x?_method=GET", "X-HTTP-Method: GET\r\n", 400, "request_invalid"),
        ("GET", "/x", "X-HTTP-Method-Override: DELETE\r\n", 400, "request_invalid"),
        ("POST", "/x", "X_HTTP_METHOD_OVERRIDE: GET\r\n", 400, "request_invalid"),
    ] {
        rig.assert_refused(&rig.ask(method, path, lines, ""), status, code);
    }
    rig.sandbox.cli().apply_policies(
        "@id(\"no-delete\") forbid (principal, action == Seks::Action::\"DELETE\", resource);\n\
         @id(\"debug\") forbid (principal, action == Seks::Action::\"GET\", resource) when { context.query_keys.contains(\"debug\") };",
    );
    rig.assert_refused(&post("/x", "X-HTTP-Method-Override: DELETE\r\n"), 403, "policy_denied");
    let asks = post("/x", "X-HTTP-Method-Override: GET\r\n");
    rig.assert_refused(&asks, 403, "policy_denied");
    assert!(asks.text().contains("query"), "{}", asks.text());
    assert_eq!(post("/x", "X-HTTP-Method-Override: PUT\r\n").status, 200);
}

#[test]
fn a_header_that_names_another_path_is_refused_by_name() {
    let rig = Rig::start("");
    for name in [
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Original-URI",
        "X_Original_URL",
        "X-Accel-Mapping",
        "X-Accel-Redirect",
        "X-Sendfile",
        "X-MS-Original-URL",
        "Request-URI",
        "X-Request-URI",
        "X_Sendfile",
    ] {
        let reply = rig.ask("GET", "/v1/x", &format!("{name}: /admin\r\n"), "");
        rig.assert_refused(&reply, 400, "request_invalid");
        assert!(reply.text().to_lowercase().contains("x-"), "{}", reply.text());
    }
    // What proxies in front of a node add to each request is not the agent's, and no upstream sees
    // it.
    let reply = rig.ask("GET", "/v1/x", "X-Forwarded-Path: /admin\r\nProxy: http://admin\r\n", "");
    assert_eq!(reply.status, 200);
    assert!(!String::from_utf8_lossy(&rig.upstream.received()).contains("admin"));
}

#[test]
fn a_method_that_overrides_has_no_second_path() {
    let rig = Rig::start("allow_method_override = true\nmethods = [\"COPY\", \"MOVE\"]");
    for (path, lines) in [("/x", "X-HTTP-Method-Override: COPY\r\n"), ("/x?_method=MOVE", "")] {
        let reply = rig.ask("POST", path, &format!("{lines}Destination: /y\r\n"), "");
        rig.assert_refused(&reply, 400, "request_invalid");
        assert!(reply.text().contains("Destination"), "{}", reply.text());
        assert_eq!(rig.ask("POST", path, lines, "").status, 200);
    }
}

#[test]
fn a_query_keeps_its_bytes() {
    let rig = Rig::start("");
    for query in ["?a=b&&c=", "?", "?&", "?&a", "?a=1&", "?a=1;b=2&=&a"] {
        assert_eq!(rig.sent(&format!("/a{query}")), format!("/a{query}"));
    }
    assert_eq!(rig.sent(&format!("/a?a=1&&x={}&b", rig.token)), "/a?a=1&&b");
}

#[test]
fn an_empty_line_before_a_request_and_a_scheme_in_capitals_are_understood() {
    let rig = Rig::start("");
    let authority = rig.sandbox.proxy();
    for begin in ["\r\nGET /api/acme/x".to_owned(), format!("GET HTTP://{authority}/api/acme/x")] {
        let lines = format!("Host: {authority}\r\nAuthorization: Bearer {}\r\n", rig.token);
        let reply = exchange(authority, format!("{begin} HTTP/1.1\r\n{lines}\r\n"));
        assert_eq!(reply.status, 200, "{begin}: {}", reply.text());
    }
    let twice = exchange(authority, "\r\n\r\nGET /api/acme/x HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(twice.status, 400);
}

#[test]
fn policies_are_decided_on_what_a_copy_reads_as_well() {
    let rig = Rig::start("denied_paths = [\"GET /b/keys/**\"]\nallow_in_paths = [\"any\"]");
    rig.sandbox.cli().apply_policies(
        "@id(\"secret\") forbid (principal, action == Seks::Action::\"GET\", resource) when { context.path like \"/b/secret/*\" };",
    );
    let copy = |source: &str| rig.ask("PUT", "/b/mine", &format!("{source}\r\n"), "");
    let reply = copy("x-amz-copy-source: /b/open/a%20b?versionId=1");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let seen = rig.upstream.requests()[0].header("x-amz-copy-source");
    assert_eq!(seen.as_deref(), Some("/b/open/a%20b?versionId=1"));
    for source in
        ["/b/secret/k", "b/secret/k", "b%2Fsecret%2Fk", "b/%73ecret/k", "/b//secret/k", "/b/secret/k?versionId=1"]
    {
        for name in ["x-amz-copy-source", "X-Goog-Copy-Source", "x-oss-copy-source"] {
            let reply = copy(&format!("{name}: {source}"));
            rig.assert_refused(&reply, 403, "policy_denied");
            assert!(reply.text().contains("copy source"), "{}", reply.text());
        }
    }
    rig.assert_refused(&copy("x-amz-copy-source: /b/keys/7"), 403, "policy_denied");
    for refused in [
        "x-amz-copy-source: /b/../b/secret/k",
        "x-amz-copy-source: b/a+b",
        "x-amz-copy-source: arn:aws:s3:eu-west-1:1:accesspoint/a/object/secret/k",
        "x-amz-copy-source: /b/open\r\nx-amz-copy-source: /b/secret/k",
        "x-ms-copy-source: https://acme.test/secret",
        "X-Copy-From: secret/k",
        "x-ms-rename-source: /b/secret/k",
    ] {
        rig.assert_refused(&copy(refused), 400, "request_invalid");
    }
    assert!(copy("X-Copy-From: secret/k").text().contains("pass_headers"));
    let lifted = Rig::start("pass_headers = [\"X-Copy-From\"]");
    assert_eq!(lifted.ask("PUT", "/b/mine", "X-Copy-From: c/k\r\n", "").status, 200);
    assert_eq!(lifted.upstream.requests()[0].header("x-copy-from").as_deref(), Some("c/k"));
}

#[test]
fn a_listed_header_with_an_underscore_passes_and_a_service_may_inject_one() {
    let rig = Rig::with(Upstream::ok(), "inject = { header = \"api_key\" }\npass_headers = [\"client_id\"]");
    let lines = "api_key: {T}\r\napi-key: mine\r\nclient_id: 7\r\nother_id: 8\r\n";
    let reply = rig.ask_without_token("GET", "/v1/x", lines, "");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let seen = &rig.upstream.requests()[0];
    assert_eq!(seen.headers("api_key"), [KEY]);
    assert_eq!(
        (seen.header("client_id").as_deref(), seen.header("other_id"), seen.header("api-key")),
        (Some("7"), None, None)
    );
}

#[test]
fn listed_cookies_pass_and_never_with_a_token() {
    let rig = Rig::start("pass_cookies = [\"session\", \"csrf\"]");
    let cookies = |lines: &str| {
        let reply = rig.ask("GET", "/v1/x", lines, "");
        assert_eq!(reply.status, 200, "{}", reply.text());
        rig.upstream.requests()[0].headers("cookie")
    };
    assert_eq!(cookies("Cookie: a=1; session=1;csrf=\"x y\" ; SESSION=2\r\n"), ["session=1; csrf=\"x y\""]);
    assert_eq!(cookies("Cookie: session=1\r\nCookie: csrf=2\r\n"), ["session=1; csrf=2"]);
    assert!(cookies("Cookie: a=1; sessions=2\r\n").is_empty());
    let held = rig.ask("GET", "/v1/x", "Cookie: session={T}; csrf=2\r\n", "");
    assert_eq!(held.status, 200, "{}", held.text());
    assert_eq!(rig.upstream.requests()[0].headers("cookie"), ["csrf=2"]);
    let none = Rig::start("");
    assert_eq!(none.ask("GET", "/v1/x", "Cookie: session=1\r\n", "").status, 200);
    assert!(none.upstream.requests()[0].headers("cookie").is_empty());
}

#[test]
fn an_upgrade_that_is_not_allowed_is_refused_and_one_to_http2_is_passed_over() {
    let rig = Rig::start("");
    for protocol in ["SPDY/3.1", "tcp", "foo, h2c", "websocket, foo", "IRC/6.9"] {
        let reply = rig.ask("GET", "/x", &format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n"), "");
        rig.assert_refused(&reply, 400, "request_invalid");
        assert!(reply.text().contains("upgraded"), "{}", reply.text());
    }
    for lines in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: h2,h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n",
        "Upgrade: foo\r\n",
    ] {
        assert_eq!(rig.ask("GET", "/x", lines, "").status, 200, "{lines}");
        assert!(rig.upstream.requests()[0].header("upgrade").is_none());
    }
}

#[test]
fn what_is_dropped_is_counted() {
    let rig = Rig::start("");
    let lines = "Cookie: a=1\r\nRange: bytes=0-1\r\ntraceparent: x\r\nX-Forwarded-For: 1\r\nmy_id: 1\r\nX-Api-Key: k\r\n\
                 Connection: X-Own\r\nX-Own: 1\r\nX-Kept: 1\r\n";
    assert_eq!(rig.ask("GET", "/x", lines, "").status, 200);
    let page = rig.sandbox.metrics_page();
    for kind in ["cookie", "range", "trace", "forwarded", "underscore", "credential", "connection"] {
        let line = format!("seks_request_headers_dropped_total{{service=\"acme\",header=\"{kind}\"}} 1");
        assert!(page.contains(&line), "{line}\n{page}");
    }
    assert!(!page.contains("header=\"token\""));
    let plain = "Accept: */*\r\nAccept-Encoding: gzip\r\nUser-Agent: x\r\n";
    assert_eq!(
        exchange(
            rig.sandbox.proxy(),
            format!("GET /api/acme/ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{plain}\r\n", rig.token)
        )
        .status,
        200
    );
    assert!(rig.sandbox.metrics_page().contains("header=\"credential\"} 1"), "what each request has is not counted");
}

const URLENCODED: &str = "Content-Type: application/x-www-form-urlencoded\r\n";
const MULTIPART: &str = "Content-Type: multipart/form-data; boundary=b\r\n";

fn multipart(name: &str, value: &str) -> String {
    format!(
        "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n\
         --b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n--b--\r\n"
    )
}

#[test]
fn a_form_that_overrides_the_method_is_refused() {
    let rig = Rig::start("");
    let large = format!("text={}&", "x".repeat(100_000));
    for (lines, body) in [
        (URLENCODED, "a=1&_method=DELETE".to_owned()),
        (URLENCODED, "%5Fmethod=delete".to_owned()),
        (URLENCODED, "a=1;_METHOD=PUT;b=2".to_owned()),
        (URLENCODED, "method=DELETE".to_owned()),
        (URLENCODED, format!("{large}_method=DELETE")),
        ("", "_method=DELETE".to_owned()),
        (MULTIPART, multipart("_method", "DELETE")),
        (MULTIPART, multipart("X-HTTP-Method-Override", "DELETE")),
        (MULTIPART, multipart("_method", "DELETE").replace("\"a\"\r\n\r\n1", &format!("\"a\"\r\n\r\n{large}"))),
    ] {
        let reply = rig.ask("POST", "/v1/x", lines, &body);
        assert_eq!((reply.status, reply.code().as_str()), (400, "request_invalid"), "{lines}{:.60}", body);
        assert!(reply.text().contains("_method"), "{}", reply.text());
        // Of a large form the upstream may have the head, and never the end.
        assert!(!String::from_utf8_lossy(&rig.upstream.received()).contains("DELETE"), "{lines}{:.60}", body);
    }
    for (lines, body) in [
        (URLENCODED, "a=_method&method=card&payment_method=x".to_owned()),
        (URLENCODED, large),
        (MULTIPART, multipart("file", "_method=DELETE")),
        ("Content-Type: application/json\r\n", "{\"a\":\"&_method=DELETE\"}".to_owned()),
    ] {
        let reply = rig.ask("POST", "/v1/x", lines, &body);
        assert_eq!(reply.status, 200, "{lines}{:.60}: {}", body, reply.text());
        assert_eq!(rig.upstream.requests()[0].body, body.as_bytes());
    }
    let put = rig.ask("PUT", "/v1/x", URLENCODED, "_method=DELETE");
    assert_eq!(put.status, 200, "no server overrides PUT: {}", put.text());
}

#[test]
fn a_service_that_takes_overrides_has_both_methods_of_a_form_decided() {
    let rig = Rig::start("allow_method_override = true\ndenied_paths = [\"DELETE /keys/**\"]");
    for (lines, body) in [(URLENCODED, "a=1&_method=PUT".to_owned()), (MULTIPART, multipart("_method", "PUT"))] {
        let reply = rig.ask("POST", "/v1/x", lines, &body);
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(rig.upstream.requests()[0].body, body.as_bytes());
    }
    let post = |path: &str, body: &str| rig.ask("POST", path, URLENCODED, body);
    rig.assert_refused(&post("/keys/7", "_method=DELETE"), 403, "policy_denied");
    rig.assert_refused(&post("/x", "_method=LOCK"), 405, "request_invalid");
    rig.assert_refused(&post("/x", "_method=PUT&_method=GET"), 400, "request_invalid");
    rig.assert_refused(&post("/x?_method=PUT", "_method=PUT"), 400, "request_invalid");
    rig.sandbox
        .cli()
        .apply_policies("@id(\"no-delete\") forbid (principal, action == Seks::Action::\"DELETE\", resource);");
    rig.assert_refused(&post("/x", "_method=DELETE"), 403, "policy_denied");
    rig.assert_refused(&rig.ask("POST", "/x", MULTIPART, &multipart("_method", "DELETE")), 403, "policy_denied");
    assert_eq!(post("/x", "_method=PUT").status, 200);
}

const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn a_service_that_takes_overrides_has_both_methods_of_a_json_body_decided() {
    let rig = Rig::start("allow_method_override = true\ndenied_paths = [\"DELETE /keys/**\"]");
    let post = |path: &str, body: &str| rig.ask("POST", path, JSON, body);
    let large = format!("{{\"text\":\"{}\",\"_method\":\"DELETE\"}}", "x".repeat(100_000));
    for body in
        [r#"{"a":{"_method":"DELETE"},"_method":"put"}"#, r#"{"method":"DELETE","_methods":"DELETE"}"#, "[1]", "x"]
    {
        let reply = post("/keys/7", body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        assert_eq!(rig.upstream.requests()[0].body, body.as_bytes());
    }
    for lines in [JSON, "Content-Type: text/json;charset=utf-8\r\n", "Content-Type: application/vnd.api+json\r\n"] {
        let reply = rig.ask("POST", "/keys/7", lines, r#"{"_method":"DELETE"}"#);
        rig.assert_refused(&reply, 403, "policy_denied");
    }
    rig.assert_refused(&post("/keys/7", r#"{"a":"\\","\u005fmethod":"\u0064elete"}"#), 403, "policy_denied");
    rig.assert_refused(&post("/x", r#"{"_method":"LOCK"}"#), 405, "request_invalid");
    let ignored = format!("{JSON}Content-Encoding: gzip\r\n");
    rig.assert_refused(&rig.ask("POST", "/keys/7", &ignored, r#"{"_method":"DELETE"}"#), 403, "policy_denied");
    for body in [r#"{"_method":7}"#, r#"{"_method":"PUT","_method":"GET"}"#, r#"{/*"*/"_method":"DELETE"}"#] {
        let reply = post("/x", body);
        rig.assert_refused(&reply, 400, "request_invalid");
        assert!(reply.text().contains("_method") || reply.text().contains("one method"), "{}", reply.text());
    }
    rig.assert_refused(&post("/x?_method=PUT", r#"{"_method":"PUT"}"#), 400, "request_invalid");
    // What comes after the decision is refused, whatever it is.
    assert!(matches!(post("/keys/7", &large).status, 400 | 403));
    assert!(!String::from_utf8_lossy(&rig.upstream.received()).contains("DELETE"));
    rig.sandbox
        .cli()
        .apply_policies("@id(\"no-delete\") forbid (principal, action == Seks::Action::\"DELETE\", resource);");
    rig.assert_refused(&post("/x", r#"{"_method":"DELETE"}"#), 403, "policy_denied");
    assert_eq!(post("/x", r#"{"_method":"PUT"}"#).status, 200);
}

#[test]
fn a_form_that_cannot_be_read_is_refused() {
    const GZIP: &str = "Content-Encoding: gzip\r\n";
    let (rig, overriding) = (Rig::start(""), Rig::start("allow_method_override = true"));
    for (rig, lines, status) in [
        (&rig, URLENCODED, 400),
        (&rig, MULTIPART, 400),
        (&rig, "Content-Type: multipart/related; boundary=b\r\n", 200),
        (&rig, "Content-Type: application/octet-stream\r\n", 200),
        (&rig, JSON, 200),
        (&rig, "", 200),
        (&overriding, JSON, 200),
        (&overriding, URLENCODED, 400),
    ] {
        let reply = rig.ask("POST", "/x", &format!("{GZIP}{lines}"), "\u{1f}?");
        assert_eq!(reply.status, status, "{lines}: {}", reply.text());
        assert_eq!(reply.text().contains("_method"), status == 400, "{}", reply.text());
    }
    assert_eq!(rig.ask("PUT", "/x", &format!("{GZIP}{URLENCODED}"), "?").status, 200);
    assert_eq!(rig.ask("POST", "/x", &format!("Content-Encoding: identity\r\n{URLENCODED}"), "a=1").status, 200);
}

#[test]
fn the_destination_of_a_copy_is_decided_on_and_leads_to_the_upstream() {
    let rig =
        Rig::start("methods = [\"COPY\", \"MOVE\"]\nbase_path = \"/dav\"\ndenied_paths = [\"COPY /dav/secret/**\"]");
    let origin = rig.upstream.origin();
    let copy = |destination: &str| rig.ask("COPY", "/a", &format!("Destination: {destination}\r\n"), "");
    for (destination, path) in [
        ("http://localhost/api/acme/b%20c", "/dav/b%20c"),
        ("HTTP://LocalHost:80/api/acme/dav/b", "/dav/b"),
        ("/api/acme/b?x=1", "/dav/b?x=1"),
        (&*format!("{origin}/dav/b"), "/dav/b"),
    ] {
        let reply = copy(destination);
        assert_eq!(reply.status, 200, "{destination}: {}", reply.text());
        assert_eq!(rig.upstream.requests()[0].headers("destination"), [format!("{origin}{path}")], "{destination}");
    }
    for destination in [
        "http://elsewhere.test/api/acme/b",
        "http://localhost/api/other/b",
        "http://localhost/api/acmes/b",
        "http://localhost/b",
        "http://localhost@elsewhere.test/api/acme/b",
        "//elsewhere.test/b",
        "ftp://localhost/api/acme/b",
        "b",
        "",
        "/api/acme/../b",
        "/api/acme/%2e%2e/b",
        "/api/acme/b\r\nDestination: /api/acme/c",
    ] {
        let reply = copy(destination);
        rig.assert_refused(&reply, 400, "request_invalid");
        let named = reply.text().contains("Destination");
        assert!(named || destination.contains("/../") || destination.contains("%2e"), "{}", reply.text());
    }
    rig.assert_refused(&copy("/api/acme/secret/b"), 403, "policy_denied");
    rig.sandbox.cli().apply_policies(
        "@id(\"closed\") forbid (principal, action, resource) when { context.path like \"/dav/closed/*\" };",
    );
    rig.assert_refused(&copy("/api/acme/closed/b"), 403, "policy_denied");
    rig.assert_refused(&copy("/api/acme/x/%2f/..;/closed/b"), 400, "request_invalid");
    assert_eq!(rig.ask("MOVE", "/a", "Destination: /api/acme/open/b\r\n", "").status, 200);
    assert_eq!(rig.ask("COPY", "/a", "", "").status, 200, "the upstream says that it misses it");
}
