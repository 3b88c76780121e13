//! The upstream: reads requests, answers each with the same bytes, and does nothing else, so that
//! it is no bottleneck.

use std::{fs, path::PathBuf, rc::Rc, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::LocalSet,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

/// Bytes of a server-sent event, with its line ends.
const EVENT: usize = 128;
/// Between two events of a stream: each is read and written by itself.
const EVENT_PAUSE: Duration = Duration::from_millis(2);

/// How it answers.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Bytes of an answer's body
    #[arg(long, default_value_t = 1024)]
    pub size: usize,
    /// Answer with a stream of as many server-sent events instead, one after the other
    #[arg(long, default_value_t = 0)]
    pub events: usize,
    /// Serve TLS, and write the PEM root of its certificate to this file before the address is
    /// printed
    #[arg(long)]
    pub tls_root: Option<PathBuf>,
}

/// The body that every answer has: what the load generator checks.
#[must_use]
pub fn body(size: usize, events: usize) -> Vec<u8> {
    if events > 0 {
        return event().repeat(events);
    }
    b"The quick brown fox jumps over the lazy dog. ".iter().copied().cycle().take(size).collect()
}

fn event() -> Vec<u8> {
    let text = body(EVENT - "data: \n\n".len(), 0);
    [b"data: ", &text[..], b"\n\n"].concat()
}

/// Prints its address and serves until it is killed.
pub async fn run(args: Args) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = args.tls_root.as_ref().map(|file| {
        let (root, config) = certificate();
        fs::write(file, root).unwrap();
        TlsAcceptor::from(Arc::new(config))
    });
    println!("{}", listener.local_addr().unwrap());
    let answer = Rc::new(Answer::new(&args));
    let accept = async {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream.set_nodelay(true));
            let (tls, answer) = (tls.clone(), Rc::clone(&answer));
            tokio::task::spawn_local(async move {
                match tls {
                    None => serve(stream, answer).await,
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => serve(stream, answer).await,
                        Err(error) => eprintln!("stub: {error}"),
                    },
                }
            });
        }
    };
    LocalSet::new().run_until(accept).await;
}

/// A root, and what a server with its certificate for the loopback address needs.
fn certificate() -> (String, ServerConfig) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Another name than the leaf's: OpenSSL takes a certificate by its own name for its own issuer.
    params.distinguished_name.push(DnType::CommonName, "benchmark CA");
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &root).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf.into()], key).unwrap();
    (root.pem(), config)
}

/// What is written for each request: at once, or a head and then one event after the other.
struct Answer {
    head: Vec<u8>,
    events: usize,
    /// A chunk with one event.
    chunk: Vec<u8>,
}

impl Answer {
    fn new(args: &Args) -> Self {
        if args.events > 0 {
            let head =
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            let chunk = [format!("{EVENT:x}\r\n").as_bytes(), &event(), b"\r\n"].concat();
            return Self { head, events: args.events, chunk };
        }
        let size = args.size;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n");
        Self { head: [head.as_bytes(), &body(size, 0)].concat(), events: 0, chunk: Vec::new() }
    }

    async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        stream.write_all(&self.head).await?;
        for _ in 0..self.events {
            stream.flush().await?;
            tokio::time::sleep(EVENT_PAUSE).await;
            stream.write_all(&self.chunk).await?;
        }
        if self.events > 0 {
            stream.write_all(b"0\r\n\r\n").await?;
        }
        stream.flush().await
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: Rc<Answer>) {
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        match whole_request(&buffer) {
            Some(length) => {
                buffer.drain(..length);
                if answer.write(&mut stream).await.is_err() {
                    return;
                }
            }
            None if matches!(stream.read_buf(&mut buffer).await, Ok(1..)) => {}
            None => return,
        }
    }
}

/// How long the first request in a buffer is, once it is whole. The proxies under test frame by
/// length or by chunks.
fn whole_request(buffer: &[u8]) -> Option<usize> {
    let head = buffer.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&buffer[..head]).ok()?;
    let value = |name: &str| {
        text.split("\r\n")
            .filter_map(|l| l.split_once(':'))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim())
    };
    if let Some(length) = value("content-length") {
        let whole = head + length.parse::<usize>().ok()?;
        return (buffer.len() >= whole).then_some(whole);
    }
    if value("transfer-encoding").is_some() {
        return buffer[head..].windows(5).position(|w| w == b"0\r\n\r\n").map(|at| head + at + 5);
    }
    Some(head)
}
