//! An upstream's URLs of its own lead through the node: a client that follows one stays behind the
//! broker.

use std::sync::{Arc, OnceLock};

use seks_tests::{Sandbox, Upstream, raw::Connection, upstream::Answer};

const KEY: &str = "sk-real-wire-key-000000000000000001";

/// The value of `name` that the agent gets when the upstream answers with `status` and `value`, in
/// which `UP` is the upstream's origin. The node is addressed as `localhost`, without a port.
fn seen(status: u16, name: &'static str, value: &str) -> String {
    seen_by("", status, name, value)
}

/// The same for an agent whose request has the header lines `more`.
fn seen_by(more: &str, status: u16, name: &'static str, value: &str) -> String {
    let answer: Arc<OnceLock<String>> = Arc::default();
    let told = answer.clone();
    let upstream = Upstream::start(move |_| Answer::with(status, &[(name, told.get().unwrap())], "{}"));
    answer.set(value.replace("UP", &upstream.origin())).unwrap();
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    let mut client = Connection::open(sandbox.proxy());
    client.send(format!(
        "GET /api/openai/v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n"
    ));
    let (seen, head) = client.read_head().unwrap();
    assert_eq!(seen, status);
    let prefix = format!("{}:", name.to_ascii_lowercase());
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&prefix)).unwrap();
    line[prefix.len()..].trim().to_owned()
}

#[test]
fn page_links_lead_through_the_node() {
    assert_eq!(
        seen(200, "Link", "<UP/repos/o/r/issues?page=2>; rel=\"next\", <UP/repos/o/r/issues?page=9>; rel=\"last\""),
        "<http://localhost/api/openai/repos/o/r/issues?page=2>; rel=\"next\", \
         <http://localhost/api/openai/repos/o/r/issues?page=9>; rel=\"last\""
    );
    assert_eq!(
        seen(200, "Link", "</v2/_catalog?last=b&n=2>; rel=\"next\""),
        "</api/openai/v2/_catalog?last=b&n=2>; rel=\"next\""
    );
}

#[test]
fn locations_stay_absolute_or_paths_as_the_upstream_wrote_them() {
    for name in ["Location", "Content-Location", "Operation-Location", "Azure-AsyncOperation", "X-Goog-Upload-URL"] {
        assert_eq!(seen(200, name, "UP/upload/x?id=abc"), "http://localhost/api/openai/upload/x?id=abc", "{name}");
    }
    assert_eq!(seen(302, "Location", "/v1/y"), "/api/openai/v1/y");
    assert_eq!(seen(200, "Refresh", "5; url=UP/x"), "5; url=http://localhost/api/openai/x");
}

#[test]
fn other_hosts_stay() {
    for value in ["http://elsewhere.test/x", "<http://elsewhere.test/x>; rel=\"next\"", "UP.elsewhere.test/x", "page/2"]
    {
        let name = if value.starts_with('<') { "Link" } else { "Location" };
        assert!(!seen(200, name, value).contains("localhost"), "{value}");
    }
}

#[test]
fn behind_a_balancer_that_ends_tls_urls_are_https() {
    let location = seen_by("X-Forwarded-Proto: https\r\n", 201, "Location", "UP/x");
    assert_eq!(location, "https://localhost/api/openai/x");
    for more in ["X-Forwarded-Proto: https, http\r\n", "Forwarded: for=192.0.2.1;proto=https, for=192.0.2.2\r\n"] {
        assert_eq!(seen_by(more, 201, "Location", "UP/x"), location, "{more}");
    }
}

#[test]
fn cookies_come_back_to_the_node_for_services_that_take_them() {
    let cookies =
        ["session=1; Path=/v1; HttpOnly", "csrf=2; Domain=127.0.0.1; Path=/; Secure", "x=3; Domain=elsewhere.test"];
    let upstream = Upstream::start(move |_| Answer::with(200, &cookies.map(|value| ("Set-Cookie", value)), "{}"));
    let sandbox = Sandbox::start();
    let token = {
        for (name, more) in [("acme", "pass_cookies = [\"session\", \"csrf\"]"), ("other", "")] {
            sandbox.cli().apply_service(&format!(
                "name = \"{name}\"\nupstream = \"{}\"\nallow_private = true\ninject = \"bearer\"\n{more}\n",
                upstream.origin()
            ));
            sandbox.cli().put_credential(name, name, KEY);
        }
        sandbox.token("agent", &["acme", "other"]).secret
    };
    let seen = |service: &str| {
        let request =
            format!("GET /api/{service}/v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
        let head = seks_tests::raw::exchange(sandbox.proxy(), request).head;
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let cookies = lines.filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
        cookies.map(|(_, value)| value.to_owned()).collect::<Vec<_>>()
    };
    let adapted = ["session=1; Path=/api/acme/v1; HttpOnly", "csrf=2; Path=/api/acme/", "x=3; Domain=elsewhere.test"];
    assert_eq!(seen("acme"), adapted);
    let confined = [
        "session=1; Path=/api/other/v1; HttpOnly",
        "csrf=2; Domain=127.0.0.1; Path=/api/other/; Secure",
        "x=3; Domain=elsewhere.test",
    ];
    assert_eq!(seen("other"), confined, "it goes to no other service");
}
