//! Fuzz targets: what an agent sends.

use bytes::{Bytes, BytesMut};

use super::{
    body::{Body, Step},
    head::{self, Framing, Head, Parts, Violation},
    request,
};
use crate::{fuzz, http::server::settings::HeadLimits};

const SEEDS: &[&[u8]] = &[
    b"GET /api/openai/v1/models HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer x\r\n\r\n",
    b"POST http://broker/api/x?a=b%20c HTTP/1.1\r\nHost: broker\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nab",
    b"POST /x HTTP/1.0\r\nHost: b\r\nConnection: keep-alive, x\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nab\r\n0\r\nX: y\r\n\r\n",
    b"CONNECT host:443 HTTP/1.1\r\nHost: host:443\r\n\r\n",
];

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 20, uri: 1024 };

/// A head's length and framing, or why it is none; `None`: more is needed.
type Read = Option<Result<(usize, Framing), Violation>>;

/// What a parser makes of bytes that come in these pieces.
fn read(pieces: &[&[u8]]) -> Read {
    let (mut bytes, mut scanned, mut parts) = (Vec::new(), 0, Parts::default());
    for piece in pieces {
        bytes.extend_from_slice(piece);
        match head::read(&bytes, scanned, &LIMITS, &mut parts) {
            Ok(Head::Partial { scanned: now }) => scanned = now,
            Ok(Head::Whole { len, framing }) => return Some(Ok((len, framing))),
            Err(violation) => return Some(Err(violation)),
        }
    }
    None
}

#[test]
fn fuzz_request_head() {
    fuzz::run("request_head", SEEDS, |input| {
        let whole = read(&[input]);
        let in_pieces = read(&fuzz::pieces(input));
        // A violation may be found earlier or later, and another one first; what is accepted is the
        // same.
        let accepted = |read: &Read| read.as_ref().and_then(|r| r.as_ref().ok().copied());
        assert_eq!(accepted(&whole), accepted(&in_pieces), "what a head is depends on how it comes");
        let Some((len, framing)) = accepted(&whole) else { return fuzz::outcome(&format!("{whole:?}")) };
        let (mut parts, head) = (Parts::default(), Bytes::copy_from_slice(&input[..len]));
        assert!(head.ends_with(b"\r\n\r\n"));
        let _ = head::read(&head, 0, &LIMITS, &mut parts);
        match request::parse(&head, &parts) {
            Ok((request, terms)) => {
                let headers = request.headers();
                let lengths = headers.get_all("content-length").iter().count();
                let codings = headers.get_all("transfer-encoding").iter().count();
                assert!(lengths + codings <= 1, "two ways to say where the body ends");
                assert_eq!(framing == Framing::Chunked, codings == 1);
                fuzz::outcome(&format!("{:?} {framing:?} {terms:?} {}", request.method(), headers.len()))
            }
            Err(violation) => fuzz::outcome(&format!("{violation:?}")),
        }
    });
}

#[test]
fn fuzz_request_chunks() {
    let seeds: &[&[u8]] = &[
        b"2\r\nab\r\n0\r\n\r\n",
        b"A;x=\"y\"\r\n0123456789\r\n00\r\nX-T: 1\r\nY: 2\r\n\r\nGET /",
        b"fffffffffffffff\r\nab",
    ];
    fuzz::run("request_chunks", seeds, |input| {
        let read = |pieces: &[&[u8]]| {
            let mut body = Body::behind(Framing::Chunked).unwrap();
            let (mut bytes, mut data, mut taken) = (BytesMut::new(), Vec::new(), 0);
            for piece in pieces {
                bytes.extend_from_slice(piece);
                taken += piece.len();
                loop {
                    match body.step(&mut bytes) {
                        Ok(Step::Data(part, _)) => data.extend_from_slice(&part),
                        Ok(Step::End) => return (data, Some(Ok(taken - bytes.len()))),
                        Ok(Step::More) => break,
                        Err(violation) => return (data, Some(Err(violation))),
                    }
                }
            }
            (data, None)
        };
        let whole = read(&[input]);
        assert_eq!(whole, read(&fuzz::pieces(input)), "what a body is depends on how it comes");
        // `check` looks at what is there before anybody reads it, and finds the same.
        let checked = Body::behind(Framing::Chunked).unwrap().check(input);
        assert_eq!(checked.is_err(), matches!(whole.1, Some(Err(_))));
        fuzz::outcome(&(whole.0.len(), format!("{:?}", whole.1)))
    });
}
