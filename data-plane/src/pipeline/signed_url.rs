//! URLs that identify a token: the URL of an upload or operation that a client uses without a key.
//!
//! Some vendors return a URL that is a right by itself, and their SDKs use it without a key
//! (`X-Goog-Upload-URL`). Through the node such a request would have no identity. So the node adds
//! a query parameter when it rewrites the URL, for the headers that the service names in
//! `keyless_urls`. The parameter contains the token's digest, an expiry and a MAC under the
//! tenant's key, which nodes already have for fake AWS keys (`seks_types::token::aws`).
//!
//! The MAC covers the service, the token, the expiry, and the path and query that are sent to the
//! upstream. So a stolen URL is valid only for this resource, only until it expires, and only while
//! the token is valid. The token is looked up as always, so revocation, expiry, network bindings
//! and policies hold. The parameter is removed before a policy or the upstream sees the query, and
//! queries are never logged.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use seks_types::{
    secret::Fields,
    token::{Digest, aws},
};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::refusal::Refusal;
use crate::code::Code;

/// The query parameter.
pub(crate) const PARAMETER: &str = "seks_capability";

/// How long a URL is good: longer than any upload takes without a pause of the client.
const LIFETIME_SECONDS: i64 = 24 * 60 * 60;

const KEY_LABEL: &[u8] = b"seks/v1/signed-url-key\0";
const VERSION: u8 = 1;
const DIGEST: usize = 32;
const MAC: usize = 32;
const LEN: usize = 1 + size_of::<i64>() + DIGEST + MAC;

/// The key that URLs of a tenant are signed with.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct UrlKey([u8; 32]);

impl UrlKey {
    /// The key that follows from the tenant's. `None`: the credential was stored before its service
    /// had `keyless_urls`.
    pub(super) fn of(fields: &Fields) -> Option<Self> {
        let mac = Hmac::<Sha256>::new_from_slice(fields.get(aws::KEY_FIELD)?).ok()?;
        Some(Self(mac.chain_update(KEY_LABEL).finalize().into_bytes().into()))
    }

    /// The MAC over a service, a token, an expiry and a target. Each part but the last has a fixed
    /// length or its length in front.
    fn mac(&self, service: &str, digest: &Digest, expires: i64, target: &str) -> Option<Hmac<Sha256>> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        let mac = mac.chain_update((service.len() as u64).to_be_bytes()).chain_update(service);
        Some(mac.chain_update(digest.0).chain_update(expires.to_be_bytes()).chain_update(target))
    }
}

/// Signs the URLs in the answer to one request.
pub(crate) struct UrlSigner {
    key: Arc<UrlKey>,
    digest: Digest,
    expires: i64,
}

impl UrlSigner {
    /// A signer for the token with this digest. `now` is in unix seconds.
    pub(super) fn new(key: Arc<UrlKey>, digest: Digest, now: i64) -> Self {
        Self { key, digest, expires: now.saturating_add(LIFETIME_SECONDS) }
    }

    /// The parameter, with its name, for `target`: path and query as they are sent to the upstream
    /// of `service`.
    pub(super) fn sign(&self, service: &str, target: &str) -> Option<String> {
        let mac = self.key.mac(service, &self.digest, self.expires, target)?.finalize().into_bytes();
        let mut bytes = Vec::with_capacity(LEN);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.expires.to_be_bytes());
        bytes.extend_from_slice(&self.digest.0);
        bytes.extend_from_slice(&mac);
        Some(format!("{PARAMETER}={}", URL_SAFE_NO_PAD.encode(bytes)))
    }
}

/// What a request's URL says. Nothing of it is known to be true but its form.
pub(crate) struct PresentedUrl {
    pub(super) digest: Digest,
    expires: i64,
    mac: [u8; MAC],
}

/// The parameter's value is not one of ours, or there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MalformedUrl;

