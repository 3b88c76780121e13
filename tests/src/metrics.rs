//! The metrics that are an interface: dashboards and alerts are written against these names.

/// Their names, without a histogram's suffixes.
pub const NAMES: &[&str] = &[
    "seks_proxy_requests_total",
    "seks_proxy_request_duration_seconds",
    "seks_proxy_overhead_seconds",
    "seks_proxy_inflight",
    "seks_upstream_connections",
    "seks_scrubbed_total",
    "seks_table_revision",
    "seks_table_tokens",
    "seks_table_lag_seconds",
    "seks_lease_remaining_seconds",
    "seks_clock_skew_seconds",
    "seks_audit_queue",
    "seks_audit_dropped_total",
    "seks_audit_spool_bytes",
    "seks_audit_recorded_total",
    "seks_audit_uploaded_total",
    "seks_audit_expired_total",
    "seks_audit_write_failures_total",
    "seks_log_dropped_total",
    "seks_control_streams",
    "seks_control_push_seconds",
    "seks_store_watch_lag_seconds",
    "seks_table_divergence_total",
    "seks_admin_requests_total",
];
