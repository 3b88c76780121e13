//! The connection to etcd: one client for each endpoint. One endpoint is used until it fails, then
//! the next.
//!
//! The library's own balancer continues to choose dead endpoints: with one of two dead, about every
//! third call fails. With this module no call failed when a follower was killed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{Client, ConnectOptions, Error, KvClient};
use tokio::sync::OnceCell;

use super::{failure::Failure, stamp::Stamp};
use crate::store::{Key, StoreError};

/// A page of 512 records may hold as many values of 1 MiB; the library's default of 4 MiB is too
/// small for our own list.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024 * 1024;

/// One member of the cluster. Connected when first needed: with a user the library logs in on
/// connecting.
pub(super) struct Endpoint {
    url: String,
    options: ConnectOptions,
    client: OnceCell<Client>,
}

impl Endpoint {
    pub(super) fn new(url: &str, options: ConnectOptions) -> Self {
        Self { url: url.to_owned(), options, client: OnceCell::new() }
    }

    async fn client(&self) -> Result<Client, Error> {
        let connect = || Client::connect([self.url.as_str()], Some(self.options.clone()));
        self.client.get_or_try_init(connect).await.cloned()
    }
}

/// Shared by everything that talks to etcd.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) endpoints: Arc<[Endpoint]>,
    /// The endpoint in use, as a counter that never goes back.
    pub(super) at: Arc<AtomicUsize>,
    /// Ends with a slash.
    pub(super) prefix: Arc<str>,
    pub(super) writer: u64,
    pub(super) count: Arc<AtomicU64>,
    /// How long an operation is tried.
    pub(super) retry: Duration,
}

impl Link {
    /// A relative path in etcd's key space.
    pub(super) fn path(&self, relative: &str) -> String {
        format!("{}{relative}", self.prefix)
    }

    /// A key in etcd's key space read back; `None` when it isn't one that we know.
    pub(super) fn parse(&self, path: &[u8]) -> Option<Key> {
        Key::parse(std::str::from_utf8(path).ok()?.strip_prefix(&*self.prefix)?)
    }

    /// What [`path`](Self::path) made it from.
    pub(super) fn relative<'a>(&self, path: &'a [u8]) -> Result<&'a str, StoreError> {
        let relative = std::str::from_utf8(path).ok().and_then(|path| path.strip_prefix(&*self.prefix));
        relative.ok_or_else(|| StoreError::Corrupt("a key is not text".into()))
    }

    /// For the next commit.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp { writer: self.writer, count: self.count.fetch_add(1, Ordering::Relaxed) }
    }

    /// One request to the endpoint in use. When it fails for a reason of the endpoint, the next
    /// call takes the next one.
    pub(super) async fn once<T, F>(&self, request: impl FnOnce(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let at = self.at.load(Ordering::Relaxed);
        let Some(endpoint) = self.endpoints.get(at % self.endpoints.len().max(1)) else {
            return Err(Failure::Retry { sent: false, reason: "no endpoint".into() });
        };
        let (done, connected) = match endpoint.client().await {
            Ok(client) => (request(client).await, true),
            Err(error) => (Err(error), false),
        };
        done.map_err(|error| match Failure::of(error) {
            Failure::Retry { sent, reason } => {
                self.leave(at);
                Failure::Retry { sent: sent && connected, reason: format!("{}: {reason}", endpoint.url) }
            }
            other => other,
        })
    }

    /// One step an incident, however many requests fail in it.
    pub(super) fn leave(&self, at: usize) {
        let _another_did = self.at.compare_exchange(at, at.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A request that changes nothing, tried until it succeeds or time is up.
    pub(super) async fn read<T, F>(&self, request: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut patience = Patience::new(self.retry);
        loop {
            match self.once(&request).await {
                Err(Failure::Retry { .. }) if patience.wait().await => {}
                done => return done,
            }
        }
    }
}

/// A client for reads and writes that takes answers of any size.
pub(super) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// The same for a watch: what has piled up comes in one message.
pub(super) fn watcher(client: &Client) -> etcd_client::WatchClient {
    client.watch_client().max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Waits between attempts: 10 ms, doubling to 500 ms, with full jitter, until a deadline.
pub(super) struct Patience {
    until: Option<Instant>,
    step: Duration,
}

impl Patience {
    const FIRST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_millis(500);

    pub(super) fn new(total: Duration) -> Self {
        Self { until: Some(Instant::now() + total), step: Self::FIRST }
    }

    /// Never runs out.
    pub(super) fn endless() -> Self {
        Self { until: None, step: Self::FIRST }
    }

    /// False when time is up.
    pub(super) async fn wait(&mut self) -> bool {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return false;
        }
        let mut random = [0; 2];
        let _without = getrandom::fill(&mut random); // then all wait alike: no harm
        let share = f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX);
        tokio::time::sleep(self.step.mul_f64(0.5 + share / 2.0)).await;
        self.step = (self.step * 2).min(Self::LONGEST);
        true
    }

    /// After a success.
    pub(super) fn reset(&mut self) {
        self.step = Self::FIRST;
    }
}
