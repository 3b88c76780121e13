//! Names of upstreams, and the addresses that may be dialled for them.

use std::{net::SocketAddr, sync::Arc};

use seks_network::{
    address::{DialGuard, DialRules, Networks, OwnAddresses},
    resolve::{ResolveError, Resolver, ResolverOptions, resolve_with},
};
use seks_service::Upstream;
use seks_types::id::TenantName;

use crate::config::UpstreamConfig;

/// Looks up names, and leaves out every address that may not be dialled.
#[derive(Clone)]
pub(crate) struct AddressResolver {
    resolver: Arc<Resolver>,
    guard: Arc<DialGuard>,
}

impl AddressResolver {
    /// `own` is never dialled.
    pub(super) fn new(config: &UpstreamConfig, own: OwnAddresses) -> Self {
        let guard = Arc::new(DialGuard { allowed: config.private_networks.clone(), own });
        let (name_servers, timeout) = (config.name_servers.clone(), config.resolve_timeout);
        Self { resolver: Arc::new(Resolver::new(ResolverOptions { name_servers, timeout })), guard }
    }

    /// The addresses of `upstream` for a tenant. Private ones must be in `given`, which are the
    /// tenant's, and in the node's.
    ///
    /// # Errors
    /// When there is no address, or none that may be dialled.
    pub(crate) async fn resolve(
        &self,
        tenant: &TenantName,
        upstream: &Upstream,
        given: &Networks,
    ) -> Result<Vec<SocketAddr>, ResolveError> {
        let rules = DialRules { guard: self.guard.clone(), tenant_networks: given.clone() };
        resolve_with(&self.resolver, tenant.as_str(), upstream.host(), upstream.port(), &rules).await
    }
}
