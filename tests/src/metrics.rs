//! Reads metrics pages, and lists the metrics that are an interface: dashboards and alerts are
//! written against these names.

use std::collections::BTreeMap;

/// Their names, without a histogram's suffixes.
pub const NAMES: &[&str] = &[
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "seks_admin_request_duration_seconds",
    "seks_admin_requests_total",
    "seks_agent_requests_total",
    "seks_audit_dropped_total",
    "seks_audit_expired_total",
    "seks_audit_queue",
    "seks_audit_recorded_total",
    "seks_audit_spool_bytes",
    "seks_audit_spool_limit_bytes",
    "seks_audit_spool_queue_bytes",
    "seks_audit_spool_records",
    "seks_audit_syncs_total",
    "seks_audit_trail_pending_bytes",
    "seks_audit_trail_upload_failing_seconds",
    "seks_audit_tripwires_total",
    "seks_audit_uploaded_total",
    "seks_audit_write_failures_total",
    "seks_body_buffer_bytes",
    "seks_body_buffer_refused_total",
    "seks_build_info",
    "seks_certificate_expiry_timestamp_seconds",
    "seks_clock_skew_seconds",
    "seks_connections",
    "seks_connections_evicted_total",
    "seks_control_push_seconds",
    "seks_control_streams",
    "seks_http2_refused_total",
    "seks_lease_lowest_seconds",
    "seks_lease_remaining_seconds",
    "seks_log_dropped_total",
    "seks_log_suppressed_total",
    "seks_mint_failing",
    "seks_mint_refreshes_total",
    "seks_otlp_records_dropped_total",
    "seks_otlp_spans_exported_total",
    "seks_otlp_spans_refused_total",
    "seks_policy_audited_total",
    "seks_proxy_inflight",
    "seks_proxy_overhead_seconds",
    "seks_proxy_protocol_rejected_total",
    "seks_proxy_request_duration_seconds",
    "seks_proxy_requests_total",
    "seks_proxy_wrong_tokens_limited_total",
    "seks_request_headers_dropped_total",
    "seks_scrubbed_total",
    "seks_store_request_duration_seconds",
    "seks_store_request_failures_total",
    "seks_store_unauthenticated_records_total",
    "seks_store_watch_lag_seconds",
    "seks_table_divergence_total",
    "seks_table_lag_seconds",
    "seks_table_revision",
    "seks_table_tokens",
    "seks_tenant_limited_total",
    "seks_trust_key_fetches_total",
    "seks_upstream_connections",
    "seks_upstream_duration_seconds",
    "seks_upstream_responses_total",
];

/// A metrics page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Families and their types.
    pub families: BTreeMap<String, String>,
    /// Samples: name, labels as they stand, value.
    pub samples: Vec<(String, String, f64)>,
}

impl Page {
    /// Reads one in Prometheus' text format.
    ///
    /// # Panics
    /// When a line is no sample, or a family is there twice.
    pub fn read(text: &str) -> Self {
        let mut page = Self::default();
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                let before = page.families.insert(name.into(), kind.into());
                assert!(before.is_none(), "{name} is there twice");
            } else if !line.starts_with('#') && !line.is_empty() {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                page.samples.push((name.into(), labels.trim_end_matches('}').into(), value));
            }
        }
        page
    }

    /// The sum of a metric's samples; of a histogram's: how often it was observed.
    pub fn sum(&self, name: &str) -> f64 {
        self.sum_of(name, "")
    }

    /// The sum of the samples whose labels contain `labels`.
    pub fn sum_of(&self, name: &str, labels: &str) -> f64 {
        let count = format!("{name}_count");
        let name = if self.families.get(name).is_some_and(|kind| kind == "histogram") { &count } else { name };
        self.samples.iter().filter(|(n, l, _)| n == name && l.contains(labels)).map(|(_, _, value)| value).sum()
    }
}
