//! How a service's upstream is reached: pools of connections that were resolved, checked, pinned
//! and verified.
//!
//! A connection's buffers hold copies of what was sent on it, the credential included, so a pool
//! belongs to a credential's version and is closed with it: rotation, revocation and a change of
//! the service leave no live connection behind.

mod addresses;
mod tls;

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use dashmap::DashMap;
use seks_network::{
    address::{Networks, OwnAddresses},
    resolve::ResolveError,
};
use seks_service::{Service, Upstream};
use seks_types::id::TenantName;

pub(crate) use self::{
    addresses::AddressResolver,
    tls::{CaFileError, check_ca_file},
};
use crate::{
    config::UpstreamConfig,
    http::client::{
        self, ALPN_H1, ALPN_H2, Destination, Gauge, Resolve, UpstreamError,
        owner_limits::{OwnerLimits, OwnerUsage},
    },
};

/// How often a pool is looked at: a credential that was replaced is in no buffer of ours for longer
/// than this.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Most pools of one tenant: one for each credential of each service that it used in the last
/// minute.
const MAX_POOLS: usize = 1024;

/// Tells whether a pool's service and credential are the current ones.
pub(crate) type IsCurrent = Box<dyn Fn() -> bool + Send>;

/// The properties of a new pool.
pub(crate) struct PoolHooks {
    /// Asked every second; once it says no, the pool is closed.
    pub(crate) is_current: IsCurrent,
    /// Told of every connection that comes, goes, or is put aside.
    pub(crate) gauge: Arc<dyn Gauge>,
}

/// What a pool is for. Generations are unique in a process, so a service or credential that was
/// replaced has another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    /// The service's generation.
    pub(crate) service: u64,
    /// The credential's.
    pub(crate) credential: u64,
}

/// All pools of a node, each with what is made once of its service and credential: `T`.
pub(crate) struct Upstreams<T> {
    pools: DashMap<PoolKey, Arc<Pool<T>>, foldhash::quality::RandomState>,
    shares: DashMap<TenantName, Weak<OwnerUsage>, foldhash::quality::RandomState>,
    limits: Arc<OwnerLimits>,
    trust: tls::Trust,
    addresses: AddressResolver,
    config: UpstreamConfig,
}

/// The connections of one key.
struct Pool<T> {
    connections: Arc<client::Pool>,
    /// Made from the credential, so it goes with the pool.
    made: OnceLock<Arc<T>>,
}

/// A connection for one request.
pub(crate) struct Connection<T> {
    connection: client::Connection,
    pool: Arc<Pool<T>>,
}

impl<T> Connection<T> {
    /// What is made once of the service and the version of the credential that the connection is
    /// for. `None`: `make` gave nothing.
    pub(crate) fn per_pool(&self, make: impl FnOnce() -> Option<T>) -> Option<Arc<T>> {
        if let Some(made) = self.pool.made.get() {
            return Some(made.clone());
        }
        let made = Arc::new(make()?);
        Some(self.pool.made.get_or_init(|| made).clone())
    }

    /// Whether it speaks HTTP/2.
    pub(crate) fn is_h2(&self) -> bool {
        self.connection.is_h2()
    }

    /// Gives it back unused.
    pub(crate) fn give_back(self) {
        self.connection.give_back();
    }

    /// The connection itself, to send the request on.
    pub(crate) fn into_http(self) -> client::Connection {
        self.connection
    }
}

