//! An agent that chooses where a part of an answer begins and ends does not read the credential in
//! pieces.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::{Upstream, raw::Reply, upstream::Answer};

use crate::rig::{KEY, Rig};

/// A store that answers single ranges as RFC 9110, 14 says, and several with a multipart.
fn store(document: String) -> Upstream {
    Upstream::start(move |request| {
        let document = document.as_bytes();
        let range = request.header("x-ms-range").or_else(|| request.header("range"));
        let Some(range) = range.filter(|_| request.path() != "/whole") else { return Answer::text(document) };
        let range = range.strip_prefix("bytes=").unwrap().to_owned();
        if range.contains(',') {
            return Answer::with(206, &[("Content-Type", "multipart/byteranges; boundary=x")], &document[..9]);
        }
        let (first, last) = range.split_once('-').unwrap();
        let (length, number) = (document.len(), |text: &str| text.parse::<usize>().unwrap());
        let (first, last) = match (first, last) {
            ("", last) => (length.saturating_sub(number(last)), length - 1),
            (first, "") => (number(first), length - 1),
            (first, last) => (number(first), number(last).min(length - 1)),
        };
        if first >= length {
            return Answer::with(416, &[("Content-Range", &format!("bytes */{length}"))], "");
        }
        let said = match request.path().as_str() {
            "/shifted" => format!("bytes {}-{last}/{length}", first + 20),
            "/unsaid" => String::from("bytes"),
            _ => format!("bytes {first}-{last}/{length}"),
        };
        Answer::with(206, &[("Content-Range", &said)], &document[first..=last])
    })
}

fn part(rig: &Rig, range: &str) -> Reply {
    rig.ask("GET", "/doc", &format!("Range: {range}\r\n"), "")
}

/// The body of a reply.
fn body(reply: &Reply) -> String {
    reply.text()
}

#[test]
fn pieces_of_any_width_join_to_the_masked_document_and_never_to_the_credential() {
    let filler = "lorem ipsum ".repeat(400);
    let coded = STANDARD.encode(format!("x{KEY}"));
    let document = format!("{filler}{{\"auth\":\"Bearer {KEY}\",\"coded\":\"{coded}\"}}{filler}");
    let rig = Rig::with(store(document.clone()), "inject = \"bearer\"\nallow_range = true");
    let whole = body(&rig.get("/doc"));
    assert!(whole.len() == document.len() && !whole.contains(KEY) && !whole.contains(&coded[4..20]), "{whole}");
    let around = document.find(KEY).unwrap() - 20;
    for width in [1, 7, 16, 40, 200] {
        let mut joined = String::new();
        while joined.len() < 200 {
            let first = around + joined.len();
            let reply = part(&rig, &format!("bytes={first}-{}", first + width - 1));
            assert_eq!(reply.status, 206, "{}", reply.text());
            let said = format!("bytes {first}-{}/{}", first + width - 1, document.len());
            assert_eq!((reply.header("content-range"), body(&reply).len()), (Some(said.as_str()), width));
            joined += &body(&reply);
        }
        assert_eq!(joined, whole[around..around + joined.len()], "{width}");
    }
    let key = document.find(KEY).unwrap();
    assert_eq!(body(&part(&rig, &format!("bytes={}-", key + 1))), whole[key + 1..]);
    assert_eq!(body(&part(&rig, &format!("bytes=-{}", document.len() - key - 1))), whole[key + 1..]);
    let azure = rig.ask("GET", "/doc", &format!("Range: bytes=0-1\r\nx-ms-range: bytes={}-\r\n", key + 1), "");
    assert_eq!(body(&azure), whole[key + 1..]);
}

#[test]
fn ranges_mean_what_they_mean_without_a_node() {
    let document: String = (0..5000).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let rig = Rig::with(store(document.clone()), "inject = \"bearer\"\nallow_range = true");
    for (range, status, said, bytes) in [
        ("bytes=0-0", 206, "bytes 0-0/5000", &document[..1]),
        ("bytes=4999-", 206, "bytes 4999-4999/5000", &document[4999..]),
        ("bytes=2000-2999", 206, "bytes 2000-2999/5000", &document[2000..3000]),
        ("bytes=4000-9999", 206, "bytes 4000-4999/5000", &document[4000..]),
        ("bytes=-3", 206, "bytes 4997-4999/5000", &document[4997..]),
        ("bytes=-9999", 206, "bytes 0-4999/5000", &document[..]),
        ("bytes=5000-", 416, "bytes */5000", ""),
        ("bytes=99999-", 416, "bytes */5000", ""),
    ] {
        let reply = part(&rig, range);
        assert_eq!((reply.status, reply.header("content-range")), (status, Some(said)), "{range}");
        assert_eq!(
            (body(&reply).as_str(), reply.header("content-length")),
            (bytes, Some(bytes.len().to_string().as_str()))
        );
    }
    for whole in ["bytes=0-1,4-5", "lines=1-2", "bytes=5-1", "bytes=-0"] {
        let reply = part(&rig, whole);
        assert_eq!((reply.status, body(&reply)), (200, document.clone()), "{whole}");
    }
    assert_eq!(rig.ask("GET", "/whole", "Range: bytes=5-6\r\n", "").status, 200);
    for wrong in ["/shifted", "/unsaid"] {
        let reply = rig.ask("GET", wrong, "Range: bytes=2000-2009\r\n", "");
        assert_eq!(reply.status, 502, "{wrong}: {}", reply.text());
        assert!(reply.text().contains("range of bytes"), "{}", reply.text());
    }
}
