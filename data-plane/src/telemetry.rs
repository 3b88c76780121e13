//! Metrics of a node, as Prometheus text.
//!
//! Plain atomics: a request resolves its service's [`ServiceMetrics`] once and then adds to
//! counters by index. No label is ever text that an agent sent: services are those of the table,
//! reasons are the contract's codes.

mod agent;
mod edge;
mod histogram;
mod service;
mod usage;

use std::{
    fmt::Write as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dashmap::DashMap;
use seks_runtime::{logs, openmetrics, process, telemetry::Queue};
use seks_types::id::{AgentName, ServiceName, TenantName};
use seks_usage::Usage;

pub(crate) use self::{agent::AgentMetrics, histogram::unix_now, service::DROPPED_KINDS, usage::UsageLabels};
use self::{agent::Agents, usage::ModelUsage};
pub use self::{
    edge::Edge,
    histogram::Histogram,
    service::{Outcome, ServiceMetrics, Times},
};

/// Most services that one tenant brings into labels: a monitoring system pays for each for as long
/// as it keeps data.
const MAX_LABELS: usize = 250;
/// The label of services beyond that: no service can have this name.
const UNLABELLED: &str = "_other";

/// A service's counters, and the tenant that brought its name.
struct Labelled {
    tenant: TenantName,
    metrics: Arc<ServiceMetrics>,
}

/// Names of certificates, and when each ends, in Unix seconds.
type CertificateEnds = Box<dyn Fn() -> Vec<(&'static str, i64)> + Send + Sync>;

/// Bounds of tenants, and how often each was reached.
/// What a tenant has reached, and how often.
type Bounds = [(&'static str, u64); 5];
type TenantBounds = Box<dyn Fn() -> Bounds + Send + Sync>;

/// Everything that a node counts. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    services: DashMap<ServiceName, Labelled, foldhash::quality::RandomState>,
    /// How many labels each tenant has brought.
    labels: DashMap<TenantName, usize, foldhash::quality::RandomState>,
    /// Requests of services without a label of their own.
    unlabelled: Arc<ServiceMetrics>,
    /// Requests that were refused before their service was known.
    unresolved: Arc<ServiceMetrics>,
    agents: Agents,
    models: ModelUsage,
    overhead: Histogram,
    inflight: AtomicU64,
    edge: Edge,
    /// The audit queue, which counts for itself.
    audit: Arc<Queue>,
    table: Box<dyn Fn() -> TableState + Send + Sync>,
    /// Requests that were refused for the wrong tokens of their source.
    limited: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// What the spool of audit records has done.
    spool: OnceLock<Box<dyn Fn() -> SpoolState + Send + Sync>>,
    /// Bodies that are held in memory.
    buffers: OnceLock<Box<dyn Fn() -> BufferState + Send + Sync>>,
    /// How often tenants reached which bound.
    bounds: OnceLock<TenantBounds>,
    /// When certificates end.
    certificates: OnceLock<CertificateEnds>,
    /// Another part of this process that has metrics of its own.
    others: OnceLock<Box<dyn Fn() -> String + Send + Sync>>,
}

/// What the table says of itself when metrics are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct TableState {
    /// The revision applied.
    pub revision: u64,
    /// Tokens held.
    pub tokens: u64,
    /// How long ago the node last knew that it had everything.
    pub lag: Duration,
    /// How long it may go on serving without hearing from a control plane.
    pub lease: Duration,
    /// The least that this was within the last minute.
    pub lowest_lease: Duration,
    /// How far its wall clock is ahead of the control plane's.
    pub clock_skew_seconds: f64,
}

/// What the buffers of request bodies say of themselves when metrics are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct BufferState {
    /// Bytes held.
    pub held: u64,
    /// Bodies refused because there was no room.
    pub refused: u64,
}

/// What the spool of audit records says of itself when metrics are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpoolState {
    /// Bytes on disk.
    pub bytes: u64,
    /// Most bytes on disk.
    pub limit: u64,
    /// Records on disk that no control plane has acknowledged.
    pub records: u64,
    /// Bytes that wait for the disk.
    pub queued_bytes: u64,
    /// Records that were not recorded.
    pub dropped: u64,
    /// Records written.
    pub recorded: u64,
    /// Records that a control plane has acknowledged.
    pub uploaded: u64,
    /// Records that were removed because of their age.
    pub expired: u64,
    /// Syncs of the disk.
    pub syncs: u64,
    /// Failed writes.
    pub failures: u64,
    /// Records that the collector does not have yet.
    pub export_backlog: u64,
    /// Records that were removed before the collector had them.
    pub export_dropped: u64,
    /// Spans that the collector has accepted.
    pub spans_exported: u64,
    /// Spans that the collector has refused for good.
    pub spans_refused: u64,
}

