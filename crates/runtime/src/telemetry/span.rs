//! Writes a span as OTLP protobuf while it is recorded.
//!
//! A request's values are recorded once and never read again here, so there is no tree of
//! attributes. Each value is appended to one buffer in its wire form. The SDK's way (a `tracing`
//! span with attributes that are cloned, converted and encoded) costs 25 µs a request, this one 1
//! µs. `benches/README.md` has the figures.
//!
//! Field numbers are those of `opentelemetry/proto/trace/v1/trace.proto` 1.x, which its stability
//! rules keep.

/// The identity of a span, for its children and for `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// The id of its trace.
    pub trace: [u8; 16],
    /// Its own id.
    pub span: [u8; 8],
    /// W3C trace flags.
    pub flags: u8,
}

/// `SpanKind` of a received request.
pub const SERVER: u64 = 2;
/// `SpanKind` of a sent request.
pub const CLIENT: u64 = 3;

/// Bytes of a length that is filled in later. A span is shorter than 2 MiB.
const LENGTH_BYTES: usize = 3;

/// Room for an ordinary span.
const SPAN_BYTES: usize = 1536;

/// Longest message whose length is one byte.
const SHORT: usize = 127;

/// Field 2 of `ScopeSpans`, length-delimited.
const SPANS: u8 = 2 << 3 | 2;

const fn delimited(field: u8) -> u8 {
    field << 3 | 2
}
const fn varint(field: u8) -> u8 {
    field << 3
}
const fn fixed64(field: u8) -> u8 {
    field << 3 | 1
}

/// Writes spans into one buffer, one after the other.
#[derive(Debug, Default)]
pub struct SpanWriter {
    bytes: Vec<u8>,
    /// The start of the open span.
    open: usize,
    count: usize,
}

