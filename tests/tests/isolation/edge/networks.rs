//! Private upstreams: by networks that a fleet owner gives and the node allows, and never SEKS
//! itself or a metadata service.

use std::net::{SocketAddr, UdpSocket};

use seks_tests::{
    Upstream,
    raw::Reply,
    sandbox::{Cli, Options, Sandbox, Token},
};

/// A service on `origin`, with a credential of its own; what the CLI said when it was refused.
fn point_at(cli: &Cli, name: &str, origin: &str) -> Result<(), String> {
    let text = format!("name = \"{name}\"\nupstream = \"{origin}\"\nallow_private = true\ninject = \"bearer\"\n");
    let applied = cli.run(&["service", "apply", "-f", "-"], &text);
    if applied.code != Some(0) {
        return Err(applied.stderr);
    }
    cli.put_credential(name, name, &format!("sk-real-{name}-0123456789"));
    Ok(())
}

fn ask(sandbox: &Sandbox, name: &str, token: &Token, path: &str) -> Reply {
    sandbox.get(&format!("/api/{name}{path}"), &token.secret)
}

/// Every way to write the address of a listener of this machine in an origin.
fn forms(address: SocketAddr) -> Vec<String> {
    let port = address.port();
    let mut hosts: Vec<String> =
        ["127.0.0.1", "127.0.0.2", "127.255.255.254", "localhost", "[::ffff:127.0.0.1]", "[::1]"]
            .map(String::from)
            .into();
    hosts.extend(
        ["[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"].map(String::from),
    );
    hosts.extend(own_address());
    hosts.iter().map(|host| format!("http://{host}:{port}")).collect()
}

/// An address of this machine beside loopback, if it has one.
fn own_address() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip().to_string()).filter(|ip| !ip.starts_with("127."))
}

#[test]
fn an_agent_never_reaches_seks_itself_in_any_form_of_the_address() {
    let sandbox = Sandbox::start();
    let upstream = Upstream::ok();
    point_at(sandbox.cli(), "acme", &upstream.origin()).unwrap();
    assert_eq!(
        ask(&sandbox, "acme", &sandbox.token("bot", &["acme"]), "/x").status,
        200,
        "a user's own upstream is reached"
    );
    let mut services = Vec::new();
    for (listener, address) in [("m", sandbox.metrics()), ("p", sandbox.proxy()), ("a", sandbox.admin())] {
        for (n, origin) in forms(address).iter().enumerate() {
            let name = format!("{listener}{n}");
            if point_at(sandbox.cli(), &name, origin).is_ok() {
                services.push((name, origin.clone()));
            }
        }
    }
    assert!(services.len() > 12, "most forms can be stored: {services:?}");
    let names: Vec<&str> = services.iter().map(|(name, _)| name.as_str()).collect();
    let token = sandbox.cli().issue("bot", &names, &[]);
    for (name, origin) in &services {
        for path in ["/metrics", "/healthz"] {
            let reply = ask(&sandbox, name, &token, path);
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (502, "upstream_unreachable"),
                "{origin}{path}: {reply:?}"
            );
        }
    }
}

#[test]
fn no_metadata_address_is_stored_or_reached_even_in_seks_dev() {
    let sandbox = Sandbox::start();
    for host in [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.42.42",
        "168.63.129.16",
        "192.0.0.192",
        "100.100.100.200",
        "100.96.0.96",
        "[fd00:ec2::254]",
        "[fd00:ec2::23]",
        "[fd20:ce::254]",
        "[fd00:c1::a9fe:a9fe]",
        "[fd00:42::42]",
        "[fe80::a9fe:a9fe]",
        "[::ffff:168.63.129.16]",
        "[64:ff9b::a83f:8110]",
        "[2002:a83f:8110::1]",
        "0.0.0.0",
        "[::]",
        "metadata.google.internal",
        "metadata.tencentyun.com",
    ] {
        let refused = point_at(sandbox.cli(), "cloud", &format!("http://{host}")).unwrap_err();
        assert!(refused.contains("always forbidden"), "{host}: {refused}");
    }
}

#[test]
fn in_a_fleet_private_upstreams_take_networks_of_a_fleet_owner_and_of_the_node() {
    let sandbox = Sandbox::with(Options::planes(""));
    let upstream = Upstream::ok();
    let cli = sandbox.cli();
    // The owner of a tenant, who isn't one of the fleet.
    let theirs = tempfile::tempdir().unwrap();
    let context = theirs.path().join("context.toml");
    cli.json(&["operator", "create", "ann", "--role", "owner:default", "--out", context.to_str().unwrap()]);
    let ann = Cli::new(theirs.path(), &context);

    cli.json(&["tenant", "update", "default", "--no-private-networks"]);
    let refused = point_at(cli, "acme", &upstream.origin()).unwrap_err();
    assert!(refused.contains("tenant `default` has no private networks"), "{refused}");
    assert!(refused.contains("seks tenant update default --private-network CIDR"), "{refused}");
    assert!(refused.contains("[upstream] private_networks"), "{refused}");
    let widened = ann.run(&["tenant", "update", "default", "--private-network", "127.0.0.0/8"], "");
    assert_eq!(widened.code, Some(4), "{}", widened.stderr);

    // What the tenant has and the node doesn't allow, is not reached: the node allows loopback
    // alone.
    cli.json(&["tenant", "update", "default", "--private-network", "10.0.0.0/8", "--private-network", "127.0.0.0/8"]);
    point_at(&ann, "acme", &upstream.origin()).unwrap();
    point_at(&ann, "ten", "http://10.255.255.1:9").unwrap();
    point_at(&ann, "page", &format!("http://{}", sandbox.metrics())).unwrap();
    let refused = point_at(&ann, "lan", "http://192.168.1.1").unwrap_err();
    assert!(refused.contains("`192.168.1.1` is in none of the private networks"), "{refused}");
    let token = sandbox.token("bot", &["acme", "ten", "page"]);
    assert_eq!(ask(&sandbox, "acme", &token, "/x").status, 200);
    for refused in ["ten", "page"] {
        assert_eq!(ask(&sandbox, refused, &token, "/metrics").code(), "upstream_unreachable", "{refused}");
    }

    // Taking them away is enforced like any other change.
    let answer = cli.json(&["tenant", "update", "default", "--private-network", "10.0.0.0/8"]);
    assert_eq!((&answer["enforced"], &answer["private_networks"]), (&true.into(), &serde_json::json!(["10.0.0.0/8"])));
    let seen = upstream.requests().len();
    assert_eq!(ask(&sandbox, "acme", &token, "/x").code(), "upstream_unreachable");
    assert_eq!(upstream.requests().len(), seen);
}

#[test]
fn a_node_that_allows_no_private_network_reaches_none() {
    let config = "[upstream]\nprivate_networks = []\n".to_owned();
    let sandbox = Sandbox::with(Options { config, ..Options::planes("") });
    let upstream = Upstream::ok();
    point_at(sandbox.cli(), "acme", &upstream.origin()).unwrap();
    let token = sandbox.token("bot", &["acme"]);
    assert_eq!(ask(&sandbox, "acme", &token, "/x").code(), "upstream_unreachable");
    assert!(upstream.log().connections.is_empty());
}
