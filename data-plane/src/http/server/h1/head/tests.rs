use proptest::prelude::*;

use super::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 32 << 10, fields: 100, uri: 8 << 10 };

fn read_from(bytes: &[u8], scanned: usize) -> Result<Head, Violation> {
    read(bytes, scanned, &LIMITS, &mut Parts::default())
}

fn check(head: &str) -> Result<Head, Violation> {
    read_from(head.as_bytes(), 0)
}

fn framing(head: &str) -> Framing {
    match check(head) {
        Ok(Head::Whole { len, framing }) if len == head.len() => framing,
        other => panic!("{head:?}: {other:?}"),
    }
}

fn with(fields: &str) -> String {
    format!("POST /api/openai/v1/x HTTP/1.1\r\nHost: broker\r\n{fields}\r\n")
}

#[test]
fn what_sdks_send_is_read() {
    assert_eq!(framing("GET / HTTP/1.1\r\nHost: broker\r\n\r\n"), Framing::Empty);
    assert_eq!(framing("GET /x?a=b%20c HTTP/1.0\r\nhOsT:broker:8300\r\n\r\n"), Framing::Empty);
    assert_eq!(framing("GET http://broker/x HTTP/1.1\r\nHost: broker\r\n\r\n"), Framing::Empty);
    assert_eq!(framing("OPTIONS * HTTP/1.1\r\nHost: broker\r\n\r\n"), Framing::Empty);
    assert_eq!(framing(&with("Content-Length: 0\r\n")), Framing::Empty);
    assert_eq!(framing(&with("Content-Length: \t 17 \r\n")), Framing::Length(17));
    assert_eq!(framing(&with("Transfer-Encoding: Chunked\r\n")), Framing::Chunked);
    assert_eq!(framing(&with("X-Empty:\r\nX-Latin: caf\u{e9}\r\nX-Tab: a\tb\r\n")), Framing::Empty);
}

#[test]
fn a_request_line_has_one_form() {
    for (line, violation) in [
        ("GET  /x HTTP/1.1", Violation::RequestLine),
        ("GET /x  HTTP/1.1", Violation::RequestLine),
        (" GET /x HTTP/1.1", Violation::RequestLine),
        ("GET\t/x\tHTTP/1.1", Violation::RequestLine),
        ("GET /x", Violation::RequestLine),
        ("GET /x http/1.1", Violation::RequestLine),
        ("GET /x HTTP/1.1 ", Violation::RequestLine),
        ("GET /x HTTPS/1.1", Violation::RequestLine),
        ("GET /x HTTP/11", Violation::RequestLine),
        ("G(T /x HTTP/1.1", Violation::RequestLine),
        (" /x HTTP/1.1", Violation::RequestLine),
        ("GET /x HTTP/1.2", Violation::Version),
        ("GET /x HTTP/2.0", Violation::Version),
        ("GET x HTTP/1.1", Violation::Target),
        ("GET file:///x HTTP/1.1", Violation::Target),
        ("GET ftp://broker/x HTTP/1.1", Violation::Target),
        ("GET /x#y HTTP/1.1", Violation::Target),
        ("GET /x\0 HTTP/1.1", Violation::Control),
        ("GET /x\u{7f} HTTP/1.1", Violation::Control),
        ("GET /x\r HTTP/1.1", Violation::LineEnd),
        ("", Violation::RequestLine),
    ] {
        assert_eq!(check(&format!("{line}\r\nHost: broker\r\n\r\n")), Err(violation), "{line:?}");
    }
    assert!(Violation::Version.status() == 505 && Violation::UriTooLong.status() == 414);
}

#[test]
fn every_line_ends_in_crlf() {
    for head in [
        "GET / HTTP/1.1\nHost: broker\n\n",
        "GET / HTTP/1.1\r\nHost: broker\n\r\n",
        "GET / HTTP/1.1\r\nHost: broker\r\n\n",
        "GET / HTTP/1.1\r\nHost: broker\r\nX: a\nY: b\r\n\r\n",
        "\nGET / HTTP/1.1\r\nHost: broker\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: broker\r\nX: a\rY: b\r\n\r\n",
    ] {
        assert_eq!(check(head), Err(Violation::LineEnd), "{head:?}");
    }
}

