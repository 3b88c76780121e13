//! The order of the stages. That order is the security argument: each stage takes a type that only
//! the stage before it can make.

mod handler;
mod recycled_future;

use std::{future::Future, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use http_body::Body as _;
use seks_runtime::http2::Http2Rejection;

pub(crate) use self::handler::ProxyHandler;
use crate::{
    code::Code,
    config::Config,
    http::{
        fields,
        server::{Activity, Peer, RequestBody},
    },
    pipeline::{
        admit::{self, Admitted, Hosts},
        approval,
        audit::{Audit, Record, RequestId},
        authorize,
        caller::Caller,
        connect::{self, Asked},
        discovery,
        exchange::{self, Exchange, SeenTokens},
        forward,
        in_flight::InFlight,
        inject::{self, Injected, Injection},
        limits,
        lookup::{self, Identified},
        model_call::ModelCall,
        prepared::PreparedInjection,
        received_body::Received,
        refusal::{self, Reader, Refusal, grpc},
        relay::{self, OutgoingBody},
        response_body::ResponseBody,
        route::{ProxyMode, Route},
        shared_limits::SharedLimits,
        wrong_tokens::WrongTokens,
    },
    table::Table,
    telemetry::BufferState,
    tunnel::{
        interception::{self, CertificateCache},
        websocket,
    },
    upstream::{CaFileError, Upstreams},
};

/// Serves requests. One a node; shared by all connections.
pub(crate) struct Proxy {
    table: Arc<Table>,
    upstreams: Arc<Upstreams<PreparedInjection>>,
    hosts: Hosts,
    audit: Audit,
    config: Config,
    wrong_tokens: Arc<WrongTokens>,
    bounds: SharedLimits,
    certificates: CertificateCache,
    seen: SeenTokens,
}

/// A request as far as it comes without waiting.
enum Begun {
    /// It asks for a tunnel.
    Connect(Box<Parts>),
    /// It exchanges a token of an issuer for one of ours.
    Exchange(Box<(Admitted, RequestBody)>),
    Identified(Box<Identified>, RequestBody),
}

/// A request whose records keep changing while it waits for a connection is given up after so many
/// decisions.
const MAX_DECISIONS: usize = 8;

impl Proxy {
    /// A proxy that serves from `table`. `config.proxy.listen` is what is really listened on.
    ///
    /// # Errors
    /// When `[upstream] ca_file` can't be read.
    pub(crate) fn new(table: Arc<Table>, audit: Audit, config: Config) -> Result<Self, CaFileError> {
        let upstreams = Arc::new(Upstreams::new(config.upstream.clone(), config.own.clone())?);
        let hosts = Hosts::new(&config.proxy.hosts, config.proxy.host_suffix.as_deref(), config.proxy.listen.ip());
        let wrong_tokens = Arc::new(WrongTokens::new(config.proxy.limits.wrong_tokens_per_second));
        let counted = wrong_tokens.clone();
        audit.metrics().count_limited(move || counted.limited());
        let bounds = SharedLimits::new(&config.proxy.limits);
        let buffers = bounds.buffers.clone();
        audit.metrics().count_buffers(move || BufferState { held: buffers.held(), refused: buffers.refused() });
        let (in_flight, shares, limited) = (bounds.in_flight.clone(), upstreams.limits().clone(), table.clone());
        audit.metrics().count_bounds(move || {
            let [idle, services] = shares.reached();
            let (refused, shadowed) = limited.limit_slices().over();
            [
                ("in_flight", in_flight.refused()),
                ("idle_upstream_connections", idle),
                ("services", services),
                ("policy", refused),
                ("policy_shadow", shadowed),
            ]
        });
        Ok(Self {
            table,
            upstreams,
            hosts,
            audit,
            config,
            wrong_tokens,
            bounds,
            certificates: CertificateCache::default(),
            seen: SeenTokens::default(),
        })
    }

    /// The caller at the present time.
    fn caller(&self, peer: &Peer) -> Caller {
        let now = self.table.wall().unix_now();
        Caller { source: peer.source, tls: peer.tls, certificate: peer.certificate, began: now, now }
    }

    /// Answers one request. Every answer has an `x-seks-request-id` and closes one record; a
    /// refusal that leaves a body unread ends its connection.
    ///
    /// What needs no waiting is done when this is called, so that the future has no room for it:
    /// futures are moved, and each of their bytes costs cache.
    fn handle(
        self: Arc<Self>,
        request: Request<RequestBody>,
        caller: Caller,
        mode: ProxyMode,
        activity: Arc<Activity>,
    ) -> impl Future<Output = Response<ResponseBody>> + Send + 'static {
        let in_flight = InFlight::begin(activity);
        let mut record = self.audit.open(request.method(), request.uri().path(), request.headers());
        record.came_from(&caller, request.version());
        let reader = Reader::of(&request);
        let unread = request.version() != Version::HTTP_2 && !request.body().is_end_stream();
        let form = refusal::Format::asked_for(request.version(), request.headers());
        let is_forward = matches!(mode, ProxyMode::Forward);
        let begun = self.begin(request, caller, mode, &mut record);
        async move {
            let served = match begun {
                Ok(begun) => self.serve(begun, caller, in_flight, &mut record).await,
                Err(refusal) => Err(refusal),
            };
            let mut response = match served {
                Ok(response) => response,
                Err(refusal) => {
                    let refusal = self.wrong_tokens.bound(refusal, caller.source);
                    refused(&refusal.worded_for(reader), form, unread, &mut record)
                }
            };
            if record.waits_for_own_answer()
                && let Err(code) = Box::pin(record.record_own_answer(response.status())).await
            {
                response = refused(&Refusal::from(code), form, unread, &mut record);
            }
            if is_forward && response.status() == StatusCode::UNAUTHORIZED {
                ask_for_proxy_authorization(&mut response);
            }
            response.headers_mut().insert(RequestId::HEADER, record.id().header());
            record.answered(response.status());
            response.map(|body| ResponseBody::new(body, record))
        }
    }

    /// Answers a request whose form was refused before it was one. It ends its connection.
    fn refuse(&self, refusal: &Refusal) -> Response<ResponseBody> {
        let mut record = self.audit.open(&unread_method(), "", &HeaderMap::new());
        let mut response = refused(refusal, refusal::Format::default(), true, &mut record);
        response.headers_mut().insert(RequestId::HEADER, record.id().header());
        record.answered(response.status());
        response.map(|body| ResponseBody::new(body, record))
    }

    /// Answers a malformed request on an HTTP/2 stream. Its connection continues.
    fn refuse_stream(&self, refusal: &Refusal) -> Response<ResponseBody> {
        let mut record = self.audit.open(&unread_method(), "", &HeaderMap::new());
        let mut response = refused(refusal, refusal::Format::default(), false, &mut record);
        response.headers_mut().insert(RequestId::HEADER, record.id().header());
        record.answered(response.status());
        response.map(|body| ResponseBody::new(body, record))
    }

    /// Records what the HTTP/2 library, or the frame budget, has refused by itself. Its answer has
    /// no request id.
    fn record_refused(&self, refused: Http2Rejection) {
        self.audit.metrics().edge().refused(refused);
        let mut record = self.audit.open(&unread_method(), "", &HeaderMap::new());
        if refused == Http2Rejection::HeaderList {
            record.refused(Code::RequestTooLarge);
            record.answered(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            return record.complete();
        }
        record.refused(Code::RequestInvalid);
    }

    /// The stages that wait for nothing: up to the look-up.
    fn begin(
        &self,
        request: Request<RequestBody>,
        caller: Caller,
        mode: ProxyMode,
        record: &mut Record,
    ) -> Result<Begun, Refusal> {
        record.refusal().map_or(Ok(()), |code| Err(Refusal::from(code)))?;
        let (parts, body) = request.into_parts();
        if parts.method == Method::CONNECT && matches!(mode, ProxyMode::Forward) {
            return Ok(Begun::Connect(Box::new(parts)));
        }
        let admitted = admit::call(parts, &body, &mode, &self.hosts, &self.config.proxy.limits)?;
        record.routed(&admitted.route);
        if matches!(admitted.route, Route::Exchange) {
            return Ok(Begun::Exchange(Box::new((admitted, body))));
        }
        let identified = lookup::call(admitted, &caller, &self.table, record)?;
        Ok(Begun::Identified(identified, body))
    }

    /// The stages behind the look-up.
    async fn serve(
        self: &Arc<Self>,
        begun: Begun,
        caller: Caller,
        in_flight: InFlight,
        record: &mut Record,
    ) -> Result<Response<OutgoingBody>, Refusal> {
        // Boxed: they are rare, and large.
        match begun {
            Begun::Connect(parts) => {
                let with = (&self.config, self.upstreams.addresses(), &self.bounds.in_flight);
                let within = self.clone();
                Box::pin(interception::connect(&parts, &caller, &self.table, with, in_flight, within, record)).await
            }
            Begun::Exchange(asked) => {
                let (admitted, body) = *asked;
                let with = Exchange { table: &self.table, seen: &self.seen, wrong: &self.wrong_tokens };
                Box::pin(exchange::call(admitted, body, &caller, with, record)).await
            }
            Begun::Identified(identified, body) => {
                let reader = identified.reader();
                let served = self.serve_identified(identified, body, caller, in_flight, record).await;
                served.map_err(|refusal| refusal.worded_for(reader))
            }
        }
    }

    async fn serve_identified(
        self: &Arc<Self>,
        identified: Box<Identified>,
        body: RequestBody,
        caller: Caller,
        in_flight: InFlight,
        record: &mut Record,
    ) -> Result<Response<OutgoingBody>, Refusal> {
        let in_flight = in_flight.of(&identified.token, &self.bounds.in_flight, &self.table)?;
        if identified.service.is_none() {
            record.decided(true, &[]);
            return Ok(discovery::call(&identified, &caller));
        }
        let asked = Asked::of(&identified);
        let injected = match self.decide(identified, body.into(), caller, record).await {
            Ok(injected) => injected,
            Err(refusal) => {
                asked.mask_path(record);
                return Err(refusal);
            }
        };
        let answered = forward::call(injected, &self.config.upstream, &caller, record).await?;
        if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let idle = answered.service.idle_timeout.unwrap_or(self.config.upstream.idle_timeout);
            return Box::pin(websocket::switch(answered, idle, in_flight, record)).await; // boxed: it is rare, and large
        }
        if let (Some(credential), StatusCode::UNAUTHORIZED) = (&answered.minted, answered.response.status()) {
            self.table.rejected_credentials().report(credential);
        }
        relay::call(answered, self.config.upstream.idle_timeout, in_flight, record)
    }

    /// Decides, waits for a connection, and injects the credential. If a record that the decision
    /// depends on changes before that, the stages run again from the look-up. So the decision is
    /// that of the table at the time of the write.
    async fn decide(
        &self,
        mut identified: Box<Identified>,
        mut body: Received,
        mut caller: Caller,
        record: &mut Record,
    ) -> Result<Box<Injected>, Refusal> {
        for _ in 0..MAX_DECISIONS {
            let terms = (&self.bounds, self.config.upstream.replaced_credential_grace);
            let permitted = match authorize::call(identified, body, &caller, terms, record).await {
                Ok(permitted) => permitted,
                Err(refusal) if refusal.needed().is_some() => {
                    return Err(Box::pin(approval::put_before_operators(refusal, &self.table)).await);
                }
                Err(refusal) => return Err(refusal),
            };
            let (service, line) = (&permitted.service, &permitted.line);
            if service.usage.is_some() {
                let method = &permitted.identified.admitted.parts.method;
                let prices = self.config.usage.loaded.as_ref();
                record.model_call(ModelCall::of(service, method, line.path(), prices));
            }
            if record.has_uncounted_limits() {
                // Boxed: it may wait, and has a timer.
                Box::pin(limits::call(&permitted, &self.table, record)).await?;
            }
            if record.has_pending_uses() {
                Box::pin(approval::take_uses(&permitted.identified.token, &self.table, record)).await?;
            }
            let connected =
                connect::call(permitted, &self.upstreams, &self.table, self.audit.metrics(), record).await?;
            connected.mask_path(record);
            record.intend()?.recorded().await?;
            match inject::call(connected, &caller, &self.table, record)? {
                Injection::Done(injected) => return Ok(injected),
                Injection::Changed(admitted, upload) => {
                    record.decide_again();
                    caller = caller.again(&self.table);
                    identified = lookup::call(*admitted, &caller, &self.table, record)?;
                    body = upload.into();
                }
            }
        }
        Err(Refusal::from(Code::UpstreamUnreachable).with_detail("the service or its policies keep changing"))
    }

    /// Closes all connections to upstreams.
    pub(crate) fn close(&self) {
        self.upstreams.close();
    }
}

