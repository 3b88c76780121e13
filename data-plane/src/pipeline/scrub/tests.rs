mod forms;

use std::collections::VecDeque;

use base64::engine::general_purpose as b64;
use bytes::Bytes;
use proptest::prelude::*;

use self::forms::{Fn64 as _, forms};
use super::*;

/// Chosen so that every escaping changes it.
const C: &[u8] = br#"sk-REAL-9f3c/A+b=Zq"7\Kx-DEADBEEF0123456789"#;

fn needles(values: &[&[u8]]) -> Needles {
    Needles::new(values.iter().copied())
}

/// The scrubbed body, and how many hits there were.
fn scrub(needles: &Needles, chunks: &[&[u8]]) -> (Vec<u8>, u32) {
    let mut scrubber = Scrubber::new(needles.clone());
    let mut out = VecDeque::new();
    for chunk in chunks {
        scrubber.push(Bytes::copy_from_slice(chunk), &mut out);
    }
    scrubber.finish(&mut out);
    let body: Vec<u8> = out.iter().flatten().copied().collect();
    assert_eq!(body.len(), chunks.iter().map(|c| c.len()).sum::<usize>(), "as long as it came");
    (body, scrubber.take_found())
}

/// What is left of a form: at most the characters of base64 that also depend on what stands beside
/// it.
fn assert_masked(name: &str, form: &[u8], body: &[u8], hits: u32) {
    assert!(hits >= 1, "{name} is not found");
    let kept = body.iter().zip(form).filter(|(b, f)| b == f && **f != 0).count();
    assert!(kept <= 12, "{name}: {kept} bytes are left in {}", body.escape_ascii());
}

#[test]
fn every_form_is_found_in_one_chunk() {
    let needles = needles(&[C]);
    for (name, form) in forms(C) {
        let body = [b"before ", &form[..], b" after"].concat();
        let (clean, hits) = scrub(&needles, &[&body]);
        assert!(clean.starts_with(b"before ") && clean.ends_with(b" after"), "{name}: {}", clean.escape_ascii());
        assert_masked(&name, &form, &clean[7..7 + form.len()], hits);
        assert_eq!(hits, 1, "{name} is counted once");
    }
}

#[test]
fn every_form_is_found_at_every_split() {
    let needles = needles(&[C]);
    for (name, form) in forms(C) {
        let body = [b"{\"x\":\"", &form[..], b"\"}\n\n"].concat();
        let whole = scrub(&needles, &[&body]);
        for cut in 1..body.len() {
            assert_eq!(scrub(&needles, &[&body[..cut], b"", &body[cut..]]), whole, "{name} cut at {cut}");
        }
        let single: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(scrub(&needles, &single), whole, "{name} byte by byte");
        let threes: Vec<&[u8]> = body.chunks(3).collect();
        assert_eq!(scrub(&needles, &threes), whole, "{name} by three bytes");
    }
}

/// Forms in which a byte that stands for nothing, or a needless escape, is among the first bytes of
/// the credential.
fn odd_forms(c: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut forms = Vec::new();
    let mut put = |name: String, before: &[u8], between: &str, behind: &[u8]| {
        forms.push((name, [before, between.as_bytes(), behind].concat()));
    };
    let first = c[0];
    for escape in [
        format!("\\u{first:04x}"),
        format!("\\x{first:02x}"),
        format!("%{first:02x}"),
        format!("&#x{first:x};"),
        format!("&#{first};"),
        format!("={first:02X}"),
    ] {
        put(format!("{escape} first"), b"", &escape, &c[1..]);
    }
    for at in [1, 2, 3, 7, 8, 15, 16, 17] {
        for between in ["\0", "\0\0\0", "\\u0000", "\\x00", "%00", "&#0;", "=00", "=\r\n", "=\n"] {
            put(format!("{between:?} behind {at} bytes"), &c[..at], between, &c[at..]);
        }
        put(format!("byte {at} in JSON"), &c[..at], &format!("\\u{:04x}", c[at]), &c[at + 1..]);
        for pad in 0..3 {
            let text = b64::URL_SAFE.encode64(&[&b"xyz"[..pad], c].concat()).into_bytes();
            for between in ["\n", "\r\n", "\\n", "\\r\\n", "\\u000a", "%0A", "&#10;", "\r\\n"] {
                put(format!("base64 {pad} with {between:?} behind {at}"), &text[..at], between, &text[at..]);
            }
        }
        let hex: String = c.iter().map(|b| format!("{b:02X}")).collect();
        let hex = hex.as_bytes();
        for between in [" ", ":", "-", "\n", " \r\n"] {
            put(format!("hex with {between:?} behind {at}"), &hex[..at], between, &hex[at..]);
        }
    }
    forms
}

