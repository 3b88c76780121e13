//! Stage 5, `inject`: checks lease, token and expiry a last time, then writes the credential.
//!
//! The service's definition alone decides where and how the credential is written. A request has no
//! influence on its form, location or length. The agent's own values in those locations are removed
//! first, and what is written is never parsed again.

use std::{
    cell::OnceCell,
    future::{Future as _, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use http::{HeaderName, HeaderValue, header, request::Parts};
use seks_service::{InjectionSite, Service, Template};
use seks_types::secret::Fields;
use tokio::time::Instant;
use zeroize::Zeroize as _;

use super::{
    admit::Admitted,
    audit::Record,
    authorize::{self, Permitted},
    caller::Caller,
    connect::Connected,
    header_filter,
    in_flight::expiry,
    prepared::{PreparedInjection, needles_with_signature},
    range::WidenedRange,
    refusal::Refusal,
    rewrite::{AgentAddress, Rewriting},
    scrub::Needles,
    signed_url::UrlSigner,
    sigv4, token,
    websocket::Offer,
};
use crate::{
    code::Code,
    http::{
        HeaderList,
        client::{self, Request, RequestHead, Upload},
    },
    table::{CredentialEntry, Cut, CutReason, ServiceEntry, Table},
};

/// A request as it goes to the upstream, with the credential in it.
pub(crate) struct Injected {
    pub(crate) service: Arc<ServiceEntry>,
    pub(crate) request: Request,
    /// Where it is sent.
    pub(crate) connection: client::Connection,
    /// What was put in, to be taken out of the answer.
    pub(crate) needles: Needles,
    /// Ends the exchange when the right to it ends.
    pub(crate) cut: Cut,
    /// When the token expires.
    pub(crate) expires: Option<Instant>,
    /// What is offered with a WebSocket handshake.
    pub(crate) offer: Option<Box<Offer>>,
    /// What URLs in the answer become.
    pub(crate) rewriting: Rewriting,
    /// What the agent asked for, when that is a range.
    pub(crate) range: Option<WidenedRange>,
    /// The credential that is in the request.
    pub(crate) credential: Arc<CredentialEntry>,
    /// Only this file makes one.
    _proof: (),
}

impl From<CutReason> for Code {
    fn from(reason: CutReason) -> Self {
        match reason {
            CutReason::TokenRevoked => Self::TokenRevoked,
            CutReason::AgentDisabled => Self::AgentDisabled,
            CutReason::ServiceRemoved => Self::ServiceUnknown,
            // The agent may ask again, and is served where the service leads now.
            CutReason::ServiceChanged => Self::UpstreamUnreachable,
            CutReason::CredentialReplaced => Self::UpstreamUnreachable,
            CutReason::PolicyDenied => Self::PolicyDenied,
            CutReason::CredentialRemoved => Self::ServiceNotGranted,
            CutReason::LeaseExpired => Self::NodeStale,
        }
    }
}

/// What came of an injection.
pub(crate) enum Injection {
    /// The credential is in: the request goes out as it is.
    Done(Box<Injected>),
    /// A record that the request was decided on has changed since, and nothing was sent: it is to
    /// be decided again.
    Changed(Box<Admitted>, Upload),
}

impl From<CutReason> for Refusal {
    fn from(reason: CutReason) -> Self {
        Code::from(reason).into()
    }
}

/// What must hold before a request goes out again of which an upstream has processed nothing: the
/// lease, the token, the decision on the records as they are now, and the destination. Waits while
/// the tenant's policies are compiled.
pub(super) async fn check_again(
    cut: &mut Cut,
    caller: &Caller,
    service: &ServiceEntry,
    credential: &CredentialEntry,
) -> Result<(), Refusal> {
    poll_fn(|cx| match Pin::new(&mut *cut).poll(cx) {
        Poll::Ready(reason) => Poll::Ready(Err(reason)),
        Poll::Pending if cut.is_undecided() => Poll::Pending,
        Poll::Pending => Poll::Ready(cut.reason().map_or(Ok(()), Err)),
    })
    .await?;
    token::check(cut.token(), &Caller { now: cut.unix_now(), ..*caller })?;
    if cut.leads_to(service, credential) {
        return Ok(());
    }
    let changed = "the upstream has not processed the request, and the service or its credential has changed since";
    Err(Refusal::from(Code::UpstreamUnreachable).with_detail(changed))
}

/// A credential that is opened only for a request that needs its fields.
struct LazyFields<'a> {
    credential: &'a CredentialEntry,
    service: &'a ServiceEntry,
    fields: OnceCell<Fields>,
}

impl LazyFields<'_> {
    fn fields(&self) -> Option<&Fields> {
        if self.fields.get().is_none() {
            let _ = self.fields.set(self.credential.open_for(self.service).ok()?); // it was empty a moment ago
        }
        self.fields.get()
    }
}

