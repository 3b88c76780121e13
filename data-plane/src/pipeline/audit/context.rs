//! W3C trace context: `traceparent`, read from an agent and, where a service says so, passed on as
//! a span of ours.

use http::{HeaderMap, HeaderName, HeaderValue};
use seks_runtime::telemetry::SpanContext;

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The agent's span, when it sent one `traceparent` and that is well-formed (W3C Trace Context,
/// 3.2).
pub(super) fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return None;
    }
    parse(value)
}

fn parse(value: &[u8]) -> Option<SpanContext> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let [_]: [u8; 1] = hex(version)?;
    let [flags]: [u8; 1] = hex(flags)?;
    let context = SpanContext { trace: hex(trace)?, span: hex(span)?, flags: flags & 1 };
    (context.trace != [0; 16] && context.span != [0; 8]).then_some(context)
}

/// Exactly `N` bytes in lower-case hexadecimal digits.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// `traceparent` of a span of ours.
pub(super) fn header(span: &SpanContext) -> Option<HeaderValue> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    HeaderValue::try_from(format!("00-{}-{}-{:02x}", hex(&span.trace), hex(&span.span), span.flags)).ok()
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
