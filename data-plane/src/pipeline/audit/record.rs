//! One request's record, from its head to its end.

mod counts;
mod usage;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use seks_audit::record::{Decision, RecordWriter, field};
use seks_policy::AppliedLimit;
use seks_runtime::telemetry::{SpanReservation, SpanWriter};
use seks_types::id::{AgentName, CredentialName, PolicyId, ServiceName, TenantName};

use super::{
    Inner, RequestId, clean, context, failures,
    spooled::{Intent, Spooled},
    trace::Trace,
};
use crate::{
    code::Code,
    config::AuditMode,
    http::client::UpstreamError,
    pipeline::{
        caller::Caller,
        model_call::{MeasuredUsage, ModelCall},
        needed_approval::PendingUse,
        refusal::Refusal,
        route::Route,
    },
    spans::{self, Recorded},
    table::{ConcurrentSlot, Counted, ServiceEntry},
    telemetry::{AgentMetrics, DROPPED_KINDS, Outcome, ServiceMetrics, Times, unix_now},
};

/// What streams count while a record is open. Shared with the bodies.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    scrubbed: AtomicU32,
    /// Trailers of the request, which are not sent.
    trailers: AtomicU16,
    /// Why the upstream failed: one more than its number; 0: it didn't.
    upstream_error: AtomicU8,
    /// What a model has used, of services with `usage`.
    /// `Some(None)`: the answer is no model's.
    usage: OnceLock<Option<Box<MeasuredUsage>>>,
}

