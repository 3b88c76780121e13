//! Stage 3, `authorize`: decides whether the token may make this request. Only this file can make a
//! [`Permitted`].
//!
//! A token reaches only services that it was issued for. Endpoints that issue keys are always
//! refused. Then the tenant's policies decide, on exactly the bytes that are sent. What cannot be
//! decided is denied. A decision is valid for the records that it was made on ([`decided`]).

mod decided;

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use seks_policy::{Body, Call, Decision, Policies, PolicySlice};
use seks_service::{
    INTERCEPTION, McpSource, TokenSlot,
    request::{BodyFacts, BodyFields, BodyFormat, FormError, McpCall, Target, without_base_slash},
};
use seks_types::id::{PolicyId, TenantName};

use self::decided::DecidedOn;
use super::{
    audit::{Counters, Record},
    caller::Caller,
    form,
    inspected_body::InspectedBody,
    lookup::Identified,
    meaning::{Meaning, meaning},
    received_body::Received,
    refusal::Refusal,
    route::Naming,
    second_target,
    shared_limits::SharedLimits,
    sigv4::{self, PresentedSignature, SeenBody, Signed},
    token,
    upstream_target::UpstreamTarget,
};
use crate::{
    code::Code,
    http::{
        client::{Meter, Upload, UploadError},
        fields,
    },
    table::{CredentialEntry, Reevaluate, ServiceEntry, TokenEntry},
};

/// How long a request waits for its tenant's policies while they are being compiled.
const COMPILE_PATIENCE: Duration = Duration::from_secs(15);

/// Says that a request was decided. Nothing but this file can make one.
struct Permit(());

/// A request that may be sent.
pub(crate) struct Permitted {
    pub(crate) identified: Identified,
    pub(crate) service: Arc<ServiceEntry>,
    pub(crate) credential: Arc<CredentialEntry>,
    /// The upstream request's method, path and query, without the credential.
    pub(crate) line: UpstreamTarget,
    pub(crate) body: Upload,
    /// Of a service whose requests are signed: what the agent's signature covered, and so will the
    /// node's.
    pub(crate) signed: Option<Signed>,
    /// Decides again when a record has changed.
    pub(crate) decided: Box<dyn Reevaluate>,
    _permit: Permit,
}

/// Path and query as they will be sent: with the base path, without the agent's token, and
/// without the agent's own value in the credential's place. Also the method that an override
/// asks for.
fn read_target(identified: &Identified, service: &ServiceEntry) -> Result<(UpstreamTarget, Option<Method>), Refusal> {
    let rest = without_token(identified, service)?;
    // HTTPS_PROXY mode has no base URL of the node. The target is the one that the upstream
    // would have got.
    let rest = match identified.admitted.form() {
        Naming::Path | Naming::Host => without_base_slash(service, &rest),
        Naming::Forward => Cow::Borrowed(&*rest),
    };
    let target = Target::parse(service, &rest).map_err(|e| Refusal::invalid(e.text()))?;
    let parts = &identified.admitted.parts;
    let Meaning { method, copied } = meaning(&parts.method, &parts.headers, &target, service)?;
    if identified.has_other_tokens && token::has_token(target.path().as_bytes()) {
        return Err(Refusal::invalid("the path holds a token where the service takes none"));
    }
    let mut line = UpstreamTarget::new(&target, service, identified.has_other_tokens);
    line.credential = identified.in_path.unwrap_or_default();
    if let Some(copied) = copied {
        let target = Target::parse(service, &copied).map_err(|e| Refusal::invalid(e.text()))?;
        line.copied = Some(Box::new(UpstreamTarget::new(&target, service, false)));
    }
    Ok((line, method))
}

