//! HTTPS_PROXY mode: an agent asks for a tunnel to a host (`CONNECT`), and the node is the host.
//!
//! Only for hosts of services that the token grants, with a certificate by the tenant's own CA. Inside, each request is one like any
//! other: the same stages, with the service found by the host instead of the path. Everything else is refused, or passed through
//! where the tenant says so.

mod certificates;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, Response, Version, header, request::Parts};
use seks_service::INTERCEPTION;
use seks_types::{
    id::{CredentialName, TenantName},
    token::{self, Digest},
};
use tokio::time::Instant;

pub(crate) use self::certificates::Leaves;
use super::{Tunnel, passthrough};
use crate::{
    config::Config,
    http::server::Link,
    pipeline::{
        audit::Record,
        lookup,
        origin::Origin,
        refusal::{Code, Refusal},
        relay::{InFlight, Outgoing, expiry},
    },
    proxy::Caller,
    table::{CredentialEntry, Cut, Found, ServiceEntry, Table, TokenEntry},
    upstream::Upstreams,
};

/// How requests came to the node.
#[derive(Clone)]
pub(crate) enum Entry {
    /// By its own name: path mode and host mode.
    Direct,
    /// As to a proxy.
    Forward,
    /// Through a tunnel to a host that the node stands for.
    Within(Arc<Via>),
}

/// A tunnel, as the requests in it see it.
pub(crate) struct Via {
    /// The host that the agent believes to speak to.
    pub(crate) origin: Origin,
    /// The token that the tunnel was asked for with.
    pub(crate) digest: Option<Digest>,
}

/// A tunnel that is about to open.
pub(crate) struct Interception {
    /// For the requests in it.
    pub(crate) via: Arc<Via>,
    ca: Arc<CredentialEntry>,
    cut: Option<Cut>,
    expires: Option<Instant>,
    in_flight: InFlight,
    record: Option<Record>,
}

/// Who asks for a tunnel.
struct Asker {
    tenant: TenantName,
    token: Option<(Arc<TokenEntry>, Digest)>,
}

/// Opens a tunnel, or says why not.
pub(crate) async fn connect(
    parts: &Parts,
    caller: &Caller,
    table: &Arc<Table>,
    (config, upstreams): (&Config, &Upstreams),
    in_flight: InFlight,
    record: &mut Record,
) -> Result<Response<Outgoing>, Refusal> {
    record.table(table.revision());
    if !table.lease().valid() {
        return Err(Code::NodeStale.into());
    }
    if parts.version == Version::HTTP_2 {
        return Err(Refusal::invalid("CONNECT takes a connection of its own: HTTP/1.1"));
    }
    let origin = Origin::of_tunnel(&parts.uri).ok_or_else(|| Refusal::invalid("CONNECT takes host:port"))?;
    // Whose services may be asked for by who shows no token yet.
    let tenant = config.forward_proxy.as_ref().and_then(|c| c.tenant.as_deref()?.try_into().ok());
    let asker = Asker::read(&parts.headers, table, tenant, record)?;
    if let Some((token, _)) = &asker.token {
        record.identified(token.tenant(), token.agent_name(), token.id());
        lookup::check(token, caller)?;
    }
    let Some(service) = asker.service(&origin, table) else {
        let (token, leave, cut) = asker.leave(&origin, table).ok_or_else(|| {
            Refusal::from(Code::ServiceNotGranted).with_detail("no service that may be reached is at that host")
        })?;
        let in_flight = in_flight.of(token, config.proxy.limits.max_in_flight)?;
        return passthrough::open(&origin, &leave, token, cut, (&config.upstream, upstreams), in_flight, record).await;
    };
    record.service(&service.name, service.upstream.host());
    let ca = asker.ca(table).ok_or_else(|| {
        Refusal::from(Code::ServiceNotGranted)
            .with_detail("HTTPS_PROXY mode takes a token that grants `seks-interception`")
    })?;
    let mut cut = None;
    let mut expires = None;
    if let Some((token, digest)) = &asker.token {
        let mut watch = table.register(*digest, token, &service.name).ok_or(Code::ServiceNotGranted)?;
        if let Some(reason) = watch.reason() {
            return Err(Code::from(reason).into());
        }
        cut = Some(watch);
        expires = expiry(token.expires_at(), caller.now);
    }
    record.decided(true, &[]);
    let via = Arc::new(Via { origin, digest: asker.token.map(|(_, digest)| digest) });
    let interception = Interception { via, ca, cut, expires, in_flight, record: None };
    Ok(Response::new(Outgoing::tunnel(Tunnel::Interception(Box::new(interception)))))
}

