//! What a tenant can open or name at a node is bounded, and others go on.

use seks_tests::{
    Upstream,
    process::wait_for,
    raw::Connection,
    sandbox::Token,
    upstream::{Answer, Gate, answer::Step},
};

use super::world::{World, service};
use crate::socket;

/// Connections of the node in these tests.
const CONNECTIONS: usize = 120;

fn limited(world: &World, limit: &str) -> f64 {
    world.metric(&format!("seks_tenant_limited_total{{limit=\"{limit}\"}}"))
}

/// An upstream that answers when the gate is opened.
fn held(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::start(move |_| {
        Answer::steps(vec![
            Step::Hold(gate.clone()),
            Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into()),
        ])
    })
}

fn ask(world: &World, token: &Token, service: &str, more: &str) -> Connection {
    let mut connection = Connection::open(world.sandbox.proxy());
    connection.send(format!(
        "GET /api/{service}/v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n{more}\r\n",
        token.secret
    ));
    connection
}

#[test]
fn a_tenant_with_many_tokens_leaves_connections_for_the_others() {
    let world = World::start(&format!("[proxy.limits]\nmax_connections = {CONNECTIONS}\n"));
    let (gate, at) = (Gate::default(), "held");
    let upstream = held(&gate);
    service(&world.sandbox, "hostile", at, &upstream.origin());
    let tokens: Vec<Token> = (0..4).map(|_| world.token("hostile", &[at])).collect();
    let mut asked: Vec<Connection> = Vec::new();
    for n in 0..CONNECTIONS {
        asked.push(ask(&world, &tokens[n % tokens.len()], at, ""));
        // As many as are held, or refused, by now: else the listener has accepted too many at once
        // for a fair count.
        wait_for("the request to be held or refused", || {
            let held = upstream.log().requests.len() + limited(&world, "in_flight") as usize;
            (held > n).then_some(())
        });
        assert_eq!(world.get(&world.victim).status, 200, "another tenant's request, beside {n}");
        if limited(&world, "in_flight") >= 10.0 {
            break;
        }
    }
    let held = upstream.log().requests.len();
    assert!((64..CONNECTIONS * 3 / 4 + 8).contains(&held), "{held} of {CONNECTIONS} are the tenant's");
    let refused = asked.last_mut().unwrap().read_reply(false);
    assert_eq!((refused.status, refused.code().as_str()), (429, "limit_exceeded"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some(), "{}", refused.head);
    gate.open();
    wait_for("its requests to end", || (world.get(&world.hostile).status == 200).then_some(()));
}

#[test]
fn web_sockets_count_as_long_as_they_are_open() {
    let world = World::start(&format!("[proxy.limits]\nmax_connections = {CONNECTIONS}\n"));
    let upstream = Upstream::start(|request| socket::accepted(request, b""));
    service(&world.sandbox, "hostile", "sockets", &upstream.origin());
    let token = world.token("hostile", &["sockets"]);
    let (mut open, mut last) = (Vec::new(), (0, String::new()));
    for _ in 0..CONNECTIONS {
        let mut socket = ask(&world, &token, "sockets", socket::ASKED);
        last = socket.read_head().unwrap();
        if last.0 != 101 {
            break;
        }
        open.push(socket);
    }
    assert_eq!(last.0, 429, "{} after {} sockets", last.1, open.len());
    assert!((64..CONNECTIONS * 3 / 4 + 8).contains(&open.len()), "{} sockets", open.len());
    assert!(limited(&world, "in_flight") > 0.0);
    assert_eq!(world.get(&world.victim).status, 200);
}

#[test]
fn unused_connections_are_kept_within_the_tenants_share() {
    let world = World::start("[upstream]\ntenant_max_idle = 4\n");
    let names: Vec<String> = (0..8).map(|n| format!("many{n}")).collect();
    for name in &names {
        service(&world.sandbox, "hostile", name, &world.hostile_upstream.origin());
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let token = world.token("hostile", &names);
    for name in &names {
        assert_eq!(world.sandbox.get(&format!("/api/{name}/v1/x"), &token.secret).status, 200);
    }
    assert_eq!(world.get(&world.victim).status, 200);
    let idle = || {
        let page = world.sandbox.metrics_page();
        let of_it = |line: &&str| line.starts_with("seks_upstream_connections{service=\"many") && line.contains("idle");
        page.lines().filter(of_it).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    assert_eq!((idle(), limited(&world, "idle_upstream_connections")), (4.0, 4.0));
}
