//! The WebSocket handshake (RFC 6455, section 4): the agent's request, the offer to the upstream,
//! and its response.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header, request::Parts};

use super::{refusal::Refusal, token};
use crate::http::{HeaderList, client::UpstreamError, fields};

/// The protocol's name in `Upgrade`.
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
/// More than any SDK offers.
const MAX_PROTOCOLS: usize = 16;

/// Whether an agent wants to switch to WebSocket. An upgrade to HTTP/2 is passed over, as HTTP
/// allows: it changes nothing of the request, and curl and Java offer it with each. Any other is
/// refused, because the agent would wait for its own protocol.
pub(crate) fn is_asked(parts: &Parts, has_body: bool) -> Result<bool, Refusal> {
    let Some(upgrade) = parts.headers.get(header::UPGRADE) else { return Ok(false) };
    if !upgrade.as_bytes().eq_ignore_ascii_case(b"websocket") {
        // Without `Connection: Upgrade`, or in HTTP/1.0, it asks for nothing (RFC 9110, 7.8).
        let asks = parts.version == Version::HTTP_11
            && fields::connection_names(&parts.headers).any(|n| n.eq_ignore_ascii_case("upgrade"));
        let mut asked = parts.headers.get_all(header::UPGRADE).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
        return if asks && !asked.all(|protocol| is_http(protocol.trim_ascii())) {
            Err(Refusal::invalid("a request can only be upgraded to WebSocket, at a service with `allow_websocket`"))
        } else {
            Ok(false)
        };
    }
    let malformed = |detail| Err(Refusal::invalid(detail));
    let one = |name: &HeaderName| {
        let mut values = parts.headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    let named = fields::connection_names(&parts.headers).any(|n| n.eq_ignore_ascii_case("upgrade"));
    if parts.version != Version::HTTP_11 || parts.method != Method::GET || has_body || !named {
        return malformed("a WebSocket handshake is a GET in HTTP/1.1 with `Connection: Upgrade` and without a body");
    }
    if one(&header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v.as_bytes() != b"13") {
        // RFC 6455, 4.4.
        let refusal = Refusal::invalid("Sec-WebSocket-Version is not 13");
        return Err(refusal.with_status(StatusCode::UPGRADE_REQUIRED));
    }
    let key = one(&header::SEC_WEBSOCKET_KEY).and_then(|k| STANDARD.decode(k.as_bytes()).ok());
    if key.is_none_or(|k| k.len() != 16) {
        return malformed("Sec-WebSocket-Key is not 16 bytes in base64");
    }
    Ok(true)
}

/// `h2c`, `h2`, `HTTP/2.0`, with a draft's number or without.
fn is_http(protocol: &[u8]) -> bool {
    let begins = |text: &[u8]| protocol.get(..text.len()).is_some_and(|p| p.eq_ignore_ascii_case(text));
    begins(b"h2") || begins(b"http/")
}

/// What is offered to an upstream for one agent's handshake.
pub(crate) struct Offer {
    /// The node's own.
    key: String,
    /// What the agent expects to be answered.
    accept: HeaderValue,
    /// The agent's, without the token.
    protocols: Vec<String>,
}

impl Offer {
    /// From the headers of a request for which [`is_asked`] said yes, before they are filtered.
    pub(crate) fn new(headers: &HeaderMap) -> Option<Self> {
        let accept = HeaderValue::try_from(accept(headers.get(header::SEC_WEBSOCKET_KEY)?.as_bytes())).ok()?;
        let mut key = [0; 16];
        getrandom::fill(&mut key).ok()?;
        let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        let offered = offered.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim);
        let protocols = offered.filter(|p| is_protocol(p)).take(MAX_PROTOCOLS).map(str::to_owned).collect();
        Some(Self { key: STANDARD.encode(key), accept, protocols })
    }

    /// Adds the offer to a request's headers, from which an agent's was filtered. No extensions:
    /// what is compressed can't be searched.
    pub(crate) fn write(&self, headers: &mut HeaderList) -> Option<()> {
        headers.set(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.set(header::UPGRADE, WEBSOCKET);
        headers.set(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.set(header::SEC_WEBSOCKET_KEY, HeaderValue::from_str(&self.key).ok()?);
        if !self.protocols.is_empty() {
            let offered = HeaderValue::from_str(&self.protocols.join(", ")).ok()?;
            headers.set(header::SEC_WEBSOCKET_PROTOCOL, offered);
        }
        Some(())
    }

    /// Checks an upstream's `101` and makes the agent's of its headers.
    pub(crate) fn accepted<B>(&self, response: &mut Response<B>) -> Result<(), Refusal> {
        let headers = response.headers_mut();
        let is = |name: HeaderName, value: &[u8]| {
            let mut values = headers.get_all(name).iter();
            values.next().is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(value)) && values.next().is_none()
        };
        let key_ok = headers
            .get(header::SEC_WEBSOCKET_ACCEPT)
            .is_some_and(|v| v.as_bytes() == accept(self.key.as_bytes()).as_bytes());
        // An extension that nobody offered, or a subprotocol: the two ends would understand each
        // other in another way than the node.
        let chosen = headers.get(header::SEC_WEBSOCKET_PROTOCOL).cloned();
        let chosen_ok = chosen.as_ref().is_none_or(|c| self.protocols.iter().any(|p| p.as_bytes() == c.as_bytes()));
        let extended = headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS);
        if !is(header::UPGRADE, b"websocket") || !key_ok || !chosen_ok || extended {
            return Err(UpstreamError::BadSwitch.into());
        }
        for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::SEC_WEBSOCKET_PROTOCOL] {
            headers.remove(name);
        }
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept.clone());
        if let Some(chosen) = chosen {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, chosen);
        }
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        Ok(())
    }
}

