//! What an upstream remembers: connections byte by byte, requests as it understood them.

use std::fmt;

/// Beyond this many bytes a connection's or a body's bytes are counted, not kept.
pub(crate) const KEPT: usize = 4 << 20;

/// Everything an upstream has seen.
#[derive(Debug, Default)]
pub struct Log {
    /// In the order of their arrival.
    pub connections: Vec<ConnectionLog>,
    /// In the order in which their heads were complete.
    pub requests: Vec<Request>,
}

/// One connection.
#[derive(Default)]
pub struct ConnectionLog {
    /// The bytes received, after TLS; the first [`KEPT`] of them.
    pub bytes: Vec<u8>,
    /// The proxy has closed it, or the upstream has.
    pub closed: bool,
}

impl fmt::Debug for ConnectionLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionLog").field("bytes", &self.bytes.len()).field("closed", &self.closed).finish()
    }
}

/// How a request says where its body ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// It doesn't: no body.
    #[default]
    None,
    /// `Content-Length`, once.
    Length(usize),
    /// `Transfer-Encoding: chunked`, once and alone.
    Chunked,
    /// In more than one way, or in a way that leaves doubt.
    Ambiguous,
}

/// One request.
#[derive(Clone, Default)]
pub struct Request {
    /// Which connection it came on.
    pub connection: usize,
    /// The head's bytes, the empty line included.
    pub head: Vec<u8>,
    /// The body, chunk framing taken off; the first [`KEPT`] bytes.
    pub body: Vec<u8>,
    /// How long the body was.
    pub body_length: usize,
    /// How it was framed.
    pub framing: Framing,
    /// It has arrived whole.
    pub complete: bool,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({} bytes, complete: {})", self.line(), self.body_length, self.complete)
    }
}

impl Request {
    /// The request line.
    pub fn line(&self) -> String {
        let end = self.head.iter().position(|b| *b == b'\r').unwrap_or(self.head.len());
        String::from_utf8_lossy(&self.head[..end]).into_owned()
    }

    /// The method.
    pub fn method(&self) -> String {
        self.line().split(' ').next().unwrap_or_default().into()
    }

    /// The request-target: path and query.
    pub fn target(&self) -> String {
        self.line().split(' ').nth(1).unwrap_or_default().into()
    }

    /// The target's path.
    pub fn path(&self) -> String {
        self.target().split('?').next().unwrap_or_default().into()
    }

    /// All values of a header, by its name in any case.
    pub fn headers(&self, name: &str) -> Vec<String> {
        String::from_utf8_lossy(&self.head)
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim().to_owned())
            .collect()
    }

    /// The value of a header that stands once; `None` when it is absent or stands more often.
    pub fn header(&self, name: &str) -> Option<String> {
        let mut values = self.headers(name);
        if values.len() == 1 { values.pop() } else { None }
    }

    /// The value of a query parameter, as it came.
    pub fn query(&self, name: &str) -> Option<String> {
        let target = self.target();
        let (_, query) = target.split_once('?')?;
        query.split('&').filter_map(|p| p.split_once('=')).find_map(|(k, v)| (k == name).then(|| v.to_owned()))
    }

    /// The body as JSON; null when it isn't.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Head and kept body as they are.
    pub fn bytes(&self) -> Vec<u8> {
        [self.head.as_slice(), &self.body].concat()
    }

    pub(crate) fn read_framing(&mut self) {
        let (lengths, codings) = (self.headers("content-length"), self.headers("transfer-encoding"));
        self.framing = match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => Framing::None,
            ([length], []) => length.parse().map_or(Framing::Ambiguous, Framing::Length),
            ([], [coding]) if coding == "chunked" => Framing::Chunked,
            _ => Framing::Ambiguous,
        };
    }

    pub(crate) fn keep(&mut self, bytes: &[u8]) {
        self.body_length += bytes.len();
        let room = KEPT.saturating_sub(self.body.len()).min(bytes.len());
        self.body.extend_from_slice(&bytes[..room]);
    }
}
