//! Finds out why a control plane closed the connection. With TLS 1.3 a server rejects our
//! certificate only after our side of the handshake is complete. The gRPC client then sees either
//! the alert or a closed connection, whichever it reads first. So the handshake is repeated below
//! gRPC.

use std::{sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;

use crate::context::Context;

/// Longest duration of the check.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The TLS error with which this control plane rejects the connection, if it does.
pub(super) async fn diagnose(context: &Context) -> Option<rustls::Error> {
    tokio::time::timeout(TIMEOUT, handshake(context)).await.ok().flatten()
}

async fn handshake(context: &Context) -> Option<rustls::Error> {
    let uri: hyper::Uri = context.endpoint.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await.ok()?;
    let outcome = async {
        let mut stream = TlsConnector::from(Arc::new(config(context)?)).connect(name, stream).await?;
        stream.read(&mut [0]).await // HTTP/2's first frame when we are welcome, an alert when not
    };
    let error = outcome.await.err()?;
    error.get_ref()?.downcast_ref::<rustls::Error>().cloned()
}

pub(super) fn config(context: &Context) -> std::io::Result<ClientConfig> {
    let wrong = |_| std::io::ErrorKind::InvalidData;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(context.ca.as_bytes()) {
        roots.add(root.map_err(wrong)?).map_err(std::io::Error::other)?;
    }
    let chain =
        CertificateDer::pem_slice_iter(context.certificate.as_bytes()).collect::<Result<_, _>>().map_err(wrong)?;
    let key = PrivateKeyDer::from_pem_slice(context.key.as_bytes()).map_err(wrong)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key);
    let mut config = config.map_err(std::io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
