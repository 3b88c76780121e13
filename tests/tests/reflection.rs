//! An upstream that sends the credential back, in every form and at every place: nothing of it
//! reaches the agent.
//!
//! Each case is first shown to be a leak (the oracle finds the credential in what the upstream
//! itself sends), then asked for through the node.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::io::Write as _;

use seks_tests::{
    Sandbox, Upstream, oracle,
    raw::{Connection, Reply},
    upstream::{
        Answer, Request,
        answer::{Step, chunk},
    },
};

const CREDENTIAL: &str = r#"sk-REAL-9f3c/A+b=Zq"7\Kx-DEADBEEF0123456789"#;

type Echo = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

/// An answer of a hostile or careless upstream.
struct Case {
    name: String,
    echo: Echo,
    /// Statuses that an agent may see; 502 is the way out for what can't be looked into.
    status: Vec<u16>,
}

fn case(name: impl Into<String>, echo: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Case {
    Case { name: name.into(), echo: Box::new(echo), status: vec![200] }
}

fn coded(name: impl Into<String>, echo: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Case {
    Case { status: vec![200, 502], ..case(name, echo) }
}

fn frames(body: &[u8], size: usize) -> Vec<Step> {
    body.chunks(size).map(chunk).collect()
}

/// In headers, trailers and odd places of the message.
fn places() -> Vec<Case> {
    vec![
        case("the request's head in the body", |r| Answer::text(&r.head)),
        case("the request's head as octets", |r| {
            Answer::with(200, &[("Content-Type", "application/octet-stream")], &r.head)
        }),
        case("the request's head as an image", |r| Answer::with(200, &[("Content-Type", "image/png")], &r.head)),
        case("without a content type", |r| Answer::with(200, &[], &r.head)),
        case("a header", |_| Answer::with(200, &[("X-Debug", &format!("Bearer {CREDENTIAL}"))], "ok")),
        case("many headers", |_| {
            let quoted = format!("\"{CREDENTIAL}\"");
            let names = ["Link", "Content-Disposition", "ETag", "Server-Timing", "Alt-Svc", "Set-Cookie", "Location"];
            Answer::with(200, &names.map(|n| (n, quoted.as_str())), "ok")
        }),
        case("a header in base64", |_| {
            let form = oracle::forms(CREDENTIAL).into_iter().find(|f| f.name == "base64 after 0").unwrap();
            Answer::with(200, &[("X-Debug", std::str::from_utf8(&form.bytes).unwrap())], "ok")
        }),
        Case {
            status: vec![401],
            ..case("a challenge", |_| {
                let challenge = format!("Bearer error=\"bad {CREDENTIAL}\"");
                Answer::with(401, &[("WWW-Authenticate", &challenge)], "no")
            })
        },
        Case {
            status: vec![502],
            ..case("a middlebox's error page", |r| {
                Answer::with(502, &[("Content-Type", "text/html")], [b"<pre>", r.head.as_slice(), b"</pre>"].concat())
            })
        },
        case("a trailer", |_| {
            let value = format!("Bearer {CREDENTIAL}");
            Answer::chunked(200, &[("Trailer", "X-T")], vec![chunk(b"ok")], &[("X-T", &value)])
        }),
        case("an early hint", |_| {
            let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: </?{CREDENTIAL}>\r\n\r\n");
            Answer::steps(vec![
                Step::Send(hint.into_bytes()),
                Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
            ])
        }),
        case("a reason phrase", |_| {
            let line = format!("HTTP/1.1 200 {CREDENTIAL}\r\nContent-Length: 2\r\n\r\nok");
            Answer::steps(vec![Step::Send(line.into_bytes())])
        }),
        case("a body that ends with the connection", |r| {
            Answer::raw([b"HTTP/1.1 200 OK\r\n\r\n", r.head.as_slice()].concat())
        }),
        case("a chunk extension", |_| {
            let body =
                format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=\"{CREDENTIAL}\"\r\nok\r\n0\r\n\r\n");
            Answer::steps(vec![Step::Send(body.into_bytes())])
        }),
    ]
}

/// In every textual form, whole and cut up.
fn forms() -> Vec<Case> {
    let mut cases = Vec::new();
    for form in oracle::forms(CREDENTIAL) {
        let text = [b"{\"key\": \"", form.bytes.as_slice(), b"\"}"].concat();
        let (whole, cut) = (text.clone(), text);
        cases.push(case(format!("in the form {}", form.name), move |_| Answer::text(&whole)));
        cases.push(case(format!("in the form {}, 3 bytes a chunk", form.name), move |_| {
            Answer::chunked(200, &[], frames(&cut, 3), &[])
        }));
    }
    cases
}

/// Plain, cut at every byte.
fn cuts() -> Vec<Case> {
    let mut cases: Vec<Case> = (1..CREDENTIAL.len())
        .map(|at| {
            case(format!("cut after {at}"), move |_| {
                let (first, second) = CREDENTIAL.as_bytes().split_at(at);
                Answer::chunked(200, &[], vec![chunk(first), chunk(second)], &[])
            })
        })
        .collect();
    cases.push(case("one byte a chunk", |r| Answer::chunked(200, &[], frames(&r.head, 1), &[])));
    cases.push(case("an event", |_| {
        Answer::events([format!("data: {{\"delta\":\"Bearer {CREDENTIAL}\"}}\n\n").as_str(), "data: [DONE]\n\n"])
    }));
    cases.push(case("events cut anywhere", |_| {
        let events = format!("data: one\n\ndata: {CREDENTIAL}\n\ndata: two {CREDENTIAL}\n\n");
        Answer::chunked(200, &[("Content-Type", "text/event-stream")], frames(events.as_bytes(), 7), &[])
    }));
    cases.push(case("right after a near match", |_| {
        let near = &CREDENTIAL[..CREDENTIAL.len() - 1];
        Answer::chunked(200, &[], frames(format!("{near}{near}{CREDENTIAL}{near}").as_bytes(), 5), &[])
    }));
    cases.push(case("far into a large body", |_| {
        let mut body = vec![b'.'; 200_000];
        for at in [0, 65_535 - 9, 131_072 - 10, body.len() - CREDENTIAL.len()] {
            body[at..at + CREDENTIAL.len()].copy_from_slice(CREDENTIAL.as_bytes());
        }
        Answer::text(body)
    }));
    cases
}

fn encode(coding: &str, body: &[u8]) -> Vec<u8> {
    use flate2::{Compression, write};
    match coding {
        "gzip" => {
            let mut to = write::GzEncoder::new(Vec::new(), Compression::default());
            to.write_all(body).unwrap();
            to.finish().unwrap()
        }
        "deflate" => {
            let mut to = write::ZlibEncoder::new(Vec::new(), Compression::default());
            to.write_all(body).unwrap();
            to.finish().unwrap()
        }
        "raw deflate" => {
            let mut to = write::DeflateEncoder::new(Vec::new(), Compression::default());
            to.write_all(body).unwrap();
            to.finish().unwrap()
        }
        "br" => {
            let mut out = Vec::new();
            brotli::BrotliCompress(&mut &*body, &mut out, &brotli::enc::BrotliEncoderParams::default()).unwrap();
            out
        }
        "zstd" => zstd::encode_all(body, 3).unwrap(),
        other => panic!("no coding {other}"),
    }
}

/// Compressed, although the node asks for no compression.
fn codings() -> Vec<Case> {
    let mut cases = Vec::new();
    for coding in ["gzip", "deflate", "raw deflate", "br", "zstd"] {
        let name = coding.trim_start_matches("raw ");
        let headers = [("Content-Type", "text/plain"), ("Content-Encoding", name)];
        cases.push(coded(coding, move |r| Answer::with(200, &headers, encode(coding, &r.head))));
        cases.push(coded(format!("{coding}, one byte a chunk"), move |r| {
            Answer::chunked(200, &headers, frames(&encode(coding, &r.head), 1), &[])
        }));
        cases.push(coded(format!("{coding} of events"), move |_| {
            let events = format!("data: one\n\ndata: {CREDENTIAL}\n\n");
            let headers = [("Content-Type", "text/event-stream"), ("Content-Encoding", name)];
            Answer::chunked(200, &headers, frames(&encode(coding, events.as_bytes()), 16), &[])
        }));
    }
    for (name, coding) in [("X-GZIP", "gzip"), ("x-gzip", "gzip"), ("GZip", "gzip")] {
        cases.push(coded(format!("gzip called {name}"), move |r| {
            Answer::with(200, &[("Content-Encoding", name)], encode(coding, &r.head))
        }));
    }
    cases.push(coded("gzip in gzip", |r| {
        let body = encode("gzip", &encode("gzip", &r.head));
        Answer::with(200, &[("Content-Encoding", "gzip, gzip")], body)
    }));
    cases.push(coded("two gzip members", |r| {
        let body = [encode("gzip", b"first "), encode("gzip", &r.head)].concat();
        Answer::with(200, &[("Content-Encoding", "gzip")], body)
    }));
    cases.push(coded("an unknown coding over plain text", |r| {
        Answer::with(200, &[("Content-Encoding", "rot13")], &r.head)
    }));
    cases
}

/// Everything that a client may make of an answer: the wire, and the body with its coding taken
/// off.
fn readable(reply: &Reply) -> Vec<Vec<u8>> {
    use std::io::Read as _;
    let mut all = vec![reply.wire.clone(), reply.body.clone()];
    let body = reply.body.as_slice();
    let mut out = Vec::new();
    drop(flate2::read::MultiGzDecoder::new(body).read_to_end(&mut out));
    let mut twice = Vec::new();
    drop(flate2::read::MultiGzDecoder::new(out.as_slice()).read_to_end(&mut twice));
    all.extend([out, twice]);
    let mut out = Vec::new();
    drop(flate2::read::ZlibDecoder::new(body).read_to_end(&mut out));
    all.push(std::mem::take(&mut out));
    drop(flate2::read::DeflateDecoder::new(body).read_to_end(&mut out));
    all.push(std::mem::take(&mut out));
    drop(brotli::Decompressor::new(body, 4096).read_to_end(&mut out));
    all.push(out);
    all.push(zstd::decode_all(body).unwrap_or_default());
    all
}

fn leak(reply: &Reply) -> Option<String> {
    readable(reply).iter().find_map(|bytes| oracle::find(bytes, CREDENTIAL))
}

fn ask(address: std::net::SocketAddr, prefix: &str, index: usize, token: &str) -> Reply {
    let mut connection = Connection::open(address);
    connection.send(format!(
        "GET {prefix}/v1/echo/{index} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nTE: trailers\r\n\
         Connection: close\r\n\r\n"
    ));
    let mut reply = connection.read_reply(false);
    connection.closes(seks_tests::process::PATIENCE);
    reply.wire = connection.wire().to_vec();
    reply
}

fn run(cases: Vec<Case>) {
    let expected: Vec<(String, Vec<u16>)> = cases.iter().map(|c| (c.name.clone(), c.status.clone())).collect();
    let upstream = Upstream::start(move |request| {
        let index: usize = request.path().rsplit('/').next().unwrap().parse().unwrap();
        (cases[index].echo)(request).then_close()
    });
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, CREDENTIAL);
    let token = sandbox.token("agent", &["openai"]).secret;
    let mut failures = Vec::new();
    for (index, (name, statuses)) in expected.iter().enumerate() {
        let control = ask(upstream.address(), "", index, CREDENTIAL);
        assert!(leak(&control).is_some(), "{name}: the upstream itself doesn't leak, so this proves nothing");
        let reply = ask(sandbox.proxy(), "/api/openai", index, &token);
        if let Some(form) = leak(&reply) {
            failures.push(format!("{name}: the credential came back ({form})"));
        }
        if !statuses.contains(&reply.status) {
            failures.push(format!("{name}: status {} {}, not {statuses:?}", reply.status, reply.text()));
        }
        if reply.status != 502 && !reply.complete {
            failures.push(format!("{name}: the answer ended before its framing said so"));
        }
    }
    let asked = upstream.requests().iter().filter(|r| oracle::contains(&r.head, CREDENTIAL.as_bytes())).count();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), expected.len(), failures.join("\n"));
    assert_eq!(asked, 2 * expected.len(), "every case was answered by the upstream, twice");
}

#[test]
fn a_credential_comes_back_at_no_place_of_a_message() {
    run(places());
}

#[test]
fn a_credential_comes_back_in_no_form() {
    run(forms());
}

#[test]
fn a_credential_comes_back_in_no_pieces() {
    run(cuts());
}

#[test]
fn a_credential_comes_back_in_no_coding() {
    run(codings());
}
