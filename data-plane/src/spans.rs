//! OpenTelemetry spans of audit records: `seks.proxy` for the request, and `seks.upstream` for the
//! call of its upstream.
//!
//! A record says everything that its spans say. Span ids are computed from the request id, so a
//! record that is exported twice has the same ids. Attributes and statuses follow the semantic
//! conventions for HTTP (1.34): the node is `server.address` of its own span, and the upstream that
//! of the call.

mod fields;

use seks_audit::record::Decision;
use seks_runtime::telemetry::{CLIENT, SERVER, SpanContext, SpanWriter};

pub(crate) use self::fields::Fields;

/// Route of path mode. What is behind it in a path is the upstream's.
pub(crate) const PATH_ROUTE: &str = "/api/{service}";
/// Route where the whole path is the service's.
pub(crate) const HOST_ROUTE: &str = "/{path}";
/// Route of the list of services.
pub(crate) const DISCOVERY_ROUTE: &str = "/api/";
/// Route of identity exchange.
pub(crate) const EXCHANGE_ROUTE: &str = "/token";

/// The ids of a request's spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanIds {
    /// Of `seks.proxy`.
    pub(crate) server: [u8; 8],
    /// Of `seks.upstream`.
    pub(crate) upstream: [u8; 8],
}

/// Makes the upstream's span id differ from the request's.
const UPSTREAM: u64 = 0x9e37_79b9_7f4a_7c15;

impl SpanIds {
    /// The ids of a request's spans.
    pub(crate) fn of(request_id: &[u8; 16]) -> Self {
        let id = u128::from_be_bytes(*request_id);
        let (process, count) = ((id >> 64) as u64, id as u64);
        // One to one in the count: two requests of a process never have the same id.
        let server = mixed(process ^ mixed(count));
        Self { server: nonzero(server), upstream: nonzero(mixed(server ^ UPSTREAM)) }
    }
}

/// W3C trace context takes 0 for "none".
fn nonzero(id: u64) -> [u8; 8] {
    id.max(1).to_be_bytes()
}

/// SplitMix64's finaliser: one to one, and every bit of the input moves every bit of the output.
fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The 25 bytes that a record has of an agent's trace context.
pub(crate) fn encode_context(context: &SpanContext) -> [u8; 25] {
    let mut bytes = [0; 25];
    let parts = context.trace.iter().chain(&context.span).chain(std::iter::once(&context.flags));
    bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = *part);
    bytes
}

/// What a record doesn't say, because it is the same for all records of a node.
#[derive(Clone, Debug)]
pub(crate) struct SpanNode {
    /// Its name.
    pub(crate) name: Box<str>,
    /// Where agents connect.
    pub(crate) port: u16,
}

/// What is known of the request that a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// The request as a whole.
    Whole,
    /// Only its intent: the node has died before it could record the outcome.
    IntentAlone,
}

/// Appends the spans of a record. A damaged record has none, and neither has one that was made
/// without a collector.
pub(crate) fn write(record: &[u8], recorded: Recorded, node: &SpanNode, spans: &mut SpanWriter) {
    if let Some(fields) = Fields::read(record) {
        write_fields(&fields, recorded, node, spans);
    }
}

/// The same of a record that was read.
pub(crate) fn write_fields(fields: &Fields<'_>, recorded: Recorded, node: &SpanNode, spans: &mut SpanWriter) {
    let (Some(id), Some(trace)) = (fields.request_id, fields.trace) else { return };
    let ids = SpanIds::of(&id);
    let own = SpanContext { trace, span: ids.server, flags: 1 };
    write_server(fields, &own, recorded, node, spans);
    if fields.connect_us > 0 {
        write_client(fields, &SpanContext { span: ids.upstream, ..own }, own.span, spans);
    }
}

fn write_server(f: &Fields<'_>, own: &SpanContext, recorded: Recorded, node: &SpanNode, spans: &mut SpanWriter) {
    let parent = f.agent_trace.filter(|_| f.is_trusted);
    spans.begin("seks.proxy", SERVER, own, parent.map(|parent| parent.span), f.at(0));
    spans.text("http.request.method", f.method);
    spans.text("url.path", f.path);
    spans.text("url.scheme", if f.is_tls { "https" } else { "http" });
    if f.path_cut {
        spans.flag("seks.truncated");
    }
    spans.text("seks.request.id", &data_encoding::HEXLOWER.encode(&f.request_id.unwrap_or_default()));
    spans.text("seks.node", &node.name);
    spans.text("server.address", &node.name);
    spans.int("server.port", node.port.into());
    spans.int("seks.table.revision", f.table_revision);
    let texts = [
        ("seks.region", f.region),
        ("http.route", f.route),
        ("seks.tenant", f.tenant),
        ("seks.agent", f.agent),
        ("seks.token.id", f.token_id),
        ("seks.service", f.service),
        ("seks.credential", f.credential),
        ("seks.reason", f.reason),
        ("seks.upstream.error", f.upstream_error),
        ("network.protocol.version", f.http_version),
    ];
    texts.iter().filter(|(_, text)| !text.is_empty()).for_each(|(name, text)| spans.text(name, text));
    if let Some(client) = f.client() {
        spans.text("client.address", &client);
    }
    write_decision(f, recorded, spans);
    write_outcome(f, recorded, spans);
    if let Some(agent) = f.agent_trace.filter(|_| !f.is_trusted) {
        spans.link(&agent);
    }
    spans.end(f.at(f.whole_us));
}