/// Stands for the method of a request that was refused before it was read, and is recorded as
/// `_OTHER`.
fn unread_method() -> Method {
    Method::from_bytes(b"UNREAD").unwrap_or_default()
}

fn refused(refusal: &Refusal, form: refusal::Format, unread: bool, record: &mut Record) -> Response<OutgoingBody> {
    record.refused(refusal.code);
    if let Some(policies) = &refusal.policies {
        record.decided(false, policies);
    }
    let as_grpc = if form == refusal::Format::Grpc { grpc::refused(refusal) } else { None };
    let mut response = as_grpc.unwrap_or_else(|| refusal.response(record.id().as_str())).map(OutgoingBody::fixed);
    if form == refusal::Format::ProblemAsText {
        response.headers_mut().insert(header::CONTENT_TYPE, refusal::PROBLEM_AS_TEXT);
    }
    if unread || refusal.ends_connection() {
        fields::close_after(response.headers_mut());
    }
    response
}

/// A proxy's 401 is another status with another header: clients send their credentials only when
/// they see these.
fn ask_for_proxy_authorization(response: &mut Response<OutgoingBody>) {
    *response.status_mut() = StatusCode::PROXY_AUTHENTICATION_REQUIRED;
    let headers = response.headers_mut();
    headers.remove(header::WWW_AUTHENTICATE);
    headers.insert(header::PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"seks\""));
}
