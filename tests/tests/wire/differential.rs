//! The same request straight to an upstream and through SEKS: what arrives, and what comes back, is
//! equal in everything but a list.
//!
//! The list is in data-plane/README.md, too ("What the node changes"). Requests and answers are
//! generated from a seed (`SEKS_FUZZ_SEED`), so a failure names the round that repeats it.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use seks_tests::{
    Sandbox, Upstream,
    mutation::{Mutator, Run},
    raw::{Connection, Reply},
    upstream::{Answer, Request, answer::chunk},
};

const KEY: &str = "sk-real-differential-00000000000001";
/// Pairs of a request and its answer.
const ROUNDS: usize = 2_000;

/// Headers of a request that the node sets or drops, whatever the agent says.
const REQUEST_DIFFERS: &[&str] = &["host", "authorization", "accept-encoding", "te", "connection"];
/// Headers of an answer that are the node's: framing, which is the connection's own, the date of an
/// answer that has none, and the id.
const ANSWER_DIFFERS: &[&str] =
    &["x-seks-request-id", "date", "connection", "keep-alive", "transfer-encoding", "content-length"];
/// Headers of an answer that go with a content coding or a digest, because the body is decoded or
/// may be masked.
const CODING_DIFFERS: &[&str] = &["content-md5", "accept-ranges"];

/// A request and its answer.
struct Pair {
    head: String,
    body: Vec<u8>,
    answer: Generated,
}

/// An answer, and what the agent is to read of it.
#[derive(Clone)]
struct Generated {
    answer: Answer,
    status: u16,
}

fn word(random: &mut Mutator) -> String {
    let letters: Vec<char> = "abcdefghijklmnopqrstuvwxyz0123456789-_".chars().collect();
    (0..=random.below(12)).map(|_| *random.pick(&letters)).collect()
}

fn value(random: &mut Mutator) -> String {
    let letters: Vec<char> = "abcXYZ019 .,;:=/()\"'{}[]<>@!#$%^&*+?~|\\`\u{e9}".chars().collect();
    let text: String = (0..random.below(40)).map(|_| *random.pick(&letters)).collect();
    text.trim().to_owned()
}

fn headers(random: &mut Mutator) -> String {
    let known = [
        "X-A",
        "Accept",
        "User-Agent",
        "X-Request-Id",
        "OpenAI-Beta",
        "Content-Language",
        "Idempotency-Key",
        "If-None-Match",
    ];
    let lines = (0..random.below(6)).map(|n| match random.below(3) {
        0 => format!("X-{}-{n}: {}\r\n", word(random).trim_matches('_').replace('_', "-"), value(random)),
        _ => format!("{}: {}\r\n", random.pick(&known), value(random)),
    });
    lines.collect()
}

fn body(random: &mut Mutator) -> Vec<u8> {
    let length = match random.below(6) {
        0 => 0,
        1 => random.below(8),
        2 => random.below(70_000),
        _ => random.below(600),
    };
    (0..length).map(|_| (random.below(256)) as u8).collect()
}

impl Pair {
    fn generate(round: usize, run: Run) -> Self {
        let mut random = run.mutator(round);
        let method = *random.pick(&["GET", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]);
        let segments: String = (0..=random.below(4)).map(|_| format!("/{}", word(&mut random))).collect();
        let query = match random.below(3) {
            0 => format!("?{}={}&b=%20c", word(&mut random), word(&mut random)),
            1 => "?a=1&a=2&=x&flag".to_owned(),
            _ => String::new(),
        };
        let body = if matches!(method, "POST" | "PUT" | "PATCH") { body(&mut random) } else { Vec::new() };
        let (framing, body) = match random.below(3) {
            _ if body.is_empty() => (String::new(), Vec::new()),
            0 => {
                let chunks = body
                    .chunks(1 + random.below(5_000))
                    .flat_map(|c| [format!("{:x}\r\n", c.len()).as_bytes(), c, b"\r\n"].concat());
                let chunked: Vec<u8> = chunks.chain(*b"0\r\n\r\n").collect();
                ("Transfer-Encoding: chunked\r\n".to_owned(), chunked)
            }
            _ => (format!("Content-Length: {}\r\n", body.len()), body),
        };
        let head = format!(
            "{method} PREFIX{segments}{query} HTTP/1.1\r\n{}X-Round: {round}\r\n{framing}",
            headers(&mut random)
        );
        Self { head, body, answer: Generated::new(&mut random, method == "HEAD") }
    }
}

