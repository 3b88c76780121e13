//! How upstreams are reached: pools of connections that were resolved, checked, pinned and verified.
//!
//! HTTP/1.1 of our own and hyper's HTTP/2 on our connector: no redirects, no proxies from the environment, no Alt-Svc, no retries.

pub(crate) mod tls;

use std::{
    future::poll_fn,
    sync::{Arc, Weak},
    task::Poll,
    time::{Duration, Instant},
};

use dashmap::DashMap;
use seks_network::{
    address::{DialGuard, OwnAddresses, Reach},
    resolve::{Resolver, ResolverOptions},
};
use seks_service::Service;
use tokio::time::timeout;

pub(crate) use self::tls::CaFileError;
use crate::{
    config::UpstreamConfig,
    http::client::{Connection, Gauge, Pool, UpstreamError},
};

/// How often a pool is looked at: a credential that was replaced is in no buffer of ours for longer than this.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Tells whether a pool's service and credential are the current ones.
pub(crate) type IsCurrent = Box<dyn Fn() -> bool + Send>;

/// What a new pool is told by whoever wants it.
pub(crate) struct About {
    /// Asked every second; once it says no, the pool is closed.
    pub is_current: IsCurrent,
    /// Told of every connection that comes, goes, or is put aside.
    pub gauge: Arc<dyn Gauge>,
}

/// What a pool is for. Generations are unique in a process, so a service or credential that was replaced has another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The service's generation.
    pub service: u64,
    /// The credential's.
    pub credential: u64,
}

/// All pools of a node.
pub(crate) struct Upstreams {
    pools: DashMap<Key, Arc<Pool>, foldhash::quality::RandomState>,
    trust: tls::Trust,
    resolver: Arc<Resolver>,
    config: UpstreamConfig,
    guard: Arc<DialGuard>,
}

impl Upstreams {
    /// Reads the extra roots. `own` is never dialled.
    ///
    /// # Errors
    /// When `ca_file` can't be read.
    pub(crate) fn new(config: UpstreamConfig, own: OwnAddresses) -> Result<Self, CaFileError> {
        let trust = tls::Trust::load(config.ca_file.as_deref())?;
        let guard = Arc::new(DialGuard { allowed: config.private_networks.clone(), own });
        let (name_servers, timeout) = (config.name_servers.clone(), config.resolve_timeout);
        let resolver = Arc::new(Resolver::new(ResolverOptions { name_servers, timeout }));
        Ok(Self { pools: DashMap::default(), trust, resolver, config, guard })
    }

    /// What may be dialled for a service.
    pub(crate) fn reach(&self, service: &Service) -> Reach {
        Reach { guard: self.guard.clone(), given: service.private_networks.clone() }
    }

    /// A connection for one request: one that is idle, or a new one.
    ///
    /// `about` is asked when `key` has no pool yet.
    ///
    /// # Errors
    /// When there is no connection within `connect_timeout`.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        key: Key,
        service: &Service,
        about: impl FnOnce() -> About,
    ) -> Result<Connection, UpstreamError> {
        let pool = self.pool(key, service, about)?;
        if let Some(connection) = poll_fn(|cx| Poll::Ready(pool.take(cx))).await {
            return Ok(connection);
        }
        // Boxed: what a handshake needs is kilobytes, and most requests need none.
        Box::pin(timeout(self.config.connect_timeout, pool.open())).await.unwrap_or(Err(UpstreamError::Timeout))
    }

    /// A new connection in HTTP/1.1, for a request that may switch protocols and so keep the connection for itself.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) async fn connect_to_switch(
        self: &Arc<Self>,
        key: Key,
        service: &Service,
        about: impl FnOnce() -> About,
    ) -> Result<Connection, UpstreamError> {
        let pool = self.pool(key, service, about)?;
        Box::pin(timeout(self.config.connect_timeout, pool.open_h1())).await.unwrap_or(Err(UpstreamError::Timeout))
    }

    fn pool(
        self: &Arc<Self>,
        key: Key,
        service: &Service,
        about: impl FnOnce() -> About,
    ) -> Result<Arc<Pool>, UpstreamError> {
        match self.pools.get(&key).map(|p| p.clone()) {
            Some(pool) => Ok(pool),
            None => self.open_pool(key, service, about),
        }
    }

    fn open_pool(
        self: &Arc<Self>,
        key: Key,
        service: &Service,
        about: impl FnOnce() -> About,
    ) -> Result<Arc<Pool>, UpstreamError> {
        let About { is_current, gauge } = about();
        let (reach, resolver) = (self.reach(service), self.resolver.clone());
        let fresh = Arc::new(Pool::new(service, (reach, resolver), &self.trust, self.config.max_idle, gauge)?);
        let pool = self.pools.entry(key).or_insert_with(|| fresh.clone()).clone();
        if Arc::ptr_eq(&pool, &fresh) {
            tokio::spawn(tend(Arc::downgrade(self), key, fresh, self.config.keep_alive, is_current));
        }
        Ok(pool)
    }

    /// What looks up names.
    pub(crate) fn resolver(&self) -> &Arc<Resolver> {
        &self.resolver
    }

    /// Closes every pool.
    pub(crate) fn close(&self) {
        self.pools.retain(|_, pool| {
            pool.close();
            false
        });
    }
}

/// Sweeps a pool while it is used; closes it when it is retired, or was not used for long.
async fn tend(owner: Weak<Upstreams>, key: Key, pool: Arc<Pool>, keep_alive: Duration, is_current: IsCurrent) {
    let mut used = Instant::now();
    while owner.strong_count() > 0 && is_current() && !pool.is_closed() && used.elapsed() <= keep_alive {
        tokio::time::sleep(SWEEP_EVERY).await;
        // Connections that are lent out count as use: else only this task and the map know the pool.
        if pool.sweep(keep_alive) > 0 || Arc::strong_count(&pool) > 2 {
            used = Instant::now();
        }
    }
    if let Some(owner) = owner.upgrade() {
        owner.pools.remove_if(&key, |_, p| Arc::ptr_eq(p, &pool));
    }
    pool.close();
}

#[cfg(test)]
pub(crate) mod tests;