#[test]
fn what_stands_for_nothing_within_the_first_bytes_hides_nothing_at_any_split() {
    // None of its bytes is an introducer: these must be escaped in their scheme.
    let c: &[u8] = b"sk-REAL-9f3c/A+b.Zq7~Kx-DEADBEEF0123456789";
    // A value that is shorter than a window makes all windows shorter.
    for values in [&[c][..], &[c, b"abcd"]] {
        let needles = needles(values);
        for (name, form) in odd_forms(c) {
            let body = [b"before \"", &form[..], b"\" after"].concat();
            let whole = scrub(&needles, &[&body]);
            assert!(whole.0.starts_with(b"before \"") && whole.0.ends_with(b"\" after"), "{name}");
            let kept = whole.0[8..8 + form.len()].iter().filter(|b| **b != b'*').count();
            assert!(whole.1 == 1 && kept <= 16, "{name}: {}", whole.0.escape_ascii());
            for cut in 7..12 + form.len().min(30) {
                assert_eq!(scrub(&needles, &[&body[..cut], &body[cut..]]), whole, "{name} cut at {cut}");
            }
        }
    }
}

#[test]
fn quotes_that_are_written_by_other_quotes_hide_nothing() {
    let c: &str = r#"sk-'REAL"9f3c-"'tail"#;
    for written in [
        c.replace('"', "\"\""),
        c.replace('\'', "''"),
        c.replace('\'', r#"'"'"'"#),
        c.replace('\'', r"'\''"),
        c.replace('"', "\\042").replace('\'', "\\047"),
        c.replace('"', "&QUOT;").replace('-', "\\-"),
    ] {
        let body = format!("<{written}>");
        let (clean, hits) = scrub(&needles(&[c.as_bytes()]), &[body.as_bytes()]);
        assert!(hits == 1 && clean[1..body.len() - 1].iter().all(|b| *b == b'*'), "{}", clean.escape_ascii());
    }
}

#[test]
fn a_key_of_several_lines_is_found_however_they_are_indented_and_ended() {
    let pem = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END KEY-----\n";
    let with_empty_line = "-----BEGIN KEY-----\nProc-Type: 4\n\nMIIEvQIBADANBgkqhkiG9w0B\n-----END KEY-----\n";
    for (value, written) in [
        (pem, pem.replace('\n', "\r\n")),
        (pem, pem.replace('\n', "\n      ")),
        (pem, pem.replace('\n', "")),
        (pem, pem.replace('\n', "\\n")),
        (pem, pem.replace('\n', "\\\\n")),
        (with_empty_line, with_empty_line.to_owned()),
        (with_empty_line, with_empty_line.replace('\n', "\\n")),
    ] {
        let body = format!("key: |\n      {written}rest");
        let whole = scrub(&needles(&[value.as_bytes()]), &[body.as_bytes()]);
        assert!(whole.1 == 1 && !holds(&whole.0, b"MII"), "{}", whole.0.escape_ascii());
        for cut in 1..body.len() {
            let cut = [&body.as_bytes()[..cut], &body.as_bytes()[cut..]];
            assert_eq!(scrub(&needles(&[value.as_bytes()]), &cut), whole);
        }
    }
}

#[test]
fn base64_of_both_alphabets_at_once_is_found() {
    let c = b"~~~???>>>~~~???>>>~~~???>>>";
    let text = b64::STANDARD.encode64(c);
    let other = |c: char| if c == '+' { '-' } else { '_' };
    let mut nth = 0;
    let mixed: String = text
        .chars()
        .map(|c| {
            nth += usize::from("+/".contains(c));
            if "+/".contains(c) && nth % 2 == 0 { other(c) } else { c }
        })
        .collect();
    assert!(mixed.contains(['-', '_']) && mixed.contains(['+', '/']), "{mixed}");
    let (clean, hits) = scrub(&needles(&[c]), &[mixed.as_bytes()]);
    assert_masked("mixed", mixed.as_bytes(), &clean, hits);
}

#[test]
fn lines_of_a_credential_are_found_behind_escapes() {
    let pem = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END KEY-----";
    let body = serde_json::json!({ "key": pem }).to_string();
    let whole = scrub(&needles(&[pem.as_bytes()]), &[body.as_bytes()]);
    assert!(whole.1 == 1 && !holds(&whole.0, b"MII"), "{}", whole.0.escape_ascii());
}

#[test]
fn occurrences_that_overlap_are_all_masked_and_counted_as_one() {
    let needles = needles(&[b"abcdefab", b"user", b"user:pass-word", b"pass-word"]);
    for (body, clean, count) in [
        (&b"xabcdefabcdefab abcdef"[..], &b"x************** abcdef"[..], 1),
        (b"user:pass-word user", b"************** ****", 2),
    ] {
        for cut in 0..body.len() {
            assert_eq!(scrub(&needles, &[&body[..cut], &body[cut..]]), (clean.to_vec(), count), "{cut}");
        }
        assert_eq!(scrub(&needles, &body.chunks(1).collect::<Vec<_>>()), (clean.to_vec(), count));
    }
}

#[test]
fn secrets_that_look_like_escapes_are_found() {
    let awkward: &[&[u8]] = &[
        b"%41%42abc%%zz%4",
        b"=3D=41abcdef==",
        b"\\u0041\\\\\"/\\/abc\\",
        b"&amp;&#65;&quotabcd&",
        b"deadbeef01234567",
    ];
    for value in awkward {
        let needles = needles(&[value]);
        for prefix in ["", "key=", "%3D", "a%", "x\\", "&", "="] {
            for suffix in ["", "41", "0041", "amp;", "\"", "=41"] {
                let body = [prefix.as_bytes(), value, suffix.as_bytes()].concat();
                let (clean, hits) = scrub(&needles, &[&body]);
                let range = prefix.len()..prefix.len() + value.len();
                assert!(hits >= 1 && clean[range].iter().all(|b| *b == b'*'), "{}", clean.escape_ascii());
            }
        }
        for (name, form) in forms(value).into_iter().filter(|(name, _)| name.contains("everywhere")) {
            let (clean, hits) = scrub(&needles, &[&form]);
            assert_masked(&name, &form, &clean, hits);
        }
    }
}

#[test]
fn overlaps_and_near_matches() {
    let body = b"aaaaaaaaaaaaaaaab aaaaaaaab aaaaaaa";
    let needles = needles(&[b"aaaaaaaab"]);
    for cut in 0..body.len() {
        let (clean, hits) = scrub(&needles, &[&body[..cut], &body[cut..]]);
        assert_eq!((std::str::from_utf8(&clean).unwrap(), hits), ("aaaaaaaa********* ********* aaaaaaa", 2));
    }
}

#[test]
fn one_value_may_be_a_prefix_of_another() {
    let needles = needles(&[b"sk-abc", b"sk-abcdefgh"]);
    let (clean, hits) = scrub(&needles, &[b"1 sk-abc 2 sk-abcdefgh 3 sk-", b"abcdefg", b"h 4"]);
    assert_eq!((std::str::from_utf8(&clean).unwrap(), hits), ("1 ****** 2 *********** 3 *********** 4", 3));
}

#[test]
fn a_name_of_a_few_letters_is_no_secret() {
    let body = b"me and me, bWU= 6d65 user";
    assert_eq!(scrub(&needles(&[b"me"]), &[body]).0, body);
    let (clean, _) = scrub(&needles(&[b"user"]), &[b"user dXNlcg 75736572 %75ser"]);
    assert_eq!(std::str::from_utf8(&clean).unwrap(), "**** dXNlcg 75736572 ******", "no encodings of short values");
}

#[test]
fn only_a_live_match_is_held_back() {
    let needles = needles(&[C, b"user:password-of-32-characters-xx"]);
    let mut scrubber = Scrubber::new(needles);
    let mut out = VecDeque::new();
    let events = [
        "data: {\"delta\":\"hello s\"}\n\n",
        "data: x\n\n",
        "data: sk-REA\n\n",
        "data: a\\nb\\\"c&amp;d=e%20f\n\n",
        "a5\n\n",
    ];
    for event in events {
        scrubber.push(Bytes::from_static(event.as_bytes()), &mut out);
        assert!(scrubber.held() == 0, "{event:?}");
    }
    for (chunk, held) in [("xsk-R", 4), ("EAL-", 8), ("x", 0), ("s\\u00", 5), ("!!", 0), ("data: \\", 1), ("n", 0)] {
        scrubber.push(Bytes::from_static(chunk.as_bytes()), &mut out);
        assert_eq!(scrubber.held(), held, "{chunk:?}");
    }
    scrubber.finish(&mut out);
    assert_eq!(scrubber.take_found(), 0);
}

#[test]
fn offsets_in_a_large_body() {
    let needles = needles(&[C]);
    let mut body = vec![b'.'; 3 << 20];
    let places = [0, 65_535, (1 << 20) - 10, (3 << 20) - C.len()];
    places.iter().for_each(|at| body[*at..*at + C.len()].copy_from_slice(C));
    let chunks: Vec<&[u8]> = body.chunks(65_536).collect();
    let (clean, hits) = scrub(&needles, &chunks);
    assert_eq!((hits, clean.iter().filter(|b| **b != b'.' && **b != b'*').count()), (4, 0));
}

#[test]
fn headers_lose_it_in_every_form() {
    let needles = needles(&[C]);
    for (name, form) in forms(C) {
        let Ok(value) = HeaderValue::from_bytes(&[b"Bearer error=\"", &form[..], b"\""].concat()) else { continue };
        let mut map = HeaderMap::new();
        map.append("www-authenticate", value);
        map.append("link", "<https://example.com/next?page=2&per_page=3>; rel=\"next\"".parse().unwrap());
        assert_eq!(headers(&mut map, &needles), 1, "{name}");
        assert!(map["www-authenticate"].as_bytes().starts_with(b"Bearer error=\""), "{name}");
        assert!(memchr::memmem::find(map["www-authenticate"].as_bytes(), b"********").is_some(), "{name}");
        assert_eq!(map["link"], "<https://example.com/next?page=2&per_page=3>; rel=\"next\"");
    }
    let lower = self::needles(&[b"0123456789abcdef"]);
    let mut map = HeaderMap::new();
    map.append("x-0123456789abcdef", HeaderValue::from_static("1"));
    assert_eq!((headers(&mut map, &lower), map.len()), (1, 0));
}

/// Bodies that look like what APIs answer, with what could be mistaken for a match.
fn clean_body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        "[a-zA-Z0-9 ]{0,40}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..60),
        (0..C.len()).prop_map(|n| C[..n].to_vec()),
        (1..C.len()).prop_map(|n| C[n..].to_vec()),
        Just(b"\\u0073\\u006b%73%6b&#115;=73=\r\ns\0k\0-\0".to_vec()),
        Just(b"73:6b:2d:52:45:41:4c c2stUkVBTC05ZjNj\n".to_vec()),
        Just(b"\\n\\\"\\\\%%&&==\0\0".to_vec()),
    ];
    // Apart, or two pieces could make the whole.
    proptest::collection::vec(piece, 0..12).prop_map(|p| p.join(&b"~"[..]))
}

