//! Names that nobody answers for.

use std::{
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use seks_tests::raw::Connection;

use super::world::{NameServer, World, service};

#[test]
fn a_tenants_silent_name_server_delays_no_other_tenants_new_connection() {
    let server = NameServer::start();
    let world = World::start(&server.config());
    let port = world.upstream.address().port();
    service(&world.sandbox, "default", "named", &format!("http://api.test:{port}"));
    let victim = world.token("default", &["named"]);
    let names: Vec<String> = (0..24).map(|n| format!("silent{n}")).collect();
    for name in &names {
        service(&world.sandbox, "hostile", name, &format!("http://{name}.test:{port}"));
    }
    let services: Vec<&str> = names.iter().map(String::as_str).collect();
    let tokens: Vec<_> = (0..3).map(|_| world.token("hostile", &services)).collect();
    // More than the threads that a runtime has for blocking look-ups.
    let mut waiting = Vec::new();
    for token in &tokens {
        for n in 0..200 {
            let mut connection = Connection::open(world.sandbox.proxy());
            connection.send(format!(
                "GET /api/silent{}/v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
                n % names.len(),
                token.secret
            ));
            waiting.push(connection);
        }
    }
    while server.asked.load(SeqCst) < 16 {
        thread::sleep(Duration::from_millis(1));
    }
    let asked = Instant::now();
    let reply = world.sandbox.get("/api/named/v1/x", &victim.secret);
    let took = asked.elapsed();
    assert_eq!(reply.status, 200, "{} {}", reply.head, reply.text());
    assert!(took < Duration::from_secs(3), "another tenant's new connection took {took:?}");
    println!("a new connection beside 600 that wait for a silent name server: {took:?}");
    for mut connection in waiting {
        assert!([502, 504].contains(&connection.read_reply(false).status), "the look-up has a deadline");
    }
}
