//! An HTTP/1.1 client that sends exactly the bytes it is given and keeps every byte it gets back.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use crate::process::PATIENCE;

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    wire: Vec<u8>,
    eof: bool,
}

/// What came back for one request.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Status code; 0 when the connection ended without one.
    pub status: u16,
    /// The head as it came, up to and including the empty line.
    pub head: String,
    /// The body, chunk framing taken off, trailers left out.
    pub body: Vec<u8>,
    /// Every byte received on this connection so far.
    pub wire: Vec<u8>,
    /// The body ended as its framing says.
    pub complete: bool,
}

impl Reply {
    /// The value of a header, by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find_map(|(n, v)| n.eq_ignore_ascii_case(name).then(|| v.trim()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `code` of a refusal, empty when it is none.
    pub fn code(&self) -> String {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        problem["error"]["code"].as_str().unwrap_or_default().into()
    }
}

impl Connection {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens.
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, buffer: Vec::new(), wire: Vec::new(), eof: false }
    }

    /// Sends bytes. A peer that has closed meanwhile shows in what is read next.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        drop(self.stream.write_all(bytes.as_ref()));
    }

    /// Bytes that have come and were not read.
    ///
    /// # Panics
    /// When the system doesn't say.
    pub fn unread(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.stream).unwrap()
    }

    /// Ends the sending half.
    pub fn finish(&mut self) {
        drop(self.stream.shutdown(Shutdown::Write));
    }

    /// Reads until the peer has closed.
    pub fn drain_to_end(&mut self) {
        while self.fill() {
            self.buffer.clear();
        }
    }

    /// Reads once into the buffer; `false` at the end.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.eof = true,
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                self.wire.extend_from_slice(&chunk[..n]);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing came within {PATIENCE:?}; so far: {:?}", String::from_utf8_lossy(&self.wire))
            }
            Err(_) => self.eof = true, // reset
        }
        !self.eof
    }

    /// Takes bytes up to and including `end` off the buffer, reading as needed; `None` when the
    /// connection ends first.
    fn take_until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|w| w == end) {
                return Some(self.buffer.drain(..at + end.len()).collect());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn take(&mut self, count: usize, into: &mut Vec<u8>) -> bool {
        while self.buffer.len() < count {
            if !self.fill() {
                into.append(&mut self.buffer);
                return false;
            }
        }
        into.extend(self.buffer.drain(..count));
        true
    }

    /// Reads a head; interim ones (1xx but 101) are skipped. `None` when the connection ends first.
    pub fn read_head(&mut self) -> Option<(u16, String)> {
        loop {
            let head = String::from_utf8_lossy(&self.take_until(b"\r\n\r\n")?).into_owned();
            let status = head.split(' ').nth(1).and_then(|s| s.get(..3)).and_then(|s| s.parse().ok()).unwrap_or(0);
            if !(100..200).contains(&status) || status == 101 {
                return Some((status, head));
            }
        }
    }

    /// Reads one chunk's data of a chunked body; `None` at its end.
    pub fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let line = String::from_utf8_lossy(&self.take_until(b"\r\n")?).into_owned();
        let size = usize::from_str_radix(line.trim_end().split(';').next()?, 16).ok()?;
        let mut data = Vec::new();
        if size == 0 || !self.take(size + 2, &mut data) {
            return None;
        }
        data.truncate(size);
        Some(data)
    }

    /// Reads one whole response; `head_only` after a HEAD request.
    pub fn read_reply(&mut self, head_only: bool) -> Reply {
        let mut reply = Reply::default();
        if let Some((status, head)) = self.read_head() {
            (reply.status, reply.head) = (status, head);
            reply.complete = self.read_body(&mut reply, head_only);
        }
        reply.wire.clone_from(&self.wire);
        reply
    }

    fn read_body(&mut self, reply: &mut Reply, head_only: bool) -> bool {
        if head_only || matches!(reply.status, 204 | 304) {
            return true;
        }
        if reply.header("transfer-encoding").is_some() {
            loop {
                let Some(line) = self.take_until(b"\r\n") else { return false };
                let size = String::from_utf8_lossy(&line).trim_end().split(';').next().unwrap_or("").to_owned();
                let Ok(size) = usize::from_str_radix(&size, 16) else { return false };
                if size == 0 {
                    return self.skip_trailers();
                }
                if !self.take(size, &mut reply.body) || self.take_until(b"\r\n").is_none() {
                    return false;
                }
            }
        }
        if let Some(length) = reply.header("content-length").and_then(|v| v.parse().ok()) {
            return self.take(length, &mut reply.body);
        }
        while self.fill() {}
        reply.body.append(&mut self.buffer);
        true
    }

    fn skip_trailers(&mut self) -> bool {
        while let Some(line) = self.take_until(b"\r\n") {
            if line == b"\r\n" {
                return true;
            }
        }
        false
    }

    /// Reads and throws away up to `count` bytes of what follows; how many there were.
    pub fn drain(&mut self, count: usize) -> usize {
        let mut seen = self.buffer.len();
        self.buffer.clear();
        let mut chunk = vec![0; 64 * 1024];
        while seen < count {
            match self.stream.read(&mut chunk) {
                Ok(n) if n > 0 => seen += n,
                _ => break,
            }
        }
        seen
    }

    /// Whether the node closes the connection: reads until it does, at most `within`.
    pub fn closes(&mut self, within: Duration) -> bool {
        drop(self.stream.set_read_timeout(Some(within)));
        let mut chunk = [0; 4096];
        while !self.eof {
            match self.stream.read(&mut chunk) {
                Ok(n) if n > 0 => self.wire.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
                _ => self.eof = true,
            }
        }
        true
    }

    /// Forgets the bytes that were received: a connection with many requests would copy all of them
    /// for each.
    pub fn forget(&mut self) {
        self.wire.clear();
    }

    /// Every byte received so far.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }
}

/// Sends `bytes` on a fresh connection and reads the response.
pub fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Reply {
    let bytes = bytes.as_ref();
    let mut connection = Connection::open(address);
    connection.send(bytes);
    connection.read_reply(bytes.starts_with(b"HEAD "))
}

/// A plain GET with a Bearer token.
pub fn get(address: SocketAddr, path: &str, token: &str) -> Reply {
    exchange(address, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"))
}

/// A plain POST of JSON with a Bearer token.
pub fn post(address: SocketAddr, path: &str, token: &str, body: &str) -> Reply {
    exchange(
        address,
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
}
