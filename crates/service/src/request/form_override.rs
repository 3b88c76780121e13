//! Fields of a body that override the method: Rack, Symfony, Laravel and Express obey `_method` in
//! the form of a POST as they do in the query, and some in JSON
//! ([`json_override`](super::json_override)).
//!
//! A form is read as the laxest servers read it, as it comes, and only as far as its fields' names.
//! Between chunks [`FormScan`] keeps less than [`MAX_HEAD`] bytes.

use http::{HeaderMap, Method, header};

use super::{
    form_error::FormError,
    json_override::MemberScan,
    query::{decode, overrides_method, overriding_method},
};

/// Longest name and value that are read of a pair, in bytes. The longest name that overrides has
/// 22, written with escapes 66.
const MAX_PAIR: usize = 256;
/// Longest head of a part that is read, in bytes.
const MAX_HEAD: usize = 2048;
/// Longest value of a part that is read: no method is longer.
const MAX_VALUE: usize = 64;

const DISPOSITION: &[u8] = b"content-disposition";

/// How a form is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormKind {
    /// `application/x-www-form-urlencoded`. Rack reads a body of no type as one.
    UrlEncoded,
    /// `multipart/form-data`, and any other multipart type.
    Multipart,
    /// `application/json` and the like.
    Json,
}

impl FormKind {
    /// Whether some server takes a POST with these headers for JSON. Frameworks look for `/json`
    /// and `+json` anywhere in the type (Laravel, Koa).
    #[must_use]
    pub fn is_json(headers: &HeaderMap) -> bool {
        headers.get_all(header::CONTENT_TYPE).iter().any(|value| {
            let value = value.as_bytes().to_ascii_lowercase();
            [&b"/json"[..], b"+json"].iter().any(|part| memchr::memmem::find(&value, part).is_some())
        })
    }

    /// The kind of form that some server takes a POST with these headers for. JSON is not among
    /// them: [`is_json`](Self::is_json).
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut types = headers.get_all(header::CONTENT_TYPE).iter().peekable();
        if types.peek().is_none() {
            return Some(Self::UrlEncoded);
        }
        types.find_map(|value| {
            let value = value.as_bytes().trim_ascii_start();
            let begins = |with: &[u8]| value.get(..with.len()).is_some_and(|own| own.eq_ignore_ascii_case(with));
            if begins(b"multipart/") {
                Some(Self::Multipart)
            } else {
                (value.is_empty() || begins(b"application/x-www-form-urlencoded")).then_some(Self::UrlEncoded)
            }
        })
    }
}

/// Looks for a field that overrides the method.
#[derive(Debug)]
pub struct FormScan {
    kind: FormKind,
    may_override: bool,
    /// The beginning of a pair, or of a part's head with the line break before it.
    carry: Vec<u8>,
    /// Nothing has come yet.
    first: bool,
    members: MemberScan,
    found: Option<Method>,
}

impl FormScan {
    /// With `may_override`, the one method that a field asks for is found, and not refused.
    #[must_use]
    pub fn new(kind: FormKind, may_override: bool) -> Self {
        Self { kind, may_override, carry: Vec::new(), first: true, members: MemberScan::default(), found: None }
    }

    /// The method that the form asks for, in what has come.
    #[must_use]
    pub fn method(&self) -> Option<&Method> {
        self.found.as_ref()
    }

    /// From here on, every field that overrides the method is refused.
    pub fn refuse_overrides(&mut self) {
        self.may_override = false;
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`FormError`]: the body must not be forwarded.
    pub fn push(&mut self, data: &[u8]) -> Result<(), FormError> {
        match self.kind {
            FormKind::UrlEncoded => self.push_pairs(data),
            FormKind::Multipart => self.push_parts(data, false),
            FormKind::Json => self.push_members(data),
        }
    }

    /// The form has ended.
    ///
    /// # Errors
    /// [`FormError`]: the body must not be forwarded.
    pub fn finish(&mut self) -> Result<(), FormError> {
        match self.kind {
            FormKind::UrlEncoded => {
                let pair = std::mem::take(&mut self.carry);
                self.pair(&pair)
            }
            FormKind::Multipart => self.push_parts(b"", true),
            FormKind::Json => self.members.finish(),
        }
    }

    fn push_members(&mut self, data: &[u8]) -> Result<(), FormError> {
        let mut members = std::mem::take(&mut self.members);
        let pushed = members.push(data, |method| self.overridden(method));
        self.members = members;
        pushed
    }

    fn push_pairs(&mut self, data: &[u8]) -> Result<(), FormError> {
        let mut rest = data;
        while let Some(at) = memchr::memchr2(b'&', b';', rest) {
            let (raw, behind) = rest.split_at(at);
            if self.carry.is_empty() {
                self.pair(raw)?;
            } else {
                self.carry_on(raw);
                let pair = std::mem::take(&mut self.carry);
                self.pair(&pair)?;
            }
            rest = behind.get(1..).unwrap_or_default();
        }
        self.carry_on(rest);
        // A server that counts bytes has the pair when its last byte is there: it is not waited
        // for.
        if !self.may_override && names_override(&self.carry) {
            return Err(FormError::MethodOverride);
        }
        Ok(())
    }

