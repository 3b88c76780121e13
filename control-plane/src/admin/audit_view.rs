//! Requests and changes as JSON: a stable interface of `seks audit` and of exports.
#![expect(missing_docs, reason = "the names are those of audit.proto, and documented there")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, UNIX_EPOCH},
};

use data_encoding::HEXLOWER;
use seks_audit::admin::digest;
use seks_proto::wire::{
    AdminChange, AdminObject, AuditEntry,
    audit_record::{Decision, Kind},
};
use serde::Serialize;
use serde_json::Value;

use crate::trail::tripwires::AlarmKind;

/// One request.
#[derive(Debug, Serialize)]
pub struct RecordView {
    /// RFC 3339, with microseconds.
    pub time: String,
    pub request_id: String,
    pub trace_id: Option<String>,
    pub tenant: Option<String>,
    pub agent: Option<String>,
    pub token: Option<String>,
    pub source: Option<String>,
    pub service: Option<String>,
    pub method: String,
    /// The route by which the request came: `/api/{service}` in path mode, `/{path}` where all of
    /// the path is the service's.
    pub route: Option<String>,
    pub path: String,
    pub path_cut: bool,
    pub decision: Option<&'static str>,
    pub reason: Option<String>,
    /// The tripwire that the request has tripped, by what its record alone says.
    pub tripwire: Option<&'static str>,
    pub policies: Vec<String>,
    pub audited_policies: Vec<String>,
    pub credential: Option<String>,
    pub credential_version: Option<u32>,
    pub status: Option<u32>,
    pub upstream: Option<String>,
    pub upstream_status: Option<u32>,
    pub upstream_error: Option<String>,
    pub attempts: Option<u32>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub scrubbed: u32,
    pub aborted: bool,
    /// `false`: only the intent is known. The request is in progress, or its node died.
    pub complete: bool,
    /// Until a connection to the upstream was asked for.
    pub queue_us: u64,
    /// From then until there was one.
    pub connect_us: u64,
    pub first_byte_us: u64,
    pub whole_us: u64,
    pub http_version: Option<&'static str>,
    /// Of the agent's connection.
    pub scheme: &'static str,
    pub table_revision: u64,
    pub node: String,
    pub region: Option<String>,
    pub chain: String,
    pub sequence: u64,
    /// What a model has used, of services with `usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageView>,
}

/// What a model has used.
#[derive(Debug, Serialize)]
pub struct UsageView {
    pub provider: String,
    pub model: Option<String>,
    /// Cached ones included.
    pub input_tokens: u64,
    /// Reasoning included.
    pub output_tokens: u64,
    /// Of the input, read from a cache.
    pub cached_tokens: u64,
    /// Of the input, written to a cache.
    pub cache_written_tokens: u64,
    /// Of the output.
    pub reasoning_tokens: u64,
    /// The answer broke off or has no count: the output is an upper bound.
    pub unknown: bool,
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
        let usage = (!record.provider.is_empty()).then(|| UsageView {
            provider: record.provider,
            model: text(record.model),
            input_tokens: record.input_tokens,
            output_tokens: record.output_tokens,
            cached_tokens: record.cached_tokens,
            cache_written_tokens: record.cache_written_tokens,
            reasoning_tokens: record.reasoning_tokens,
            unknown: record.usage_unknown,
        });
        let (token, reason, path) = (record.token_id.as_bytes(), record.reason.as_bytes(), record.path.as_bytes());
        let tripwire = AlarmKind::of(token, reason, path).map(AlarmKind::name);
        Self {
            time: time(record.began_us),
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
            tripwire,
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
            usage,
        }
    }
}

/// One change.
#[derive(Debug, Serialize)]
pub struct ChangeView {
    /// RFC 3339, with microseconds.
    pub time: String,
    /// `null`: a node with its join token.
    pub operator: Option<String>,
    pub verb: String,
    pub tenant: Option<String>,
    /// `ok` or `denied`.
    pub outcome: String,
    pub objects: Vec<ObjectView>,
    /// Objects beyond those.
    pub more_objects: u32,
    /// The transaction of the store that made the change and recorded it.
    pub revision: u64,
    pub replica: Option<String>,
    /// A tenant, or `*`.
    pub chain: String,
    pub sequence: u64,
    pub digest: String,
}

/// What was touched.
#[derive(Debug, Serialize)]
pub struct ObjectView {
    pub kind: Option<String>,
    pub name: String,
    /// `null`: it was not there, or is too long to be kept.
    pub before: Value,
    /// `null`: it was deleted, or is too long to be kept.
    pub after: Value,
}

impl From<AdminObject> for ObjectView {
    fn from(object: AdminObject) -> Self {
        let value = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
        let (before, after) = (value(&object.before), value(&object.after));
        Self { kind: text(object.kind), name: object.name, before, after }
    }
}

impl ChangeView {
    /// `encoded` is the change as it is stored. `None`: it does not decode.
    #[must_use]
    pub fn new(chain: String, revision: u64, encoded: &[u8]) -> Option<Self> {
        let change: AdminChange = prost::Message::decode(encoded).ok()?;
        Some(Self {
            time: time(change.at_us),
            operator: text(change.operator),
            verb: change.verb,
            tenant: text(change.tenant),
            outcome: change.outcome,
            objects: change.objects.into_iter().map(ObjectView::from).collect(),
            more_objects: change.more_objects,
            revision,
            replica: text(change.replica),
            chain,
            sequence: change.sequence,
            digest: HEXLOWER.encode(&digest(encoded).0),
        })
    }
}

/// Unix microseconds as RFC 3339.
fn time(unix_micros: u64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_micros(unix_micros)).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_micros(at).to_string()
}
