//! HTTP/2: frames that ask for nothing, and refusals that the library makes by itself.

use std::time::Duration;

use seks_tests::{Collector, Sandbox, collector::Span, raw::Connection, sandbox::Options};

use super::attackers::{frame, preface};

/// Sends a frame again and again on a new connection, until it is closed. How many bytes went out.
fn flood(sandbox: &Sandbox, opening: &[u8], one: &[u8]) -> usize {
    let mut connection = Connection::open(sandbox.proxy());
    connection.send([&preface(), opening].concat());
    let batch = one.repeat(100);
    for round in 1..400 {
        connection.send(&batch);
        if connection.closes(Duration::from_millis(1)) {
            return round * batch.len();
        }
    }
    assert!(connection.closes(Duration::from_secs(20)), "never closed");
    400 * batch.len()
}

fn metric(sandbox: &Sandbox, labels: &str) -> u64 {
    let page = sandbox.metrics_page();
    let line = page.lines().find_map(|line| line.strip_prefix(&format!("seks_http2_refused_total{{{labels}}} ")));
    line.map_or(0, |value| value.parse().unwrap())
}

/// `:method GET`, `:scheme http`, `:path /`, `:authority localhost`, in HPACK.
fn request_head() -> Vec<u8> {
    [&[0x82, 0x86, 0x84, 0x41, 9][..], b"localhost"].concat()
}

#[test]
fn frames_that_ask_for_nothing_end_their_connection() {
    let sandbox = Sandbox::start();
    let stream = frame(1, 4, 1, &[&[0x83, 0x86, 0x84, 0x41, 9][..], b"localhost"].concat()); // a POST without its body
    for (name, opening, one) in [
        ("PING", vec![], frame(6, 0, 0, &[0; 8])),
        ("SETTINGS", vec![], frame(4, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ("WINDOW_UPDATE", vec![], frame(8, 0, 0, &[0, 0, 0, 1])),
        ("PRIORITY", vec![], frame(2, 0, 1, &[0, 0, 0, 0, 1])),
        ("empty DATA", stream, frame(0, 0, 1, &[])),
        ("unknown", vec![], frame(0xfa, 0, 0, b"grease")),
        ("CONTINUATION", frame(1, 0, 1, &[0x82]), frame(9, 0, 1, &[0x86])),
    ] {
        let sent = flood(&sandbox, &opening, &one);
        println!("{name}: closed after {sent} bytes");
    }
    assert!(metric(&sandbox, "refused=\"connection\",reason=\"flood\"") >= 3);
    assert_eq!(sandbox.get("/api/", "x").status, 401);
}

#[test]
fn what_the_library_refuses_by_itself_is_recorded_and_counted() {
    let collector = Collector::start();
    let sandbox = Sandbox::with(Options::default().collector(&collector));
    let refused = |reason: &'static str, status: &'static str| {
        move |span: &Span| {
            span.name == "seks.proxy"
                && span.get("seks.reason") == reason
                && span.get("http.response.status_code") == status
        }
    };

    // A head larger than the node takes: the node itself answers, with a request id.
    let field = |bytes: usize| -> Vec<u8> {
        // Literal without indexing, new name `x`; its length as an HPACK integer of 7 bits.
        let mut encoded = vec![0, 1, b'x', 127];
        let mut left = bytes - 127;
        while left >= 128 {
            encoded.push(128 | (left % 128) as u8);
            left /= 128;
        }
        encoded.push(left as u8);
        encoded.extend(vec![b'a'; bytes]);
        encoded
    };
    let send_head = |head: &[u8]| {
        let mut connection = Connection::open(sandbox.proxy());
        let mut bytes = preface();
        let mut pieces = head.chunks(16_000).enumerate().peekable();
        while let Some((n, piece)) = pieces.next() {
            let end = if pieces.peek().is_none() { 4 } else { 0 };
            bytes.extend(if n == 0 { frame(1, 1 | end, 1, piece) } else { frame(9, end, 1, piece) });
        }
        connection.send(bytes);
        connection
    };
    let _large = send_head(&[request_head(), field(40_000)].concat());
    collector.wait_for("the record of a head of 40 kB", refused("request_too_large", "431"));

    // Twice that: the library answers.
    let _larger = send_head(&[request_head(), field(80_000)].concat());
    let counted = |labels: &'static str| {
        seks_tests::process::wait_for(labels, || (metric(&sandbox, labels) >= 1).then_some(()));
    };
    counted("refused=\"stream\",reason=\"header_list_too_large\"");

    // A head that no HTTP/2 request may have: a field of the connection.
    let _malformed = send_head(&[&request_head()[..], &[0, 10], b"connection", &[1, b'a']].concat());
    counted("refused=\"stream\",reason=\"protocol_error\"");
    collector.wait_for("the record of a malformed head", |span| {
        span.name == "seks.proxy"
            && span.get("seks.reason") == "request_invalid"
            && !span.get("seks.request.id").is_empty()
    });

    // HTTP/1's own reader refuses with a request id, and with a record of it.
    for (head, status) in [("GET / HTTP/1.1\nHost: x\n\n", 400), ("GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505)] {
        let reply = seks_tests::raw::exchange(sandbox.proxy(), head);
        let id = reply.header("x-seks-request-id").unwrap_or_else(|| panic!("{}", reply.head)).to_owned();
        assert_eq!(reply.status, status);
        collector.wait_for("the record of a malformed head", |span| span.get("seks.request.id") == id);
    }

    // What ends the connection: an upper-case name, and one that isn't HTTP/2 after all.
    let mut upper = send_head(&[request_head(), vec![0, 1, b'X', 1, b'a']].concat());
    assert!(upper.closes(Duration::from_secs(20)));
    let mut broken = Connection::open(sandbox.proxy());
    broken.send("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n0123456789");
    assert!(broken.closes(Duration::from_secs(20)));
    let labels = "refused=\"connection\",reason=\"protocol_error\"";
    seks_tests::process::wait_for(labels, || (metric(&sandbox, labels) >= 2).then_some(()));
}