    fn carry_on(&mut self, raw: &[u8]) {
        let room = MAX_PAIR.saturating_sub(self.carry.len());
        self.carry.extend_from_slice(raw.get(..room).unwrap_or(raw));
    }

    fn pair(&mut self, raw: &[u8]) -> Result<(), FormError> {
        match overrides(raw.get(..MAX_PAIR).unwrap_or(raw)) {
            None => Ok(()),
            Some(value) => self.overridden(&value),
        }
    }

    fn overridden(&mut self, value: &str) -> Result<(), FormError> {
        if !self.may_override {
            return Err(FormError::MethodOverride);
        }
        let method = overriding_method(value).ok_or(FormError::MethodOverrideForm)?;
        if self.found.replace(method).is_some() { Err(FormError::MethodOverrideForm) } else { Ok(()) }
    }

    /// A part's head is looked for at each line, whatever the boundary is: servers differ in how
    /// they read that.
    fn push_parts(&mut self, data: &[u8], last: bool) -> Result<(), FormError> {
        let mut whole = std::mem::take(&mut self.carry);
        if std::mem::take(&mut self.first) {
            whole.push(b'\n');
        }
        let mut body = data;
        if !whole.is_empty() {
            whole.extend_from_slice(data);
            body = &whole;
        }
        while let Some(at) = memchr::memchr(b'\n', body) {
            let line = body.get(at + 1..).unwrap_or_default();
            match part(line, last) {
                Part::Other => {}
                Part::Incomplete => {
                    self.carry = body.get(at..).unwrap_or_default().to_vec();
                    return Ok(());
                }
                Part::Field { name, value } => {
                    if overrides_method(&name, &["method=", &value].concat()) {
                        self.overridden(value.trim())?;
                    }
                }
            }
            body = line;
        }
        Ok(())
    }
}

/// The value of a pair whose name overrides the method.
fn overrides(raw: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(raw);
    let (name, value) = text.split_once('=').unwrap_or((&text, ""));
    overrides_method(&decode(name), &text).then(|| decode(value).into_owned())
}

/// Whether a pair overrides the method whatever its value is.
fn names_override(raw: &[u8]) -> bool {
    let text = String::from_utf8_lossy(raw);
    text.split_once('=').is_some_and(|(name, _)| overrides_method(&decode(name), ""))
}

enum Part {
    /// Not the line that names a field.
    Other,
    /// More has to come.
    Incomplete,
    Field {
        name: String,
        value: String,
    },
}

/// Reads a line that may name a field, and the field's value.
fn part(line: &[u8], last: bool) -> Part {
    let begin = line.get(..DISPOSITION.len()).unwrap_or(line);
    if !DISPOSITION.get(..begin.len()).is_some_and(|wanted| wanted.eq_ignore_ascii_case(begin)) {
        return Part::Other;
    }
    let head = line.get(..MAX_HEAD).unwrap_or(line);
    let cut = !last && line.len() < MAX_HEAD;
    let end =
        [&b"\n\r\n"[..], b"\n\n"].into_iter().filter_map(|end| Some((memchr::memmem::find(head, end)?, end.len())));
    let Some((end, length)) = end.min() else {
        return if cut { Part::Incomplete } else { field(head, b"") };
    };
    let value = line.get(end + length..).unwrap_or_default();
    let value_end = memchr::memchr2(b'\r', b'\n', value).filter(|end| *end <= MAX_VALUE);
    match value_end {
        None if !last && value.len() <= MAX_VALUE => Part::Incomplete,
        None => field(head.get(..end).unwrap_or_default(), value.get(..MAX_VALUE).unwrap_or(value)),
        Some(value_end) => field(head.get(..end).unwrap_or_default(), value.get(..value_end).unwrap_or_default()),
    }
}