fn write_decision(f: &Fields<'_>, recorded: Recorded, spans: &mut SpanWriter) {
    // An intent is recorded for requests that may be sent.
    let is_allowed = f.decision == Decision::Allow as u64 || recorded == Recorded::IntentAlone;
    spans.text("seks.decision", if is_allowed { "allow" } else { "deny" });
    for (name, ids) in [("seks.policy.ids", &f.policies), ("seks.policy.audited", &f.audited)] {
        if !ids.is_empty() {
            spans.texts(name, ids.iter());
        }
    }
    if f.credential_version > 0 {
        spans.int("seks.credential.version", f.credential_version);
    }
}

fn write_outcome(f: &Fields<'_>, recorded: Recorded, spans: &mut SpanWriter) {
    if f.status > 0 {
        spans.int("http.response.status_code", f.status);
    }
    if f.attempts > 0 {
        spans.int("seks.upstream.attempts", f.attempts);
    }
    let waited_ms = f.connect_us.saturating_sub(f.queue_us) / 1000;
    if waited_ms > 0 {
        spans.int("seks.upstream.wait_ms", waited_ms);
    }
    spans.int("seks.scrub.count", f.scrubbed);
    spans.int("http.request.body.size", f.request_bytes);
    spans.int("http.response.body.size", f.response_bytes);
    if f.is_aborted {
        spans.flag("seks.aborted");
    }
    write_usage(f, spans);
    if recorded == Recorded::IntentAlone {
        spans.flag("seks.incomplete");
        return failed("unrecorded", spans);
    }
    // Conventions: a server's 5xx is an error, its 4xx isn't. An agent that hangs up is no error.
    // An answer that the upstream broke off is one.
    let is_broken = f.is_aborted && !f.upstream_error.is_empty();
    if f.status >= 500 || is_broken {
        let named = [f.upstream_error, f.reason].into_iter().find(|name| !name.is_empty());
        failed(named.unwrap_or(&f.status.to_string()), spans);
    }
}

/// OpenTelemetry's GenAI conventions (semantic-conventions-genai, schema 1.42). As they say, the
/// input includes cached tokens and the output includes reasoning, and a count that is not known is
/// not reported.
fn write_usage(f: &Fields<'_>, spans: &mut SpanWriter) {
    if f.provider.is_empty() {
        return;
    }
    spans.text("gen_ai.provider.name", f.provider);
    spans.text("gen_ai.operation.name", seks_usage::operation(f.provider, f.path));
    if let Some(model) = seks_usage::model_in_path(f.path) {
        spans.text("gen_ai.request.model", &model);
    }
    if !f.model.is_empty() {
        spans.text("gen_ai.response.model", f.model);
    }
    if f.is_usage_unknown {
        spans.int("seks.usage.output_tokens_at_most", f.output_tokens);
        return spans.flag("seks.usage.unknown");
    }
    spans.int("gen_ai.usage.input_tokens", f.input_tokens);
    spans.int("gen_ai.usage.output_tokens", f.output_tokens);
    for (name, tokens) in [
        ("gen_ai.usage.cache_read.input_tokens", f.cached_tokens),
        ("gen_ai.usage.cache_creation.input_tokens", f.cache_written_tokens),
        ("gen_ai.usage.reasoning.output_tokens", f.reasoning_tokens),
    ] {
        if tokens > 0 {
            spans.int(name, tokens);
        }
    }
}

fn failed(error: &str, spans: &mut SpanWriter) {
    spans.text("error.type", error);
    spans.error(error);
}

fn write_client(f: &Fields<'_>, own: &SpanContext, parent: [u8; 8], spans: &mut SpanWriter) {
    // A call that never got a connection is the attempt to get one.
    let has_answer = f.first_byte_us > 0 || f.upstream_status > 0;
    let (begin, end) =
        if has_answer { (f.connect_us, f.connect_us + f.first_byte_us) } else { (f.queue_us, f.whole_us) };
    spans.begin("seks.upstream", CLIENT, own, Some(parent), f.at(begin));
    spans.text("http.request.method", f.method);
    spans.text("server.address", f.upstream);
    if let Some(port) = f.upstream_port() {
        spans.int("server.port", port.into());
    }
    let url = f.url();
    if !url.is_empty() {
        spans.text("url.full", &url);
    }
    if f.upstream_status > 0 {
        spans.int("http.response.status_code", f.upstream_status);
    }
    if f.attempts > 1 {
        spans.int("http.request.resend_count", f.attempts - 1);
    }
    // Conventions: for a client, their 4xx and 5xx are errors.
    if !f.upstream_error.is_empty() {
        failed(f.upstream_error, spans);
    } else if f.upstream_status >= 400 {
        failed(&f.upstream_status.to_string(), spans);
    }
    spans.end(f.at(end.max(begin)));
}

#[cfg(test)]
mod tests;
