//! Reads the fields of a record that its spans need, without copying them.

use std::net::Ipv6Addr;

use seks_audit::record::{FieldsOf, Kind, Value, field};
use seks_runtime::telemetry::SpanContext;

use super::PATH_ROUTE;

/// A record's fields. Names and units are those of `AuditRecord` in `audit.proto`.
#[derive(Default)]
pub(crate) struct Fields<'a> {
    kind: u64,
    began_us: u64,
    pub(crate) request_id: Option<[u8; 16]>,
    pub(super) trace: Option<[u8; 16]>,
    pub(super) agent_trace: Option<SpanContext>,
    pub(super) is_trusted: bool,
    source: &'a [u8],
    pub(super) is_tls: bool,
    pub(super) http_version: &'static str,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) path_cut: bool,
    pub(super) route: &'a str,
    pub(super) region: &'a str,
    pub(super) tenant: &'a str,
    pub(super) agent: &'a str,
    pub(super) token_id: &'a str,
    pub(super) service: &'a str,
    pub(super) credential: &'a str,
    pub(super) credential_version: u64,
    pub(super) table_revision: u64,
    pub(super) decision: u64,
    pub(super) reason: &'a str,
    pub(super) policies: Texts<'a>,
    pub(super) audited: Texts<'a>,
    pub(super) status: u64,
    pub(super) upstream: &'a str,
    upstream_base: &'a str,
    pub(super) upstream_status: u64,
    pub(super) upstream_error: &'a str,
    pub(super) attempts: u64,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) scrubbed: u64,
    pub(super) is_aborted: bool,
    pub(super) queue_us: u64,
    pub(super) connect_us: u64,
    pub(super) first_byte_us: u64,
    pub(super) whole_us: u64,
    pub(super) provider: &'a str,
    pub(super) model: &'a str,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) cache_written_tokens: u64,
    pub(super) reasoning_tokens: u64,
    pub(super) is_usage_unknown: bool,
}

/// The texts of a field that may be there several times: nearly always one, which needs no memory.
#[derive(Default)]
pub(super) struct Texts<'a> {
    first: Option<&'a str>,
    more: Vec<&'a str>,
}

impl<'a> Texts<'a> {
    fn push(&mut self, text: &'a str) {
        match self.first {
            None => self.first = Some(text),
            Some(_) => self.more.push(text),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'a str> + Clone {
        self.first.into_iter().chain(self.more.iter().copied())
    }
}

impl<'a> Fields<'a> {
    /// `None`: it is no record.
    pub(crate) fn read(record: &'a [u8]) -> Option<Self> {
        let mut fields = Self::default();
        for entry in FieldsOf::new(record) {
            match entry? {
                (field, Value::Number(number)) => fields.set_number(field, number),
                (field, Value::Bytes(bytes)) => fields.set_bytes(field, bytes),
            }
        }
        Some(fields)
    }

    /// `None`: it is damaged.
    pub(crate) fn kind(&self) -> Option<Kind> {
        [Kind::Whole, Kind::Outcome, Kind::Intent].into_iter().find(|kind| *kind as u64 == self.kind)
    }

    fn set_bytes(&mut self, field: u32, bytes: &'a [u8]) {
        let text = || std::str::from_utf8(bytes).unwrap_or_default();
        match field {
            field::REQUEST_ID => self.request_id = bytes.try_into().ok(),
            field::TRACE_ID => self.trace = bytes.try_into().ok(),
            field::AGENT_TRACE => self.agent_trace = decode_context(bytes),
            field::SOURCE => self.source = bytes,
            field::METHOD => self.method = text(),
            field::PATH => self.path = text(),
            field::ROUTE => self.route = text(),
            field::REGION => self.region = text(),
            field::TENANT => self.tenant = text(),
            field::AGENT => self.agent = text(),
            field::TOKEN_ID => self.token_id = text(),
            field::SERVICE => self.service = text(),
            field::UPSTREAM => self.upstream = text(),
            field::UPSTREAM_BASE => self.upstream_base = text(),
            field::UPSTREAM_ERROR => self.upstream_error = text(),
            field::CREDENTIAL => self.credential = text(),
            field::REASON => self.reason = text(),
            field::PROVIDER => self.provider = text(),
            field::MODEL => self.model = text(),
            field::POLICIES => self.policies.push(text()),
            field::AUDITED_POLICIES => self.audited.push(text()),
            _ => {}
        }
    }