fn cuts(body: &[u8], lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    let mut rest = body;
    for length in lengths {
        let (chunk, tail) = rest.split_at((*length).min(rest.len()));
        chunks.push(chunk.to_vec());
        rest = tail;
    }
    chunks.push(rest.to_vec());
    chunks
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 2_000 } else { 20_000 }))]

    #[test]
    fn clean_bodies_are_unchanged_however_cut(body in clean_body(), lengths in proptest::collection::vec(0_usize..40, 0..20)) {
        let chunks = cuts(&body, &lengths);
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(scrub(&needles(&[C]), &chunks), (body, 0));
    }

    #[test]
    fn any_secret_is_found_in_any_form_however_cut(
        secret in "[!-~]{8,60}",
        form in any::<prop::sample::Index>(),
        before in clean_body(),
        lengths in proptest::collection::vec(0_usize..60, 0..20),
    ) {
        let forms = forms(secret.as_bytes());
        let (name, form) = &forms[form.index(forms.len())];
        // Apart, so that what stands before can't be read as the beginning of an escape or of a
        // wide character.
        let body = [&before[..], b"~ ~ ", form, b" ~"].concat();
        let chunks = cuts(&body, &lengths);
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let (clean, hits) = scrub(&needles(&[secret.as_bytes()]), &chunks);
        prop_assert!(hits >= 1, "{} of {:?} is not found", name, secret);
        prop_assert!(memchr::memmem::find(&clean, form).is_none());
    }
}