impl<T: Send + Sync + 'static> Upstreams<T> {
    /// Reads the extra roots. `own` is never dialled.
    ///
    /// # Errors
    /// When `ca_file` can't be read.
    pub(crate) fn new(config: UpstreamConfig, own: OwnAddresses) -> Result<Self, CaFileError> {
        let trust = tls::Trust::load(config.ca_file.as_deref())?;
        let addresses = AddressResolver::new(&config, own);
        let limits = Arc::new(OwnerLimits::new(config.tenant_max_idle, MAX_POOLS));
        Ok(Self { pools: DashMap::default(), shares: DashMap::default(), limits, trust, addresses, config })
    }

    /// A connection for one request: an idle one, or a new one.
    ///
    /// `about` is called if `key` has no pool yet.
    ///
    /// # Errors
    /// If there is no connection within `connect_timeout`.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        key: PoolKey,
        service: &Service,
        hooks: impl FnOnce() -> PoolHooks,
    ) -> Result<Connection<T>, UpstreamError> {
        let pool = self.pool(key, service, hooks)?;
        let connection = client::Connection::take(&pool.connections, self.config.connect_timeout).await?;
        Ok(Connection { connection, pool })
    }

    /// A new connection in HTTP/1.1, for a request that may switch protocols and so keep the
    /// connection for itself.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) async fn connect_to_switch(
        self: &Arc<Self>,
        key: PoolKey,
        service: &Service,
        hooks: impl FnOnce() -> PoolHooks,
    ) -> Result<Connection<T>, UpstreamError> {
        let pool = self.pool(key, service, hooks)?;
        let connection = client::Connection::open_to_switch(&pool.connections, self.config.connect_timeout).await?;
        Ok(Connection { connection, pool })
    }

    fn pool(
        self: &Arc<Self>,
        key: PoolKey,
        service: &Service,
        hooks: impl FnOnce() -> PoolHooks,
    ) -> Result<Arc<Pool<T>>, UpstreamError> {
        match self.pools.get(&key).map(|p| p.clone()) {
            Some(pool) => Ok(pool),
            None => self.open_pool(key, service, hooks),
        }
    }

    fn open_pool(
        self: &Arc<Self>,
        key: PoolKey,
        service: &Service,
        hooks: impl FnOnce() -> PoolHooks,
    ) -> Result<Arc<Pool<T>>, UpstreamError> {
        let PoolHooks { is_current, gauge } = hooks();
        let place = self.share(&service.tenant).open().ok_or(UpstreamError::TooManyPools)?;
        let connections = client::Pool::new(self.destination(service)?, self.config.max_idle, place, gauge);
        let fresh = Arc::new(Pool { connections: Arc::new(connections), made: OnceLock::new() });
        let pool = self.pools.entry(key).or_insert_with(|| fresh.clone()).clone();
        if Arc::ptr_eq(&pool, &fresh) {
            tokio::spawn(maintain_pool(Arc::downgrade(self), key, fresh, self.config.keep_alive, is_current));
        }
        Ok(pool)
    }

    fn destination(&self, service: &Service) -> Result<Destination, UpstreamError> {
        let upstream = service.upstream.clone();
        let protocols = if service.http2 { &[ALPN_H2][..] } else { &[ALPN_H2, ALPN_H1] };
        let tls = match upstream.tls() {
            true => Some((self.trust.connector(&service.upstream_ca_pem, protocols)?, tls::server_name(&upstream)?)),
            false => None,
        };
        let authority = upstream.authority().clone();
        let (tenant, given) = (service.tenant.clone(), service.private_networks.clone());
        let resolve = Box::new(UpstreamAddresses { addresses: self.addresses.clone(), tenant, upstream, given });
        Ok(Destination { authority, tls, http2_only: service.http2, resolve })
    }

    fn share(&self, tenant: &TenantName) -> Arc<OwnerUsage> {
        let fresh = || Arc::new(OwnerUsage::new(self.limits.clone()));
        let mut share = self.shares.entry(tenant.clone()).or_default();
        share.upgrade().unwrap_or_else(|| {
            let fresh = fresh();
            *share = Arc::downgrade(&fresh);
            fresh
        })
    }

    /// The bounds of tenants' shares, and how often they were reached.
    pub(crate) fn limits(&self) -> &Arc<OwnerLimits> {
        &self.limits
    }

    /// What looks up names.
    pub(crate) fn addresses(&self) -> &AddressResolver {
        &self.addresses
    }

    /// Closes every pool.
    pub(crate) fn close(&self) {
        self.pools.retain(|_, pool| {
            pool.connections.close();
            false
        });
    }
}

/// The addresses of one service's upstream.
struct UpstreamAddresses {
    addresses: AddressResolver,
    tenant: TenantName,
    upstream: Upstream,
    given: Networks,
}

impl Resolve for UpstreamAddresses {
    fn resolve(&self) -> Pin<Box<dyn Future<Output = Result<Vec<SocketAddr>, UpstreamError>> + Send + '_>> {
        Box::pin(async {
            let found = self.addresses.resolve(&self.tenant, &self.upstream, &self.given).await;
            found.map_err(|error| match error {
                ResolveError::NoAddress => UpstreamError::NoAddress,
                ResolveError::Forbidden => UpstreamError::AddressForbidden,
            })
        })
    }
}

/// Sweeps a pool while it is used; closes it when it is retired, or was not used for long.
async fn maintain_pool<T>(
    owner: Weak<Upstreams<T>>,
    key: PoolKey,
    pool: Arc<Pool<T>>,
    keep_alive: Duration,
    is_current: IsCurrent,
) {
    let mut used = Instant::now();
    while owner.strong_count() > 0 && is_current() && !pool.connections.is_closed() && used.elapsed() <= keep_alive {
        tokio::time::sleep(SWEEP_EVERY).await;
        // Connections that are lent out count as use: each holds the pool of connections.
        if pool.connections.sweep(keep_alive) > 0 || Arc::strong_count(&pool.connections) > 1 {
            used = Instant::now();
        }
    }
    if let Some(owner) = owner.upgrade() {
        owner.pools.remove_if(&key, |_, p| Arc::ptr_eq(p, &pool));
        pool.connections.close();
        drop(pool);
        owner.shares.retain(|_, share| share.strong_count() > 0);
        return;
    }
    pool.connections.close();
}

#[cfg(test)]
mod tests;
