//! PROXY protocol, versions 1 and 2 (haproxy.org, `proxy-protocol.txt`): a balancer says whose
//! connection it passes on.
//!
//! A connection from a listed balancer must begin with the header. A connection from anybody else
//! never has one: what looks like one is read as a request, and refused as such.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use seks_network::address::Networks;
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// What version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1, with its end.
const MAX_LINE: usize = 107;
/// Most bytes behind the fixed part of version 2: addresses and extensions. AWS and Google need
/// less than 300.
const MAX_EXTENSIONS: usize = 2048;

/// Whose PROXY headers are believed, and how many were refused. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Balancers {
    from: Networks,
    rejected: Arc<AtomicU64>,
}

/// The header is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection does not begin with a PROXY protocol header")
    }
}

impl From<io::Error> for Malformed {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl Balancers {
    /// Balancers in these networks.
    #[must_use]
    pub fn new(from: Networks) -> Self {
        Self { from, rejected: Arc::default() }
    }

    /// Connections that were closed because their header was missing or malformed.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    /// Who is at the other end of a connection from `peer`: what its header says, where `peer` is a
    /// balancer. `None`: the connection is to be closed. Reads exactly the header. The caller
    /// limits the time.
    pub(super) async fn source(&self, tcp: &mut TcpStream, peer: IpAddr) -> Option<IpAddr> {
        if !self.from.contains(peer) {
            return Some(peer);
        }
        match read(tcp).await {
            Ok(source) => Some(source.unwrap_or(peer)),
            Err(malformed) => {
                self.rejected.fetch_add(1, Relaxed);
                tracing::debug!(%peer, reason = %malformed, "a balancer's connection was closed");
                None
            }
        }
    }
}

/// The source that a header names. `None`: it names none, as a balancer's own checks.
async fn read(tcp: &mut TcpStream) -> Result<Option<IpAddr>, Malformed> {
    let mut start = [0; SIGNATURE.len()]; // shorter than any header
    tcp.read_exact(&mut start).await?;
    if start == SIGNATURE {
        return read_binary(tcp).await;
    }
    if !start.starts_with(b"PROXY ") {
        return Err(Malformed);
    }
    read_line(tcp, &start).await
}

async fn read_binary(tcp: &mut TcpStream) -> Result<Option<IpAddr>, Malformed> {
    let [command, family, high, low] = {
        let mut fixed = [0; 4];
        tcp.read_exact(&mut fixed).await?;
        fixed
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_EXTENSIONS {
        return Err(Malformed);
    }
    let mut addresses = vec![0; length];
    tcp.read_exact(&mut addresses).await?;
    let address = match family {
        0x11 => addresses.first_chunk::<12>().and_then(|a| a.first_chunk::<4>()).map(|a| Ipv4Addr::from(*a).into()),
        0x21 => addresses.first_chunk::<36>().and_then(|a| a.first_chunk::<16>()).map(|a| Ipv6Addr::from(*a).into()),
        0x00 | 0x31 => return if matches!(command, 0x20 | 0x21) { Ok(None) } else { Err(Malformed) },
        _ => None, // datagrams
    };
    match command {
        0x20 => Ok(None), // LOCAL: the balancer itself
        0x21 => address.map(|address: IpAddr| Some(address.to_canonical())).ok_or(Malformed),
        _ => Err(Malformed),
    }
}

/// Reads version 1, of which `start` was read. Looks before it takes, so that nothing behind the
/// line is taken.
async fn read_line(tcp: &mut TcpStream, start: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    let mut line = Vec::with_capacity(MAX_LINE);
    line.extend_from_slice(start);
    loop {
        let mut ahead = [0; MAX_LINE];
        let room = ahead.get_mut(..MAX_LINE - line.len()).filter(|room| !room.is_empty()).ok_or(Malformed)?;
        let seen = tcp.peek(room).await?;
        let new = room.get(..seen).filter(|new| !new.is_empty()).ok_or(Malformed)?;
        let taken = new.iter().position(|byte| *byte == b'\n').map_or(seen, |end| end + 1);
        let from = line.len();
        line.resize(from + taken, 0);
        tcp.read_exact(line.get_mut(from..).unwrap_or_default()).await?;
        if line.ends_with(b"\n") {
            return parse_line(&line);
        }
    }
}

fn parse_line(line: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    let text = line.strip_prefix(b"PROXY ").and_then(|rest| rest.strip_suffix(b"\r\n")).ok_or(Malformed)?;
    let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Ok(None);
    }
    let parts: Vec<&str> = text.split(' ').collect();
    let [family, source, destination, from, to] = parts[..] else { return Err(Malformed) };
    let is_port = |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok();
    if !is_port(from) || !is_port(to) {
        return Err(Malformed);
    }
    let address = |text: &str| text.parse::<IpAddr>().ok();
    let (source, destination) = (address(source).ok_or(Malformed)?, address(destination).ok_or(Malformed)?);
    let is_right = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    if is_right { Ok(Some(source.to_canonical())) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    /// What is read from a balancer that sends `bytes` in pieces of `piece` bytes, and what is left
    /// on the connection.
    async fn sent(bytes: Vec<u8>, piece: usize) -> (Option<IpAddr>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sending = tokio::spawn(async move {
            let mut balancer = TcpStream::connect(address).await.unwrap();
            balancer.set_nodelay(true).unwrap();
            for piece in bytes.chunks(piece) {
                if balancer.write_all(piece).await.is_err() {
                    break; // it was refused
                }
                tokio::task::yield_now().await;
            }
        });
        let (mut tcp, peer) = listener.accept().await.unwrap();
        let balancers = Balancers::new(Networks::parse(&["127.0.0.0/8"]).unwrap());
        let source = balancers.source(&mut tcp, peer.ip()).await;
        assert_eq!(balancers.rejected(), u64::from(source.is_none()));
        let mut rest = Vec::new();
        if source.is_some() {
            tcp.read_to_end(&mut rest).await.unwrap();
        }
        drop(tcp);
        sending.await.unwrap();
        (source, rest)
    }

    fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, addresses].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0xc0, 0, 0x20, 0xfb];