impl Generated {
    /// `head_only`: without a body. A body behind the head of an answer to HEAD would be read as
    /// the next answer, if it came late.
    fn new(random: &mut Mutator, head_only: bool) -> Self {
        let status = *random.pick(&[
            200, 200, 200, 201, 202, 204, 206, 301, 304, 400, 401, 403, 404, 409, 418, 422, 429, 500, 503, 599,
        ]);
        let kind = *random.pick(&[
            "application/json",
            "text/event-stream",
            "application/octet-stream",
            "text/plain; charset=utf-8",
        ]);
        let mut fields = vec![("Content-Type".to_owned(), kind.to_owned())];
        for _ in 0..random.below(5) {
            let name = match random.below(3) {
                0 => random
                    .pick(&["ETag", "Retry-After", "Cache-Control", "Vary", "X-RateLimit-Remaining", "Set-Cookie"])
                    .to_string(),
                _ => format!("X-{}", word(random).trim_matches('_').replace('_', "-")),
            };
            fields.push((name, value(random)));
        }
        let body = body(random);
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = match random.below(4) {
            _ if matches!(status, 204 | 304) => {
                let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                Answer::raw(format!("HTTP/1.1 {status} Status\r\n{lines}\r\n"))
            }
            _ if head_only => {
                let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                Answer::raw(format!("HTTP/1.1 {status} Status\r\n{lines}Content-Length: {}\r\n\r\n", body.len()))
            }
            0 => {
                let trailers = if random.below(2) == 0 { vec![("X-Sum", "1")] } else { Vec::new() };
                let pieces = body.chunks(1 + random.below(9_000)).map(chunk).collect();
                Answer::chunked(status, &fields, pieces, &trailers)
            }
            1 => {
                let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let head = format!("HTTP/1.1 {status} Status\r\n{lines}Connection: close\r\n\r\n");
                Answer::raw([head.as_bytes(), &body].concat())
            }
            _ => Answer::with(status, &fields, &body),
        };
        Self { answer, status }
    }
}

/// What an upstream has received, but for what differs.
fn received(request: &Request) -> (String, BTreeMap<String, Vec<String>>, Vec<u8>) {
    let names = String::from_utf8_lossy(&request.head).into_owned();
    let names =
        names.split("\r\n").skip(1).filter_map(|line| line.split_once(':').map(|(name, _)| name.to_ascii_lowercase()));
    let fields = names.filter(|name| !REQUEST_DIFFERS.contains(&name.as_str())).map(|name| {
        let values = request.headers(&name);
        (name, values)
    });
    // A body's framing is the connection's own: chunks may become a length.
    let fields = fields.filter(|(name, _)| !matches!(name.as_str(), "content-length" | "transfer-encoding"));
    let line = request.line();
    (line, fields.collect(), request.body.clone())
}

/// What an agent has received, but for what differs.
fn answered(reply: &Reply, head_only: bool) -> (u16, BTreeMap<String, Vec<String>>, Vec<u8>, bool, String) {
    let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in reply.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':')) {
        let name = name.to_ascii_lowercase();
        if !ANSWER_DIFFERS.contains(&name.as_str()) && !CODING_DIFFERS.contains(&name.as_str()) {
            fields.entry(name).or_default().push(value.trim().to_owned());
        }
    }
    let wire = String::from_utf8_lossy(&reply.wire).to_ascii_lowercase();
    // What comes behind the head of an answer to HEAD is nobody's.
    let trailer = if !head_only && wire.ends_with("0\r\nx-sum: 1\r\n\r\n") { "x-sum: 1" } else { "" };
    (reply.status, fields, reply.body.clone(), reply.complete, trailer.into())
}

#[test]
fn what_passes_through_is_what_would_have_passed_without() {
    let run = Run::of(ROUNDS);
    let now: Arc<Mutex<Option<Answer>>> = Arc::default();
    let told = now.clone();
    let upstream = Upstream::start(move |_| told.lock().clone().unwrap());
    let sandbox = Sandbox::start();
    sandbox.cli().apply_service(&format!(
        "name = 'acme'\nupstream = '{}'\nallow_private = true\ninject = 'bearer'\nallow_range = true\n",
        upstream.origin()
    ));
    sandbox.cli().put_credential("acme", "acme", KEY);
    let token = sandbox.token("agent", &["acme"]).secret;
    for round in 0..run.rounds {
        let Pair { head, body, answer } = Pair::generate(round, run);
        *now.lock() = Some(answer.answer.clone());
        upstream.forget();
        let mut sides = Vec::new();
        for (address, prefix, key) in [(upstream.address(), "", KEY), (sandbox.proxy(), "/api/acme", token.as_str())] {
            let head = head.replacen("PREFIX", prefix, 1);
            let mut connection = Connection::open(address);
            let head = format!("{head}Host: localhost\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n");
            connection.send([head.as_bytes(), &body].concat());
            sides.push(connection.read_reply(head.starts_with("HEAD")));
        }
        let [direct, through] = &sides[..] else { unreachable!() };
        assert_eq!(direct.status, answer.status, "round {round} of {run:?}");
        let head_only = head.starts_with("HEAD");
        assert_eq!(answered(direct, head_only), answered(through, head_only), "round {round} of {run:?}: {head}");
        let requests = upstream.requests();
        let [first, second] = &requests[..] else { panic!("round {round} of {run:?}: {requests:?}") };
        assert_eq!(received(first), received(second), "round {round} of {run:?}");
        assert_eq!(second.header("authorization").unwrap(), format!("Bearer {KEY}"));
    }
}
