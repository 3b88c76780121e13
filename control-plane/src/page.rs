//! The page: what operators look at in a browser. It is read-only HTML without scripts.
//!
//! Every figure on it is an answer of the admin API, asked in this process for the operator who
//! reads ([`reader`]). So the same rules decide what is shown as for `seks`. An operator is known
//! by its certificate, or by a session of a one-time link ([`crate::page_sessions`]).

mod html;
mod query;
mod reader;
mod reason;
mod request;
mod response;
mod stats;
mod views;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming as Body, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::CertificateDer;
use seks_runtime::connections::{AcceptPause, Connections, ListenerSlot};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::server::TlsStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;

use self::{
    reader::Reader,
    request::{PageRequest, Route},
    views::View,
};
use crate::{
    admin::Admin,
    authority::{Identities, Peer},
    page_sessions::PageSessions,
};

/// Most connections, and most of one source that have not sent a request yet.
const CONNECTIONS: usize = 256;
const UNAUTHENTICATED_PER_SOURCE: usize = 16;
/// Longest wait for a request's head, and for the next one on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest duration of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Largest head of a request, in bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// How long answers of the admin API may take for one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(15);

/// What the page is made of.
pub(crate) struct Page {
    /// Answers, by its rules.
    pub(crate) admin: Admin,
    /// How certificates are read.
    pub(crate) identities: Identities,
    /// Who has opened a link.
    pub(crate) sessions: Arc<PageSessions>,
    /// The values of `Host` that are accepted, in lower case. A site that makes its own name
    /// resolve to this address is refused.
    pub(crate) hosts: Vec<String>,
    /// Whether browsers use TLS.
    pub(crate) is_tls: bool,
}

impl Page {
    /// Serves connections that came through the TLS handshake, until `stop`.
    pub(crate) async fn serve_tls(
        self: Arc<Self>,
        mut incoming: impl Stream<Item = std::io::Result<TlsStream<TcpStream>>> + Unpin,
        stop: CancellationToken,
    ) {
        let connections = Connections::new(CONNECTIONS, UNAUTHENTICATED_PER_SOURCE);
        while let Some(Some(accepted)) = stop.run_until_cancelled(incoming.next()).await {
            let Ok(stream) = accepted else { continue };
            let (tcp, tls) = stream.get_ref();
            let Ok(address) = tcp.peer_addr() else { continue };
            let certificate = tls.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
            let peer = certificate.map(|certificate| self.identities.read(certificate));
            let slot = connections.admit(address.ip()).await;
            let page = Arc::clone(&self);
            tokio::spawn(stop.clone().run_until_cancelled_owned(page.serve_connection(stream, slot, peer)));
        }
    }

    /// Serves connections without TLS, until `stop`: only on a loopback address.
    pub(crate) async fn serve_plain(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let connections = Connections::new(CONNECTIONS, UNAUTHENTICATED_PER_SOURCE);
        let mut pause = AcceptPause::default();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause.wait("page.listen", &error, &connections).await;
                    continue;
                }
            };
            pause.reset();
            let slot = connections.admit(address.ip()).await;
            let page = Arc::clone(&self);
            tokio::spawn(stop.clone().run_until_cancelled_owned(page.serve_connection(stream, slot, None)));
        }
    }

    /// `peer`: `None` without a certificate, `Some(None)` with one that names nobody.
    async fn serve_connection(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        slot: ListenerSlot,
        peer: Option<Option<Peer>>,
    ) {
        let service = service_fn(|request: Request<Body>| {
            slot.mark_authenticated(); // it has sent a request: connections without one are closed first
            let (page, peer) = (&self, peer.clone());
            async move { Ok::<_, Infallible>(page.answer(&request, peer).await) }
        });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
        let connection =
            tokio::time::timeout(CONNECTION_TIMEOUT, server.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            _ = connection => {} // the browser closed it, or was too slow
            () = slot.evicted() => {}
        }
    }

    async fn answer<B>(&self, request: &Request<B>, peer: Option<Option<Peer>>) -> Response<Full<Bytes>> {
        let request = match PageRequest::read(request, &self.hosts) {
            Ok(request) => request,
            Err(refusal) => return response::text(refusal.status, refusal.why),
        };
        match &request.route {
            Route::Style => response::asset("text/css; charset=utf-8", html::STYLE),
            Route::Icon => response::asset("image/svg+xml", html::ICON),
            // Browsers and mail scanners load addresses ahead of a click: that must not spend a
            // link.
            Route::Link(_) if request.method == Method::HEAD || request.is_prefetch => {
                response::text(StatusCode::SERVICE_UNAVAILABLE, "a link is opened by a click")
            }
            Route::Link(code) => match self.sessions.open(code) {
                Some(session) => response::session(&session, self.is_tls),
                None => response::html(StatusCode::GONE, html::link_is_spent()),
            },
            Route::Session { id, view } => {
                let keys = request.cookies.iter().map(String::as_str);
                match self.sessions.peer(id, keys) {
                    Some(peer) => self.show(peer, format!("/p/{id}"), view, &request).await,
                    None => response::html(StatusCode::FORBIDDEN, html::session_is_over()),
                }
            }
            Route::View(view) => match peer {
                None => response::html(StatusCode::FORBIDDEN, html::nobody()),
                Some(None) => response::html(StatusCode::FORBIDDEN, html::no_operator()),
                Some(Some(peer)) => self.show(peer, String::new(), view, &request).await,
            },
        }
    }

    async fn show(&self, peer: Peer, base: String, view: &View, request: &PageRequest) -> Response<Full<Bytes>> {
        let reader = Reader::new(self.admin.clone(), peer);
        let shown = tokio::time::timeout(PAGE_TIMEOUT, views::show(&reader, &base, view, &request.query)).await;
        match shown {
            Ok(Ok(page)) => response::html(StatusCode::OK, page),
            Ok(Err(status)) => response::html(response::status_of(&status), html::failed(&base, status.message())),
            Err(_) => response::html(StatusCode::GATEWAY_TIMEOUT, html::failed(&base, "the control plane is too slow")),
        }
    }
}

/// The values of `Host` by which browsers may reach a listener on `address` with these names, or
/// at `url`.
pub(crate) fn hosts(address: SocketAddr, names: &[String], url: &str) -> Vec<String> {
    let port = address.port();
    let mut hosts = vec![address.to_string()];
    for name in names {
        let name = if name.contains(':') { format!("[{name}]") } else { name.to_ascii_lowercase() };
        hosts.push(format!("{name}:{port}"));
    }
    hosts.extend(url.split_once("://").map(|(_, authority)| authority.trim_end_matches('/').to_ascii_lowercase()));
    // Browsers leave out the scheme's own port.
    let short: Vec<String> = hosts.iter().filter_map(|host| host.strip_suffix(":443").map(str::to_owned)).collect();
    hosts.extend(short);
    hosts
}
