//! The certificate that a control plane shows.

use std::{sync::Arc, time::Duration};

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls_rejection;
use crate::context::Context;

/// Longest wait for the handshake.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The end of the validity of the control plane's certificate, in Unix seconds. `None`: no
/// handshake was possible.
pub(crate) async fn certificate_until(context: &Context) -> Option<i64> {
    tokio::time::timeout(TIMEOUT, handshake(context)).await.ok().flatten()
}

async fn handshake(context: &Context) -> Option<i64> {
    let uri: hyper::Uri = context.endpoint.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await.ok()?;
    let config = tls_rejection::config(context).ok()?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    let (_, session) = stream.get_ref();
    let (_, parsed) = x509_parser::parse_x509_certificate(session.peer_certificates()?.first()?).ok()?;
    Some(parsed.validity().not_after.timestamp())
}
