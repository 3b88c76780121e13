//! HTTPS_PROXY mode: an agent asks for a tunnel to a host (`CONNECT`), and the node answers in the
//! name of that host.
//!
//! The token must grant a service at the host. The certificate is issued by the tenant's own CA.
//! Inside, each request passes the same stages; the host names the service instead of the path.
//! Other hosts are refused, or passed through where the tenant allows that.

mod certificates;

use std::{future::Future, pin::Pin, sync::Arc};

use http::{HeaderMap, HeaderValue, Response, Version, header, request::Parts};
use seks_service::INTERCEPTION;
use seks_types::{
    id::{CredentialName, TenantName},
    token::Digest,
};
use tokio::time::Instant;

pub(crate) use self::certificates::CertificateCache;
use super::passthrough;
use crate::{
    code::Code,
    config::Config,
    http::server::{self, ConnectionHandle, Protocol, Stream, Upgrade, Upgraded},
    pipeline::{
        audit::Record,
        caller::Caller,
        in_flight::{InFlight, InFlightLimits, expiry},
        origin::Origin,
        refusal::Refusal,
        relay::{OutgoingBody, Tunnel},
        route::{TunnelContext, granted},
        token::{check, proxy_token},
    },
    table::{CredentialEntry, Cut, Found, ServiceEntry, Table, TokenEntry},
    upstream::AddressResolver,
};

/// A tunnel that is about to open.
pub(crate) struct Interception {
    /// For the requests in it.
    context: Arc<TunnelContext>,
    ca: Arc<CredentialEntry>,
    cut: Option<Cut>,
    expires: Option<Instant>,
    in_flight: InFlight,
    record: Option<Record>,
    within: Arc<dyn TunnelServer>,
}

/// The sender of a CONNECT.
struct TunnelRequester {
    tenant: TenantName,
    token: Option<(Arc<TokenEntry>, Digest)>,
}

/// Opens a tunnel, or says why not.
pub(crate) async fn connect(
    parts: &Parts,
    caller: &Caller,
    table: &Arc<Table>,
    (config, addresses, limits): (&Config, &AddressResolver, &Arc<InFlightLimits>),
    in_flight: InFlight,
    within: Arc<dyn TunnelServer>,
    record: &mut Record,
) -> Result<Response<OutgoingBody>, Refusal> {
    record.table(table.revision());
    if !table.lease().valid() {
        return Err(Code::NodeStale.into());
    }
    if parts.version == Version::HTTP_2 {
        return Err(Refusal::invalid("CONNECT takes a connection of its own: HTTP/1.1"));
    }
    let origin = Origin::of_tunnel(&parts.uri).ok_or_else(|| Refusal::invalid("CONNECT takes host:port"))?;
    // Some clients leave the port out of `Host`, and some send none (RFC 9110, 9.3.6).
    let is_same = |host: &HeaderValue| host.to_str().is_ok_and(|host| origin.is_meant_by(host));
    if !parts.headers.get_all(header::HOST).iter().all(is_same) {
        return Err(Refusal::invalid("Host and the target of CONNECT name different hosts"));
    }
    // Whose services may be asked for by who shows no token yet.
    let tenant = config.forward_proxy.as_ref().and_then(|c| c.tenant.as_deref()?.try_into().ok());
    let requester = TunnelRequester::read(&parts.headers, table, tenant, record)?;
    if let Some((token, _)) = &requester.token {
        record.identified(token.tenant(), token.agent_name(), token.id());
        check(token, caller)?;
    }
    let Some(service) = requester.service(&origin, table) else {
        let (token, leave, cut) = requester.leave(&origin, table).ok_or_else(|| {
            Refusal::from(Code::ServiceNotGranted).with_detail("no service that may be reached is at that host")
        })?;
        let in_flight = in_flight.of(token, limits, table)?;
        return passthrough::open(&origin, &leave, token, cut, (&config.upstream, addresses), in_flight, record).await;
    };
    record.service(&service);
    let ca = requester.ca(table).ok_or_else(|| {
        Refusal::from(Code::ServiceNotGranted)
            .with_detail("HTTPS_PROXY mode takes a token that grants `seks-interception`")
    })?;
    let mut cut = None;
    let mut expires = None;
    if let Some((token, digest)) = &requester.token {
        let mut watch = table.register(*digest, token, &service.name).ok_or(Code::ServiceNotGranted)?;
        if let Some(reason) = watch.reason() {
            return Err(Code::from(reason).into());
        }
        cut = Some(watch);
        expires = expiry(token.expires_at(), caller.now);
    }
    record.decided(true, &[]);
    let context = Arc::new(TunnelContext { origin, digest: requester.token.map(|(_, digest)| digest) });
    let interception = Interception { context, ca, cut, expires, in_flight, record: None, within };
    Ok(Response::new(OutgoingBody::tunnel(Box::new(interception))))
}

