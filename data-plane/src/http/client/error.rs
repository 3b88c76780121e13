//! Why an upstream did not answer, or why its answer broke off.

use std::io;

/// Declares [`UpstreamError`] and its table: the word that spans and logs have, and the text that
/// agents and operators read.
macro_rules! upstream_errors {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $detail:literal;)*) => {
        /// Why an upstream did not answer, or why its answer broke off. Words and texts are fixed:
        /// they hold nothing of the network, the request or the answer.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        #[error("{}", self.detail())]
        #[repr(u8)]
        pub enum UpstreamError {
            $($(#[$doc])* $name,)*
        }

        impl UpstreamError {
            /// Every one, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn row(self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$name => ($word, $detail),)*
                }
            }
        }
    };
}

upstream_errors! {
    // No connection: the upstream has received nothing of the request.
    /// The name has no address, or no name server answered.
    NoAddress = "dns", "the upstream's name can't be resolved";
    /// Every address of the name is forbidden.
    AddressForbidden = "address_forbidden", "no address of the upstream may be connected to";
    /// The upstream's machine refused the connection.
    ConnectRefused = "connect_refused", "the upstream refused the connection";
    /// No connection in time.
    ConnectTimeout = "connect_timeout", "no connection to the upstream could be opened in time";
    /// No route to the address.
    ConnectUnreachable = "connect_unreachable", "the upstream's network can't be reached";
    /// Any other failure to connect.
    ConnectFailed = "connect_failed", "no connection to the upstream could be opened";
    /// The certificate has expired.
    TlsExpired = "tls_certificate_expired", "the upstream's certificate has expired";
    /// The certificate is not valid yet.
    TlsNotYetValid = "tls_certificate_not_yet_valid", "the upstream's certificate is not valid yet";
    /// The certificate is for another name.
    TlsWrongName = "tls_wrong_name", "the upstream's certificate is for another name";
    /// No trusted CA issued the certificate.
    TlsUnknownIssuer = "tls_unknown_issuer", "the upstream's certificate is from an unknown issuer";
    /// The certificate was revoked.
    TlsRevoked = "tls_certificate_revoked", "the upstream's certificate was revoked";
    /// Any other fault of the certificate.
    TlsBadCertificate = "tls_certificate_invalid", "the upstream's certificate is not valid";
    /// It wants a certificate of the node, which has none.
    TlsClientCertificate = "tls_client_certificate", "the upstream asks for a client certificate, which nodes do not have";
    /// Trust roots or the service's name can't be used.
    TlsSetup = "tls_setup", "the certificates that are trusted for the upstream can't be used";
    /// No common version or cipher, an alert, or an answer that is not TLS.
    TlsHandshake = "tls_handshake", "the TLS handshake with the upstream failed";
    /// The connection ended during the handshake.
    TlsClosed = "tls_closed", "the upstream closed the connection during the TLS handshake";
    /// The handshake took too long.
    TlsTimeout = "tls_timeout", "the TLS handshake with the upstream did not end in time";
    /// The service needs HTTP/2, which the upstream does not speak.
    NoHttp2 = "no_http2", "the upstream does not speak HTTP/2";
    /// Every connection carries as many requests as the upstream allows.
    StreamTimeout = "stream_timeout", "every connection to the upstream is in use, and none became free in time";
    /// The tenant uses as many services and credentials at once as it may.
    TooManyPools = "too_many_services", "the tenant uses too many services at once at this node";
    /// The connection was closed before a byte of the request was written.
    ClosedUnsent = "closed_unsent", "the upstream closed the connection before the request was sent";
    /// The upstream said that it has not processed the request, again and again.
    StreamRefused = "stream_refused", "the upstream refused the request before it processed it";
    /// The same, and the request's body can't be sent again.
    StreamRefusedBodySent = "stream_refused_body_sent",
        "the upstream refused the request before it processed it, and the request's body is too large to be sent again by the node";

    // The upstream may have begun to process the request.
    /// Nothing of an answer came in time.
    FirstByteTimeout = "first_byte_timeout", "the upstream did not begin to answer in time";
    /// The answer's body paused for too long.
    BodyIdle = "idle_timeout", "the upstream's answer paused for too long";
    /// The connection ended before the answer did.
    Closed = "closed", "the upstream closed the connection before its answer was complete";
    /// The connection was reset before the answer ended.
    Reset = "reset", "the connection to the upstream was reset before its answer was complete";
    /// The upstream reset the HTTP/2 stream.
    StreamReset = "stream_reset", "the upstream broke off the request";
    /// A violation of HTTP/2.
    Http2Protocol = "http2_protocol", "the upstream's answer breaks the rules of HTTP/2";
    /// No status line of HTTP/1.
    BadStatusLine = "malformed_status_line", "the upstream's answer does not begin with a status line of HTTP/1";
    /// A header line that is none.
    BadField = "malformed_header", "a header line of the upstream's answer is malformed";
    /// A header that frames the body has a blank before its colon, or continues over several lines.
    BadFramingField = "malformed_framing_header",
        "a header that says where the upstream's answer ends has a blank before its colon or spans several lines";
    /// More header lines than the node relays.
    TooManyFields = "too_many_headers", "the upstream's answer has more than 100 header lines";
    /// A head beyond the node's limit.
    HeadTooLarge = "head_too_large", "the head of the upstream's answer is larger than 64 KiB";
    /// More interim answers than the node takes.
    TooManyInterim = "too_many_interim", "the upstream sent too many interim answers";
    /// A `Content-Length` that is no number.
    BadLength = "malformed_content_length", "the upstream's Content-Length is not a number";
    /// Lengths that differ.
    ConflictingLengths = "conflicting_lengths", "the upstream's answer has different values of Content-Length";
    /// Both ways to frame a body.
    LengthAndChunked = "length_and_chunked", "the upstream's answer has both Content-Length and Transfer-Encoding";
    /// A transfer coding other than `chunked`, or that twice.
    TransferCoding = "transfer_coding", "the upstream's answer has a Transfer-Encoding other than one `chunked`";
    /// HTTP/1.0 has no chunks.
    ChunkedInHttp10 = "chunked_in_http10", "the upstream's answer is chunked in HTTP/1.0";
    /// A chunk's size or line end.
    BadChunk = "malformed_chunk", "a chunk of the upstream's answer is malformed";
    /// A trailer section that is none, or too long.
    BadTrailer = "malformed_trailer", "the trailers of the upstream's answer are malformed";
    /// A coding that the node can't take off.
    UnknownCoding = "unknown_coding", "the upstream's answer has a content coding that can't be searched for the credential";
    /// More codings on top of each other than the node takes off.
    TooManyCodings = "too_many_codings", "the upstream's answer has more than two content codings";
    /// A body that is not of its coding.
    CorruptCoding = "corrupt_coding", "the upstream's answer is not of the content coding that its head names";
    /// A body that ended before its coding did.
    TruncatedCoding = "truncated_coding", "the upstream's answer ended before its content coding did";
    /// A body that grows beyond what any honest answer does.
    DecompressionBomb = "decompression_bomb", "the upstream's answer grows too far when it is decompressed";
    /// A part without one right `Content-Range`, in a coding, or another part than the one that was
    /// asked for.
    BadRange = "malformed_range", "the upstream's answer is not the one range of bytes that was asked for";
    /// A `101` without an upgrade request.
    UnaskedSwitch = "unasked_switch", "the upstream changed the protocol unasked";
    /// A `101` that does not fit the handshake.
    BadSwitch = "malformed_switch", "the upstream's answer to the WebSocket handshake is not valid";
    /// The request's own body broke off. What is refused is the request.
    Upload = "request_broke_off", "the request's body broke off";
}