/// Puts the credential in, or says why not any more. Whatever a request waits for (its body, a
/// connection) it has waited for by now: where the records are still those that it was decided on,
/// the decision is that of the latest table.
pub(crate) fn call(
    connected: Connected,
    caller: &Caller,
    table: &Arc<Table>,
    record: &mut Record,
) -> Result<Injection, Refusal> {
    let Connected { permitted, connection, .. } = connected;
    let Permitted { identified, service, credential, line, body, signed, decided, .. } = permitted;
    // Registered before the check: a revocation is either seen by it or wakes the cut.
    let cut = table.register(identified.digest, &identified.token, &service.name).ok_or(Code::ServiceNotGranted)?;
    let mut cut = cut.with_decision(identified.version, decided);
    if !cut.is_latest() {
        connection.give_back();
        return Ok(Injection::Changed(Box::new(identified.admitted), body));
    }
    if let Some(reason) = cut.reason() {
        return Err(Code::from(reason).into());
    }
    let now = table.wall().unix_now();
    token::check(&identified.token, &Caller { now, ..*caller })?;

    let broken = Code::UpstreamUnreachable;
    if !credential.is_bound_to(&service) {
        return Err(authorize::unbound());
    }
    let sealed = LazyFields { credential: &credential, service: &service, fields: OnceCell::new() };
    let prepared = connection.per_pool(|| PreparedInjection::new(&service, sealed.fields()?)).ok_or(broken)?;
    let agent = AgentAddress::new(identified.admitted.form(), caller.tls, &identified.admitted.parts);
    let url_key = prepared.url_key.as_ref().filter(|_| !service.keyless_urls.is_empty());
    let signer = url_key.map(|key| Box::new(UrlSigner::new(key.clone(), identified.digest, caller.now)));
    let rewriting = Rewriting { agent, signer };
    // A client that reads trailers says so: gRPC, and clients of HTTP/1.1 servers that send
    // trailers only on request.
    let wants_trailers = header_filter::wants_trailers(&identified.admitted.parts, connection.is_h2());
    let Parts { method, headers, .. } = identified.admitted.parts;
    let offer = match identified.admitted.websocket {
        true => Some(Box::new(Offer::new(&headers).ok_or(broken)?)),
        false => None,
    };
    let (mut headers, dropped) = header_filter::request(headers, &service, identified.has_other_tokens);
    if let Some(counts) = dropped.counts() {
        record.headers_dropped(&counts);
    }
    header_filter::add_ours(&mut headers, &service);
    if let Some(traceparent) = record.upstream_began(service.forward_trace_context) {
        headers.set(HeaderName::from_static("traceparent"), traceparent);
    }
    if wants_trailers {
        headers.set(header::TE, HeaderValue::from_static("trailers"));
        if !connection.is_h2() {
            headers.set(header::CONNECTION, HeaderValue::from_static("te"));
        }
    }
    if let Some(offer) = &offer {
        offer.write(&mut headers).ok_or(broken)?;
    }
    let mut line = SecretTarget { text: line.text, path_len: line.path, credential: line.credential };
    apply_sites(&service, &prepared, || sealed.fields(), &mut headers, &mut line).ok_or(broken)?;
    let mut needles = prepared.needles.clone();
    if let Some(signed) = &signed {
        let fields = sealed.fields().ok_or(broken)?;
        let request = (&method, &mut headers, &prepared.host, &mut line.text);
        let signature = sigv4::sign(signed, &service, fields, request).ok_or(broken)?;
        needles = needles_with_signature(fields, &signature);
    }
    let range = if service.allow_range { WidenedRange::widen(&mut headers, &needles) } else { None };
    if !connection.is_h2() {
        headers.set(header::HOST, prepared.host.clone());
    }
    let request = Request { head: RequestHead { method, target: target(line).ok_or(broken)?, headers }, body };
    let expires = expiry(identified.token.expires_at(), now);
    let connection = connection.into_http();
    Ok(Injection::Done(Box::new(Injected {
        service,
        request,
        connection,
        needles,
        cut,
        expires,
        offer,
        rewriting,
        range,
        credential,
        _proof: (),
    })))
}