#[test]
fn a_field_has_one_form() {
    for (field, violation) in [
        ("Transfer-Encoding : chunked", Violation::Field),
        (" folded: x", Violation::Field),
        ("\tfolded", Violation::Field),
        ("garbage", Violation::Field),
        (": nameless", Violation::Field),
        ("sp ace: x", Violation::Field),
        ("caf\u{e9}: x", Violation::Field),
        ("X: a\0b", Violation::Control),
        ("X: a\u{7}", Violation::Control),
        ("Host: evil.test", Violation::Host),
        ("host: broker", Violation::Host),
    ] {
        assert_eq!(check(&with(&format!("{field}\r\n"))), Err(violation), "{field:?}");
    }
    assert_eq!(check("GET / HTTP/1.1\r\nX: y\r\n\r\n"), Err(Violation::Host));
    assert_eq!(check("GET / HTTP/1.1\r\n\r\n"), Err(Violation::Host));
}

#[test]
fn a_body_is_framed_in_one_way() {
    for value in
        ["2, 2", "2.0", "2 2", "+2", "-2", "02", "00", "0x2", "", "2;", "1e3", "18446744073709551617", "\u{b}2"]
    {
        let result = check(&with(&format!("Content-Length: {value}\r\n")));
        assert!(matches!(result, Err(Violation::Length | Violation::Control)), "{value:?}: {result:?}");
    }
    assert_eq!(check(&with("Content-Length: 2\r\nContent-Length: 2\r\n")), Err(Violation::Length));
    for value in [
        "xchunked",
        "chunked, identity",
        "gzip, chunked",
        "\"chunked\"",
        "chunked;q=1",
        "identity",
        "",
        "chunked,",
        "chu nked",
    ] {
        assert_eq!(check(&with(&format!("Transfer-Encoding: {value}\r\n"))), Err(Violation::Coding), "{value:?}");
    }
    for fields in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ] {
        assert_eq!(check(&with(fields)), Err(Violation::Coding), "{fields:?}");
    }
    let http10 = "POST / HTTP/1.0\r\nHost: broker\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(check(http10), Err(Violation::Coding));
}

#[test]
fn sizes_are_bounded_before_the_head_is_whole() {
    let long_uri = format!("GET /{} HTTP/1.1\r\nHost: broker\r\n\r\n", "x".repeat(9000));
    assert_eq!(check(&long_uri), Err(Violation::UriTooLong));
    assert_eq!(check(&long_uri[..8500]), Err(Violation::UriTooLong));
    let long_field = with(&format!("X: {}\r\n", "x".repeat(40_000)));
    assert_eq!(check(&long_field), Err(Violation::HeadTooLarge));
    assert_eq!(check(&long_field[..33_000]), Err(Violation::HeadTooLarge));
    assert_eq!(check(&with(&"X: y\r\n".repeat(99))).map(|_| ()), Ok(()));
    assert_eq!(check(&with(&"X: y\r\n".repeat(100))), Err(Violation::HeadTooLarge));
    let largest = format!("X: {}\r\n", "x".repeat((32 << 10) - with("X: \r\n").len()));
    assert_eq!(with(&largest).len(), 32 << 10);
    assert!(matches!(check(&with(&largest)), Ok(Head::Whole { .. })));
}

proptest! {
    /// Read in any two pieces, a head is what it is in one: a violation may only show earlier.
    #[test]
    fn split_points_do_not_matter(
        fields in prop::collection::vec("[ -~\r\n\t]{0,40}", 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let head = with(&fields.iter().map(|f| format!("X: {f}\r\n")).collect::<String>());
        let whole = read_from(head.as_bytes(), 0);
        let at = cut.index(head.len());
        match read_from(&head.as_bytes()[..at], 0) {
            Ok(Head::Partial { scanned }) => prop_assert_eq!(read_from(head.as_bytes(), scanned), whole),
            first => prop_assert_eq!(first, whole),
        }
    }

    /// Whatever is taken for a whole head, hyper's parser takes for the same one.
    #[test]
    fn a_whole_head_is_one_to_hypers_parser_too(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let mut head = b"GET /x HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
        head.extend_from_slice(&bytes);
        head.extend_from_slice(b"\r\n\r\n");
        if let Ok(Head::Whole { len, .. }) = read_from(&head, 0) {
            let mut fields = [httparse::EMPTY_HEADER; 128];
            let mut request = httparse::Request::new(&mut fields);
            prop_assert_eq!(request.parse(&head), Ok(httparse::Status::Complete(len)));
            let hosts = request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("host")).count();
            prop_assert_eq!(hosts, 1);
        }
    }
}
