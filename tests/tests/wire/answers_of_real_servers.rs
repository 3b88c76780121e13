//! Answers as real servers send them: every byte that came reaches the agent, and what can be read
//! in two ways does not.

use std::io::Write as _;

use seks_tests::{
    Sandbox, Upstream,
    raw::{Connection, Reply},
    upstream::{Answer, Request},
};

const KEY: &str = "sk-real-wire-key-000000000000000002";

/// A broker in front of an upstream that answers with `answer`.
struct World {
    sandbox: Sandbox,
    _upstream: Upstream,
    token: String,
}

impl World {
    fn with(more: &str, answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let (upstream, sandbox) = (Upstream::start(answer), Sandbox::start());
        sandbox.cli().apply_service(&format!(
            "name = 'acme'\nupstream = '{}'\nallow_private = true\ninject = 'bearer'\n{more}\n",
            upstream.origin()
        ));
        sandbox.cli().put_credential("acme", "acme", KEY);
        let token = sandbox.token("agent", &["acme"]).secret;
        Self { sandbox, _upstream: upstream, token }
    }

    fn ask(&self, method: &str, path: &str) -> Reply {
        let token = &self.token;
        let head =
            format!("{method} /api/acme{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
        seks_tests::raw::exchange(self.sandbox.proxy(), head)
    }
}

/// Answers that the agent's request names by its path: `/0` gets the first.
fn table(answers: Vec<Vec<u8>>) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
    move |request| Answer::raw(answers[request.path().trim_start_matches('/').parse::<usize>().unwrap()].clone())
}