/// `events` scrubbed as [`response`] does, split as `cuts` says.
fn scrub_events(needles: &Needles, events: &[u8], cuts: &[usize]) -> (Vec<u8>, u32) {
    let (mut scrubber, mut joined) = (Scrubber::new(needles.clone()), Events::new(needles));
    let (mut searched, mut out) = (VecDeque::new(), VecDeque::new());
    let mut rest = events;
    for cut in cuts {
        let (chunk, after) = rest.split_at(*cut % (rest.len() + 1));
        rest = after;
        scrubber.push(Bytes::copy_from_slice(chunk), &mut searched);
        searched.drain(..).for_each(|data| joined.push(data, &mut out));
    }
    scrubber.push(Bytes::copy_from_slice(rest), &mut searched);
    scrubber.finish(&mut searched);
    searched.drain(..).for_each(|data| joined.push(data, &mut out));
    joined.finish(&mut out);
    assert_eq!(joined.held(), 0);
    let body: Vec<u8> = out.iter().flatten().copied().collect();
    assert_eq!(body.len(), events.len(), "as long as it came");
    (body, scrubber.take_found() + joined.take_found())
}

/// What a client makes of events: the data of each, by the letter of the standard and with the
/// lines run together.
fn read_events(body: &[u8]) -> Vec<Vec<u8>> {
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let lines = String::from_utf8_lossy(text).replace("\r\n", "\n").replace('\r', "\n");
    let (mut events, mut data) = (Vec::new(), Vec::new());
    for line in lines.split('\n') {
        if line.is_empty() {
            events.push(std::mem::take(&mut data));
        } else if let Some(value) = line.strip_prefix("data:") {
            data.extend_from_slice(value.trim_start_matches([' ', '\t']).as_bytes());
        }
    }
    events.push(data);
    events
}

