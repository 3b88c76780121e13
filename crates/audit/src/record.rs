//! Writes a record while its request is served: `AuditRecord` of `proto/seks/v1/audit.proto`.
//!
//! Each value is appended to one buffer in its wire form, in the order in which the stages find it.
//! There is no tree of values to build, clone or encode.

use crate::varint;

/// The fields of `AuditRecord`, by number.
pub mod field {
    #![expect(missing_docs, reason = "documented in audit.proto")]
    pub const KIND: u32 = 1;
    pub const BEGAN_US: u32 = 2;
    pub const REQUEST_ID: u32 = 3;
    pub const TRACE_ID: u32 = 4;
    pub const METHOD: u32 = 5;
    pub const PATH: u32 = 6;
    pub const PATH_CUT: u32 = 7;
    pub const SOURCE: u32 = 8;
    pub const HTTP_VERSION: u32 = 9;
    pub const TENANT: u32 = 10;
    pub const AGENT: u32 = 11;
    pub const TOKEN_ID: u32 = 12;
    pub const SERVICE: u32 = 13;
    pub const UPSTREAM: u32 = 14;
    pub const CREDENTIAL: u32 = 15;
    pub const CREDENTIAL_VERSION: u32 = 16;
    pub const TABLE_REVISION: u32 = 17;
    pub const DECISION: u32 = 18;
    pub const REASON: u32 = 19;
    pub const POLICIES: u32 = 20;
    pub const AUDITED_POLICIES: u32 = 21;
    pub const STATUS: u32 = 22;
    pub const UPSTREAM_STATUS: u32 = 23;
    pub const UPSTREAM_ERROR: u32 = 24;
    pub const REQUEST_BYTES: u32 = 25;
    pub const RESPONSE_BYTES: u32 = 26;
    pub const SCRUBBED: u32 = 27;
    pub const ABORTED: u32 = 28;
    pub const CONNECT_US: u32 = 29;
    pub const FIRST_BYTE_US: u32 = 30;
    pub const WHOLE_US: u32 = 31;
    pub const ATTEMPTS: u32 = 32;
    pub const AGENT_TRACE: u32 = 300;
    pub const AGENT_TRACE_TRUSTED: u32 = 301;
    pub const ROUTE: u32 = 302;
    pub const TLS: u32 = 303;
    pub const UPSTREAM_BASE: u32 = 304;
    pub const QUEUE_US: u32 = 305;
    pub const REGION: u32 = 306;
    pub const PROVIDER: u32 = 510;
    pub const MODEL: u32 = 511;
    pub const INPUT_TOKENS: u32 = 512;
    pub const OUTPUT_TOKENS: u32 = 513;
    pub const CACHED_TOKENS: u32 = 514;
    pub const CACHE_WRITTEN_TOKENS: u32 = 515;
    pub const REASONING_TOKENS: u32 = 516;
    pub const USAGE_UNKNOWN: u32 = 517;
}

/// `AuditRecord.Kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole request, recorded at its end.
    Whole = 1,
    /// Recorded before the upstream sees a byte.
    Intent = 2,
    /// A whole request, after its intent.
    Outcome = 3,
}

/// `AuditRecord.Decision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Permitted.
    Allow = 1,
    /// Refused.
    Deny = 2,
}

/// One record in its wire form.
#[derive(Debug, Default)]
pub struct RecordWriter {
    bytes: Vec<u8>,
}

impl RecordWriter {
    /// A writer with a buffer of `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    /// A writer in the memory of an earlier record, whose contents are gone.
    #[must_use]
    pub fn reusing(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self { bytes: buffer }
    }

    /// The buffer, for [`reusing`](Self::reusing).
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    /// Appends a number. 0 is the default and not written.
    #[inline]
    pub fn number(&mut self, field: u32, value: u64) {
        if value != 0 {
            varint::put(&mut self.bytes, u64::from(field << 3));
            varint::put(&mut self.bytes, value);
        }
    }

    /// Appends text or bytes. Empty is the default and not written.
    #[inline]
    pub fn bytes(&mut self, field: u32, value: &[u8]) {
        if !value.is_empty() {
            varint::put(&mut self.bytes, u64::from(field << 3 | 2));
            varint::put_bytes(&mut self.bytes, value);
        }
    }

    /// Appends text. Empty is the default and not written.
    #[inline]
    pub fn text(&mut self, field: u32, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    /// The position of the next field.
    #[must_use]
    pub fn position(&self) -> usize {
        self.bytes.len()
    }

    /// Removes what was appended after `position`.
    pub fn rewind(&mut self, position: usize) {
        self.bytes.truncate(position);
    }

    /// What was written, to overwrite a value of the same length.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// What was written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// One field of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A varint.
    Number(u64),
    /// A length-delimited field.
    Bytes(&'a [u8]),
}

/// The fields of a record, in its order. Ends with `None` inside when the bytes are no record of
/// varints and length-delimited fields.
#[derive(Clone)]
pub struct FieldsOf<'a> {
    rest: &'a [u8],
}

impl<'a> FieldsOf<'a> {
    /// The fields of `record`.
    #[must_use]
    pub fn new(record: &'a [u8]) -> Self {
        Self { rest: record }
    }