/// What the agent asks of the service, without the segment of the path that holds the token:
/// `/bot{token}/sendMessage`. The credential's segment is put there instead.
fn without_token<'a>(identified: &'a Identified, service: &ServiceEntry) -> Result<Cow<'a, str>, Refusal> {
    let rest = identified.admitted.rest();
    let Some(kept) = identified.in_path else { return Ok(Cow::Borrowed(rest)) };
    let behind = rest.trim_start_matches('/');
    let end = behind.get(kept..).and_then(|own| own.find(['/', '?'])).map_or(behind.len(), |end| kept + end);
    let after = behind.get(end..).unwrap_or_default();
    // `/file/bot{token}/x` is decided on as `/file/x`, so nothing else may be.
    let imitates = |slot: &TokenSlot| match slot {
        TokenSlot::Path(before, _) => before.rsplit_once('/').is_some_and(|(directories, _)| {
            after
                .strip_prefix('/')
                .and_then(|after| after.strip_prefix(directories))
                .is_some_and(|a| a.is_empty() || a.starts_with('/'))
        }),
        _ => false,
    };
    match behind.get(..kept).and_then(|segments| segments.strip_suffix('/')) {
        Some(segments) => Ok(Cow::Owned(format!("/{segments}{after}"))),
        None if service.slots.iter().any(imitates) => {
            Err(Refusal::invalid("the path behind the token begins like another one of the service's"))
        }
        None => Ok(Cow::Borrowed(after)),
    }
}

/// Permits a request, or says why not.
pub(crate) async fn call(
    mut identified: Identified,
    mut body: Received,
    caller: &Caller,
    (bounds, grace): (&SharedLimits, Option<Duration>),
    record: &mut Record,
) -> Result<Permitted, Refusal> {
    let token = identified.token.clone();
    let service = identified.service.clone().ok_or(Code::ServiceUnknown)?;
    if service.name.as_str() == INTERCEPTION {
        return Err(Code::ServiceUnknown.into()); // it holds a CA, and is no upstream
    }
    let grant = token.grant(service.name.as_str()).ok_or(Code::ServiceNotGranted)?;
    let credential = grant.credential().ok_or_else(|| {
        Refusal::from(Code::ServiceNotGranted).with_detail("this node holds no credential for the service")
    })?;
    if !credential.is_bound_to(&service) {
        return Err(unbound());
    }
    if identified.admitted.websocket && !service.allow_websocket {
        return Err(Refusal::from(Code::PolicyDenied).with_detail("the service does not allow WebSocket"));
    }
    let Some(method_group) = service.method_group(&identified.admitted.parts.method) else {
        return Err(Refusal::method_not_listed(&service));
    };
    let (line, mut overriding) = read_target(&identified, &service)?;
    if let Some(url) = &identified.signed_url {
        let fields = credential.open_for(&service).map_err(|_| Code::UpstreamUnreachable)?;
        url.verify(&fields, service.name.as_str(), &line.text, caller.now)?;
    }
    let mut signed = None;
    if service.sigv4.is_some() {
        // Before any policy is evaluated: the signature identifies the caller.
        let who = (&*service, &*credential);
        (body, signed) = Box::pin(verify(&identified, who, body, caller, bounds, record)).await?;
    }
    let second = second_target::read(&identified, &service)?;
    let parts = &identified.admitted.parts;
    let is_streamed = !matches!(body, Received::Read(_));
    if let Some(kind) = form::kind_of(parts, &body, &service) {
        form::check_coding(parts)?;
        if is_streamed && !service.allow_method_override && !parts.headers.contains_key(header::CONTENT_TYPE) {
            body = form::watch(body, bounds, record);
        } else {
            let scanned = form::scan(body, kind, &service, token.tenant(), bounds, record);
            let (read, asked) = Box::pin(scanned).await?;
            body = read;
            if asked.is_some() && overriding.is_some() {
                return Err(Refusal::invalid("the method is overridden more than once"));
            }
            overriding = overriding.or(asked);
        }
    }
    if overriding.as_ref().is_some_and(|method| service.method_group(method).is_none()) {
        return Err(Refusal::method_not_listed(&service));
    }
    second_target::check_override(overriding.as_ref(), &parts.headers)?;
    let lines = || std::iter::once(&line).chain(second.as_ref().map(|second| &second.line));
    let is_denied =
        |method: &Method| lines().any(|line| seks_service::is_denied(&service.denied_paths, method, line.path()));
    if is_denied(&parts.method) || overriding.as_ref().is_some_and(is_denied) {
        return Err(Refusal::from(Code::PolicyDenied).with_detail(HANDS_OUT_KEYS));
    }
    let slice = slice_for(&identified, &service).await?;
    let mut call = Call {
        method: &parts.method,
        method_group,
        path: line.path(),
        query: line.query(),
        token: token.id(),
        services: token.services(),
        age_seconds: caller.now.saturating_sub(token.issued_at()).max(0),
        source: caller.source,
        body: Body::NotRead,
        mcp: service.mcp.is_some(),
        trust: token.trust_facts(),
    };
    let needs_body = bounds.needs_body(&slice, &call, &token).await?
        || match &overriding {
            Some(method) => bounds.needs_body(&slice, &overridden(&call, &service, method)?, &token).await?,
            None => false,
        }
        || match &second {
            Some(second) => bounds.needs_body(&slice, &on(&call, &second.line), &token).await?,
            None => false,
        };
    let (body, facts) = match needs_body {
        false => (body.pass_on(fields::is_grpc(parts.version, &parts.headers), bounds, record)?, None),
        true => {
            let read_as = ReadAs { headers: &parts.headers, mcp: service.mcp, fields: slice.body_fields() };
            Box::pin(inspect(body, read_as, token.tenant(), bounds, record)).await?
        }
    };
    if let Some(facts) = &facts {
        call.body = facts.into();
    }
    let unreadable = service.mcp.is_some() && matches!(facts, Some(InspectedBody::Opaque));
    let decision = bounds.decide(&slice, &call, &token, facts.as_ref()).await?;
    let permit = decide(decision, record)
        .map_err(|refusal| if unreadable { refusal.with_more_detail(UNREADABLE_MCP) } else { refusal })?;
    if let Some(method) = &overriding {
        let call = overridden(&call, &service, method)?;
        if slice.asks_for_query(&call) {
            return Err(Refusal::from(Code::PolicyDenied).with_detail(QUERY_IN_BODY));
        }
        decide(bounds.decide(&slice, &call, &token, facts.as_ref()).await?, record)?;
    }
    if let Some(second) = &second {
        decide(bounds.decide(&slice, &on(&call, &second.line), &token, facts.as_ref()).await?, record)?;
    }
    if let Some(copied) = &line.copied {
        let call = copying(&call, copied, &service)?;
        decide(bounds.decide(&slice, &call, &token, Some(&InspectedBody::Absent)).await?, record)
            .map_err(|refusal| refusal.with_more_detail(OF_COPY_SOURCE))?;
    }
    record.credential(&credential.name, credential.version);
    let facts =
        facts.unwrap_or(if matches!(body, Upload::Empty) { InspectedBody::Absent } else { InspectedBody::Opaque });
    let websocket = identified.admitted.websocket;
    let methods = (parts.method.clone(), overriding);
    let mut decided = DecidedOn::new(&service, methods, &line, caller, facts, (&credential, grace), websocket);
    if let Some(second_target::SecondTarget { line, url }) = second {
        decided = decided.and_on(line);
        identified.admitted.parts.headers.insert(second_target::DESTINATION, url);
    }
    let decided = Box::new(decided);
    Ok(Permitted { _permit: permit, service, credential, line, body, signed, decided, identified })
}