fn holds(text: &[u8], secret: &[u8]) -> bool {
    memchr::memmem::find(text, secret).is_some()
}

#[test]
fn lines_of_one_event_that_join_to_the_credential_are_masked() {
    let needles = needles(&[C]);
    let encoded = b64::STANDARD.encode64(C).into_bytes();
    for (what, secret) in [("raw", C), ("base64", &encoded)] {
        for end in ["\n", "\r\n", "\r"] {
            for begin in ["data:", "data: ", "data:  ", "data:\t"] {
                for between in ["", ": a comment", "event: x", "id: 7", "data", "data:", "database: y", "retry: 1"] {
                    for width in [1, 5, 20] {
                        let between = if between.is_empty() { String::new() } else { format!("{between}{end}") };
                        let lines =
                            secret.chunks(width).map(|part| format!("{begin}{}{end}", String::from_utf8_lossy(part)));
                        let event = format!("event: e{end}{}{end}", lines.collect::<Vec<_>>().join(&between));
                        let body = format!("data: before{end}{end}{event}data: after{end}{end}");
                        let (clean, hits) = scrub_events(&needles, body.as_bytes(), &[]);
                        let read = read_events(&clean);
                        let case = format!("{what} {end:?} {begin:?} {between:?} {width}: {}", clean.escape_ascii());
                        assert!(hits >= 1 && !read.iter().any(|event| holds(event, secret)), "{case}");
                        assert!(read.contains(&b"before".to_vec()) && read.contains(&b"after".to_vec()), "{case}");
                        let kept = read[1].iter().filter(|b| **b != b'*').count();
                        assert!(kept <= 12, "{kept} bytes are left: {case}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_credential_of_several_lines_is_masked_where_a_client_joins_them() {
    let pem = b"-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END KEY-----";
    let lines = pem.split(|b| *b == b'\n').map(|line| format!("data: {}\n", String::from_utf8_lossy(line)));
    let body = lines.collect::<String>() + "\n";
    let (clean, hits) = scrub_events(&needles(&[pem]), body.as_bytes(), &[]);
    assert_eq!((hits, holds(&clean, b"MIIEvQ")), (1, false), "{}", clean.escape_ascii());
}

#[test]
fn an_event_that_has_ended_is_not_held_and_the_next_is_another_text() {
    let needles = needles(&[C]);
    let mut events = Events::new(&needles);
    let (head, tail) = C.split_at(20);
    for body in
        [format!("data: {}\n\n", String::from_utf8_lossy(head)), format!("data: {}\n\n", String::from_utf8_lossy(tail))]
    {
        let mut out = VecDeque::new();
        events.push(Bytes::from(body.clone()), &mut out);
        let out: Vec<u8> = out.into_iter().flatten().collect();
        assert_eq!((String::from_utf8_lossy(&out).as_ref(), events.held()), (body.as_str(), 0));
    }
    assert_eq!(events.take_found(), 0, "a client doesn't join the data of two events");
}

#[test]
fn what_is_held_of_an_event_is_bounded() {
    let needles = needles(&[C]);
    let (mut events, mut out) = (Events::new(&needles), VecDeque::new());
    events.push(Bytes::copy_from_slice(&[b"data: ", &C[..20], b"\n"].concat()), &mut out);
    let comment = Bytes::from(format!(": {}\n", "x".repeat(10_000)));
    for _ in 0..100 {
        events.push(comment.clone(), &mut out);
        assert!(events.held() <= 80_000, "{}", events.held());
    }
    events.push(Bytes::copy_from_slice(&[b"data: ", &C[20..], b"\n\n"].concat()), &mut out);
    let clean: Vec<u8> = out.into_iter().flatten().collect();
    assert!(!holds(&clean, &C[..20]) && !holds(&clean, &C[20..]), "what was let go was masked, and so is the rest");
}

proptest! {
    #[test]
    fn events_come_out_the_same_for_every_split(
        parts in prop::collection::vec((0..9_usize, 0..5_usize, 0..44_usize, 0..44_usize), 1..12),
        cuts in prop::collection::vec(0..400_usize, 0..12),
    ) {
        let needles = needles(&[C]);
        let mut body = Vec::new();
        for (kind, end, from, to) in parts {
            let end = ["\n", "\r\n", "\r", "\n\n", "\r\n\r\n"][end];
            let part = &C[from.min(to).min(C.len())..from.max(to).min(C.len())];
            let begin = ["data:", "data: ", "data", "event: ", ": ", "id:", "", "data :", "data:   "][kind];
            body.extend_from_slice(begin.as_bytes());
            body.extend_from_slice(part);
            body.extend_from_slice(end.as_bytes());
        }
        let whole = scrub_events(&needles, &body, &[]);
        let split = scrub_events(&needles, &body, &cuts);
        prop_assert_eq!(whole.0.escape_ascii().to_string(), split.0.escape_ascii().to_string());
        prop_assert!(!read_events(&whole.0).iter().any(|event| holds(event, C)), "{}", whole.0.escape_ascii());
    }

    #[test]
    fn a_header_named_after_the_credential_is_removed(
        before in "[a-z-]{0,6}", after in "[a-z-]{0,6}", form in 0..6_usize, key in "[A-Za-z0-9_-]{16,40}",
    ) {
        let hex = |upper: bool| key.bytes().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect::<String>();
        let middle = match form {
            0 => key.clone(),
            1 => key.to_ascii_lowercase(),
            2 => hex(false),
            3 => hex(true),
            4 => b64::URL_SAFE_NO_PAD.encode64(key.as_bytes()),
            _ => key.bytes().map(|b| format!("%{b:02X}")).collect(),
        };
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_bytes(format!("{before}{middle}{after}").as_bytes()).unwrap();
        headers.append(name.clone(), HeaderValue::from_static("a"));
        headers.append(name, HeaderValue::from_static("b"));
        headers.insert("x-request-id-of-the-upstream", HeaderValue::from_static("1"));
        let found = super::headers(&mut headers, &needles(&[key.as_bytes()]));
        prop_assert_eq!((headers.len(), found), (1, 1), "{:?}", headers);
    }
}