fn ok(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn deflated(body: &[u8]) -> Vec<u8> {
    let mut coder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    coder.write_all(body).unwrap();
    coder.finish().unwrap()
}

#[test]
fn codings_that_transform_nothing_pass_and_raw_deflate_keeps_its_first_byte() {
    let plain =
        ["utf-8", "none", "binary", "7bit", "8bit", "aws-chunked", "text/plain", "identity", "UTF-8,identity", ""];
    let body = format!("{{\"ok\": true, \"you sent\": \"{KEY}\"}}");
    let mut answers: Vec<_> = plain.iter().map(|c| ok(&format!("Content-Encoding: {c}"), body.as_bytes())).collect();
    answers.push(ok("Content-Encoding: deflate", &deflated(b"{\"ok\": true}")));
    answers.push(ok("Content-Encoding: deflate", &deflated(b"")));
    answers.push(ok("Content-Encoding: lzma", b"??"));
    let world = World::with("", table(answers));
    for (n, coding) in plain.iter().enumerate() {
        let reply = world.ask("GET", &format!("/{n}"));
        assert_eq!((reply.status, reply.header("content-encoding")), (200, Some(*coding)), "{}", reply.text());
        assert_eq!(reply.text(), body.replace(KEY, &"*".repeat(KEY.len())), "{coding}");
    }
    let [raw, empty, unknown] = [0, 1, 2].map(|n| world.ask("GET", &format!("/{}", plain.len() + n)));
    assert_eq!((raw.text().as_str(), raw.complete), ("{\"ok\": true}", true));
    assert_eq!((empty.status, empty.text().as_str(), empty.complete), (200, "", true));
    assert_eq!(unknown.status, 502);
    assert!(unknown.text().contains("`lzma`"), "{}", unknown.text());
}

#[test]
fn an_answer_that_breaks_off_delivers_what_came_and_then_breaks() {
    let answers = ["Content-Length: 20\r\n\r\n0123456789", "Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n"];
    let answers = answers.iter().map(|rest| format!("HTTP/1.1 200 OK\r\nX-A: b\r\n{rest}").into_bytes()).collect();
    let world = World::with("", table(answers));
    for round in 0..40 {
        let reply = world.ask("GET", &format!("/{}", round % 2));
        assert_eq!(
            (reply.status, reply.header("x-a"), reply.text().as_str()),
            (200, Some("b"), "0123456789"),
            "{round}"
        );
        assert!(!reply.complete, "it must not look whole");
    }
    // A credential that breaks off is not shown but for its last byte.
    let part = &KEY[..KEY.len() - 1];
    let world = World::with("", table(vec![format!("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{part}").into()]));
    assert_eq!(world.ask("GET", "/0").text(), "*".repeat(part.len()));
}

#[test]
fn equal_lengths_are_one_trailers_pass_and_bodiless_answers_need_no_decoder() {
    let trailers = format!(
        "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-sum: 1{KEY}\r\nhost: evil\r\n\r\n"
    );
    let world = World::with(
        "",
        table(vec![
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab".into(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab".into(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab".into(),
            trailers.into(),
            b"HTTP/1.1 304 Not Modified\r\nContent-Encoding: odd\r\n\r\n".into(),
            b"HTTP/1.1 204 No Content\r\nContent-Encoding: odd\r\n\r\n".into(),
            b"HTTP/1.1 200 OK\r\nContent-Encoding: odd\r\nContent-Length: 9\r\n\r\n".into(),
        ]),
    );
    for path in ["/0", "/1"] {
        assert_eq!((world.ask("GET", path).status, world.ask("GET", path).text().as_str()), (200, "ab"));
    }
    assert_eq!(world.ask("GET", "/2").status, 502);
    let reply = world.ask("GET", "/3");
    let wire = String::from_utf8_lossy(&reply.wire).to_lowercase();
    assert!(wire.ends_with(&format!("2\r\nab\r\n0\r\nx-sum: 1{}\r\n\r\n", "*".repeat(KEY.len()))), "{wire}");
    assert_eq!((world.ask("GET", "/4").status, world.ask("GET", "/5").status), (304, 204));
    let head = world.ask("HEAD", "/6");
    assert_eq!(
        (head.status, head.header("content-length"), head.header("content-encoding")),
        (200, Some("9"), Some("odd"))
    );
}

/// What real servers send beside the rules, and what becomes of it: the body that the agent gets,
/// or a part of the refusal's text.
#[test]
fn quirks_of_heads_are_tolerated_where_no_reader_can_take_one_answer_for_two() {
    let huge = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(101));
    let rows: &[(&str, Result<&str, &str>)] = &[
        ("HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nab", Ok("ab")),
        ("HTTP/1.1  200  OK\r\nContent-Length: 2\r\n\r\nab", Ok("ab")),
        ("HTTP/1.1 200 OK\nContent-Length: 2\n\nab", Ok("ab")),
        ("\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", Ok("ab")),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nab", Ok("ab")),
        ("HTTP/1.0 200 OK\r\n\r\nab", Ok("ab")),
        ("HTTP/1.1 200 OK\r\nServer : x\r\nContent-Length:   2  \r\n\r\nab", Ok("ab")),
        ("HTTP/1.1 200 OK\r\nX-A: b\r\n  Content-Length: 9\r\nContent-Length: 2\r\n\r\nab", Ok("ab")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n2;a=\"b\" \r\nab\r\n0\r\n\r\n", Ok("ab")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n02  \r\nab\r\n000\r\n\r\n", Ok("ab")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nab", Ok("ab")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\n\r\n", Ok("ab")),
        ("HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab", Err("blank before its colon")),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", Err("spans several lines")),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            Err("both Content-Length and"),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            Err("other than one `chunked`"),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Err("other than one `chunked`"),
        ),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", Err("chunked in HTTP/1.0")),
        ("HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab", Err("Content-Length is not a number")),
        ("HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nab", Err("Content-Length is not a number")),
        (
            "HTTP/1.1 200 OK\r\nX Y: b\r\nContent-Length: 2\r\n\r\nab",
            Err("a header line of the upstream's answer is malformed"),
        ),
        (
            "HTTP/1.1 200 OK\r\nX: \u{1}\r\nContent-Length: 2\r\n\r\nab",
            Err("a header line of the upstream's answer is malformed"),
        ),
        ("ICY 200 OK\r\n\r\nab", Err("status line")),
        ("HTTP/2 200\r\n\r\nab", Err("status line")),
        ("220 smtp.example.com ready\r\n\r\n", Err("status line")),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            Err("changed the protocol unasked"),
        ),
        (&many, Err("more than 100 header lines")),
        (&huge, Err("larger than 64 KiB")),
    ];
    let world = World::with("", table(rows.iter().map(|(answer, _)| answer.as_bytes().to_vec()).collect()));
    for (n, (answer, right)) in rows.iter().enumerate() {
        let reply = world.ask("GET", &format!("/{n}"));
        let shown = &answer[..answer.len().min(90)];
        match right {
            Ok(body) => {
                assert_eq!((reply.status, reply.text().as_str(), reply.complete), (200, *body, true), "{shown:?}")
            }
            Err(detail) => {
                assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"), "{shown:?}");
                assert!(reply.text().contains(detail), "{shown:?}: {}", reply.text());
                assert_eq!(reply.header("x-should-retry"), Some("false"), "{shown:?}");
            }
        }
    }
}