    fn read(&mut self) -> Option<(u32, Value<'a>)> {
        let tag = varint::take(&mut self.rest)?;
        let field = u32::try_from(tag >> 3).ok().filter(|field| (1..1 << 29).contains(field))?;
        match tag & 7 {
            0 => Some((field, Value::Number(varint::take(&mut self.rest)?))),
            2 => Some((field, Value::Bytes(varint::take_bytes(&mut self.rest)?))),
            _ => None,
        }
    }
}

impl<'a> Iterator for FieldsOf<'a> {
    type Item = Option<(u32, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use seks_proto::wire::AuditRecord;

    use super::*;

    #[test]
    fn what_is_written_is_what_the_message_reads() {
        let mut writer = RecordWriter::with_capacity(64);
        writer.number(field::KIND, Kind::Outcome as u64);
        writer.number(field::BEGAN_US, 1_700_000_000_000_000);
        writer.bytes(field::REQUEST_ID, &[7; 16]);
        writer.bytes(field::TRACE_ID, &[8; 16]);
        writer.text(field::METHOD, "POST");
        writer.text(field::PATH, "/api/openai/v1/chat");
        writer.number(field::PATH_CUT, 1);
        writer.bytes(field::SOURCE, &[127, 0, 0, 1]);
        writer.number(field::HTTP_VERSION, 11);
        let names = [(field::TENANT, "t"), (field::AGENT, "a"), (field::TOKEN_ID, "k"), (field::SERVICE, "s")];
        names.iter().for_each(|(field, text)| writer.text(*field, text));
        let position = writer.position();
        writer.text(field::REASON, "forgotten");
        writer.rewind(position);
        writer.text(field::UPSTREAM, "u");
        writer.text(field::CREDENTIAL, "c");
        let numbers = [(field::CREDENTIAL_VERSION, 3), (field::TABLE_REVISION, 9), (field::DECISION, 2)];
        numbers.iter().for_each(|(field, number)| writer.number(*field, *number));
        writer.text(field::REASON, "policy_denied");
        ["p", "q"].iter().for_each(|id| writer.text(field::POLICIES, id));
        writer.text(field::AUDITED_POLICIES, "m");
        let numbers = [(field::STATUS, 403), (field::UPSTREAM_STATUS, 500), (field::REQUEST_BYTES, 1)];
        numbers.iter().for_each(|(field, number)| writer.number(*field, *number));
        writer.text(field::UPSTREAM_ERROR, "upstream_tls");
        let numbers = [(field::RESPONSE_BYTES, 2), (field::SCRUBBED, 4), (field::ABORTED, 1), (field::CONNECT_US, 5)];
        numbers.iter().for_each(|(field, number)| writer.number(*field, *number));
        writer.number(field::FIRST_BYTE_US, 6);
        writer.number(field::WHOLE_US, 7);
        writer.number(field::ATTEMPTS, 2);
        writer.bytes(field::AGENT_TRACE, &[9; 25]);
        [field::AGENT_TRACE_TRUSTED, field::TLS].iter().for_each(|field| writer.number(*field, 1));
        let texts = [(field::ROUTE, "/api/{service}"), (field::UPSTREAM_BASE, "https://u:443"), (field::REGION, "eu")];
        texts.iter().for_each(|(field, text)| writer.text(*field, text));
        writer.number(field::QUEUE_US, 4);
        let expected = AuditRecord {
            kind: 3,
            began_us: 1_700_000_000_000_000,
            request_id: vec![7; 16],
            trace_id: vec![8; 16],
            method: "POST".into(),
            path: "/api/openai/v1/chat".into(),
            path_cut: true,
            source: vec![127, 0, 0, 1],
            http_version: 11,
            tenant: "t".into(),
            agent: "a".into(),
            token_id: "k".into(),
            service: "s".into(),
            upstream: "u".into(),
            credential: "c".into(),
            credential_version: 3,
            table_revision: 9,
            decision: 2,
            reason: "policy_denied".into(),
            policies: vec!["p".into(), "q".into()],
            audited_policies: vec!["m".into()],
            status: 403,
            upstream_status: 500,
            upstream_error: "upstream_tls".into(),
            request_bytes: 1,
            response_bytes: 2,
            scrubbed: 4,
            aborted: true,
            connect_us: 5,
            first_byte_us: 6,
            whole_us: 7,
            attempts: 2,
            agent_trace: vec![9; 25],
            agent_trace_trusted: true,
            route: "/api/{service}".into(),
            tls: true,
            upstream_base: "https://u:443".into(),
            queue_us: 4,
            region: "eu".into(),
            ..AuditRecord::default()
        };
        assert_eq!(AuditRecord::decode(writer.as_bytes()).unwrap(), expected);
        assert_eq!(FieldsOf::new(writer.as_bytes()).flatten().count(), 40, "every field, one of them twice");
    }

    #[test]
    fn what_is_no_record_is_noticed() {
        for bad in [&[0x08][..], &[0x0d, 1, 2, 3, 4], &[0x12, 9, 1], &[0x00, 1], &[0xff; 11]] {
            assert!(FieldsOf::new(bad).any(|field| field.is_none()), "{bad:?}");
        }
        assert!(FieldsOf::new(&[]).next().is_none());
    }
}
