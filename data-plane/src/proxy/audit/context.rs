//! W3C trace context: `traceparent`, read from an agent and, where a service says so, passed on as a span of ours.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The agent's span, when it sent one `traceparent` and that is well-formed (W3C Trace Context, 3.2).
pub(super) fn parent(headers: &HeaderMap) -> Option<Context> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return None;
    }
    let span = parse(value)?;
    Some(Context::new().with_remote_span_context(span))
}

fn parse(value: &[u8]) -> Option<SpanContext> {
    let text = std::str::from_utf8(value).ok()?;
    let lower_hex = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths = (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2);
    if !lengths || ![version, trace, span, flags].iter().all(|p| lower_hex(p)) || version == "ff" {
        return None;
    }
    if version == "00" && parts.next().is_some() {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

/// `traceparent` of a span of ours.
pub(super) fn header(span: &SpanContext) -> Option<HeaderValue> {
    let flags = span.trace_flags().to_u8();
    HeaderValue::try_from(format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_parents_count() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = parse(good.as_bytes()).unwrap();
        assert_eq!(header(&context).unwrap(), good);
        assert!(parse(b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some(), "a later version");
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0\u{e9}",
        ] {
            assert!(parse(bad.as_bytes()).is_none(), "{bad}");
        }
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, good.parse().unwrap());
        assert!(parent(&headers).is_some());
        headers.append(TRACEPARENT, good.parse().unwrap());
        assert!(parent(&headers).is_none(), "two parents are none");
    }
}