impl PresentedUrl {
    /// Reads the parameter in a query; `None` when there is none.
    pub(super) fn read(query: &str) -> Option<Result<Self, MalformedUrl>> {
        // Nearly every query ends here.
        memchr::memmem::find(query.as_bytes(), PARAMETER.as_bytes())?;
        let mut values = query.split('&').filter_map(|pair| pair.strip_prefix(PARAMETER)?.strip_prefix('='));
        match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => Some(Self::decode(value).ok_or(MalformedUrl)),
            (Some(_), Some(_)) => Some(Err(MalformedUrl)),
        }
    }

    fn decode(value: &str) -> Option<Self> {
        let mut bytes = [0; LEN + 2];
        let length = URL_SAFE_NO_PAD.decode_slice(value, &mut bytes).ok()?;
        let (version, rest) = bytes.get(..length).filter(|b| b.len() == LEN)?.split_first()?;
        let (expires, rest) = rest.split_first_chunk::<8>().filter(|_| *version == VERSION)?;
        let (digest, mac) = rest.split_first_chunk::<DIGEST>()?;
        Some(Self { digest: Digest(*digest), expires: i64::from_be_bytes(*expires), mac: mac.try_into().ok()? })
    }

    /// Checks that a node of this tenant signed the URL for this service and target, and that it
    /// has not expired at `now`.
    ///
    /// # Errors
    /// `token_malformed` and `token_expired`. A forged and a misused URL are not told apart.
    pub(super) fn verify(&self, fields: &Fields, service: &str, target: &str, now: i64) -> Result<(), Refusal> {
        let verified = UrlKey::of(fields)
            .and_then(|key| key.mac(service, &self.digest, self.expires, target))
            .is_some_and(|mac| mac.verify_slice(&self.mac).is_ok());
        if !verified {
            return Err(Refusal::from(Code::TokenMalformed)
                .with_detail("the URL's seks_capability is not valid for this service, path and query"));
        }
        if now >= self.expires {
            return Err(Refusal::from(Code::TokenExpired)
                .with_detail("the URL has expired: begin the upload or the operation again"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use seks_types::secret::Secret;

    use super::*;

    const TARGET: &str = "/upload/v1beta/files?upload_id=7";

    fn fields(key: &str) -> Fields {
        let secret = Secret::new(b"real-key".to_vec());
        Fields::parse(&["key".to_owned()], &secret).unwrap().with(aws::KEY_FIELD, &Secret::new(key.into())).unwrap()
    }

    fn signed(key: &str, service: &str, target: &str) -> PresentedUrl {
        let signer = UrlSigner::new(Arc::new(UrlKey::of(&fields(key)).unwrap()), Digest([7; 32]), 1000);
        let parameter = signer.sign(service, target).unwrap();
        PresentedUrl::read(&format!("upload_id=7&{parameter}")).unwrap().unwrap()
    }

    fn code(result: Result<(), Refusal>) -> Option<Code> {
        result.err().map(|refusal| refusal.code)
    }

    #[test]
    fn a_url_is_good_for_what_it_was_signed_for_and_until_it_expires() {
        let url = signed("k", "gemini", TARGET);
        assert_eq!(url.digest, Digest([7; 32]));
        let verify =
            |key: &str, service: &str, target: &str, now: i64| code(url.verify(&fields(key), service, target, now));
        assert_eq!(verify("k", "gemini", TARGET, 1000), None);
        assert_eq!(verify("k", "gemini", TARGET, 1000 + LIFETIME_SECONDS - 1), None);
        assert_eq!(verify("k", "gemini", TARGET, 1000 + LIFETIME_SECONDS), Some(Code::TokenExpired));
        for (key, service, target) in [
            ("other tenant", "gemini", TARGET),
            ("k", "gemini2", TARGET),
            ("k", "gemini", "/upload/v1beta/files?upload_id=8"),
            ("k", "gemini", "/upload/v1beta/files?upload_id=7&x=1"),
            ("k", "gemini", "/upload/v1beta/files"),
            ("k", "gemini", "/"),
        ] {
            assert_eq!(verify(key, service, target, 1000), Some(Code::TokenMalformed), "{key} {service} {target}");
        }
    }

    #[test]
    fn no_bit_can_be_changed_and_no_part_moved() {
        let signer = UrlSigner::new(Arc::new(UrlKey::of(&fields("k")).unwrap()), Digest([7; 32]), 1000);
        let parameter = signer.sign("s", TARGET).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(parameter.split_once('=').unwrap().1).unwrap();
        for at in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[at / 8] ^= 1 << (at % 8);
            let query = format!("{PARAMETER}={}", URL_SAFE_NO_PAD.encode(&forged));
            if let Ok(url) = PresentedUrl::read(&query).unwrap() {
                assert_eq!(code(url.verify(&fields("k"), "s", TARGET, 0)), Some(Code::TokenMalformed), "bit {at}");
            }
        }
        // The service's end and the target's beginning are not interchangeable.
        let url = signed("k", "s", "/x");
        assert!(url.verify(&fields("k"), "s/", "x", 1000).is_err());
    }

    #[test]
    fn what_is_not_ours_is_told_apart() {
        for query in ["", "upload_id=7", "xseks_capability=1", "seks_capability"] {
            assert!(PresentedUrl::read(query).is_none(), "{query}");
        }
        let parameter =
            UrlSigner::new(Arc::new(UrlKey::of(&fields("k")).unwrap()), Digest([7; 32]), 0).sign("s", "/").unwrap();
        for query in
            ["seks_capability=", "seks_capability=abc", &format!("{parameter}A"), &format!("{parameter}&{parameter}")]
        {
            assert!(PresentedUrl::read(query).unwrap().is_err(), "{query}");
        }
    }
}