/// Google's clients send a GET whose URL is too long as a POST, and its query as a form.
const QUERY_IN_BODY: &str =
    "a policy asks for the query, which a request with an overridden method may hold in its body";

/// Said of endpoints in `denied_paths`.
const HANDS_OUT_KEYS: &str = "the service refuses endpoints that hand out keys";

/// Said when a policy denies what a request copies from.
const OF_COPY_SOURCE: &str = "; this was decided on a GET of the copy source, which the request reads";

/// The call by which the object would be read that the request copies from.
fn copying<'a>(call: &Call<'a>, copied: &'a UpstreamTarget, service: &ServiceEntry) -> Result<Call<'a>, Refusal> {
    if service.denied_paths.iter().any(|d| d.matches(&Method::GET, copied.path())) {
        return Err(Refusal::from(Code::PolicyDenied).with_detail(HANDS_OUT_KEYS));
    }
    let (path, query) = (copied.path(), copied.query());
    let call = Call { path, query, body: Body::Absent, ..call.clone() };
    overridden(&call, service, &Method::GET)
}

/// The call as a server reads it that honours the overriding method.
fn overridden<'a>(call: &Call<'a>, service: &ServiceEntry, method: &'a Method) -> Result<Call<'a>, Refusal> {
    let method_group = service.method_group(method).ok_or_else(|| Refusal::method_not_listed(service))?;
    Ok(Call { method, method_group, ..call.clone() })
}