    fn set_number(&mut self, field: u32, number: u64) {
        match field {
            field::KIND => self.kind = number,
            field::BEGAN_US => self.began_us = number,
            field::PATH_CUT => self.path_cut = number == 1,
            field::HTTP_VERSION => {
                self.http_version = match number {
                    10 => "1.0",
                    11 => "1.1",
                    20 => "2",
                    _ => "",
                }
            }
            field::CREDENTIAL_VERSION => self.credential_version = number,
            field::TABLE_REVISION => self.table_revision = number,
            field::DECISION => self.decision = number,
            field::STATUS => self.status = number,
            field::UPSTREAM_STATUS => self.upstream_status = number,
            field::REQUEST_BYTES => self.request_bytes = number,
            field::RESPONSE_BYTES => self.response_bytes = number,
            field::SCRUBBED => self.scrubbed = number,
            field::ABORTED => self.is_aborted = number == 1,
            field::CONNECT_US => self.connect_us = number,
            field::QUEUE_US => self.queue_us = number,
            field::FIRST_BYTE_US => self.first_byte_us = number,
            field::WHOLE_US => self.whole_us = number,
            field::INPUT_TOKENS => self.input_tokens = number,
            field::OUTPUT_TOKENS => self.output_tokens = number,
            field::CACHED_TOKENS => self.cached_tokens = number,
            field::CACHE_WRITTEN_TOKENS => self.cache_written_tokens = number,
            field::REASONING_TOKENS => self.reasoning_tokens = number,
            field::USAGE_UNKNOWN => self.is_usage_unknown = number == 1,
            field::ATTEMPTS => self.attempts = number,
            field::AGENT_TRACE_TRUSTED => self.is_trusted = number == 1,
            field::TLS => self.is_tls = number == 1,
            _ => {}
        }
    }

    /// Unix nanoseconds of `micros` after the beginning.
    pub(super) fn at(&self, micros: u64) -> u64 {
        self.began_us.saturating_add(micros).saturating_mul(1000)
    }

    /// The agent's address, as text.
    pub(super) fn client(&self) -> Option<String> {
        if let Ok(octets) = <[u8; 4]>::try_from(self.source) {
            return Some(dotted(octets));
        }
        <[u8; 16]>::try_from(self.source).ok().map(|bytes| Ipv6Addr::from(bytes).to_string())
    }

    /// The upstream's port.
    pub(super) fn upstream_port(&self) -> Option<u16> {
        let (scheme, rest) = self.upstream_base.split_once("://").unwrap_or(("", self.upstream_base));
        let authority = rest.split('/').next().unwrap_or_default();
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.or(match scheme {
            "https" => Some(443),
            "http" => Some(80),
            _ => None,
        })
    }

    /// What was asked of the upstream, without a query. Empty where the call isn't HTTP.
    pub(super) fn url(&self) -> String {
        let Some((scheme, after)) = self.upstream_base.split_once("://") else { return String::new() };
        let (authority, base_path) = after.split_at(after.find('/').unwrap_or(after.len()));
        let rest = match self.route {
            PATH_ROUTE => {
                let named = self.path.strip_prefix("/api/").unwrap_or_default();
                named.find('/').and_then(|at| named.get(at..)).unwrap_or_default()
            }
            _ => self.path,
        };
        let is_below = rest.strip_prefix(base_path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let base_path = if is_below { "" } else { base_path };
        [scheme, "://", authority, base_path, rest].concat()
    }
}

/// An IPv4 address in decimal. Its `Display` takes 1,300 instructions, which is a tenth of what a
/// record's spans take.
fn dotted(octets: [u8; 4]) -> String {
    let mut text = String::with_capacity(15);
    for (at, octet) in octets.into_iter().enumerate() {
        if at > 0 {
            text.push('.');
        }
        if octet >= 100 {
            text.push(char::from(b'0' + octet / 100));
        }
        if octet >= 10 {
            text.push(char::from(b'0' + octet / 10 % 10));
        }
        text.push(char::from(b'0' + octet % 10));
    }
    text
}

fn decode_context(bytes: &[u8]) -> Option<SpanContext> {
    let (trace, rest) = bytes.split_first_chunk::<16>()?;
    let (span, flags) = rest.split_first_chunk::<8>()?;
    Some(SpanContext { trace: *trace, span: *span, flags: *flags.first()? })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_is_written_as_the_library_writes_it() {
        for octets in [[0, 0, 0, 0], [127, 0, 0, 1], [10, 99, 100, 255], [9, 10, 109, 200]] {
            assert_eq!(dotted(octets), Ipv4Addr::from(octets).to_string());
        }
    }
}
