//! An API that records every byte it receives, and answers as the test says: well, slowly, oddly or
//! with hostility.

pub mod answer;
pub mod record;
pub mod tls;
pub mod vendors;

mod connection;

use std::{net::SocketAddr, sync::Arc};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub use self::{
    answer::{Answer, Gate},
    record::{ConnectionLog, Framing, Log, Request},
};
pub use crate::host::Host;
use crate::process::PATIENCE;

/// Decides what is answered to a request that has arrived whole.
pub type Handler = dyn Fn(&Request) -> Answer + Send + Sync;
/// Decides, when only the head has arrived, whether to answer without waiting for the body.
pub type EarlyHandler = dyn Fn(&Request) -> Option<Answer> + Send + Sync;

/// A stand-in upstream on a free loopback port.
pub struct Upstream {
    address: SocketAddr,
    host: Host,
    ca_pem: Option<String>,
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    log: Mutex<Log>,
    changed: Condvar,
    handler: Box<Handler>,
    early: Box<EarlyHandler>,
}

impl Shared {
    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock()
    }

    /// Changes the log and wakes whoever waits for it.
    pub(crate) fn note<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let result = change(&mut self.log());
        self.changed.notify_all();
        result
    }
}

impl Upstream {
    /// Plain HTTP/1.1.
    pub fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::launch(Host::address(), Box::new(handler), Box::new(|_| None), false)
    }

    /// HTTP/1.1 over TLS, with a certificate for `localhost` and `127.0.0.1` by a CA of its own
    /// ([`Self::ca_pem`]).
    pub fn start_tls(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_tls_as(Host::address(), handler)
    }

    /// The same by a name, for clients that want one: [`Self::origin`] has it.
    pub fn start_tls_as(host: Host, handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::launch(host, Box::new(handler), Box::new(|_| None), true)
    }

    /// Plain HTTP/1.1; `early` may answer as soon as the head is there, and the connection is then
    /// closed.
    pub fn start_early(early: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> Self {
        Self::launch(Host::address(), Box::new(|_| Answer::json(200, "{}")), Box::new(early), false)
    }

    /// Answers every request with `200` and a small JSON object.
    pub fn ok() -> Self {
        Self::start(|_| Answer::json(200, r#"{"ok":true}"#))
    }

    fn launch(host: Host, handler: Box<Handler>, early: Box<EarlyHandler>, tls: bool) -> Self {
        let shared = Arc::new(Shared { log: Mutex::default(), changed: Condvar::new(), handler, early });
        let (acceptor, ca_pem) = if tls {
            let (acceptor, ca) = tls::acceptor(&host);
            (Some(acceptor), Some(ca))
        } else {
            (None, None)
        };
        let listener = std::net::TcpListener::bind((host.ip, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let for_listener = Arc::clone(&shared);
        crate::runtime().spawn(async move {
            accept(TcpListener::from_std(listener).unwrap(), acceptor, for_listener).await;
        });
        Self { address, host, ca_pem, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its origin, as a service definition names it.
    pub fn origin(&self) -> String {
        let scheme = if self.ca_pem.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host.name, self.address.port())
    }

    /// The CA that its certificate is from, in PEM; `None` without TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// All that has been recorded. Holds a lock: read and drop.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log()
    }

    /// The requests recorded so far.
    pub fn requests(&self) -> Vec<Request> {
        self.log().requests.clone()
    }

    /// How many whole requests have arrived.
    pub fn complete(&self) -> usize {
        self.log().requests.iter().filter(|r| r.complete).count()
    }

    /// Every byte that has arrived, on all connections.
    pub fn received(&self) -> Vec<u8> {
        self.log().connections.iter().flat_map(|c| c.bytes.iter().copied()).collect()
    }

    /// Forgets what was recorded; connections stay.
    pub fn forget(&self) {
        self.shared.note(|log| {
            log.requests.clear();
            log.connections.iter_mut().for_each(|c| c.bytes.clear());
        });
    }

    /// Blocks until the log satisfies a condition.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    pub fn wait(&self, what: &str, condition: impl Fn(&Log) -> bool) {
        let mut log = self.log();
        let timeout = self.shared.changed.wait_while_for(&mut log, |log| !condition(log), PATIENCE);
        assert!(!timeout.timed_out(), "waited in vain for {what}; the upstream saw {:?}", log.requests);
    }
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        drop(stream.set_nodelay(true));
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move { greet(stream, acceptor, shared).await });
    }
}

async fn greet(stream: TcpStream, acceptor: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let id = shared.note(|log| {
        log.connections.push(ConnectionLog::default());
        log.connections.len() - 1
    });
    match acceptor {
        None => connection::serve(stream, id, &shared).await,
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                connection::serve(stream, id, &shared).await;
            }
        }
    }
    shared.note(|log| log.connections[id].closed = true);
}