/// Puts back what makes a `101` one, after the connection's own headers were filtered out.
pub(crate) fn announce(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, WEBSOCKET);
}

/// A subprotocol's name, and no place of a token.
fn is_protocol(text: &str) -> bool {
    let token = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b));
    token && !token::has_token(text.as_bytes())
}

/// `Sec-WebSocket-Accept` for a key.
fn accept(key: &[u8]) -> String {
    let text = [key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Code;

    #[test]
    fn a_key_is_answered_as_the_rfc_shows() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    fn parts(change: impl Fn(&mut Parts)) -> Parts {
        let request = http::Request::get("/api/openai/v1/realtime")
            .header("Upgrade", "WebSocket")
            .header("Connection", "keep-alive, Upgrade")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        let mut parts = request.body(()).unwrap().into_parts().0;
        change(&mut parts);
        parts
    }

    #[test]
    fn a_handshake_is_taken_whole_or_refused_and_only_upgrades_to_http2_are_passed_over() {
        assert!(is_asked(&parts(|_| {}), false).unwrap());
        let asked =
            |other: &str| is_asked(&parts(|p| drop(p.headers.insert("upgrade", other.parse().unwrap()))), false);
        for other in ["h2c", "h2, h2c", "HTTP/2.0"] {
            assert!(!asked(other).unwrap(), "{other}");
        }
        for other in ["foo", "websocket, h2c", "h2c, foo", ""] {
            assert_eq!(asked(other).unwrap_err().code, Code::RequestInvalid, "{other}");
        }
        assert!(!is_asked(&parts(|p| drop(p.headers.remove("upgrade"))), true).unwrap());
        let wrong: [&dyn Fn(&mut Parts); 7] = [
            &|p| p.method = Method::POST,
            &|p| p.version = Version::HTTP_10,
            &|p| drop(p.headers.remove("connection")),
            &|p| drop(p.headers.insert("sec-websocket-version", "8".parse().unwrap())),
            &|p| drop(p.headers.insert("sec-websocket-key", "short".parse().unwrap())),
            &|p| {
                p.headers.append("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
            },
            &|p| drop(p.headers.remove("sec-websocket-key")),
        ];
        for change in wrong {
            assert_eq!(is_asked(&parts(change), false).unwrap_err().code, Code::RequestInvalid);
        }
        assert!(is_asked(&parts(|_| {}), true).is_err(), "a body");
    }

    #[test]
    fn an_offer_is_the_nodes_own_and_an_answer_must_be_to_it() {
        let token = format!("openai-insecure-api-key.seks_token_{}", "a".repeat(49));
        let mut agent = parts(|_| {}).headers;
        agent.insert("sec-websocket-protocol", format!("realtime, {token}, openai-beta.realtime-v1").parse().unwrap());
        agent.insert("sec-websocket-extensions", "permessage-deflate".parse().unwrap());
        let offer = Offer::new(&agent).unwrap();
        let mut sent = HeaderList::default();
        offer.write(&mut sent).unwrap();
        let sent = sent.into_map();
        assert_eq!(sent["sec-websocket-protocol"], "realtime, openai-beta.realtime-v1");
        assert!(!sent.contains_key("sec-websocket-extensions"));
        assert_ne!(sent["sec-websocket-key"], agent["sec-websocket-key"]);

        let answer = |change: &dyn Fn(&mut HeaderMap)| {
            let mut response = Response::new(());
            let headers = response.headers_mut();
            headers.insert("upgrade", "websocket".parse().unwrap());
            headers.insert("sec-websocket-accept", accept(sent["sec-websocket-key"].as_bytes()).parse().unwrap());
            headers.insert("sec-websocket-protocol", "realtime".parse().unwrap());
            change(headers);
            offer.accepted(&mut response).map(|()| response)
        };
        let good = answer(&|_| {}).unwrap();
        assert_eq!(good.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(good.headers()["sec-websocket-protocol"], "realtime");
        let wrong: [&dyn Fn(&mut HeaderMap); 5] = [
            &|h| drop(h.remove("upgrade")),
            &|h| drop(h.insert("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".parse().unwrap())),
            &|h| drop(h.insert("sec-websocket-protocol", "other".parse().unwrap())),
            &|h| drop(h.insert("sec-websocket-extensions", "permessage-deflate".parse().unwrap())),
            &|h| {
                h.append("upgrade", "h2c".parse().unwrap());
            },
        ];
        for change in wrong {
            assert_eq!(answer(change).unwrap_err().code, Code::UpstreamUnreachable);
        }
    }
}
