//! How a request came to the node, and the service that it names.

use std::{ops::Range, sync::Arc};

use seks_types::token::Digest;

use super::origin::Origin;
use crate::table::{ServiceEntry, TokenEntry};

/// How requests came to the node.
#[derive(Clone)]
pub(crate) enum ProxyMode {
    /// By its own name: path mode and host mode.
    Direct,
    /// As to a proxy.
    Forward,
    /// Through a tunnel to a host that the node stands for.
    Within(Arc<TunnelContext>),
}

/// A tunnel, as the requests in it see it.
pub(crate) struct TunnelContext {
    /// The host that the agent believes to speak to.
    pub(crate) origin: Origin,
    /// The token that the tunnel was asked for with.
    pub(crate) digest: Option<Digest>,
}

/// The first service of a token's at `origin`.
pub(crate) fn granted(token: &TokenEntry, origin: &Origin) -> Option<Arc<ServiceEntry>> {
    token.grants().iter().filter_map(|grant| grant.service()).find(|service| origin.is(&service.upstream))
}

/// Where a request is for, as places in its path-and-query.
pub(crate) enum Route {
    /// `/api/SERVICE` + rest.
    Service { name: Range<usize>, rest: usize },
    /// `SERVICE.SUFFIX` in `Host`: all of the target is the service's.
    Host { name: Box<str> },
    /// HTTPS_PROXY mode: the service is the one at this host that the token grants, and all of the
    /// target is its.
    Forward(Origin),
    /// `GET /api/`.
    Discovery,
    /// `POST /token`.
    Exchange,
}

/// How agents name a service, which is how the node must name it to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// `/api/SERVICE`.
    Path,
    /// `SERVICE.SUFFIX`.
    Host,
    /// The upstream's own host.
    Forward,
}
