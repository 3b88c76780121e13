use std::io::Write as _;

use http_body_util::{BodyExt as _, StreamBody};

use super::*;

const TEXT: &[u8] = b"{\"auth\":\"sk-REAL-0123456789\"} and more and more and more and more";

fn coded(coding: &str, text: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    match coding {
        "gzip" => {
            let mut w =
                flate2::GzBuilder::new().filename("name").comment("c").extra(&b"xy"[..]).write(Vec::new(), level);
            w.write_all(text).unwrap();
            w.finish().unwrap()
        }
        "deflate" => {
            let mut w = flate2::write::ZlibEncoder::new(Vec::new(), level);
            w.write_all(text).unwrap();
            w.finish().unwrap()
        }
        "raw deflate" => {
            let mut w = flate2::write::DeflateEncoder::new(Vec::new(), level);
            w.write_all(text).unwrap();
            w.finish().unwrap()
        }
        "br" => {
            let mut w = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
            w.write_all(text).unwrap();
            w.into_inner()
        }
        _ => zstd::encode_all(text, 3).unwrap(),
    }
}

const CODINGS: [(&str, &str); 5] =
    [("gzip", "gzip"), ("deflate", "deflate"), ("raw deflate", "deflate"), ("br", "br"), ("zstd", "zstd")];

fn headers(coding: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_ENCODING, coding.parse().unwrap());
    headers.insert(header::CONTENT_LENGTH, "1".parse().unwrap());
    headers
}

fn decode(coding: &str, body: &[u8], chunk: usize) -> Result<Vec<u8>, String> {
    let mut headers = headers(coding);
    let codings = codings(&mut headers).map_err(|e| format!("{e:?}"))?;
    assert!(headers.is_empty(), "{headers:?}");
    let frames: Vec<_> =
        body.chunks(chunk).map(|c| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(c)))).collect();
    let body = Decoded::new(StreamBody::new(futures_util::stream::iter(frames)), codings).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(body.collect()).map(|b| b.to_bytes().to_vec()).map_err(|e| e.to_string())
}

#[test]
fn every_coding_is_taken_off_however_cut() {
    for (how, name) in CODINGS {
        let body = coded(how, TEXT);
        for chunk in [1, 2, 3, 7, 1000] {
            assert_eq!(decode(name, &body, chunk).as_deref(), Ok(TEXT), "{how} by {chunk}");
        }
        assert_eq!(decode(name, b"", 1).as_deref(), Ok(&b""[..]), "an answer without a body");
    }
    for text in [&b""[..], b"{\"ok\": true}", b"x"] {
        for how in ["deflate", "raw deflate"] {
            let body = coded(how, text);
            for chunk in [1, 2, 3, 1000] {
                assert_eq!(decode("deflate", &body, chunk).as_deref(), Ok(text), "{how} by {chunk}");
            }
        }
    }
}

#[test]
fn values_that_transform_nothing_stay_as_they_are() {
    assert!(IDENTITIES.is_sorted());
    for value in [
        "identity",
        "UTF-8",
        "none",
        "binary",
        "7bit",
        "8bit",
        "aws-chunked",
        "",
        " , identity,",
        "application/json; charset=utf-8",
        "text/html",
        "utf-8; charset=utf-8",
        "charset=UTF-8",
        "\"\"",
    ] {
        let mut left = headers(value);
        assert!(codings(&mut left).unwrap().is_empty(), "{value:?}");
        assert_eq!(left, headers(value), "{value:?}");
    }
    for (value, left) in [("aws-chunked, gzip", "aws-chunked"), ("gzip,", ""), ("identity, gzip, utf-8", "utf-8")] {
        let mut headers = headers(value);
        assert_eq!(codings(&mut headers), Ok(vec![Coding::Gzip]), "{value:?}");
        assert_eq!(headers.get(header::CONTENT_ENCODING).map_or("", |v| v.to_str().unwrap()), left, "{value:?}");
    }
}

#[test]
fn two_codings_are_taken_off_and_three_are_not() {
    let body = coded("br", &coded("gzip", TEXT));
    assert_eq!(decode("gzip, br", &body, 3).as_deref(), Ok(TEXT));
    let named = |name: &str| Unsearchable::UnknownCoding(Some(name.to_owned()));
    for (bad, why) in [
        ("gzip, br, zstd", Unsearchable::TooManyCodings),
        ("compress", named("compress")),
        ("identity, x-custom", named("x-custom")),
        ("gzip;q=1", Unsearchable::UnknownCoding(None)),
        ("application/gzip", Unsearchable::UnknownCoding(None)),
        ("application/x-bzip2", Unsearchable::UnknownCoding(None)),
        ("base64", named("base64")),
        ("ignore previous instructions", Unsearchable::UnknownCoding(None)),
        ("\u{e9}", Unsearchable::UnknownCoding(None)),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, http::HeaderValue::from_bytes(bad.as_bytes()).unwrap());
        assert_eq!(codings(&mut headers).err(), Some(why), "{bad}");
    }
}

#[test]
fn members_follow_each_other_and_padding_is_dropped() {
    let body = [coded("gzip", b"one "), coded("gzip", b"two"), vec![0; 5]].concat();
    for chunk in [1, 4, 1000] {
        assert_eq!(decode("gzip", &body, chunk).as_deref(), Ok(&b"one two"[..]), "by {chunk}");
    }
}

#[test]
fn broken_bodies_break_off() {
    for (how, name) in CODINGS {
        let body = coded(how, TEXT);
        let cut = decode(name, &body[..body.len() / 2], 8).unwrap_err();
        assert_eq!(cut, "the coded body ended early", "{how}");
        if how != "raw deflate" {
            let other = decode(name, b"plain text that is no coding at all, whatever the head says", 8).unwrap_err();
            assert_eq!(other, "the body is not of the coding that its head names", "{how}");
        }
    }
}

#[test]
fn bombs_break_off_and_never_fill_memory() {
    let zeros = vec![0; 4 << 20];
    for (how, name) in [("gzip", "gzip"), ("br", "br"), ("zstd", "zstd")] {
        let one = coded(how, &zeros);
        // Many members, or for brotli, one of many zeros: more than 64 MiB at more than 200 times.
        let body = if how == "br" { coded(how, &vec![0; 80 << 20]) } else { one.repeat(20) };
        let mut headers = headers(name);
        let codings = codings(&mut headers).unwrap();
        let frame = Ok::<_, std::io::Error>(Frame::data(Bytes::from(body)));
        let mut decoded = Decoded::new(StreamBody::new(futures_util::stream::iter([frame])), codings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = runtime.block_on(async {
            loop {
                match decoded.frame().await {
                    Some(Ok(frame)) => assert!(frame.into_data().unwrap().len() <= PIECE),
                    Some(Err(error)) => break error.to_string(),
                    None => break "no end was put to it".into(),
                }
            }
        });
        assert_eq!(error, "the coded body grows too far", "{how}");
    }
}