    #[tokio::test]
    async fn the_source_is_what_the_balancer_says_and_the_rest_is_the_agents() {
        let (own, v4, v6) = ("127.0.0.1", "192.0.2.7", "2001:db8::7");
        let six = |source: &str| [&source.parse::<Ipv6Addr>().unwrap().octets()[..], &[0; 20]].concat();
        let with_extensions = [&V4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 49152 8443\r\n".into(), v4),
            (b"PROXY TCP6 2001:db8::7 ::1 49152 8443\r\n".into(), v6),
            (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n".into(), v4),
            (b"PROXY UNKNOWN\r\n".into(), own),
            (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".into(), own),
            (binary(0x21, 0x11, &V4), v4),
            (binary(0x21, 0x11, &with_extensions), v4),
            (binary(0x21, 0x21, &six("2001:db8::7")), v6),
            (binary(0x21, 0x21, &six("::ffff:192.0.2.7")), v4),
            (binary(0x20, 0x11, &V4), own),
            (binary(0x20, 0x00, &[]), own),
            (binary(0x21, 0x00, &[]), own),
        ];
        for (header, source) in cases {
            for piece in [1, 7, 4096] {
                let bytes = [&header[..], b"GET / HTTP/1.1\r\n\r\n\n"].concat();
                let (found, rest) = sent(bytes, piece).await;
                assert_eq!(found, Some(source.parse().unwrap()), "{}", String::from_utf8_lossy(&header));
                assert_eq!(rest, b"GET / HTTP/1.1\r\n\r\n\n", "nothing of the request is taken");
            }
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused_and_costs_little() {
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 4096]].concat();
        let cases: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 49152\r\n".into(),
            b"PROXY TCP4 192.0.2.7  10.0.0.1 49152 1\r\n".into(),
            b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n".into(),
            b"PROXY TCP6 192.0.2.7 10.0.0.1 1 2\r\n".into(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 +1 2\r\n".into(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 1 65536\r\n".into(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\n".into(),
            b"PROXY TCP4 192.0.2.007 10.0.0.1 1 2\r\n".into(),
            b"PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n".into(),
            b"PROXY TCP4".into(),
            long,
            binary(0x21, 0x11, &V4[..11]),
            binary(0x21, 0x21, &V4),
            binary(0x21, 0x12, &V4),
            binary(0x22, 0x11, &V4),
            binary(0x11, 0x11, &V4),
            binary(0x21, 0x11, &vec![0; MAX_EXTENSIONS + 1]),
            binary(0x21, 0x11, &V4)[..20].to_vec(),
            SIGNATURE.to_vec(),
        ];
        for bytes in cases {
            for piece in [3, 4096] {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                assert_eq!(sent(bytes.clone(), piece).await.0, None, "{text:?}");
            }
        }
    }

    #[tokio::test]
    async fn whoever_is_no_balancer_has_no_header() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut agent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        agent.write_all(b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n").await.unwrap();
        drop(agent.shutdown().await);
        let (mut tcp, peer) = listener.accept().await.unwrap();
        let balancers = Balancers::new(Networks::parse(&["192.0.2.0/24"]).unwrap());
        assert_eq!(balancers.source(&mut tcp, peer.ip()).await, Some(peer.ip()));
        let mut rest = Vec::new();
        tcp.read_to_end(&mut rest).await.unwrap();
        assert!(rest.starts_with(b"PROXY "), "it is read as a request, and refused as one");
    }
}