/// The field that a part's head names: `form-data; name="_method"`, with or without quotes, escapes
/// and RFC 5987's form.
fn field(head: &[u8], value: &[u8]) -> Part {
    let head = String::from_utf8_lossy(head);
    for parameter in head.split([';', '\r', '\n']) {
        let Some((key, name)) = parameter.split_once('=') else { continue };
        let key = key.trim().to_ascii_lowercase();
        if key != "name" && !key.starts_with("name*") {
            continue;
        }
        let name: String = name.trim().chars().filter(|c| !matches!(c, '"' | '\\')).collect();
        let name = name.rsplit('\'').find(|name| !name.is_empty()).unwrap_or_default();
        let (name, value) = (decode(name).into_owned(), String::from_utf8_lossy(value).into_owned());
        return Part::Field { name, value };
    }
    Part::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(kind: FormKind, may_override: bool, pieces: &[&[u8]]) -> Result<Option<String>, FormError> {
        let mut scan = FormScan::new(kind, may_override);
        pieces.iter().try_for_each(|piece| scan.push(piece))?;
        scan.finish()?;
        Ok(scan.method().map(ToString::to_string))
    }

    fn at_every_split(kind: FormKind, may_override: bool, body: &str) -> Result<Option<String>, FormError> {
        let whole = scan(kind, may_override, &[body.as_bytes()]);
        for cut in 0..body.len() {
            let (a, b) = body.as_bytes().split_at(cut);
            assert_eq!(scan(kind, may_override, &[a, b]), whole, "{body:?} cut at {cut}");
        }
        assert_eq!(scan(kind, may_override, &body.as_bytes().chunks(1).collect::<Vec<_>>()), whole);
        whole
    }

    fn multipart(head: &str, value: &str) -> String {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b\r\n{head}\r\n\r\n{value}\r\n--b--\r\n"
        )
    }

    #[test]
    fn a_pair_that_overrides_is_found_in_every_spelling() {
        let kind = FormKind::UrlEncoded;
        let long = format!("text={}&_method=PUT", "x".repeat(5000));
        for body in [
            "_method=DELETE",
            "a=1&_METHOD=x",
            "a=1;_method=PUT&b",
            "%5Fmethod=PUT",
            "+_method=PUT",
            "_method[]=PUT",
            "_method",
            "method=delete",
            "_method%00x=PUT",
            "\u{feff}_method=PUT",
            ".method=PUT",
            "[method=PUT",
            "\r\n_method=PUT",
            &long,
        ] {
            assert_eq!(at_every_split(kind, false, body), Err(FormError::MethodOverride), "{body}");
        }
        for body in [
            "",
            "a=_method&b=1",
            "method=card",
            "methods=put",
            "_methods=PUT",
            "payment_method=x",
            "=_method",
            "method=getaway",
        ] {
            assert_eq!(at_every_split(kind, false, body), Ok(None), "{body}");
        }
        assert_eq!(at_every_split(kind, true, "a=1&_method=DELETE&b=2"), Ok(Some("DELETE".into())));
        assert_eq!(at_every_split(kind, true, "a=1&_method=%44ELETE"), Ok(Some("DELETE".into())));
        assert_eq!(at_every_split(kind, true, "_method=patch"), Ok(Some("PATCH".into())), "as Rails writes it");
        for body in ["_method=", "_method=PUT&_method=PUT", "_method=a b"] {
            assert_eq!(at_every_split(kind, true, body), Err(FormError::MethodOverrideForm), "{body}");
        }
    }

    #[test]
    fn a_part_that_overrides_is_found_in_every_spelling() {
        let kind = FormKind::Multipart;
        for head in [
            "Content-Disposition: form-data; name=\"_method\"",
            "content-disposition:form-data;name=_method",
            "X-A: 1\r\nCONTENT-DISPOSITION: form-data; NAME = \"_Method\"\r\nX-B: 2",
            "Content-Disposition: form-data;\r\n name=\"_method\"",
            "Content-Disposition: form-data; name*=utf-8''%5Fmethod",
            "Content-Disposition: form-data; name=\"\\_method\"; filename=x",
        ] {
            assert_eq!(
                at_every_split(kind, false, &multipart(head, "DELETE")),
                Err(FormError::MethodOverride),
                "{head}"
            );
            assert_eq!(at_every_split(kind, true, &multipart(head, "DELETE")), Ok(Some("DELETE".into())), "{head}");
        }
        let head = "Content-Disposition: form-data; name=\"file\"; filename=\"_method\"";
        assert_eq!(at_every_split(kind, false, &multipart(head, "_method=DELETE")), Ok(None));
        let head = "Content-Disposition: form-data; name=\"_method\"";
        assert_eq!(at_every_split(kind, true, &multipart(head, &"x".repeat(100))), Err(FormError::MethodOverrideForm));
    }

    #[test]
    fn what_is_kept_between_chunks_is_bounded() {
        for kind in [FormKind::UrlEncoded, FormKind::Multipart] {
            let mut scan = FormScan::new(kind, false);
            for _ in 0..100 {
                scan.push(b"\nContent-Disposition: form-data; x=").unwrap();
                scan.push(&[b'y'; 1000]).unwrap();
                assert!(scan.carry.len() <= MAX_HEAD + MAX_VALUE + 1100, "{}", scan.carry.len());
            }
        }
    }

    #[test]
    fn a_type_is_read_as_the_laxest_server_reads_it() {
        let of = |types: &[&'static str]| {
            let values = types.iter().map(|t| (header::CONTENT_TYPE, http::HeaderValue::from_static(t)));
            FormKind::of(&values.fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            }))
        };
        assert_eq!(of(&[]), Some(FormKind::UrlEncoded));
        assert_eq!(of(&["Application/X-WWW-Form-Urlencoded; charset=utf-8"]), Some(FormKind::UrlEncoded));
        assert_eq!(of(&["Multipart/Form-Data; boundary=b"]), Some(FormKind::Multipart));
        assert_eq!(of(&["application/json", "multipart/mixed"]), Some(FormKind::Multipart));
        assert_eq!(of(&["application/json"]), None);
        let json = |value| {
            FormKind::is_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, http::HeaderValue::from_static(value))]))
        };
        for value in ["application/json", "Text/JSON; charset=utf-8", "application/vnd.api+json"] {
            assert!(json(value), "{value}");
        }
        assert!(!json("application/x-ndjson") && !json("text/plain"));
    }
}