impl Asker {
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

    /// The tenant's leave for this token to reach a host of none of its services. One of theirs is none of these, granted or not.
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

/// The first service of a token's at `origin`.
pub(crate) fn granted(token: &TokenEntry, origin: &Origin) -> Option<Arc<ServiceEntry>> {
    token.grants().iter().filter_map(|grant| grant.service()).find(|service| origin.is(&service.upstream))
}

/// The token in `Proxy-Authorization`: Bearer, or one half of Basic.
pub(crate) fn proxy_token(headers: &HeaderMap) -> Result<Option<Digest>, Refusal> {
    let mut values = headers.get_all(header::PROXY_AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return if headers.contains_key(header::PROXY_AUTHORIZATION) {
            Err(Code::TokenAmbiguous.into())
        } else {
            Ok(None)
        };
    };
    let value = value.as_bytes();
    let malformed = Refusal::from(Code::TokenMalformed);
    let (scheme, rest) =
        value.iter().position(|b| *b == b' ').and_then(|at| value.split_at_checked(at)).unwrap_or_default();
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return token::parse(rest).map(Some).map_err(|_| malformed);
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Err(malformed);
    }
    let Ok(pair) = STANDARD.decode(rest) else { return Err(malformed) };
    let mut halves = pair.splitn(2, |b| *b == b':');
    let (user, password) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    match (token::parse(user), token::parse(password)) {
        (Ok(_), Ok(_)) => Err(Code::TokenAmbiguous.into()),
        (Ok(digest), Err(_)) | (Err(_), Ok(digest)) => Ok(Some(digest)),
        (Err(_), Err(_)) => Err(malformed),
    }
}

/// What goes to the connection that a tunnel was asked for on.
pub(crate) struct Opened {
    /// The certificate to show, and its key.
    pub(crate) tls: Arc<rustls::ServerConfig>,
    /// For the requests inside.
    pub(crate) via: Arc<Via>,
    cut: Option<Cut>,
    expires: Option<Instant>,
    record: Record,
}

impl Interception {
    pub(crate) fn hand_over(mut self: Box<Self>, record: Record) {
        self.record = Some(record);
        if let Some(activity) = self.in_flight.leave_connection() {
            activity.switch(Tunnel::Interception(self));
        }
    }

    /// Makes the certificate. What is in the tunnel counts for its token by itself.
    pub(crate) fn open(self, leaves: &Leaves) -> Option<Opened> {
        let Self { via, ca, cut, expires, in_flight, record } = self;
        drop(in_flight);
        let tls = leaves.config(&ca, via.origin.host());
        let tls = tls.inspect_err(|error| tracing::warn!(%error, "cannot make a certificate: is the tenant's CA one?"));
        Some(Opened { tls: tls.ok()?, via, cut, expires, record: record? })
    }
}

impl Opened {
    /// The handshake has failed. A client that asks for another host than that of the tunnel is refused; the rest has gone away.
    pub(crate) fn failed(mut self, error: &std::io::Error) {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        if matches!(cause, Some(rustls::Error::General(_))) {
            self.record.refused(Code::RequestInvalid);
        }
    }

    /// Serves the tunnel with `serve` for as long as there is a right to it; `link` is the connection in it.
    pub(crate) async fn run(self, serve: impl Future<Output = ()>, link: &Link) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::PROXY_AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn a_token_may_be_a_bearer_or_one_half_of_basic() {
        let token = token::FreshToken::generate().unwrap();
        let basic = |pair: String| format!("Basic {}", STANDARD.encode(pair));
        let text = token.as_str();
        for value in
            [format!("Bearer {text}"), basic(format!("{text}:")), basic(format!("agent:{text}")), basic(text.into())]
        {
            assert_eq!(proxy_token(&headers(&value)).unwrap(), Some(token.digest()), "{value}");
        }
        assert_eq!(proxy_token(&HeaderMap::new()).unwrap(), None);
        for (value, code) in [
            (basic(format!("{text}:{text}")), Code::TokenAmbiguous),
            (basic("user:password".into()), Code::TokenMalformed),
            ("Basic !".into(), Code::TokenMalformed),
            (format!("Digest {text}"), Code::TokenMalformed),
            (text.into(), Code::TokenMalformed),
        ] {
            assert_eq!(proxy_token(&headers(&value)).unwrap_err().code, code, "{value}");
        }
    }
}