impl Counters {
    /// Bytes of the request's body that have been read.
    pub(crate) fn sent(&self, bytes: usize) {
        self.request_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Trailers of the request that are not sent.
    pub(crate) fn trailers_dropped(&self, count: u16) {
        self.trailers.fetch_add(count, Relaxed);
    }

    /// Bytes of the answer's body that have been handed to the agent's connection.
    pub(crate) fn received(&self, bytes: usize) {
        self.response_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Why the upstream failed.
    pub(crate) fn upstream_failed(&self, error: UpstreamError) {
        self.upstream_error.store(error as u8 + 1, Relaxed);
    }

    fn upstream_error(&self) -> Option<UpstreamError> {
        UpstreamError::by_number(self.upstream_error.load(Relaxed).checked_sub(1)?)
    }

    /// What a model has used, of services with `usage`. The first call counts.
    pub(crate) fn used(&self, usage: Option<MeasuredUsage>) {
        let _ = self.usage.set(usage.map(Box::new)); // Err: there is one already
    }

    /// Occurrences of a credential that were removed from the answer.
    pub(crate) fn scrubbed(&self, hits: u32) {
        self.scrubbed.fetch_add(hits, Relaxed);
    }
}

/// An open record. Each setter writes what its stage found, and is called once at most: a field is
/// in a record once.
pub(crate) struct Record {
    // Boxed: a record moves through every stage.
    open: Box<Open>,
}

struct Open {
    audit: Arc<Inner>,
    id: RequestId,
    /// Absent without a collector.
    trace: Option<Trace>,
    /// Where there is no spool: given back after the spans have gone into the queue.
    reservation: Option<SpanReservation>,
    /// Absent: nothing is recorded but a line of the log.
    spooled: Option<Spooled>,
    service: Arc<ServiceMetrics>,
    /// Absent: nobody that the node knows.
    agent: Option<Arc<AgentMetrics>>,
    service_name: Option<ServiceName>,
    counters: Arc<Counters>,
    began: Instant,
    upstream_began: Option<Instant>,
    upstream_took: Duration,
    /// How long it has waited for connections.
    waited: Duration,
    /// How often the request was sent, where that was more than once.
    attempts: Option<u32>,
    upstream_status: Option<StatusCode>,
    upstream_error: Option<Code>,
    overhead: Option<Duration>,
    allowed: bool,
    /// Limits that the request counts for, and how many of them it was counted for.
    limits: Vec<Arc<AppliedLimit>>,
    counted: usize,
    /// Approvals of which it takes a use, and those of which it has taken one.
    uses: Vec<PendingUse>,
    used: Vec<PolicyId>,
    /// Places that it has among concurrent requests, until its answer has ended.
    slots: Vec<ConcurrentSlot>,
    /// What is reserved of limits for the usage of its answer.
    reserved: Vec<Counted>,
    reason: Option<Code>,
    status: Option<StatusCode>,
    completed: bool,
    /// What is asked of a model, of services with `usage`.
    model_call: Option<Box<ModelCall>>,
}

/// Room for the spans of an ordinary record.
const SPANS_BYTES: usize = 2048;

impl Record {
    pub(super) fn open(audit: &Arc<Inner>, method: &Method, path: &str, headers: &HeaderMap) -> Self {
        audit.metrics.began();
        let id = audit.ids.next();
        let trace = audit.telemetry.is_enabled().then(|| Trace::begin(&audit.trace_ids, headers));
        let (mut spooled, reservation) = begin(audit);
        if let Some(spooled) = &mut spooled {
            let (path, is_cut) = clean::path(path);
            let fields = spooled.fields();
            fields.number(field::BEGAN_US, UNIX_EPOCH.elapsed().map_or(0, micros));
            fields.bytes(field::REQUEST_ID, &id.bytes());
            fields.text(field::METHOD, known(method));
            spooled.path(&path);
            let fields = spooled.fields();
            fields.number(field::PATH_CUT, is_cut.into());
            fields.text(field::REGION, &audit.region);
            spooled.decision_begins();
        }
        let open = Box::new(Open {
            audit: Arc::clone(audit),
            id,
            trace,
            reservation,
            spooled,
            service: Arc::clone(audit.metrics.unresolved()),
            agent: None,
            service_name: None,
            counters: Arc::default(),
            began: Instant::now(),
            upstream_began: None,
            upstream_took: Duration::ZERO,
            waited: Duration::ZERO,
            attempts: None,
            upstream_status: None,
            upstream_error: None,
            overhead: None,
            allowed: false,
            limits: Vec::new(),
            counted: 0,
            uses: Vec::new(),
            used: Vec::new(),
            slots: Vec::new(),
            reserved: Vec::new(),
            reason: None,
            status: None,
            completed: false,
            model_call: None,
        });
        Self { open }
    }

    /// Overwrites the path with what `masked` gives for it and for whether it was cut. To be called
    /// before anything of the record leaves.
    pub(crate) fn mask_path(&mut self, masked: impl FnOnce(&[u8], bool) -> Option<Vec<u8>>) {
        let Some(path) = self.open.spooled.as_mut().map(Spooled::path_mut) else { return };
        if let Some(clean) = masked(path, path.len() >= clean::MAX_PATH)
            && clean.len() == path.len()
        {
            path.copy_from_slice(&clean);
        }
    }

    /// Names the request to the agent, in [`RequestId::HEADER`] and in refusals.
    #[must_use]
    pub(crate) fn id(&self) -> RequestId {
        self.open.id
    }

    /// `audit_unavailable` when this node must record and can't: the request is to be refused.
    #[must_use]
    pub(crate) fn refusal(&self) -> Option<Code> {
        let open = &*self.open;
        let is_recorded = open.spooled.as_ref().is_some_and(Spooled::may_begin);
        (open.audit.mode == AuditMode::Required && !is_recorded).then_some(Code::AuditUnavailable)
    }

    /// Where the request came from, and in which version of HTTP.
    pub(crate) fn came_from(&mut self, caller: &Caller, version: Version) {
        if let Some(spooled) = &mut self.open.spooled {
            spooled.source(caller.source);
            let version = match version {
                Version::HTTP_2 => 20,
                Version::HTTP_10 => 10,
                _ => 11,
            };
            spooled.fields().number(field::HTTP_VERSION, version);
            spooled.fields().number(field::TLS, caller.tls.into());
            spooled.decision_begins();
        }
    }

    /// How the request names its service.
    pub(crate) fn routed(&mut self, route: &Route) {
        let route = match route {
            Route::Service { .. } => spans::PATH_ROUTE,
            Route::Host { .. } | Route::Forward(_) => spans::HOST_ROUTE,
            Route::Discovery => spans::DISCOVERY_ROUTE,
            Route::Exchange => spans::EXCHANGE_ROUTE,
        };
        self.spool(|fields| fields.text(field::ROUTE, route));
    }

    /// Where records are required: sends an intent to the disk. [`Intent::recorded`] must have
    /// succeeded before anything of the request is sent. Costs nothing where records are not
    /// required, and on a second call.
    ///
    /// # Errors
    /// `audit_unavailable`.
    pub(crate) fn intend(&mut self) -> Result<Intent, Code> {
        let Open { spooled, trace, .. } = &mut *self.open;
        let Some(spooled) = spooled else { return Ok(Intent::none()) };
        spooled.intend(|fields| trace.iter().for_each(|trace| trace.write(fields)))
    }

    /// Whether [`record_own_answer`](Self::record_own_answer) has something to do.
    pub(crate) fn waits_for_own_answer(&self) -> bool {
        self.open.spooled.as_ref().is_some_and(Spooled::needs_whole)
    }

    /// Where records are required: waits until an answer of our own is recorded. To be called
    /// before it is given. Behind an intent it is recorded at its end, like every outcome.
    ///
    /// # Errors
    /// `audit_unavailable`, which is the answer then.
    pub(crate) async fn record_own_answer(&mut self, status: StatusCode) -> Result<(), Code> {
        let open = &mut *self.open;
        let Some(mut spooled) = open.spooled.take() else { return Ok(()) };
        open.status = Some(status);
        let sent = spooled.whole(|fields| open.close_fields(fields, open.began.elapsed(), true));
        open.spooled = Some(spooled);
        match sent {
            Ok(intent) => intent.recorded().await,
            Err(code) => Err(code),
        }
    }

    /// The counters that bodies add to.
    #[must_use]
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.open.counters
    }

    /// The table's applied revision at the look-up.
    pub(crate) fn table(&mut self, revision: u64) {
        if let Some(spooled) = &mut self.open.spooled {
            spooled.decision_begins();
            spooled.fields().number(field::TABLE_REVISION, revision);
        }
    }

    /// The request is decided again, from the look-up on: forgets what the stages since
    /// [`table`](Self::table) have written.
    pub(crate) fn decide_again(&mut self) {
        if let Some(spooled) = &mut self.open.spooled {
            spooled.decide_again();
        }
    }

    /// Whose token it is. Also set for tokens that are refused, as far as they are known.
    pub(crate) fn identified(&mut self, tenant: &TenantName, agent: &AgentName, token_id: &str) {
        self.open.agent = Some(self.open.audit.metrics.agent(tenant, agent));
        self.spool(|fields| {
            fields.text(field::TENANT, tenant.as_str());
            fields.text(field::AGENT, agent.as_str());
            fields.text(field::TOKEN_ID, token_id);
        });
    }

    /// The service that is called.
    pub(crate) fn service(&mut self, service: &ServiceEntry) {
        let upstream = (service.upstream.host(), service.upstream_base());
        self.called(&service.tenant, &service.name, upstream, service.trust_trace_context);
    }

    /// What is called is another host, by leave of a service.
    pub(crate) fn tunnel(&mut self, leave: &ServiceEntry, host: &str, port: u16) {
        let base = format!("{host}:{port}");
        self.called(&leave.tenant, &leave.name, (host, &base), leave.trust_trace_context);
    }

    /// `upstream` is its host, and its base.
    pub(super) fn called(
        &mut self,
        tenant: &TenantName,
        service: &ServiceName,
        (host, base): (&str, &str),
        trusts_trace: bool,
    ) {
        self.open.service = self.open.audit.metrics.service(tenant, service);
        match &mut self.open.trace {
            Some(trace) => trace.trust(trusts_trace),
            None => self.open.service_name = Some(service.clone()),
        }
        self.spool(|fields| {
            fields.text(field::SERVICE, service.as_str());
            fields.text(field::UPSTREAM, host);
            fields.text(field::UPSTREAM_BASE, base);
        });
    }

    /// What of the agent's head was not forwarded.
    pub(crate) fn headers_dropped(&self, counts: &[u16; DROPPED_KINDS.len()]) {
        self.open.service.headers_dropped(counts);
    }

    /// What policy decided, and which policies determined it.
    pub(crate) fn decided(&mut self, allowed: bool, policies: &[PolicyId]) {
        self.open.allowed = allowed;
        if !policies.is_empty() {
            let ids = policies.iter().take(MAX_POLICIES).map(PolicyId::as_str);
            self.spool(|fields| ids.for_each(|id| fields.text(field::POLICIES, id)));
        }
    }

    /// Policies in audit mode that would have decided otherwise.
    pub(crate) fn audited<'a>(&mut self, policies: impl Iterator<Item = &'a str> + Clone) {
        self.open.service.audited();
        let ids = policies.take(MAX_POLICIES);
        self.spool(|fields| ids.for_each(|id| fields.text(field::AUDITED_POLICIES, id)));
    }

