//! One request, as it is printed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use data_encoding::HEXLOWER;
use seks_proto::wire::{
    AuditEntry,
    audit_record::{Decision, Kind},
};
use serde::Serialize;

use crate::{
    error::{CliError, Exit, Result},
    output::{Output, View, rfc3339_micros},
};

/// One request.
#[derive(Debug, Serialize)]
pub(super) struct RecordView {
    /// RFC 3339, with microseconds.
    time: String,
    request_id: String,
    trace_id: Option<String>,
    tenant: Option<String>,
    agent: Option<String>,
    token: Option<String>,
    source: Option<String>,
    service: Option<String>,
    method: String,
    /// The route by which the request came: `/api/{service}` in path mode, `/{path}` where all of the path is the service's.
    route: Option<String>,
    path: String,
    path_cut: bool,
    decision: Option<&'static str>,
    reason: Option<String>,
    policies: Vec<String>,
    audited_policies: Vec<String>,
    credential: Option<String>,
    credential_version: Option<u32>,
    status: Option<u32>,
    upstream: Option<String>,
    upstream_status: Option<u32>,
    upstream_error: Option<String>,
    attempts: Option<u32>,
    request_bytes: u64,
    response_bytes: u64,
    scrubbed: u32,
    aborted: bool,
    /// `false`: only the intent is known. The request is in progress, or its node died.
    complete: bool,
    /// Until a connection to the upstream was asked for.
    queue_us: u64,
    /// From then until there was one.
    connect_us: u64,
    /// From then until the head of its answer.
    first_byte_us: u64,
    whole_us: u64,
    http_version: Option<&'static str>,
    /// Of the agent's connection.
    scheme: &'static str,
    table_revision: u64,
    node: String,
    region: Option<String>,
    chain: String,
    sequence: u64,
}

fn text(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn number(number: u32) -> Option<u32> {
    Some(number).filter(|number| *number != 0)
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(|bytes| IpAddr::from(Ipv4Addr::from(bytes)));
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::from(Ipv6Addr::from(bytes)));
    v4().or_else(v6).map(|address| address.to_string())
}

impl From<AuditEntry> for RecordView {
    fn from(entry: AuditEntry) -> Self {
        let record = entry.record.unwrap_or_default();
        let is_intent = record.kind() == Kind::Intent;
        let decision = match record.decision() {
            Decision::Allow => Some("allow"),
            Decision::Deny => Some("deny"),
            Decision::Unspecified => None,
        };
        let http_version = match record.http_version {
            10 => Some("1.0"),
            11 => Some("1.1"),
            20 => Some("2"),
            _ => None,
        };
        Self {
            time: rfc3339_micros(record.began_us),
            request_id: HEXLOWER.encode(&record.request_id),
            trace_id: text(HEXLOWER.encode(&record.trace_id)),
            tenant: text(record.tenant),
            agent: text(record.agent),
            token: text(record.token_id),
            source: address(&record.source),
            service: text(record.service),
            method: record.method,
            route: text(record.route),
            path: record.path,
            path_cut: record.path_cut,
            decision,
            reason: text(record.reason),
            policies: record.policies,
            audited_policies: record.audited_policies,
            credential: text(record.credential),
            credential_version: number(record.credential_version),
            status: number(record.status),
            upstream: text(record.upstream),
            upstream_status: number(record.upstream_status),
            upstream_error: text(record.upstream_error),
            attempts: number(record.attempts),
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            scrubbed: record.scrubbed,
            aborted: record.aborted,
            complete: !is_intent,
            queue_us: record.queue_us,
            connect_us: record.connect_us.saturating_sub(record.queue_us),
            first_byte_us: record.first_byte_us,
            whole_us: record.whole_us,
            http_version,
            scheme: if record.tls { "https" } else { "http" },
            table_revision: record.table_revision,
            node: entry.node,
            region: text(record.region),
            chain: entry.chain,
            sequence: entry.sequence,
        }
    }
}

impl View for RecordView {
    const COLUMNS: &'static [&'static str] =
        &["time", "decision", "agent", "service", "method", "path", "status", "reason", "ms", "source", "node"];
    fn row(&self) -> Vec<String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let status = match (self.complete, self.status) {
            (false, _) => "unknown".into(),
            (true, status) => status.map(|status| status.to_string()).unwrap_or_default(),
        };
        vec![
            self.time.clone(),
            self.decision.unwrap_or_default().into(),
            text(&self.agent),
            text(&self.service),
            self.method.clone(),
            self.path.clone(),
            status,
            text(&self.reason),
            format!("{:.1}", self.whole_us as f64 / 1000.0),
            text(&self.source),
            self.node.clone(),
        ]
    }
}

/// Prints requests as they come: a table without its frame, or one JSON object a line.
pub(super) struct LinePrinter {
    output: Output,
    stream: Option<crate::output::Stream>,
}

impl LinePrinter {
    pub(super) fn new(output: Output) -> Self {
        let stream = output.is_table().then(|| output.stream("requests"));
        Self { output, stream }
    }

    pub(super) fn print(&mut self, views: &[RecordView]) -> Result<()> {
        if let Some(stream) = &mut self.stream {
            return stream.page(views);
        }
        for view in views {
            let line = serde_json::to_string(view).map_err(|e| CliError::new(Exit::Failed, "output", e))?;
            self.output.text(&line)?;
        }
        Ok(())
    }
}