/// The call on another target.
fn on<'a>(call: &Call<'a>, line: &'a UpstreamTarget) -> Call<'a> {
    Call { path: line.path(), query: line.query(), ..call.clone() }
}

/// The agent cannot repair it, but a reader of its log can.
pub(crate) fn unbound() -> Refusal {
    Refusal::from(Code::CredentialUnbound)
        .with_detail("the credential is bound to another destination: an operator has to store it again, or rebind it")
}

async fn slice_for(identified: &Identified, service: &ServiceEntry) -> Result<Arc<PolicySlice>, Refusal> {
    let policies = match identified.token.policies() {
        Some(policies) => policies,
        // Boxed: it is rare, and has a timer.
        None => Box::pin(compiled(&identified.token)).await?,
    };
    let agent = identified.token.agent().ok_or(Code::AgentDisabled)?;
    Ok(policies.slice_for(&agent.name, &agent.attributes, &service.name))
}

/// Policies that are being compiled.
async fn compiled(token: &TokenEntry) -> Result<Arc<Policies>, Refusal> {
    let compiled = token.tenant_state().policies_or_wait(COMPILE_PATIENCE).await.map_err(|_| {
        let refusal = Refusal::from(Code::LimitExceeded).with_status(StatusCode::SERVICE_UNAVAILABLE);
        refusal.with_detail("the tenant's policies are still being compiled")
    })?;
    compiled.ok_or_else(|| Code::PolicyDenied.into())
}

fn decide(decision: Decision, record: &mut Record) -> Result<Permit, Refusal> {
    if !decision.audited.is_empty() {
        let policies = names(&decision.audited);
        tracing::info!(request_id = record.id().as_str(), policies, "policies in audit mode would have applied");
        record.audited(decision.audited.iter().map(PolicyId::as_str));
    }
    if decision.allowed && decision.error.is_none() {
        if let Some(limits) = &decision.limits {
            record.limited_by(limits);
        }
        record.decided(true, &decision.policy_ids);
        return Ok(Permit(()));
    }
    let names = names(&decision.policy_ids);
    let detail = match (&decision.error, names.is_empty()) {
        (Some(error), _) => error.to_string(),
        (None, true) => "no policy permits this request".to_owned(),
        (None, false) => format!("denied by {names}"),
    };
    Err(Refusal::from(Code::PolicyDenied).with_detail(detail).with_policies(decision.policy_ids))
}

fn names(policies: &[PolicyId]) -> String {
    policies.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ")
}

/// Said when a policy needs what an MCP message asks for, and that can't be told.
const UNREADABLE_MCP: &str =
    "; an MCP request must be one JSON-RPC message (no batch) whose Mcp-Method and Mcp-Name headers equal its body";

/// How a body is read for the policies.
#[derive(Clone, Copy)]
struct ReadAs<'a> {
    headers: &'a HeaderMap,
    mcp: Option<McpSource>,
    /// The declared fields that the policies use. `None`: no body can be inspected.
    fields: Option<&'a Arc<BodyFields>>,
}

/// Verifies the agent's signature, then reads the body if that says what is to be done. Only where
/// the signature covers a hash that isn't written anywhere the body comes first.
async fn verify(
    identified: &Identified,
    (service, credential): (&ServiceEntry, &CredentialEntry),
    body: Received,
    caller: &Caller,
    bounds: &SharedLimits,
    record: &Record,
) -> Result<(Received, Option<Signed>), Refusal> {
    let Some(sigv4) = &service.sigv4 else { return Ok((body, None)) };
    let (parts, target) = (&identified.admitted.parts, identified.admitted.target());
    let presented = PresentedSignature::read(parts, target, sigv4, caller.began)?;
    let fields = credential.open_for(service).map_err(|_| Code::UpstreamUnreachable)?;
    let with = (sigv4, &identified.digest, &fields);
    if presented.needs_body(sigv4) {
        let verified = presented.verify_head(parts, target, with)?;
        let tenant = identified.token.tenant();
        let whole = body.expecting(presented.body_hash()).read(tenant, verified, bounds, record).await?;
        let is_form = sigv4::is_form(&parts.headers);
        let seen = bounds.look_into(tenant, &whole, move |whole| SeenBody::of(whole, is_form)).await?;
        let signed = presented.verify(parts, target, with, Some(&seen))?;
        return Ok((Received::Read(whole), Some(signed)));
    }
    let hash = presented.body_hash();
    let signed = presented.verify(parts, target, with, None)?;
    Ok((body.expecting(hash), Some(signed)))
}