    /// The credential that is put in.
    pub(crate) fn credential(&mut self, name: &CredentialName, version: u32) {
        self.spool(|fields| {
            fields.text(field::CREDENTIAL, name.as_str());
            fields.number(field::CREDENTIAL_VERSION, version.into());
        });
    }

    /// Why it was refused, or why an allowed request failed.
    pub(crate) fn refused(&mut self, code: Code) {
        self.open.reason = Some(code);
    }

    /// The upstream call begins. Returns what goes to the upstream as `traceparent` if the service
    /// passes it on.
    pub(crate) fn upstream_began(&mut self, pass_context: bool) -> Option<HeaderValue> {
        let open = &mut *self.open;
        open.upstream_began = Some(Instant::now());
        let trace = open.trace.filter(|_| pass_context)?;
        context::header(&trace.upstream(&open.id.bytes()))
    }

    /// The upstream is reached, and is no server of HTTP to us.
    pub(crate) fn upstream_connected(&mut self) {
        let open = &mut *self.open;
        open.upstream_took = open.upstream_began.map_or(Duration::ZERO, |t| t.elapsed());
    }

    /// The upstream's head has arrived.
    pub(crate) fn upstream_answered(&mut self, status: StatusCode) {
        let open = &mut *self.open;
        open.upstream_took = open.upstream_began.map_or(Duration::ZERO, |t| t.elapsed());
        open.upstream_status = Some(status);
        open.service.upstream_answered(status);
    }

