//! The forms in which upstreams write a credential.

use std::fmt::Write as _;

use base64::engine::general_purpose as b64;

fn each(bytes: &[u8], write: impl Fn(&mut String, u8)) -> Vec<u8> {
    let mut out = String::new();
    bytes.iter().for_each(|b| write(&mut out, *b));
    out.into_bytes()
}

/// Every form of `c` that an upstream plausibly writes, by name.
pub(super) fn forms(c: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut forms: Vec<(String, Vec<u8>)> = vec![("raw".into(), c.to_vec())];
    for pad in 0..3 {
        let padded = [&b"xyz"[..pad], c].concat();
        for (name, engine) in [
            ("standard", &b64::STANDARD as &dyn Fn64),
            ("standard unpadded", &b64::STANDARD_NO_PAD),
            ("url", &b64::URL_SAFE),
            ("url unpadded", &b64::URL_SAFE_NO_PAD),
        ] {
            let text = engine.encode64(&padded);
            forms.push((format!("base64 {name} {pad}"), text.clone().into_bytes()));
            forms.push((format!("base64 {name} {pad} in JSON"), text.replace('/', "\\/").into_bytes()));
            let percent = text.replace('+', "%2B").replace('/', "%2f").replace('=', "%3D");
            forms.push((format!("base64 {name} {pad} in a query"), percent.into_bytes()));
            let lines: Vec<&[u8]> = text.as_bytes().chunks(30).collect();
            forms.push((format!("base64 {name} {pad} in lines"), lines.join(&b"\r\n"[..])));
        }
    }
    let hex = |separator: &str, upper: bool, group: usize| {
        let digits: Vec<String> =
            c.iter().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect();
        digits.chunks(group).map(|g| g.concat()).collect::<Vec<_>>().join(separator).into_bytes()
    };
    for (separator, group) in [("", 1), (":", 1), (" ", 1), ("-", 1), (" ", 2)] {
        forms.push((format!("hex {separator:?} {group}"), hex(separator, false, group)));
        forms.push((format!("HEX {separator:?} {group}"), hex(separator, true, group)));
    }
    let mixed = hex("", false, 1).into_iter().enumerate();
    let mixed = mixed.map(|(i, b)| if i % 3 == 0 { b.to_ascii_uppercase() } else { b });
    forms.push(("hEx".into(), mixed.collect()));
    type Write = fn(&mut String, u8);
    let escapes: [(&str, Write); 9] = [
        ("%XX", |s, b| write!(s, "%{b:02X}").unwrap()),
        ("%xx", |s, b| write!(s, "%{b:02x}").unwrap()),
        ("\\uxxxx", |s, b| write!(s, "\\u{b:04x}").unwrap()),
        ("\\uXXXX", |s, b| write!(s, "\\u{b:04X}").unwrap()),
        ("\\xXX", |s, b| write!(s, "\\x{b:02X}").unwrap()),
        ("&#N;", |s, b| write!(s, "&#{b};").unwrap()),
        ("&#xX;", |s, b| write!(s, "&#x{b:x};").unwrap()),
        ("&#000N;", |s, b| write!(s, "&#{b:07};").unwrap()),
        ("=XX", |s, b| write!(s, "={b:02X}").unwrap()),
    ];
    for (name, write) in escapes {
        forms.push((format!("{name} everywhere"), each(c, write)));
        forms.push((
            format!("{name} where it isn't a letter or digit"),
            each(c, |s, b| if b.is_ascii_alphanumeric() { s.push(b.into()) } else { write(s, b) }),
        ));
        let third: String = c.iter().enumerate().fold(String::new(), |mut s, (i, b)| {
            // The scheme's own introducer can't stand for itself.
            if i % 3 == 1 || b"%\\&=".contains(b) {
                write(&mut s, *b)
            } else {
                s.push(char::from(*b))
            }
            s
        });
        forms.push((format!("{name} for every third"), third.into_bytes()));
    }
    let text = std::str::from_utf8(c).unwrap();
    forms.push(("JSON".into(), serde_json::to_vec(text).unwrap()));
    forms.push(("JSON with \\/".into(), serde_json::to_string(text).unwrap().replace('/', "\\/").into_bytes()));
    let html = text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('\'', "&apos;");
    forms.push(("HTML".into(), html.into_bytes()));
    let quoted = each(c, |s, b| if b == b'=' { s.push_str("=3D") } else { s.push(b.into()) });
    let lines: Vec<&[u8]> = quoted.chunks(9).collect();
    // Not within an escape.
    if lines.iter().all(|l| !l.ends_with(b"=") && !l.ends_with(b"=3")) {
        forms.push(("quoted-printable in lines".into(), lines.join(&b"=\r\n"[..])));
    }
    forms.extend(nested(text));
    forms.extend(folded(c));
    let wide = |f: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(f).collect::<Vec<u8>>();
    forms.push(("UTF-16LE".into(), wide(u16::to_le_bytes)));
    forms.push(("UTF-16BE".into(), wide(u16::to_be_bytes)));
    forms.push(("UTF-32LE".into(), text.chars().flat_map(|c| (c as u32).to_le_bytes()).collect()));
    forms.push(("UTF-32BE".into(), text.chars().flat_map(|c| (c as u32).to_be_bytes()).collect()));
    forms
}

