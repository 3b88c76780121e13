//! Parses the head of an HTTP/1 request strictly. What two servers could read differently is
//! refused (RFC 9112). That includes the smuggling cases that hyper accepts: bare LF,
//! `Content-Length` beside `Transfer-Encoding`, repeated fields.
//!
//! Only the form is checked here. `pipeline/admit.rs` checks the meaning, for HTTP/2 as well.

use std::ops::Range;

use http::StatusCode;

use crate::http::server::settings::HeadLimits;

/// How the body behind a head is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// None follows.
    Empty,
    /// This many bytes, more than 0.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// What the bytes are so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// A beginning; this much of it needs no second look.
    Partial { scanned: usize },
    /// A head of this many bytes.
    Whole { len: usize, framing: Framing },
}

/// Where the parts of a head are. Used for head after head.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// The method begins the head, and has this length.
    pub(super) method: usize,
    pub(super) target: Range<usize>,
    /// It holds characters that clients should have escaped.
    pub(super) unescaped_target: bool,
    /// HTTP/1.0.
    pub(super) http10: bool,
    /// Names, and values without white space around them.
    pub(super) fields: Vec<(Range<usize>, Range<usize>)>,
}

macro_rules! violations {
    ($($(#[$doc:meta])* $name:ident = $status:ident $detail:literal,)*) => {
        /// What is wrong with a request's form.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Violation { $($(#[$doc])* $name,)* }

        impl Violation {
            /// The status that answers it.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// A fixed text that says what is wrong.
            #[must_use]
            pub fn detail(self) -> &'static str {
                match self { $(Self::$name => $detail,)* }
            }
        }
    };
}

violations! {
    /// A line that ends in LF alone, or a CR without its LF.
    LineEnd = BAD_REQUEST "a line of the request's head doesn't end in CRLF",
    /// Not `METHOD target HTTP/1.1` with single spaces.
    RequestLine = BAD_REQUEST "the request line is malformed",
    /// Neither origin-form nor absolute-form, or a character that no URI has.
    Target = BAD_REQUEST "the request target is malformed",
    /// Another version.
    Version = HTTP_VERSION_NOT_SUPPORTED "the HTTP version is not 1.1 or 1.0",
    /// NUL and its kind.
    Control = BAD_REQUEST "the request's head holds a control character",
    /// No name, no colon, white space before the colon, a folded line.
    Field = BAD_REQUEST "a header field is malformed",
    /// Not exactly one.
    Host = BAD_REQUEST "there must be exactly one Host",
    /// Not one canonical number.
    Length = BAD_REQUEST "Content-Length is not one canonical number",
    /// Not `chunked` alone, in HTTP/1.0, or beside Content-Length.
    Coding = BAD_REQUEST "Transfer-Encoding is not chunked alone",
    /// Larger than the node takes.
    UriTooLong = URI_TOO_LONG "the request target is too long",
    /// Larger than the node takes.
    HeadTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE "the request's head is too large",
    /// Chunks that aren't.
    Chunk = BAD_REQUEST "the chunked body is malformed",
    /// Too slow.
    HeadTimeout = REQUEST_TIMEOUT "the request's head came too slowly",
}

/// Reads a head from the beginning of `bytes`, of which `scanned` were looked at before. One that
/// is whole has these `parts`.
pub(super) fn read(bytes: &[u8], scanned: usize, limits: &HeadLimits, parts: &mut Parts) -> Result<Head, Violation> {
    let Some(len) = find_end(bytes, scanned)? else {
        too_large(bytes, limits)?;
        return Ok(Head::Partial { scanned: bytes.len() });
    };
    let head = bytes.get(..len).unwrap_or_default();
    too_large(head, limits)?;
    check_characters(head)?;
    let mut lines = Lines { rest: head, at: 0 };
    let (_, request_line) = lines.next().unwrap_or_default();
    read_request_line(request_line, limits, parts)?;
    // Python's http.client asks for a tunnel in HTTP/1.0 and without Host: the target says it all.
    let needs_host = !request_line.starts_with(b"CONNECT ");
    let framing = read_fields(lines, needs_host, limits, parts)?;
    Ok(Head::Whole { len, framing })
}

/// The length up to and including the empty line. Every line must end in CRLF.
fn find_end(bytes: &[u8], scanned: usize) -> Result<Option<usize>, Violation> {
    for at in memchr::memchr_iter(b'\n', bytes.get(scanned..).unwrap_or_default()).map(|at| at + scanned) {
        let before = bytes.get(..at).unwrap_or_default();
        let Some(line) = before.strip_suffix(b"\r") else { return Err(Violation::LineEnd) };
        if line.is_empty() || line.ends_with(b"\n") {
            return Ok(Some(at + 1));
        }
    }
    Ok(None)
}

fn too_large(head: &[u8], limits: &HeadLimits) -> Result<(), Violation> {
    if head.len() <= limits.uri.min(limits.bytes) {
        return Ok(()); // the common case
    }
    let longest_line = limits.uri + 32; // method and version
    let prefix = head.get(..longest_line.min(head.len())).unwrap_or_default();
    if head.len() > longest_line && memchr::memchr(b'\n', prefix).is_none() {
        return Err(Violation::UriTooLong);
    }
    if head.len() > limits.bytes { Err(Violation::HeadTooLarge) } else { Ok(()) }
}

/// No control character but HTAB, and no CR but before LF (which has one before it each:
/// [`find_end`]). Written so that it compiles to vector instructions: bytes alone, and no branch.
fn check_characters(head: &[u8]) -> Result<(), Violation> {
    let bad = head.iter().fold(0_u8, |bad, &b| {
        let control = (b < 0x20) & (b != b'\t') & (b != b'\r') & (b != b'\n');
        bad | u8::from(control | (b == 0x7f))
    });
    let count = |byte| memchr::memchr_iter(byte, head).count();
    match (bad, count(b'\r') == count(b'\n')) {
        (0, true) => Ok(()),
        (0, false) => Err(Violation::LineEnd),
        _ => Err(Violation::Control),
    }
}

/// Lines of a whole head without their CRLF, up to the empty one, and where they begin.
struct Lines<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let end = memchr::memchr(b'\n', self.rest)?;
        let (line, rest) = self.rest.split_at_checked(end + 1)?;
        let at = self.at;
        (self.rest, self.at) = (rest, at + line.len());
        line.strip_suffix(b"\r\n").filter(|l| !l.is_empty()).map(|line| (at, line))
    }
}

