//! Header fields that say something of a body's bytes, and no longer hold when URLs in it may be
//! rewritten.

use http::{HeaderMap, HeaderName, header};

/// Digests of the body. An `ETag` stays: it names the upstream's representation to the upstream, in
/// `If-Match` and the like.
const DIGESTS: &[&str] = &[
    "content-digest",
    "content-md5",
    "digest",
    "repr-digest",
    "x-goog-hash",
    "x-ms-blob-content-md5",
    "x-ms-content-crc64",
];

/// The same by prefix: S3 and Artifactory.
const DIGEST_PREFIXES: &[&str] = &["x-amz-checksum-", "x-checksum-"];

/// Removes digests from headers or trailers.
pub(super) fn remove(fields: &mut HeaderMap) {
    let named = |name: &&HeaderName| {
        DIGESTS.contains(&name.as_str()) || DIGEST_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
    };
    let named: Vec<HeaderName> = fields.keys().filter(named).cloned().collect();
    for name in named {
        fields.remove(name);
    }
}

/// Removes what describes the bytes of a body that may be rewritten: its length, its digests, and
/// that parts of it can be asked for.
pub(super) fn remove_from_head(headers: &mut HeaderMap) {
    remove(headers);
    headers.remove(header::ACCEPT_RANGES);
    if headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0") {
        headers.remove(header::CONTENT_LENGTH);
    }
}