#[test]
fn quirks_of_chunks_that_two_readers_could_split_differently_break_the_answer_off() {
    let rows = [
        "2\nab\n0\n\n",
        "2\r\nab\n0\r\n\r\n",
        "2\r\nab0\r\n\r\n",
        "0x2\r\nab\r\n0\r\n\r\n",
        "2\r\nab\r\n0\r\n",
        "+2\r\nab\r\n0\r\n\r\n",
    ];
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let world = World::with("", table(rows.iter().map(|rest| format!("{head}{rest}").into_bytes()).collect()));
    for (n, rest) in rows.iter().enumerate() {
        let reply = world.ask("GET", &format!("/{n}"));
        assert_eq!((reply.status, reply.complete), (200, false), "{rest:?}");
    }
}

#[test]
fn interim_answers_give_the_upstream_its_time_again() {
    use seks_tests::upstream::answer::Step;
    let world = World::with("first_byte_timeout = '2s'", |_| {
        let pause = || Step::Pause(std::time::Duration::from_millis(700));
        let interim = || Step::Send(b"HTTP/1.1 102 Processing\r\n\r\n".to_vec());
        let mut steps: Vec<_> = (0..4).flat_map(|_| [pause(), interim()]).collect();
        steps.extend([pause(), Step::Send(ok("X-A: b", b"done"))]);
        Answer::steps(steps)
    });
    let reply = world.ask("GET", "/");
    assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
}

#[test]
fn a_service_has_an_idle_timeout_and_models_have_both() {
    use seks_tests::upstream::answer::Step;
    let world = World::with("idle_timeout = '300ms'", |_| {
        Answer::steps(vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na".to_vec()), Step::Stall])
    });
    let reply = world.ask("GET", "/");
    assert_eq!((reply.text().as_str(), reply.complete), ("a", false));
    let shown = world.sandbox.cli().json(&["service", "show", "acme"]);
    assert_eq!(shown["idle_timeout"], "300ms", "{shown}");
    for name in ["openai", "anthropic", "gemini", "mistral", "groq", "deepseek"] {
        let entry = seks_service::catalogue::find(name).unwrap();
        assert!(entry.service.idle_timeout_ms >= 600_000 && entry.service.first_byte_timeout_ms >= 600_000, "{name}");
    }
}

#[test]
fn a_get_that_an_old_connection_swallowed_is_sent_again_once_and_a_post_is_not() {
    // The second request of each connection is swallowed.
    let seen = std::sync::Arc::new(parking_lot::Mutex::new(std::collections::HashMap::<usize, usize>::new()));
    let world = World::with("", move |request| {
        let mut seen = seen.lock();
        let number = seen.entry(request.connection).or_default();
        *number += 1;
        if *number == 2 { Answer::raw("") } else { Answer::json(200, "{}") }
    });
    for (method, status) in [("GET", 200), ("GET", 200), ("PUT", 200), ("POST", 502), ("POST", 200)] {
        let mut connection = Connection::open(world.sandbox.proxy());
        let token = &world.token;
        let body = if method == "GET" { "\r\n" } else { "Content-Length: 2\r\n\r\n{}" };
        connection.send(format!(
            "{method} /api/acme/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{body}"
        ));
        let reply = connection.read_reply(false);
        assert_eq!(reply.status, status, "{method}: {}", reply.text());
        if status == 502 {
            assert_eq!(reply.header("x-should-retry"), Some("false"));
        }
    }
    let page = world.sandbox.metrics_page();
    assert!(page.contains("seks_upstream_resends_total{service=\"acme\"} 2"), "{page}");
}

#[test]
fn a_status_that_nobody_knows_is_passed_or_refused_and_ends_nothing() {
    let answers = std::sync::Arc::new(parking_lot::Mutex::new(String::new()));
    let next = answers.clone();
    let mut world =
        World::with("", move |_| Answer::raw(format!("HTTP/1.1 {}\r\nContent-Length: 2\r\n\r\n{{}}", next.lock())));
    for (line, status) in [
        ("599 Odd", 599),
        ("600 Odd", 600),
        ("999 Denied", 999),
        ("299", 299),
        ("799 ", 799),
        ("099 Odd", 502),
        ("000 Odd", 502),
        ("1000 Odd", 502),
        ("99 Odd", 502),
        ("2OO OK", 502),
        ("-200 OK", 502),
        ("+20 OK", 502),
        (" 200 OK", 200),
        ("200000000000000000000 OK", 502),
        ("", 502),
    ] {
        line.clone_into(&mut answers.lock());
        let reply = world.ask("GET", "/");
        assert_eq!(reply.status, status, "{line:?}: {}", reply.text());
    }
    let emitted = world.sandbox.everything_emitted();
    assert!(world.sandbox.process().is_alive() && !emitted.contains("panicked"), "{emitted}");
}