    /// How long the request has waited for a connection: for its upstream to be reached, or for one
    /// that others use to be free. Not a part of the upstream's own time.
    pub(crate) fn waited_for_connection(&mut self, time: Duration) {
        self.open.waited += time;
    }

    /// The request is sent for the `number`th time.
    pub(crate) fn upstream_attempt(&mut self, number: u32) {
        if number > 1 {
            self.open.service.resent();
        }
        self.open.attempts = Some(number);
    }

    /// The upstream call has failed. The agent gets this text.
    pub(crate) fn upstream_failed(&mut self, refusal: &Refusal) {
        let (open, code) = (&mut *self.open, refusal.code);
        if let Some(error) = refusal.upstream {
            open.counters.upstream_failed(error);
        }
        open.upstream_took = open.upstream_began.map_or(Duration::ZERO, |t| t.elapsed());
        open.upstream_error = Some(code);
        self.refused(code);
    }

    /// The answer's head goes out: from here on, time is the upstream's and the agent's.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.open.status = Some(status);
        self.open.overhead = Some(self.open.began.elapsed().saturating_sub(self.open.upstream_took));
    }

    /// The answer was sent to its end. Closes the record; dropping it instead says that the answer
    /// broke off.
    pub(crate) fn complete(mut self) {
        self.open.completed = true;
    }

    fn spool(&mut self, fields: impl FnOnce(&mut RecordWriter)) {
        if let Some(spooled) = &mut self.open.spooled {
            fields(spooled.fields());
        }
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

/// Where a new record goes: to the spool, or to the collector's queue where there is none. Nowhere
/// where that is full.
fn begin(audit: &Inner) -> (Option<Spooled>, Option<SpanReservation>) {
    if let Some(recorder) = audit.spool.as_ref().and_then(|spool| spool.recorder().clone()) {
        return (Some(Spooled::begin(recorder, audit.mode)), None);
    }
    if !audit.telemetry.is_enabled() {
        return (None, None);
    }
    let reservation = audit.telemetry.queue().reserve();
    if reservation.is_none() {
        audit.telemetry.queue().count_dropped(1);
    }
    (reservation.as_ref().map(|_| Spooled::unspooled()), reservation)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Open {
    fn close(&mut self) {
        let scrubbed = self.counters.scrubbed.load(Relaxed);
        let status = self.status.filter(|_| self.completed);
        let outcome = Outcome { allowed: self.allowed, reason: self.reason, status };
        self.service.count(outcome, scrubbed);
        self.service.trailers_dropped(self.counters.trailers.load(Relaxed));
        let whole = self.began.elapsed();
        let error = self.counters.upstream_error();
        if let Some(error) = error {
            failures::log(self.service.name(), self.id.as_str(), error, UNIX_EPOCH.elapsed().unwrap_or_default());
        }
        let overhead = self.overhead.unwrap_or_else(|| whole.saturating_sub(self.upstream_took));
        self.agent.iter().for_each(|agent| agent.count(self.allowed));
        let trace = self.trace.map(|trace| (trace.id(), unix_now()));
        let upstream = self.upstream_status.map(|_| self.upstream_took);
        self.service.took(Times { whole, upstream }, trace.as_ref().map(|(id, now)| (id, *now)));
        self.audit.metrics.ended(overhead);
        self.count_usage();
        self.settle();
        if let Some(spooled) = self.spooled.take() {
            let unspooled = spooled.close(|fields| self.close_fields(fields, whole, self.completed));
            if let Some(record) = unspooled {
                let mut spans = SpanWriter::with_capacity(SPANS_BYTES);
                spans::write(record.as_bytes(), Recorded::Whole, &self.audit.node, &mut spans);
                self.audit.telemetry.queue().push(&spans);
            }
        }
        // The record is in the queue: its place goes back.
        drop(self.reservation.take());
        if !self.audit.telemetry.is_enabled() {
            self.log(whole, scrubbed);
        }
    }

    /// What is known at the end.
    fn close_fields(&self, fields: &mut RecordWriter, whole: Duration, completed: bool) {
        self.trace.iter().for_each(|trace| trace.write(fields));
        let decision = if self.allowed { Decision::Allow } else { Decision::Deny };
        fields.number(field::DECISION, decision as u64);
        fields.text(field::REASON, self.reason.map_or("", Code::as_str));
        fields.number(field::STATUS, self.status.map_or(0, |status| status.as_u16().into()));
        fields.number(field::UPSTREAM_STATUS, self.upstream_status.map_or(0, |status| status.as_u16().into()));
        let error = self.counters.upstream_error().map(UpstreamError::as_str);
        fields.text(field::UPSTREAM_ERROR, error.or(self.upstream_error.map(Code::as_str)).unwrap_or_default());
        fields.number(field::ATTEMPTS, self.attempts.unwrap_or(0).into());
        fields.number(field::REQUEST_BYTES, self.counters.request_bytes.load(Relaxed));
        fields.number(field::RESPONSE_BYTES, self.counters.response_bytes.load(Relaxed));
        fields.number(field::SCRUBBED, self.counters.scrubbed.load(Relaxed).into());
        fields.number(field::ABORTED, (!completed).into());
        // A call that got no connection has waited for one until the end.
        let has_waited = !self.waited.is_zero();
        let connected = self.upstream_began.map(|began| began.duration_since(self.began));
        if let Some(connected) = connected.or_else(|| has_waited.then_some(whole)) {
            fields.number(field::QUEUE_US, micros(connected.saturating_sub(self.waited)));
            fields.number(field::CONNECT_US, micros(connected).max(1));
            fields.number(field::FIRST_BYTE_US, micros(self.upstream_took));
        }
        fields.number(field::WHOLE_US, micros(whole));
        if let Some((call, measured)) = self.measured() {
            self.write_usage(fields, call, measured);
        }
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