/// Writes every site of the service. `fields` is called only for sites that are not prepared.
fn apply_sites<'f>(
    service: &Service,
    prepared: &PreparedInjection,
    fields: impl Fn() -> Option<&'f Fields>,
    headers: &mut HeaderList,
    line: &mut SecretTarget,
) -> Option<()> {
    for (site, header) in service.injection.iter().zip(&prepared.headers) {
        match header {
            Some((name, value)) => headers.set(name.clone(), value.clone()),
            None => write(site, fields()?, line)?,
        }
    }
    Some(())
}

/// Path and query, and where the query begins. Wiped if it isn't sent: it may hold a credential.
struct SecretTarget {
    text: String,
    path_len: usize,
    /// Where a credential goes that is a segment of the path.
    credential: usize,
}

impl Drop for SecretTarget {
    fn drop(&mut self) {
        self.text.zeroize();
    }
}

/// Writes a site that is no header into the request's target.
fn write(site: &InjectionSite, fields: &Fields, line: &mut SecretTarget) -> Option<()> {
    match site {
        InjectionSite::Header(..) | InjectionSite::Basic(_) => Some(()), // prepared
        InjectionSite::Query(name, template) => {
            let mut value = render(template, fields, escape_query)?;
            let mut text = String::with_capacity(line.text.len() + name.len() + value.len() + 2);
            text.push_str(&line.text);
            text.push(if line.text.len() == line.path_len { '?' } else { '&' });
            text.push_str(name);
            text.push('=');
            text.push_str(std::str::from_utf8(&value).ok()?);
            value.zeroize();
            line.text.zeroize();
            line.text = text;
            Some(())
        }
        InjectionSite::Path(template) => {
            let mut value = render(template, fields, escape_path)?;
            let mut text = String::with_capacity(line.text.len() + value.len());
            let (before, after) = line.text.split_at_checked(line.credential)?;
            text.push_str(before);
            text.push_str(std::str::from_utf8(&value).ok()?);
            text.push_str(after);
            line.path_len += value.len();
            value.zeroize();
            line.text.zeroize();
            line.text = text;
            Some(())
        }
    }
}

/// Renders into a buffer that needn't grow: growing leaves copies behind.
fn render(template: &Template, fields: &Fields, encode: impl Fn(&[u8], &mut Vec<u8>)) -> Option<Vec<u8>> {
    let values: usize = fields.iter().map(|(_, v)| v.len()).sum();
    let mut out = Vec::with_capacity(256 + 3 * values);
    template.render(fields, &mut out, encode)?;
    Some(out)
}

fn escape_query(value: &[u8], out: &mut Vec<u8>) {
    escape(value, b"-._~", out);
}

/// What RFC 3986 allows in a segment is left as it is: Telegram's `id:key` is compared byte for
/// byte.
fn escape_path(value: &[u8], out: &mut Vec<u8>) {
    escape(value, b"-._~:@!$&'()*+,=", out);
}

fn escape(value: &[u8], plain: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &b in value {
        if b.is_ascii_alphanumeric() || plain.contains(&b) {
            out.push(b);
        } else {
            let digit = |n: u8| HEX.get(usize::from(n)).copied().unwrap_or(b'0');
            out.extend_from_slice(&[b'%', digit(b >> 4), digit(b & 15)]);
        }
    }
}

/// The request's target. Its parts were checked one by one; that it can't break out of its line is
/// checked once more.
fn target(mut line: SecretTarget) -> Option<String> {
    line.text.bytes().all(|b| b.is_ascii_graphic()).then(|| std::mem::take(&mut line.text))
}

#[cfg(test)]
mod tests;
