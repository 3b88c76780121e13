//! A bound on wrong tokens from one source, which touches nobody else.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
};

use seks_tests::{Upstream, raw::Connection, sandbox::Sandbox};
use tokio::net::TcpSocket;

/// The status of one request from an address of this machine.
fn status_from(source: &str, proxy: SocketAddr, token: &str) -> u16 {
    let source = SocketAddr::new(source.parse::<IpAddr>().unwrap(), 0);
    let connected = seks_tests::runtime().block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(source).unwrap();
        socket.connect(proxy).await.unwrap()
    });
    let mut stream = connected.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    let request = format!(
        "GET /api/openai/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap_or_default().parse().unwrap_or(0)
}

#[test]
fn one_source_may_show_so_many_wrong_tokens_and_others_go_on() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, "sk-real-wrong-0123456789");
    let good = sandbox.token("bot", &["openai"]).secret;
    let wrong = seks_types::token::FreshToken::generate().unwrap();
    let mut connection = Connection::open(sandbox.proxy());
    let (mut refused, mut limited) = (0, 0);
    for n in 0..2000 {
        let token = if n % 2 == 0 { wrong.as_str() } else { "seks_token_mistyped" };
        connection
            .send(format!("GET /api/openai/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"));
        let reply = connection.read_reply(false);
        match reply.status {
            401 => refused += 1,
            429 => {
                limited += 1;
                assert_eq!(reply.code(), "limit_exceeded");
                assert!(
                    reply.header("retry-after").is_some_and(|s| s.parse::<u32>().is_ok_and(|s| s >= 1)),
                    "{}",
                    reply.head
                );
            }
            other => panic!("{other}: {}", reply.text()),
        }
    }
    assert!(refused >= 500 && limited > 0, "{refused} refused, {limited} limited");
    let page = sandbox.metrics_page();
    assert!(page.contains(&format!("seks_proxy_wrong_tokens_limited_total {limited}")), "{page}");
    assert_eq!(sandbox.get("/api/openai/x", &good).status, 200, "a good token from the same source");
    assert_eq!(status_from("127.0.0.2", sandbox.proxy(), wrong.as_str()), 401, "another source");
    assert_eq!(status_from("127.0.0.2", sandbox.proxy(), &good), 200);
}
