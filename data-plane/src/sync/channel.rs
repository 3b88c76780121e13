//! Connections to a control plane: TLS 1.3 with the node's certificate, and nothing sent before the
//! other side's has been checked.

use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::Identity;

/// The name in the certificate of every control plane of our own CA, wherever it is.
pub(super) const SERVER_NAME: &str = "seks-control-plane";
/// Longest wait for TCP and TLS together.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How much may be on its way to us: a revocation waits behind no more than this. One round trip of
/// 100 ms moves 10 MB/s.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// A connection whose peer's machine doesn't answer is given up after twice this. It proves nothing
/// more: the stream has its own silence limit.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect: {0}")]
pub(super) struct ConnectError(String);

/// Which control planes to trust.
#[derive(Clone)]
pub(super) struct Trust {
    /// Roots of certificates that aren't of our own CA; empty: our own.
    pub(super) roots_pem: String,
}

impl Trust {
    /// A connection to `endpoint`, as `identity`.
    pub(super) async fn connect(&self, endpoint: &str, identity: &Identity) -> Result<Channel, ConnectError> {
        #[cfg(feature = "simulation")]
        if let Some(connecting) = super::simulation::dial(endpoint, tuned) {
            return connecting.await.map_err(|e| ConnectError(chain(&e)));
        }
        let own = tonic::transport::Identity::from_pem(identity.certificate_pem(), identity.key_pem().as_bytes());
        let mut tls = ClientTlsConfig::new().identity(own).ca_certificate(Certificate::from_pem(identity.ca_pem()));
        if self.roots_pem.is_empty() {
            tls = tls.domain_name(SERVER_NAME);
        } else {
            tls = tls.ca_certificate(Certificate::from_pem(&self.roots_pem));
        }
        let endpoint = self::endpoint(endpoint)?.tls_config(tls).map_err(|e| ConnectError(chain(&e)))?;
        connect(endpoint).await.map_err(ConnectError)
    }
}

/// TCP and TLS, or why not. tonic's own limit is for TCP alone: a replica that is frozen, or behind
/// a link that was cut, would be waited for until it wakes.
pub(super) async fn connect(endpoint: Endpoint) -> Result<Channel, String> {
    match timeout(CONNECT_LIMIT, endpoint.connect()).await {
        Ok(connected) => connected.map_err(|e| chain(&e)),
        Err(_) => Err(format!("no answer within {CONNECT_LIMIT:?}")),
    }
}

/// What all connections to a control plane have in common.
pub(super) fn endpoint(uri: &str) -> Result<Endpoint, ConnectError> {
    if !uri.starts_with("https://") {
        return Err(ConnectError(format!("`{uri}` is not an https:// address")));
    }
    Endpoint::from_shared(uri.to_owned()).map(tuned).map_err(|e| ConnectError(chain(&e)))
}

pub(super) fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
}

/// An error with its causes, in one line: tonic's own text is "transport error".
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