impl TunnelRequester {
    fn read(
        headers: &HeaderMap,
        table: &Table,
        tenant: Option<TenantName>,
        record: &mut Record,
    ) -> Result<Self, Refusal> {
        let Some(digest) = proxy_token(headers)? else {
            let tenant = tenant.ok_or(Code::TokenMissing)?;
            return Ok(Self { tenant, token: None });
        };
        match table.find(&digest) {
            Found::Token(token) => Ok(Self { tenant: token.tenant().clone(), token: Some((token, digest)) }),
            Found::Revoked(token) => {
                record.identified(&token.tenant, &token.agent, &token.id);
                Err(Code::TokenRevoked.into())
            }
            Found::Unknown => Err(Code::TokenUnknown.into()),
        }
    }

    fn service(&self, origin: &Origin, table: &Table) -> Option<Arc<ServiceEntry>> {
        match &self.token {
            Some((token, _)) => granted(token, origin),
            None => table.service_where(&self.tenant, |service| origin.is(&service.upstream)),
        }
    }

    /// The tenant's leave for this token to reach a host of none of its services. One of theirs is
    /// none of these, granted or not.
    fn leave(&self, origin: &Origin, table: &Arc<Table>) -> Option<(&Arc<TokenEntry>, Arc<ServiceEntry>, Cut)> {
        let (token, digest) = self.token.as_ref()?;
        let leave = token.grant(INTERCEPTION)?.service().filter(|service| service.tunnel_other_hosts)?;
        if table.service_where(&self.tenant, |service| service.upstream.host() == origin.host()).is_some() {
            return None;
        }
        let cut = table.register(*digest, token, &leave.name)?;
        Some((token, leave, cut))
    }

    fn ca(&self, table: &Table) -> Option<Arc<CredentialEntry>> {
        match &self.token {
            Some((token, _)) => token.grant(INTERCEPTION)?.credential(),
            None => table.credential(&self.tenant, &CredentialName::try_from(INTERCEPTION).ok()?),
        }
    }
}

/// Messages to the connection of a CONNECT.
struct OpenTunnel {
    /// The certificate to show, and its key.
    tls: Arc<rustls::ServerConfig>,
    /// For the requests inside.
    context: Arc<TunnelContext>,
    cut: Option<Cut>,
    expires: Option<Instant>,
    record: Record,
}

/// Serves the requests inside a tunnel.
pub(crate) trait TunnelServer: Send + Sync {
    /// The certificates that were made so far.
    fn certificates(&self) -> &CertificateCache;

    /// Serves a connection whose requests came through a tunnel.
    fn serve_tunnel<'a>(
        self: Arc<Self>,
        context: Arc<TunnelContext>,
        stream: Stream,
        protocol: Protocol,
        connection: Upgraded<'a>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

impl Tunnel for Interception {
    fn hand_over(mut self: Box<Self>, record: Record) {
        self.record = Some(record);
        if let Some(activity) = self.in_flight.leave_connection() {
            activity.switch(self);
        }
    }
}

impl Upgrade for Interception {
    /// TLS in the name of the host that the agent asked for, and in it HTTP as anywhere.
    fn run<'a>(
        self: Box<Self>,
        stream: Stream,
        connection: Upgraded<'a>,
    ) -> Pin<Box<dyn Future<Output = Option<Stream>> + Send + 'a>> {
        Box::pin(async move {
            let within = self.within.clone();
            let open = self.open()?;
            let (mut stream, protocol) =
                match server::accept_within(connection.settings, open.tls.clone(), stream).await {
                    Ok(accepted) => accepted,
                    Err(Some(error)) => {
                        open.failed(&error);
                        return None;
                    }
                    Err(None) => return None,
                };
            let link = stream.link();
            let serve = within.serve_tunnel(open.context.clone(), stream, protocol, connection);
            open.run(serve, &link).await;
            None
        })
    }
}

impl Interception {
    /// Makes the certificate. What is in the tunnel counts for its token by itself.
    fn open(self) -> Option<OpenTunnel> {
        let Self { context, ca, cut, expires, in_flight, record, within } = self;
        drop(in_flight);
        let tls = within.certificates().config(&ca, context.origin.host());
        let tls = tls.inspect_err(|error| tracing::warn!(%error, "cannot make a certificate: is the tenant's CA one?"));
        Some(OpenTunnel { tls: tls.ok()?, context, cut, expires, record: record? })
    }
}

impl OpenTunnel {
    /// The handshake has failed. A client that asks for another host than that of the tunnel is
    /// refused; the rest has gone away.
    fn failed(mut self, error: &std::io::Error) {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        if matches!(cause, Some(rustls::Error::General(_))) {
            self.record.refused(Code::RequestInvalid);
        }
    }

    /// Serves the tunnel with `serve` for as long as there is a right to it; `link` is the
    /// connection in it.
    async fn run(self, serve: impl Future<Output = ()>, link: &ConnectionHandle) {
        let Self { cut, expires, mut record, .. } = self;
        let ended = async {
            match cut {
                Some(cut) => Code::from(cut.await),
                None => std::future::pending().await,
            }
        };
        let expired = async {
            match expires {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let reason = tokio::select! {
            biased; // the right to it comes first
            reason = ended => reason,
            () = expired => Code::TokenExpired,
            () = serve => return record.complete(),
        };
        link.reset();
        record.refused(reason);
    }
}
