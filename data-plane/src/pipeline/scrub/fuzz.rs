//! Fuzz targets: what is searched, and what is taken apart for it.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};

use super::{
    Decoded, Needles, decode,
    events::Events,
    matcher::{Matcher, State},
    scrubber::Scrubber,
};
use crate::fuzz;

const SECRET: &[u8] = br#"sk-REAL-9f3c/A+b"7\Kx"#;

fn scrubbed(needles: &Needles, pieces: &[&[u8]]) -> (Vec<u8>, u32) {
    let (mut scrubber, mut out) = (Scrubber::new(needles.clone()), VecDeque::new());
    for piece in pieces {
        scrubber.push(Bytes::copy_from_slice(piece), &mut out);
    }
    scrubber.finish(&mut out);
    (out.into_iter().flatten().collect::<Vec<u8>>(), scrubber.take_found())
}

/// What should come out: each needle is followed through all of the input.
fn masked(needles: &Needles, input: &[u8]) -> Vec<u8> {
    let (inner, mut hits) = (needles.inner(), Vec::new());
    for needle in &inner.needles {
        Matcher::new(inner, needle, input, true).follow(&mut State::default(), 0, input.len(), &mut hits);
    }
    let mut output = input.to_vec();
    hits.into_iter().for_each(|hit| output[hit].fill(b'*'));
    output
}

#[test]
fn fuzz_scrubber() {
    let needles = Needles::new([SECRET]);
    let coded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, SECRET);
    let json = format!("{{\"key\":{}}}", serde_json::json!(std::str::from_utf8(SECRET).unwrap()));
    let in_lines = |every: usize| coded.as_bytes().chunks(every).collect::<Vec<_>>().join(&b"\r\n"[..]);
    let hex: Vec<String> = SECRET.iter().map(|byte| format!("{byte:02x}")).collect();
    let hex = format!("{} {}:{}", hex[..2].concat(), hex[2..5].join("-"), hex[5..].join(" "));
    let (short, wide) = (in_lines(3), SECRET.iter().flat_map(|byte| [*byte, 0]).collect::<Vec<u8>>());
    let seeds: &[&[u8]] = &[
        SECRET,
        coded.as_bytes(),
        json.as_bytes(),
        &short,
        &wide,
        hex.as_bytes(),
        b"sk-\0REAL-9f3c/A+b\"7\\Kx",
        b"sk\\u0000-REAL-9f3c/A+b\\\"7\\\\Kx",
        b"sk%2dREAL%2D9f3c/A+b%227%5CKx",
        b"plain text sk-REAL",
        b"736b2d5245414c2d",
    ];
    fuzz::run("scrubber", seeds, |input| {
        let whole = scrubbed(&needles, &[input]);
        assert_eq!(whole, scrubbed(&needles, &fuzz::pieces(input)), "what is masked depends on how it comes");
        assert_eq!(whole.0, masked(&needles, input), "a needle that is there wasn't noticed");
        assert_eq!(whole.0.len(), input.len(), "a length that was announced stays right");
        assert!(memchr::memmem::find(&whole.0, SECRET).is_none());
        let changed = whole.0.iter().zip(input).filter(|(a, b)| a != b).count();
        fuzz::outcome(&(whole.1, changed))
    });
}

#[test]
fn fuzz_events() {
    let needles = Needles::new([SECRET]);
    let half = std::str::from_utf8(SECRET).unwrap().split_at(9);
    let split = format!("event: x\ndata: {}\ndata: {}\n\n", half.0, half.1);
    let seeds: &[&[u8]] = &[
        split.as_bytes(),
        b"\xef\xbb\xbfdata: sk-R\r\rdata:EAL\r\n\r\n: comment\n\n",
        b"data\n\ndata:\tx",
        b"data: sk%2dREAL-9f3c/A+b%227=\n\ndata: x=\n\n",
    ];
    // As in an answer: what is searched for events has been searched as it is.
    fuzz::run("events", seeds, |input| {
        let read = |pieces: &[&[u8]]| {
            let (mut scrubber, mut events) = (Scrubber::new(needles.clone()), Events::new(&needles));
            let (mut searched, mut out) = (VecDeque::new(), VecDeque::new());
            for piece in pieces {
                scrubber.push(Bytes::copy_from_slice(piece), &mut searched);
                searched.drain(..).for_each(|data| events.push(data, &mut out));
            }
            scrubber.finish(&mut searched);
            searched.drain(..).for_each(|data| events.push(data, &mut out));
            events.finish(&mut out);
            (out.into_iter().flatten().collect::<Vec<u8>>(), scrubber.take_found() + events.take_found())
        };
        let whole = read(&[input]);
        assert_eq!(whole, read(&fuzz::pieces(input)), "what is masked depends on how it comes");
        assert_eq!(whole.0.len(), input.len());
        fuzz::outcome(&(whole.1, whole.0.iter().zip(input).filter(|(a, b)| a != b).count()))
    });
}

#[test]
fn fuzz_decoders() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let text = b"{\"ok\": true, \"text\": \"and more and more and more\"}";
    let seeds: Vec<Vec<u8>> = (0..5).map(|which| [&[which], &coded(which, text)[..]].concat()).collect();
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    fuzz::run("decoders", &seeds, |input| {
        let Some((which, coded)) = input.split_first() else { return 0 };
        let name = ["gzip", "deflate", "deflate", "br", "zstd"][usize::from(which % 5)];
        let decode = |pieces: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
            let frames: Vec<_> =
                pieces.iter().map(|p| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(p)))).collect();
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let mut body = Decoded::new(body, decode::codings(&mut headers).unwrap()).unwrap();
            runtime.block_on(async {
                let (mut out, mut error) = (Vec::new(), None);
                while let Some(frame) = body.frame().await {
                    match frame {
                        Ok(frame) => out.extend_from_slice(&frame.into_data().unwrap()),
                        Err(e) => {
                            error = Some(e.to_string());
                            break;
                        }
                    }
                    assert!(out.len() <= 256 << 20, "a body without end");
                }
                (out, error)
            })
        };
        let (whole, in_pieces) = (decode(&[coded]), decode(&fuzz::pieces(coded)));
        assert_eq!(whole.1.is_none(), in_pieces.1.is_none(), "{whole:?} {in_pieces:?}");
        if whole.1.is_none() {
            assert_eq!(whole.0, in_pieces.0, "what a body is depends on how it comes");
        }
        fuzz::outcome(&(which % 5, whole.1, whole.0.len()))
    });
}

fn coded(which: u8, text: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let level = flate2::Compression::default();
    match which {
        0 => {
            let mut coder = flate2::write::GzEncoder::new(Vec::new(), level);
            coder.write_all(text).unwrap();
            coder.finish().unwrap()
        }
        1 => {
            let mut coder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            coder.write_all(text).unwrap();
            coder.finish().unwrap()
        }
        2 => {
            let mut coder = flate2::write::DeflateEncoder::new(Vec::new(), level);
            coder.write_all(text).unwrap();
            coder.finish().unwrap()
        }
        3 => {
            let mut coder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
            coder.write_all(text).unwrap();
            coder.into_inner()
        }
        _ => zstd::encode_all(text, 3).unwrap(),
    }
}
