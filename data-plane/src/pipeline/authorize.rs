//! Stage 3, `authorize`: decides whether the token may make this request. Only this file can make a
//! [`Permitted`].
//!
//! A token reaches only services that it was issued for. Endpoints that issue keys are always
//! refused. Then the tenant's policies decide, on exactly the bytes that are sent. What cannot be
//! decided is denied. A decision is valid for the records that it was made on ([`decided`]).

mod decided;
mod further_readings;

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use seks_policy::{Body, Call, Decision, Policies, PolicySlice};
use seks_service::{
    INTERCEPTION, McpSource, TokenSlot,
    methods::MethodGroup,
    request::{BodyFacts, BodyFields, BodyFormat, FormError, FormKind, McpCall, Target, without_base_slash},
};
use seks_types::id::{PolicyId, TenantName};

use self::{
    decided::DecidedOn,
    further_readings::{DecidedWith, FurtherReadings},
};
use super::{
    approval,
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
    pub(crate) identified: Box<Identified>,
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
    let path = target.path().as_bytes();
    if identified.has_other_tokens && (token::has_token(path) || token::hides_token(path)) {
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

/// What a token grants, before anybody looks at the target.
struct Granted {
    service: Arc<ServiceEntry>,
    credential: Arc<CredentialEntry>,
    method_group: MethodGroup,
}

/// Whether the token grants the service, and the service takes such a request at all.
fn granted(identified: &Identified) -> Result<Granted, Refusal> {
    let service = identified.service.clone().ok_or(Code::ServiceUnknown)?;
    if service.name.as_str() == INTERCEPTION {
        return Err(Code::ServiceUnknown.into()); // it holds a CA, and is no upstream
    }
    let grant = identified.token.grant(service.name.as_str()).ok_or(Code::ServiceNotGranted)?;
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
    Ok(Granted { service, credential, method_group })
}

/// Permits a request, or says why not.
pub(crate) async fn call(
    mut identified: Box<Identified>,
    body: Received,
    caller: &Caller,
    (bounds, grace): (&SharedLimits, Option<Duration>),
    record: &mut Record,
) -> Result<Permitted, Refusal> {
    let Granted { service, credential, method_group } = granted(&identified)?;
    let (line, overriding) = read_target(&identified, &service)?;
    if let Some(url) = &identified.signed_url {
        let fields = credential.open_for(&service).map_err(|_| Code::UpstreamUnreachable)?;
        url.verify(&fields, service.name.as_str(), &line.text, caller.now)?;
    }
    // Before any policy is evaluated: the signature identifies the caller. Boxed, as every future
    // that few requests need: each request's future has room for the largest.
    let (body, signed) = match &service.sigv4 {
        Some(_) => Box::pin(verify(&identified, (&*service, &*credential), body, caller, bounds, record)).await?,
        None => (body, None),
    };
    let second = second_target::read(&identified, &service)?;
    let parts = &identified.admitted.parts;
    let (body, overriding) = match form::kind_of(parts, &body, &service) {
        Some(kind) => {
            let token = &identified.token;
            Box::pin(read_form(body, (kind, overriding), (parts, token, &service), bounds, record)).await?
        }
        None => (body, overriding),
    };
    let further =
        FurtherReadings { method: overriding.as_ref(), second: second.as_ref(), copied: line.copied.as_deref() };
    further.check(&service, parts, &line)?;
    let (slice, token) = (slice_for(&identified, &service).await?, &identified.token);
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
    let with = DecidedWith { bounds, slice: &slice, token, service: &service, now: caller.now };
    let needs_body = bounds.needs_body(&slice, &call, token).await?
        || (!further.is_none() && Box::pin(further.need_body(&call, &with)).await?);
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
    let decision = bounds.decide(&slice, &call, token, facts.as_ref()).await?;
    let permit = decide(decision, &call, &with, record)
        .map_err(|refusal| if unreadable { refusal.with_more_detail(UNREADABLE_MCP) } else { refusal })?;
    if !further.is_none() {
        Box::pin(further.decide(&call, facts.as_ref(), &with, record)).await?;
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

/// Looks for a method override in a form. Returns the body, and the method that the request is
/// overridden with.
async fn read_form(
    body: Received,
    (kind, overriding): (FormKind, Option<Method>),
    (parts, token, service): (&Parts, &TokenEntry, &ServiceEntry),
    bounds: &SharedLimits,
    record: &Record,
) -> Result<(Received, Option<Method>), Refusal> {
    form::check_coding(parts)?;
    let is_streamed = !matches!(body, Received::Read(_));
    if is_streamed && !service.allow_method_override && !parts.headers.contains_key(header::CONTENT_TYPE) {
        return Ok((form::watch(body, bounds, record), overriding));
    }
    let (body, asked) = form::scan(body, kind, service, token.tenant(), bounds, record).await?;
    if asked.is_some() && overriding.is_some() {
        return Err(Refusal::invalid("the method is overridden more than once"));
    }
    Ok((body, overriding.or(asked)))
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

fn decide(decision: Decision, call: &Call<'_>, with: &DecidedWith<'_>, record: &mut Record) -> Result<Permit, Refusal> {
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
        if let Some(approvals) = &decision.approvals {
            approval::check(approvals, call, (with.token, with.service, with.now), record)?;
        }
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