impl UpstreamError {
    /// `seks.upstream.error` of a span, and `error` of a log line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The text for the reader of a refusal.
    #[must_use]
    pub fn detail(self) -> &'static str {
        self.row().1
    }

    /// Why an address could not be connected to.
    #[must_use]
    pub fn from_connect(error: &io::Error) -> Self {
        use io::ErrorKind as K;
        match error.kind() {
            K::ConnectionRefused => Self::ConnectRefused,
            K::TimedOut => Self::ConnectTimeout,
            K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown | K::AddrNotAvailable => {
                Self::ConnectUnreachable
            }
            _ => Self::ConnectFailed,
        }
    }

    /// By its number in [`ALL`](Self::ALL).
    #[must_use]
    pub fn by_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether the upstream has surely not begun to process the request: sending it again costs
    /// nothing twice.
    #[must_use]
    pub fn is_unprocessed(self) -> bool {
        (self as u8) < Self::FirstByteTimeout as u8
    }

    /// Whether the same request can work only after something is changed.
    #[must_use]
    pub fn is_lasting(self) -> bool {
        use UpstreamError as E;
        matches!(
            self,
            E::TlsExpired
                | E::TlsNotYetValid
                | E::TlsWrongName
                | E::TlsUnknownIssuer
                | E::TlsRevoked
                | E::TlsBadCertificate
                | E::TlsClientCertificate
                | E::TlsSetup
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_lists_every_word() {
        let readme = include_str!("../../../README.md");
        for error in UpstreamError::ALL.iter().filter(|error| **error != UpstreamError::Upload) {
            assert!(readme.contains(&format!("`{}`", error.as_str())), "{}", error.as_str());
        }
    }

    #[test]
    fn every_error_has_a_word_and_a_text_of_its_own() {
        let (mut words, mut details) = (std::collections::HashSet::new(), std::collections::HashSet::new());
        for (number, error) in UpstreamError::ALL.iter().enumerate() {
            assert_eq!(UpstreamError::by_number(u8::try_from(number).unwrap()), Some(*error));
            let word = error.as_str();
            assert!(word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{word}");
            assert!(words.insert(word) && details.insert(error.detail()), "{word} stands twice");
        }
        assert!(UpstreamError::StreamRefusedBodySent.is_unprocessed() && UpstreamError::TlsExpired.is_unprocessed());
        assert!(!UpstreamError::FirstByteTimeout.is_unprocessed() && !UpstreamError::UnknownCoding.is_unprocessed());
    }
}