fn read_request_line(line: &[u8], limits: &HeadLimits, found: &mut Parts) -> Result<(), Violation> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Violation::RequestLine);
    };
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
        return Err(Violation::RequestLine);
    }
    if target.len() > limits.uri {
        return Err(Violation::UriTooLong);
    }
    let has_scheme = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|t| t.eq_ignore_ascii_case(scheme));
    let form_ok = target.starts_with(b"/")
        || has_scheme(b"http://")
        || has_scheme(b"https://")
        || target == b"*"
        || method == b"CONNECT";
    if !form_ok {
        return Err(Violation::Target);
    }
    found.unescaped_target = is_unescaped(target)?;
    let begins = method.len() + 1;
    (found.method, found.target) = (method.len(), begins..begins + target.len());
    found.http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(Violation::Version);
        }
        _ => return Err(Violation::RequestLine),
    };
    Ok(())
}

fn read_fields(
    lines: Lines<'_>,
    needs_host: bool,
    limits: &HeadLimits,
    found: &mut Parts,
) -> Result<Framing, Violation> {
    found.fields.clear();
    let (mut hosts, mut length, mut coding) = (0_usize, None, None);
    for (at, line) in lines {
        if found.fields.len() == limits.fields {
            return Err(Violation::HeadTooLarge);
        }
        let colon = memchr::memchr(b':', line).ok_or(Violation::Field)?;
        let (name, value) = line.split_at_checked(colon).ok_or(Violation::Field)?;
        // A folded line begins with white space, which no name does.
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Err(Violation::Field);
        }
        let value = trim_start(value.get(1..).unwrap_or_default());
        let begins = at + line.len() - value.len();
        let value = trim_end(value);
        found.fields.push((at..at + colon, begins..begins + value.len()));
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let number = canonical_number(value).ok_or(Violation::Length)?;
                if length.replace(number).is_some() {
                    return Err(Violation::Length);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let chunked = value.eq_ignore_ascii_case(b"chunked");
                let doubled = coding.replace(()).is_some();
                if doubled || !chunked {
                    return Err(Violation::Coding);
                }
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && needs_host) {
        return Err(Violation::Host);
    }
    match (length, coding) {
        (None | Some(0), None) => Ok(Framing::Empty),
        (Some(n), None) => Ok(Framing::Length(n)),
        (None, Some(())) if !found.http10 => Ok(Framing::Chunked),
        (_, Some(())) => Err(Violation::Coding),
    }
}

/// `0`, or digits that don't begin with one, that fit.
fn canonical_number(digits: &[u8]) -> Option<u64> {
    let canonical = digits == b"0" || digits.first().is_some_and(|b| (b'1'..=b'9').contains(b));
    if !canonical || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0_u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
}

fn trim_start(mut value: &[u8]) -> &[u8] {
    while let Some(rest) = value.strip_prefix(b" ").or_else(|| value.strip_prefix(b"\t")) {
        value = rest;
    }
    value
}

fn trim_end(mut value: &[u8]) -> &[u8] {
    while let Some(rest) = value.strip_suffix(b" ").or_else(|| value.strip_suffix(b"\t")) {
        value = rest;
    }
    value
}

/// Whether a target has characters that are not allowed in a URI but are sent by some clients: `"`,
/// `<`, `>`, `\`, a backtick and non-ASCII bytes. `#` is not one of them, because a later parser
/// would cut the target there.
fn is_unescaped(target: &[u8]) -> Result<bool, Violation> {
    const BAD: u8 = 0;
    const PLAIN: u8 = 1;
    const UNESCAPED: u8 = 2;
    const TABLE: [u8; 256] = {
        let mut table = [BAD; 256];
        let mut b = 0;
        #[allow(clippy::indexing_slicing, reason = "in bounds, at compile time")]
        while b < 256 {
            table[b] = match b as u8 {
                b'"' | b'<' | b'>' | b'\\' | b'`' | 0x80.. => UNESCAPED,
                b'#' => BAD,
                b if b.is_ascii_graphic() => PLAIN,
                _ => BAD,
            };
            b += 1;
        }
        table
    };
    let mut unescaped = false;
    for &b in target {
        match TABLE.get(usize::from(b)).copied().unwrap_or(BAD) {
            PLAIN => {}
            UNESCAPED => unescaped = true,
            _ => return Err(Violation::Target),
        }
    }
    Ok(unescaped)
}

/// RFC 9110, 5.6.2.
pub(super) fn is_token(b: u8) -> bool {
    const TABLE: [bool; 256] = {
        let mut table = [false; 256];
        let mut b = 0;
        #[allow(clippy::indexing_slicing, reason = "in bounds, at compile time")]
        while b < 128 {
            table[b] = (b as u8).is_ascii_alphanumeric()
                || matches!(
                    b as u8,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            b += 1;
        }
        table
    };
    TABLE.get(usize::from(b)).is_some_and(|is| *is)
}

#[cfg(test)]
mod tests;
