//! Fuzz targets: what an upstream answers.

use bytes::BytesMut;
use http::{HeaderMap, Method, header};

use super::{
    chunked::{Chunked, Step},
    head::{self, Framing, Head},
};
use crate::{fuzz, http::client::UpstreamError};

const SEEDS: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nConnection: close, x\r\n\r\n",
    b"HTTP/1.0 302 Found\nLocation : /x\nA: b\n  c\nContent-Length: 2, 2\n\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 304 Not Modified\r\nTransfer-Encoding: identity\r\n\r\n",
];

fn read(pieces: &[&[u8]]) -> Option<Result<(Head, usize), UpstreamError>> {
    let (mut input, mut scanned, mut came) = (BytesMut::new(), 0, 0);
    for piece in pieces {
        input.extend_from_slice(piece);
        came += piece.len();
        match head::read(&mut input, &mut scanned) {
            Ok(None) => {}
            Ok(Some(head)) => return Some(Ok((head, came - input.len()))),
            Err(error) => return Some(Err(error)),
        }
    }
    None
}

#[test]
fn fuzz_response_head() {
    fuzz::run("response_head", SEEDS, |input| {
        let (whole, in_pieces) = (read(&[input]), read(&fuzz::pieces(input)));
        let seen = |read: &Option<Result<(Head, usize), UpstreamError>>| match read {
            None => "more".to_owned(),
            Some(Err(error)) => error.as_str().to_owned(),
            Some(Ok((head, len))) => {
                format!("{len} {:?} {:?} {:?}", head.status, head.headers, head.framing(&Method::GET))
            }
        };
        assert_eq!(seen(&whole), seen(&in_pieces), "what a head is depends on how it comes");
        let Some(Ok((head, _))) = whole else { return fuzz::outcome(&seen(&whole)) };
        let count = |name| head.headers.get_all(name).iter().count();
        assert!(count(header::CONTENT_LENGTH) <= 1 && count(header::TRANSFER_ENCODING) <= 1);
        if head.framing(&Method::GET) == Framing::Chunked {
            assert_eq!(count(header::CONTENT_LENGTH), 0, "two ways to say where the body ends");
        }
        for value in head.headers.values() {
            assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)), "a value that is two lines");
        }
        fuzz::outcome(&(head.status.as_u16(), format!("{:?}", head.framing(&Method::GET)), head.headers.len()))
    });
}

#[test]
fn fuzz_response_chunks() {
    let seeds: &[&[u8]] = &[
        b"2\r\nab\r\n0\r\n\r\n",
        b"A ;x=y\r\n0123456789\r\n00\r\nX-T: 1\r\nY: 2\r\n\r\nHTTP/1.1",
        b"fffffffffffffff\r\nab",
    ];
    fuzz::run("response_chunks", seeds, |input| {
        type Read = (Vec<u8>, Option<Result<(usize, Option<HeaderMap>), UpstreamError>>);
        let read = |pieces: &[&[u8]]| -> Read {
            let (mut chunked, mut bytes, mut data, mut came) = (Chunked::default(), BytesMut::new(), Vec::new(), 0);
            for piece in pieces {
                bytes.extend_from_slice(piece);
                came += piece.len();
                loop {
                    match chunked.step(&mut bytes) {
                        Ok(Step::Data(part)) => data.extend_from_slice(&part),
                        Ok(Step::End(trailers)) => return (data, Some(Ok((came - bytes.len(), trailers)))),
                        Ok(Step::More) => break,
                        Err(error) => return (data, Some(Err(error))),
                    }
                }
            }
            (data, None)
        };
        let whole = read(&[input]);
        assert_eq!(whole, read(&fuzz::pieces(input)), "what a body is depends on how it comes");
        fuzz::outcome(&(whole.0.len(), format!("{:?}", whole.1)))
    });
}
