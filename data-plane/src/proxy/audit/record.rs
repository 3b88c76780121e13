//! One request's record, from its head to its end.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use opentelemetry::{
    Key, StringValue, Value,
    trace::{Status, TraceContextExt as _},
};
use seks_proto::{
    id::{AgentName, CredentialName, PolicyId, ServiceName, TenantName},
    runtime::{logs::AUDIT_TARGET, telemetry::Permit},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{Body, Inner, RequestId, clean, context};
use crate::{
    config::AuditMode,
    proxy::refusal::Code,
    telemetry::{Outcome, ServiceMetrics},
};

/// What streams count while a record is open. Shared with the bodies.
#[derive(Debug, Default)]
pub struct Counters {
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    scrubbed: AtomicU32,
}

impl Counters {
    /// Bytes of the request's body that have been read.
    pub fn sent(&self, bytes: usize) {
        self.request_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Bytes of the answer's body that have been handed to the agent's connection.
    pub fn received(&self, bytes: usize) {
        self.response_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Occurrences of a credential that were removed from the answer.
    pub fn scrubbed(&self, hits: u32) {
        self.scrubbed.fetch_add(hits, Relaxed);
    }
}

/// An open record. Every setter may be called at any time; the last call counts.
pub struct Record {
    // Boxed: a record moves through every stage.
    open: Box<Open>,
}

struct Open {
    audit: Arc<Inner>,
    id: RequestId,
    span: Span,
    upstream: Option<Span>,
    /// Given back after the span has gone into the queue.
    permit: Option<Permit>,
    service: Arc<ServiceMetrics>,
    service_name: Option<ServiceName>,
    counters: Arc<Counters>,
    began: Instant,
    upstream_began: Option<Instant>,
    upstream_took: Duration,
    overhead: Option<Duration>,
    allowed: bool,
    reason: Option<Code>,
    status: Option<StatusCode>,
    completed: bool,
}

impl Record {
    pub(super) fn open(audit: &Arc<Inner>, method: &Method, path: &str, headers: &HeaderMap) -> Self {
        audit.metrics.began();
        let permit = audit.telemetry.queue().reserve();
        let span = if permit.is_some() {
            audit
                .telemetry
                .scope(|| tracing::info_span!(target: AUDIT_TARGET, parent: None, "seks.proxy", otel.kind = "server"))
        } else {
            Span::none()
        };
        if permit.is_none() && audit.telemetry.is_enabled() {
            audit.telemetry.queue().count_dropped(1);
        }
        let record = Self {
            open: Box::new(Open {
                audit: Arc::clone(audit),
                id: audit.ids.next(),
                span,
                upstream: None,
                permit,
                service: Arc::clone(audit.metrics.unresolved()),
                service_name: None,
                counters: Arc::default(),
                began: Instant::now(),
                upstream_began: None,
                upstream_took: Duration::ZERO,
                overhead: None,
                allowed: false,
                reason: None,
                status: None,
                completed: false,
            }),
        };
        record.describe(method, path, headers);
        record
    }

    fn describe(&self, method: &Method, path: &str, headers: &HeaderMap) {
        let open = &*self.open;
        if open.span.is_none() {
            return;
        }
        if let Some(parent) = context::parent(headers) {
            // An error says that the span was made without a layer, and then nothing is recorded anyway.
            let _ = open.span.set_parent(parent);
        }
        let (path, cut) = clean::path(path);
        open.set("http.request.method", known(method));
        open.set("url.path", path);
        if cut {
            open.set("seks.truncated", true);
        }
        open.set("seks.request.id", open.id.as_str().to_owned());
        open.set("seks.node", open.audit.node.clone());
        open.set("seks.region", open.audit.region.clone());
    }

    /// Names the request to the agent, in [`RequestId::HEADER`] and in refusals.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.open.id
    }

    /// `audit_unavailable` when this node must record and can't: the request is to be refused.
    #[must_use]
    pub fn refusal(&self) -> Option<Code> {
        let open = &*self.open;
        (open.audit.mode == AuditMode::Required && open.permit.is_none()).then_some(Code::AuditUnavailable)
    }

    /// The counters that bodies add to.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.open.counters
    }

    /// The revision that the table had applied when it was asked.
    pub fn table(&mut self, revision: u64) {
        self.open.set("seks.table.revision", i64::try_from(revision).unwrap_or(i64::MAX));
    }

    /// Whose token it is. Also set for tokens that are refused, as far as they are known.
    pub fn identified(&mut self, tenant: &TenantName, agent: &AgentName, token_id: &str) {
        self.open.set("seks.tenant", tenant.shared());
        self.open.set("seks.agent", agent.shared());
        self.open.set("seks.token.id", token_id.to_owned());
    }

    /// The service that is called, one of the table's, and its upstream's host.
    pub fn service(&mut self, service: &ServiceName, host: &str) {
        self.open.service = self.open.audit.metrics.service(service);
        self.open.service_name = Some(service.clone());
        self.open.set("seks.service", service.shared());
        self.open.set("server.address", host.to_owned());
    }

    /// What policy decided, and which policies determined it.
    pub fn decided(&mut self, allowed: bool, policies: &[PolicyId]) {
        self.open.allowed = allowed;
        if !policies.is_empty() {
            let ids = policies.iter().take(MAX_POLICIES).map(|p| StringValue::from(p.shared())).collect();
            self.open.set("seks.policy.ids", Value::Array(opentelemetry::Array::String(ids)));
        }
    }

    /// The credential that is put in.
    pub fn credential(&mut self, name: &CredentialName, version: u32) {
        self.open.set("seks.credential", name.shared());
        self.open.set("seks.credential.version", i64::from(version));
    }

    /// Why it was refused, or why an allowed request failed.
    pub fn refused(&mut self, code: Code) {
        self.open.reason = Some(code);
    }

    /// The upstream call begins. Returns what goes to the upstream as `traceparent` if the service passes it on.
    pub fn upstream_began(&mut self, pass_context: bool) -> Option<HeaderValue> {
        let open = &mut *self.open;
        open.upstream_began = Some(Instant::now());
        if open.span.is_none() {
            return None;
        }
        // A child by OpenTelemetry's lights only: the registry would let go of its parent through whatever subscriber is the
        // default where the child is dropped, and that is the log's.
        let span = open
            .audit
            .telemetry
            .scope(|| tracing::info_span!(target: AUDIT_TARGET, parent: None, "seks.upstream", otel.kind = "client"));
        // An error says that the span was made without a layer, and then nothing is recorded anyway.
        let _ = span.set_parent(open.span.context());
        let header = if pass_context { context::header(span.context().span().span_context()) } else { None };
        open.upstream = Some(span);
        header
    }

    /// The upstream's head has arrived.
    pub fn upstream_answered(&mut self, status: StatusCode) {
        let open = &mut *self.open;
        open.upstream_took = open.upstream_began.map_or(Duration::ZERO, |t| t.elapsed());
        if let Some(span) = &open.upstream {
            span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
        }
    }

    /// The upstream call has failed, with what the agent is told.
    pub fn upstream_failed(&mut self, code: Code) {
        self.open.upstream_took = self.open.upstream_began.map_or(Duration::ZERO, |t| t.elapsed());
        if let Some(span) = self.open.upstream.take() {
            span.set_attribute("error.type", code.as_str());
            span.set_status(Status::error(code.as_str()));
        }
        self.refused(code);
    }

    /// The answer's head goes out: from here on, time is the upstream's and the agent's.
    pub fn answered(&mut self, status: StatusCode) {
        self.open.status = Some(status);
        self.open.overhead = Some(self.open.began.elapsed().saturating_sub(self.open.upstream_took));
    }

    /// The answer was sent to its end. Closes the record; dropping it instead says that the answer broke off.
    pub fn complete(mut self) {
        self.open.completed = true;
    }

    /// Wraps the answer's body: the record closes when the body does.
    #[must_use]
    pub fn body<B: http_body::Body>(self, body: B) -> Body<B> {
        Body::new(body, self)
    }
}

/// More policies than this rarely determine one decision; the rest is not listed.
const MAX_POLICIES: usize = 16;

/// HTTP's own methods; any other would be an agent's text.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}

impl Open {
    fn set(&self, key: &'static str, value: impl Into<Value>) {
        if !self.span.is_none() {
            self.span.set_attribute(Key::from_static_str(key), value);
        }
    }

    fn close(&mut self) {
        let scrubbed = self.counters.scrubbed.load(Relaxed);
        let status = self.status.filter(|_| self.completed);
        let outcome = Outcome { allowed: self.allowed, reason: self.reason, status };
        self.service.count(outcome, scrubbed);
        let whole = self.began.elapsed();
        let overhead = self.overhead.unwrap_or_else(|| whole.saturating_sub(self.upstream_took));
        self.audit.metrics.ended(whole, overhead);
        if self.span.is_none() {
            if !self.audit.telemetry.is_enabled() {
                self.log(whole, scrubbed);
            }
            return;
        }
        self.set("seks.decision", if self.allowed { "allow" } else { "deny" });
        if let Some(reason) = self.reason {
            self.set("seks.reason", reason.as_str());
        }
        if let Some(status) = self.status {
            self.set("http.response.status_code", i64::from(status.as_u16()));
        }
        self.set("seks.scrub.count", i64::from(scrubbed));
        let bytes = |count: &AtomicU64| i64::try_from(count.load(Relaxed)).unwrap_or(i64::MAX);
        self.set("http.request.body.size", bytes(&self.counters.request_bytes));
        self.set("http.response.body.size", bytes(&self.counters.response_bytes));
        if !self.completed {
            self.set("error.type", "aborted");
            self.span.set_status(Status::error("aborted"));
        }
        // The child first, then the record itself, then the place in the queue.
        drop(self.upstream.take());
        drop(mem::replace(&mut self.span, Span::none()));
        drop(self.permit.take());
    }

    /// Without a collector the log is the audit trail.
    fn log(&self, whole: Duration, scrubbed: u32) {
        tracing::info!(
            request_id = self.id.as_str(),
            service = self.service_name.as_ref().map(ServiceName::as_str),
            decision = if self.allowed { "allow" } else { "deny" },
            reason = self.reason.map(Code::as_str),
            status = self.status.map(|s| s.as_u16()),
            scrubbed,
            completed = self.completed,
            micros = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX),
            "request"
        );
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.close();
    }
}