impl Metrics {
    /// `audit` is the queue in front of the collector. `table` is read at every scrape.
    pub fn new(audit: Arc<Queue>, table: impl Fn() -> TableState + Send + Sync + 'static) -> Self {
        let inner = Inner {
            services: DashMap::default(),
            labels: DashMap::default(),
            unlabelled: Arc::new(ServiceMetrics::new(UNLABELLED)),
            unresolved: Arc::new(ServiceMetrics::new("")),
            agents: Agents::default(),
            models: ModelUsage::default(),
            overhead: Histogram::new(),
            inflight: AtomicU64::new(0),
            edge: Edge::default(),
            audit,
            table: Box::new(table),
            limited: OnceLock::new(),
            spool: OnceLock::new(),
            buffers: OnceLock::new(),
            bounds: OnceLock::new(),
            certificates: OnceLock::new(),
            others: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Asks `spool` at every scrape.
    pub(crate) fn count_spool(&self, spool: impl Fn() -> SpoolState + Send + Sync + 'static) {
        let _ = self.inner.spool.set(Box::new(spool)); // a node has one
    }

    /// The counters of a service of the table. Tenants that call their services alike share them; a
    /// tenant that has brought [`MAX_LABELS`] shares one for all further names.
    #[must_use]
    pub fn service(&self, tenant: &TenantName, name: &ServiceName) -> Arc<ServiceMetrics> {
        if let Some(found) = self.inner.services.get(name) {
            return Arc::clone(&found.metrics);
        }
        let mut brought = self.inner.labels.entry(tenant.clone()).or_default();
        if *brought >= MAX_LABELS {
            return Arc::clone(&self.inner.unlabelled);
        }
        let entry = self.inner.services.entry(name.clone()).or_insert_with(|| {
            *brought += 1;
            Labelled { tenant: tenant.clone(), metrics: Arc::new(ServiceMetrics::new(name.as_str())) }
        });
        Arc::clone(&entry.metrics)
    }

    /// The counters of an agent. Beyond a bound, agents share one.
    pub(crate) fn agent(&self, tenant: &TenantName, agent: &AgentName) -> Arc<AgentMetrics> {
        self.inner.agents.of(tenant, agent)
    }

    /// Counts what a model has used.
    pub(crate) fn model_used(&self, labels: UsageLabels<'_>, usage: &Usage) {
        self.inner.models.add(labels, usage);
    }

    /// Shows when certificates end. The first call counts.
    pub(crate) fn certificates(&self, ends: impl Fn() -> Vec<(&'static str, i64)> + Send + Sync + 'static) {
        let _ = self.inner.certificates.set(Box::new(ends)); // Err: they are known
    }

    /// Forgets services that are no longer there, and what was counted of them.
    pub(crate) fn retain_services(&self, is_there: impl Fn(&ServiceName) -> bool) {
        let mut gone = Vec::new();
        self.inner.services.retain(|name, labelled| {
            let stays = is_there(name) || labelled.metrics.has_connections();
            if !stays {
                gone.push(labelled.tenant.clone());
            }
            stays
        });
        for tenant in gone {
            let left = self.inner.labels.get_mut(&tenant).map(|mut brought| {
                *brought = brought.saturating_sub(1);
                *brought
            });
            if left == Some(0) {
                self.inner.labels.remove_if(&tenant, |_, brought| *brought == 0);
            }
        }
    }

    /// The counters of requests whose service isn't known (yet).
    #[must_use]
    pub fn unresolved(&self) -> &Arc<ServiceMetrics> {
        &self.inner.unresolved
    }

    /// Shows what `limited` gives as `seks_proxy_wrong_tokens_limited_total`. The first call
    /// counts.
    pub fn count_limited(&self, limited: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.inner.limited.set(Box::new(limited)); // Err: there is one already
    }

    /// The counters of what is refused before there is a request.
    #[must_use]
    pub fn edge(&self) -> &Edge {
        &self.inner.edge
    }

    /// Shows what `others` gives, in the same text format, below these. The first call counts.
    pub fn append(&self, others: impl Fn() -> String + Send + Sync + 'static) {
        let _ = self.inner.others.set(Box::new(others)); // Err: there is one already
    }

    /// Shows what `buffers` gives at every scrape. The first call counts.
    pub fn count_buffers(&self, buffers: impl Fn() -> BufferState + Send + Sync + 'static) {
        let _ = self.inner.buffers.set(Box::new(buffers)); // Err: there is one already
    }

    /// Shows what `bounds` gives as `seks_tenant_limited_total`, by `limit`. The first call counts.
    pub(crate) fn count_bounds(&self, bounds: impl Fn() -> Bounds + Send + Sync + 'static) {
        let _ = self.inner.bounds.set(Box::new(bounds)); // Err: there is one already
    }

    /// A request has begun.
    pub fn began(&self) {
        self.inner.inflight.fetch_add(1, Relaxed);
    }

    /// A request has ended: how much of its time was this node's doing.
    pub fn ended(&self, overhead: Duration) {
        self.inner.inflight.fetch_sub(1, Relaxed);
        self.inner.overhead.observe(overhead);
    }

    /// All of it in Prometheus' text format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let mut services: Vec<_> = self.inner.services.iter().map(|s| Arc::clone(&s.metrics)).collect();
        services.sort_by(|a, b| a.name().cmp(b.name()));
        services.insert(0, Arc::clone(&self.inner.unresolved));
        services.extend(self.inner.unlabelled.is_used().then(|| Arc::clone(&self.inner.unlabelled)));
        let mut out = String::with_capacity(16 * 1024);
        service::render(&services, &mut out);
        self.inner.agents.render(&mut out);
        self.inner.models.render(&mut out);
        let overhead = std::iter::once((String::new(), &self.inner.overhead));
        histogram::render("seks_proxy_overhead_seconds", "Requests without their upstream.", overhead, &mut out);
        self.render_gauges(&mut out);
        self.render_counters(&mut out);
        self.render_tenant_limits(&mut out);
        out.push_str(&logs::metrics());
        out.push_str(&process::metrics());
        self.render_certificates(&mut out);
        let limited = self.inner.limited.get().map_or(0, |limited| limited());
        let _ = write!(
            out,
            "# HELP seks_proxy_wrong_tokens_limited_total Requests refused with 429 because their source showed too many wrong tokens.\n\
             # TYPE seks_proxy_wrong_tokens_limited_total counter\nseks_proxy_wrong_tokens_limited_total {limited}\n"
        );
        self.inner.edge.render(&mut out);
        match self.inner.others.get() {
            Some(others) => openmetrics::merge(&out, &others()),
            None => out,
        }
    }

    fn render_gauges(&self, out: &mut String) {
        let table = (self.inner.table)();
        let spool = self.spool_state();
        let export_backlog = self.inner.audit.len() as u64 + spool.export_backlog;
        let gauges: [(&str, &str, f64); 13] = [
            ("seks_audit_spool_bytes", "Audit records on disk that no control plane has taken.", spool.bytes as f64),
            ("seks_audit_spool_limit_bytes", "The most that seks_audit_spool_bytes may be.", spool.limit as f64),
            (
                "seks_audit_spool_records",
                "Audit records on disk that no control plane has acknowledged.",
                spool.records as f64,
            ),
            ("seks_audit_spool_queue_bytes", "Audit records that wait for the disk.", spool.queued_bytes as f64),
            ("seks_proxy_inflight", "Requests under way.", self.inner.inflight.load(Relaxed) as f64),
            ("seks_table_revision", "Revision that the table has applied.", table.revision as f64),
            ("seks_table_tokens", "Tokens in the table.", table.tokens as f64),
            ("seks_table_lag_seconds", "Time since the table was last known to be complete.", table.lag.as_secs_f64()),
            ("seks_lease_remaining_seconds", "Time that the node may still serve.", table.lease.as_secs_f64()),
            (
                "seks_lease_lowest_seconds",
                "The least that seks_lease_remaining_seconds was within the last minute.",
                table.lowest_lease.as_secs_f64(),
            ),
            (
                "seks_clock_skew_seconds",
                "This machine's wall clock ahead of the control plane's; negative: behind.",
                table.clock_skew_seconds,
            ),
            ("seks_audit_queue", "Audit records that the collector has not confirmed.", export_backlog as f64),
            ("seks_body_buffer_bytes", "Memory of bodies that are looked into.", self.buffer_state().held as f64),
        ];
        for (name, help, value) in gauges {
            // Writing to a String can't fail.
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        }
    }

    fn spool_state(&self) -> SpoolState {
        self.inner.spool.get().map(|spool| spool()).unwrap_or_default()
    }

    fn buffer_state(&self) -> BufferState {
        self.inner.buffers.get().map(|buffers| buffers()).unwrap_or_default()
    }

    fn render_counters(&self, out: &mut String) {
        let spool = self.spool_state();
        let dropped = self.inner.audit.dropped() + spool.dropped + spool.export_dropped + spool.spans_refused;
        let refused = self.buffer_state().refused;
        let counters = [
            (
                "seks_audit_dropped_total",
                "Audit records that were not recorded, and spans that the collector will never have.",
                dropped,
            ),
            ("seks_audit_recorded_total", "Audit records written to disk.", spool.recorded),
            ("seks_audit_uploaded_total", "Audit records that a control plane has acknowledged.", spool.uploaded),
            (
                "seks_audit_expired_total",
                "Audit records removed because no control plane took them in time.",
                spool.expired,
            ),
            (
                "seks_otlp_spans_exported_total",
                "Spans of spooled records that the collector has accepted.",
                spool.spans_exported,
            ),
            (
                "seks_otlp_spans_refused_total",
                "Spans of spooled records that the collector has refused for good.",
                spool.spans_refused,
            ),
            (
                "seks_otlp_records_dropped_total",
                "Records that left the spool, for room or age, before the collector had them.",
                spool.export_dropped,
            ),
            ("seks_audit_syncs_total", "Syncs of the disk for audit records.", spool.syncs),
            ("seks_audit_write_failures_total", "Failed writes of audit records.", spool.failures),
            ("seks_body_buffer_refused_total", "Requests refused because there was no memory for their body.", refused),
        ];
        for (name, help, value) in counters {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n");
        }
    }

    fn render_tenant_limits(&self, out: &mut String) {
        let name = "seks_tenant_limited_total";
        let _ = write!(
            out,
            "# HELP {name} How often a tenant had as much at this node as it may.\n# TYPE {name} counter\n"
        );
        for (limit, count) in self.inner.bounds.get().map(|bounds| bounds()).iter().flatten() {
            let _ = writeln!(out, "{name}{{limit=\"{limit}\"}} {count}");
        }
    }

    fn render_certificates(&self, out: &mut String) {
        let name = "seks_certificate_expiry_timestamp_seconds";
        let _ = write!(out, "# HELP {name} When a certificate ends, in Unix time.\n# TYPE {name} gauge\n");
        for (certificate, end) in self.inner.certificates.get().map(|ends| ends()).unwrap_or_default() {
            let _ = writeln!(out, "{name}{{certificate=\"{certificate}\"}} {end}");
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use seks_runtime::telemetry::Telemetry;

    use super::*;
    use crate::code::Code;

    fn tenant(name: &str) -> TenantName {
        name.try_into().unwrap()
    }

    fn metrics() -> Metrics {
        let state = TableState {
            revision: 7,
            tokens: 3,
            lag: Duration::ZERO,
            lease: Duration::from_millis(1500),
            lowest_lease: Duration::from_millis(500),
            clock_skew_seconds: -2.5,
        };
        Metrics::new(Arc::clone(Telemetry::disabled().queue()), move || state)
    }

    #[test]
    fn a_scrape_tells_of_every_request() {
        let metrics = metrics();
        let openai = metrics.service(&tenant("a"), &ServiceName::try_from("openai").unwrap());
        for _ in 0..2 {
            metrics.began();
            openai.count(Outcome { allowed: true, reason: None, status: Some(StatusCode::OK) }, 0);
            let times = Times { whole: Duration::from_millis(30), upstream: Some(Duration::from_millis(29)) };
            openai.took(times, None);
            openai.upstream_answered(StatusCode::OK);
            metrics.ended(Duration::from_micros(20));
        }
        openai.count(
            Outcome { allowed: false, reason: Some(Code::PolicyDenied), status: Some(StatusCode::FORBIDDEN) },
            0,
        );
        openai.count(Outcome { allowed: true, reason: None, status: None }, 5);
        openai.connections(true, 2);
        metrics.began();
        let text = metrics.render();
        for line in [
            r#"seks_proxy_requests_total{service="openai",decision="allow",reason="",status_class="2xx"} 2"#,
            r#"seks_proxy_requests_total{service="openai",decision="deny",reason="policy_denied",status_class="4xx"} 1"#,
            r#"seks_proxy_requests_total{service="openai",decision="allow",reason="",status_class="aborted"} 1"#,
            r#"seks_scrubbed_total{service="openai"} 5"#,
            r#"seks_upstream_connections{service="openai",state="active"} 2"#,
            r#"seks_proxy_request_duration_seconds_count{service="openai"} 2"#,
            r#"seks_upstream_duration_seconds_bucket{service="openai",le="0.05"} 2"#,
            r#"seks_upstream_responses_total{service="openai",class="2xx"} 2"#,
            "seks_lease_lowest_seconds 0.5",
            r#"seks_proxy_request_duration_seconds_bucket{service="openai",le="0.05"} 2"#,
            r#"seks_proxy_overhead_seconds_bucket{le="0.00002"} 2"#,
            "seks_proxy_inflight 1",
            "seks_table_revision 7",
            "seks_lease_remaining_seconds 1.5",
            "seks_clock_skew_seconds -2.5",
            "seks_audit_queue 0",
            "seks_audit_dropped_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_same_service_has_the_same_counters() {
        let metrics = metrics();
        let name = ServiceName::try_from("a").unwrap();
        assert!(Arc::ptr_eq(&metrics.service(&tenant("a"), &name), &metrics.service(&tenant("b"), &name)));
    }

    #[test]
    fn a_tenant_brings_so_many_labels_and_those_of_services_that_are_gone_go() {
        let metrics = metrics();
        let name = |n: usize| ServiceName::try_from(format!("s{n}").as_str()).unwrap();
        let count = |tenant_name: &str, n: usize| {
            let service = metrics.service(&tenant(tenant_name), &name(n));
            service.count(Outcome { allowed: true, reason: None, status: Some(StatusCode::OK) }, 0);
        };
        (0..MAX_LABELS + 50).for_each(|n| count("a", n));
        count("b", MAX_LABELS + 1);
        let lines = || metrics.render().lines().filter(|l| l.starts_with("seks_proxy_requests_total{")).count();
        assert_eq!(lines(), MAX_LABELS + 2, "its own, the one for all further names, and the other tenant's");
        metrics.retain_services(|service| *service == name(0) || *service == name(MAX_LABELS + 1));
        assert_eq!(lines(), 3);
        (1..MAX_LABELS + 50).for_each(|n| count("a", n));
        assert_eq!(lines(), MAX_LABELS + 2);
    }
}