impl SpanWriter {
    /// A writer with a buffer of `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity), open: 0, count: 0 }
    }

    /// A writer that holds one encoded span.
    pub(super) fn from_encoded(span: &[u8]) -> Self {
        Self { bytes: message(SPANS >> 3, span), open: 0, count: 1 }
    }

    /// Begins a span. Attributes belong to it until [`end`](Self::end).
    pub fn begin(&mut self, name: &str, kind: u64, context: &SpanContext, parent: Option<[u8; 8]>, start_nanos: u64) {
        self.bytes.reserve(SPAN_BYTES);
        self.open = self.bytes.len();
        self.count += 1;
        self.bytes.extend_from_slice(&[SPANS, 0, 0, 0]);
        self.field(1, &context.trace);
        self.field(2, &context.span);
        if let Some(parent) = parent {
            self.field(4, &parent);
        }
        self.field(5, name.as_bytes());
        self.bytes.push(varint(6));
        self.number(kind);
        self.bytes.push(fixed64(7));
        self.bytes.extend_from_slice(&start_nanos.to_le_bytes());
    }

    /// Appends a text attribute.
    pub fn text(&mut self, key: &str, value: &str) {
        // AnyValue.string_value
        let length = 2 + value.len();
        if 4 + key.len() + length <= SHORT {
            self.short_attribute(key, length);
            self.bytes.extend_from_slice(&[delimited(1), value.len() as u8]);
            self.bytes.extend_from_slice(value.as_bytes());
            return;
        }
        self.attribute(key, 1 + varint_len(value.len() as u64) + value.len());
        self.field(1, value.as_bytes());
    }

    /// Appends a number attribute.
    pub fn int(&mut self, key: &str, value: u64) {
        let length = 1 + varint_len(value);
        if 4 + key.len() + length <= SHORT {
            self.short_attribute(key, length);
        } else {
            self.attribute(key, length);
        }
        self.bytes.push(varint(3));
        self.number(value);
    }

    /// Appends a boolean attribute that is true.
    pub fn flag(&mut self, key: &str) {
        self.attribute(key, 2);
        self.bytes.extend_from_slice(&[varint(2), 1]);
    }

    /// Appends an attribute that is a list of texts.
    pub fn texts<'a>(&mut self, key: &str, values: impl Iterator<Item = &'a str> + Clone) {
        let value = |text: &str| 1 + varint_len(text.len() as u64) + text.len();
        let list: usize = values.clone().map(|t| 1 + varint_len(value(t) as u64) + value(t)).sum();
        self.attribute(key, 1 + varint_len(list as u64) + list);
        self.bytes.push(delimited(5)); // AnyValue.array_value
        self.number(list as u64);
        for text in values {
            self.bytes.push(delimited(1)); // ArrayValue.values
            self.number(value(text) as u64);
            self.field(1, text.as_bytes());
        }
    }

    /// The position of the next attribute.
    #[must_use]
    pub fn position(&self) -> usize {
        self.bytes.len()
    }

    /// Removes everything written to the open span after `position`.
    pub fn rewind(&mut self, position: usize) {
        self.bytes.truncate(position.max(self.open));
    }

    /// Appends a link to another span.
    pub fn link(&mut self, to: &SpanContext) {
        const LENGTH: u64 = 2 + 16 + 2 + 8 + 1 + 4;
        self.bytes.push(delimited(13));
        self.number(LENGTH);
        self.field(1, &to.trace);
        self.field(2, &to.span);
        self.bytes.push(6 << 3 | 5); // flags, fixed32
        self.bytes.extend_from_slice(&u32::from(to.flags).to_le_bytes());
    }

    /// Sets the span's status to error.
    pub fn error(&mut self, message: &str) {
        let length = 1 + varint_len(message.len() as u64) + message.len() + 2;
        self.bytes.push(delimited(15));
        self.number(length as u64);
        self.field(2, message.as_bytes());
        self.bytes.extend_from_slice(&[varint(3), 2]); // STATUS_CODE_ERROR
    }

    /// Ends the open span.
    pub fn end(&mut self, end_nanos: u64) {
        self.bytes.push(fixed64(8));
        self.bytes.extend_from_slice(&end_nanos.to_le_bytes());
        let length = self.bytes.len() - self.open - 1 - LENGTH_BYTES;
        if let Some(place) = self.bytes.get_mut(self.open + 1..self.open + 1 + LENGTH_BYTES) {
            place.copy_from_slice(&padded_varint(length));
        }
    }

    /// The written bytes: `ScopeSpans.spans`, repeated.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The written bytes, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The number of spans.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// [`attribute`](Self::attribute) where each length is one byte, as nearly all are: four calls
    /// instead of eight.
    #[inline]
    fn short_attribute(&mut self, key: &str, length: usize) {
        let pair = 4 + key.len() + length;
        self.bytes.extend_from_slice(&[delimited(9), pair as u8, delimited(1), key.len() as u8]);
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.extend_from_slice(&[delimited(2), length as u8]);
    }

    /// Appends a key and the header of a value. The caller writes its `length` bytes.
    fn attribute(&mut self, key: &str, length: usize) {
        let pair = 1 + varint_len(key.len() as u64) + key.len() + 1 + varint_len(length as u64) + length;
        self.bytes.push(delimited(9));
        self.number(pair as u64);
        self.field(1, key.as_bytes());
        self.bytes.push(delimited(2));
        self.number(length as u64);
    }

    fn field(&mut self, field: u8, value: &[u8]) {
        self.bytes.push(delimited(field));
        self.number(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    #[inline]
    fn number(&mut self, mut value: u64) {
        while value > 0x7f {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}

/// A nested message: its tag, its length and its bytes.
pub(super) fn message(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = SpanWriter::with_capacity(1 + LENGTH_BYTES + bytes.len());
    message.field(field, bytes);
    message.bytes
}

/// The tag and length of a message whose bytes the caller appends.
pub(super) fn message_header(field: u8, length: usize) -> Vec<u8> {
    let mut head = SpanWriter::default();
    head.bytes.push(delimited(field));
    head.number(length as u64);
    head.bytes
}

/// The length of a varint, in bytes.
#[inline]
fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// A length as a varint of [`LENGTH_BYTES`]. It may be longer than needed, which protobuf decoders
/// accept up to ten bytes.
fn padded_varint(length: usize) -> [u8; LENGTH_BYTES] {
    [length as u8 | 0x80, (length >> 7) as u8 | 0x80, (length >> 14) as u8 & 0x7f]
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        common::v1::{AnyValue, ArrayValue, any_value::Value},
        trace::v1::{ScopeSpans, Span},
    };
    use prost::Message as _;

    use super::*;

    fn decoded(spans: &SpanWriter) -> Vec<Span> {
        ScopeSpans::decode(spans.as_bytes()).unwrap().spans
    }

    fn string(text: &str) -> Value {
        Value::StringValue(text.into())
    }

    #[test]
    fn what_is_written_is_what_a_collector_reads() {
        let context = SpanContext { trace: [7; 16], span: [9; 8], flags: 1 };
        let long = "x".repeat(20_000);
        let mut spans = SpanWriter::with_capacity(16);
        spans.begin("seks.proxy", SERVER, &context, Some([3; 8]), 1_000_000_007);
        spans.text("short", "a");
        spans.text("long", &long);
        spans.text("empty", "");
        for (key, value) in [("zero", 0), ("small", 127), ("larger", 128), ("largest", i64::MAX as u64)] {
            spans.int(key, value);
        }
        spans.flag("flag");
        spans.texts("list", ["one", "", &long].into_iter());
        spans.texts("none", std::iter::empty());
        spans.link(&SpanContext { trace: [4; 16], span: [5; 8], flags: 1 });
        spans.error("aborted");
        spans.end(1_000_000_009);
        spans.begin("seks.upstream", CLIENT, &SpanContext { span: [1; 8], ..context }, Some([9; 8]), 5);
        spans.end(6);

        let read = decoded(&spans);
        assert_eq!((read.len(), spans.count()), (2, 2));
        let span = &read[0];
        assert_eq!((&span.trace_id[..], &span.span_id[..]), (&[7; 16][..], &[9; 8][..]));
        assert_eq!((&span.parent_span_id[..], span.name.as_str(), span.kind), (&[3; 8][..], "seks.proxy", 2));
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1_000_000_007, 1_000_000_009));
        let status = span.status.as_ref().unwrap();
        assert_eq!((status.code, status.message.as_str()), (2, "aborted"));
        let link = &span.links[0];
        assert_eq!((&link.trace_id[..], &link.span_id[..], link.flags), (&[4; 16][..], &[5; 8][..], 1));
        let value = |key: &str| span.attributes.iter().find(|a| a.key == key).unwrap().value.clone().unwrap().value;
        assert_eq!(value("short"), Some(string("a")));
        assert_eq!(value("long"), Some(string(&long)));
        assert_eq!(value("empty"), Some(string("")));
        assert_eq!(value("flag"), Some(Value::BoolValue(true)));
        for (key, number) in [("zero", 0), ("small", 127), ("larger", 128), ("largest", i64::MAX)] {
            assert_eq!(value(key), Some(Value::IntValue(number)), "{key}");
        }
        let list = |texts: &[&str]| {
            let values = texts.iter().map(|t| AnyValue { value: Some(string(t)) }).collect();
            Some(Value::ArrayValue(ArrayValue { values }))
        };
        assert_eq!((value("list"), value("none")), (list(&["one", "", &long]), list(&[])));
        assert_eq!((&read[1].parent_span_id[..], read[1].kind, read[1].attributes.len()), (&[9; 8][..], 3, 0));
    }
}