/// Escaped twice and three times: results of MCP tools are JSON in JSON, redirects hold URLs in
/// queries, pages hold JSON in attributes.
fn nested(text: &str) -> Vec<(String, Vec<u8>)> {
    type Write = fn(&str) -> String;
    let json: Write = |t| {
        let quoted = serde_json::to_string(t).unwrap();
        quoted[1..quoted.len() - 1].to_owned()
    };
    let php: Write = |t| {
        let quoted = serde_json::to_string(t).unwrap();
        quoted[1..quoted.len() - 1].replace('/', "\\/")
    };
    let go: Write = |t| {
        let quoted = serde_json::to_string(t).unwrap();
        let escaped = |s: String, c| s.replace(c, &format!("\\u{:04x}", c as u32));
        "<>&+=".chars().fold(quoted[1..quoted.len() - 1].to_owned(), escaped)
    };
    let percent: Write = |t| {
        let unreserved = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
        t.bytes().map(|b| if unreserved(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
    };
    let html: Write = |t| t.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;");
    let all: [(&str, Write); 5] =
        [("JSON", json), ("JSON of PHP", php), ("JSON of Go", go), ("percent", percent), ("HTML", html)];
    let mut forms = Vec::new();
    for (inner, write) in all {
        for (outer, again) in all {
            let twice = again(&write(text));
            forms.push((format!("{inner} in {outer}"), twice.clone().into_bytes()));
            forms.push((format!("{inner} in {outer} in {outer}"), again(&twice).into_bytes()));
            forms.push((format!("{inner} in {outer} in JSON"), json(&twice).into_bytes()));
        }
    }
    forms
}

/// Lines that begin with blanks: folded header fields, LDIF, YAML, indented JSON in JSON.
fn folded(c: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut forms = Vec::new();
    let hex = |c: &[u8]| c.iter().map(|b| format!("{b:02x}")).collect::<String>().into_bytes();
    let is_escape = |b: &u8| b"\\%&=".contains(b);
    for (name, text) in [("raw", c.to_vec()), ("hex", hex(c))] {
        // Behind an escape, a text must be escaped itself.
        let separators = ["\n", "\n ", "\r\n\t", "\n                                                                "];
        let escaped = ["\\n", "\\r\\n  ", "&#10;", "%0A%20", "\\\\n"];
        let escaped = escaped.iter().filter(|_| !text.iter().any(is_escape));
        for separator in separators.iter().chain(escaped) {
            for width in [1, 2, 11, 20] {
                let lines: Vec<&[u8]> = text.chunks(width).collect();
                let name = format!("{name} in lines of {width} by {separator:?}");
                forms.push((name, lines.join(separator.as_bytes())));
            }
        }
    }
    let breaks = [
        "\n ",
        "\r\n\t",
        "\n        ",
        "\r\n  \t ",
        "\\n    ",
        "\\\\n",
        "\\\\r\\\\n  ",
        "&#10; ",
        "%0A%20",
        "=\r\n",
        "\\u000a ",
    ];
    for pad in 0..3 {
        let text = b64::STANDARD.encode64(&[&b"xyz"[..pad], c].concat());
        for separator in breaks {
            for width in [5, 20, 33] {
                let lines: Vec<&str> =
                    (0..text.len()).step_by(width).map(|at| &text[at..text.len().min(at + width)]).collect();
                let name = format!("base64 {pad} in lines of {width} by {separator:?}");
                forms.push((name, lines.join(separator).into_bytes()));
            }
        }
    }
    forms
}

pub(super) trait Fn64 {
    fn encode64(&self, bytes: &[u8]) -> String;
}
impl<E: base64::Engine> Fn64 for E {
    fn encode64(&self, bytes: &[u8]) -> String {
        self.encode(bytes)
    }
}