/// What a body says, as far as it can be read.
async fn facts_of(
    ReadAs { headers, mcp, fields }: ReadAs<'_>,
    whole: &Bytes,
    tenant: &TenantName,
    bounds: &SharedLimits,
) -> Result<InspectedBody, Refusal> {
    let format = BodyFormat::of(headers).filter(|format| mcp.is_none() || *format == BodyFormat::Json);
    let (Some(format), Some(fields)) = (format.filter(|_| whole.len() <= bounds.inspect_bytes), fields.cloned()) else {
        return Ok(InspectedBody::Opaque);
    };
    let Some(source) = mcp else {
        let facts = bounds.look_into(tenant, whole, move |body| BodyFacts::read(format, body, &fields)).await?;
        return Ok(facts.map_or(InspectedBody::Opaque, InspectedBody::Known));
    };
    let read = move |body: &[u8]| BodyFacts::read(format, body, &fields)?.with_mcp(body);
    let facts = bounds.look_into(tenant, whole, read).await?;
    let confirmed = |facts: &BodyFacts| McpCall::confirm(facts.mcp.as_ref(), headers, source).is_ok();
    Ok(facts.filter(confirmed).map_or(InspectedBody::Opaque, InspectedBody::Known))
}

/// Reads the body whole, up to the inspection limit. What was decided on is what is sent: the same
/// bytes.
async fn inspect(
    body: Received,
    read_as: ReadAs<'_>,
    tenant: &TenantName,
    limits: &SharedLimits,
    record: &Record,
) -> Result<(Upload, Option<InspectedBody>), Refusal> {
    let (announced, ended) = match &body {
        Received::Read(whole) => {
            let facts = match whole.is_empty() {
                true => InspectedBody::Absent,
                false => facts_of(read_as, whole, tenant, limits).await?,
            };
            return Ok((body.pass_on(false, limits, record)?, Some(facts)));
        }
        Received::Coming(body, _) => (body.size_hint(), body.is_end_stream()),
        Received::Begun(stream) => (stream.size_hint(), false),
    };
    if ended {
        return Ok((body.pass_on(false, limits, record)?, Some(InspectedBody::Absent)));
    }
    if announced.lower() > limits.inspect_bytes as u64 {
        return Ok((body.pass_on(false, limits, record)?, Some(InspectedBody::Opaque)));
    }
    let mut stream = match body {
        Received::Coming(body, hash) => Received::stream(body, hash, limits, record),
        Received::Begun(stream) => *stream,
        Received::Read(_) => return Err(Code::RequestInvalid.into()), // returned above
    };
    let mut whole = limits.buffers.body(tenant, announced.exact(), true);
    while let Some(frame) = stream.frame().await {
        let Ok(data) = frame.map_err(Refusal::from)?.into_data() else { continue };
        whole.push(&data).await?;
        if whole.len() > limits.inspect_bytes {
            // Denied, unless only policies in audit mode wanted to know: then all of it is sent.
            stream.put_back(whole.freeze());
            return Ok((Upload::Stream(Box::new(stream)), Some(InspectedBody::Opaque)));
        }
    }
    let whole = whole.freeze();
    let facts = facts_of(read_as, &whole, tenant, limits).await?;
    Ok((Upload::Whole(Some(whole)), Some(facts)))
}

impl Meter for Counters {
    fn add(&self, bytes: usize) {
        self.sent(bytes);
    }

    fn drop_trailers(&self, count: u16) {
        self.trailers_dropped(count);
    }
}

impl From<UploadError> for Refusal {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::TooLarge => Code::RequestTooLarge.into(),
            UploadError::TooSlow => {
                Self::invalid("the request's body came too slowly").with_status(StatusCode::REQUEST_TIMEOUT)
            }
            UploadError::Broken | UploadError::Abort => Self::invalid("the request's body is broken off or malformed"),
            // Forms are the only bodies that are watched.
            UploadError::Stopped => Self::invalid(FormError::MethodOverride.text()),
            UploadError::Altered => {
                Self::from(Code::TokenMalformed).with_detail("the body is not the one that was signed")
            }
        }
    }
}
