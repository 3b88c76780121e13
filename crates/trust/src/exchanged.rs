//! Exchanged tokens: they carry what they stand for, and a MAC under the tenant's exchange key,
//! which nodes hold.
//!
//! So every node of the tenant honours such a token, and none of them writes to the store. The
//! digest of the trust's record is in it. A node looks that record up for each request, so that a
//! deleted trust, a denied subject and a withdrawn issuer's key end the token at the same moment as
//! they end all others.

use hmac::{Hmac, KeyInit as _, Mac as _};
use prost::Message as _;
use seks_types::{
    secret::Fields,
    token::{Digest, Malformed, carrying},
};
use sha2::Sha256;

use super::rule::{Claim, Identity};

const LABEL: &[u8] = b"seks/v1/exchanged-token\0";
const MAC_BYTES: usize = 32;
/// Most bytes of what a token carries, its MAC included.
const MAX_BYTES: usize = 4096;

/// What an exchanged token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangedToken {
    /// The digest of the trust's record.
    pub trust: Digest,
    /// Who it stands for.
    pub identity: Identity,
    /// When it was made, in Unix seconds.
    pub issued_at: i64,
    /// When it ends, in Unix seconds.
    pub expires_at: i64,
    /// The services that it is narrowed to; empty: all that the trust grants.
    pub services: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Encoded {
    #[prost(bytes = "vec", tag = "1")]
    trust: Vec<u8>,
    #[prost(string, tag = "2")]
    subject: String,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(int64, tag = "4")]
    issued_at: i64,
    #[prost(int64, tag = "5")]
    expires_at: i64,
    #[prost(message, repeated, tag = "6")]
    claims: Vec<EncodedClaim>,
    #[prost(bytes = "vec", tag = "7")]
    certificate: Vec<u8>,
    #[prost(string, repeated, tag = "8")]
    services: Vec<String>,
    /// Two tokens of the same second differ.
    #[prost(fixed64, tag = "9")]
    nonce: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncodedClaim {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "2")]
    values: Vec<String>,
}

/// The keys that exchanged tokens of a tenant are made and verified with.
pub struct ExchangeKey<'a> {
    current: &'a [u8],
    previous: Option<&'a [u8]>,
}

impl<'a> ExchangeKey<'a> {
    /// The field of the credential that holds the key that tokens are made with.
    pub const CURRENT: &'static str = "current";
    /// The field that holds the key before it, which verifies tokens that were made until the
    /// rotation.
    pub const PREVIOUS: &'static str = "previous";

    /// From the fields of the tenant's exchange credential.
    #[must_use]
    pub fn of(fields: &'a Fields) -> Option<Self> {
        let current = fields.get(Self::CURRENT).filter(|key| key.len() >= 32)?;
        Some(Self { current, previous: fields.get(Self::PREVIOUS).filter(|key| key.len() >= 32) })
    }

    fn mac(key: &[u8], body: &[u8]) -> Option<Hmac<Sha256>> {
        Some(Hmac::<Sha256>::new_from_slice(key).ok()?.chain_update(LABEL).chain_update(body))
    }

    /// The token's text. `None`: it would carry more than 4 KiB.
    #[must_use]
    pub fn seal(&self, token: &ExchangedToken, nonce: u64) -> Option<String> {
        let claim = |claim: &Claim| EncodedClaim {
            name: claim.name.to_string(),
            values: claim.values.iter().map(ToString::to_string).collect(),
        };
        let mut body = Encoded {
            trust: token.trust.0.to_vec(),
            subject: token.identity.subject.to_string(),
            key: token.identity.key.to_vec(),
            issued_at: token.issued_at,
            expires_at: token.expires_at,
            claims: token.identity.claims.iter().map(claim).collect(),
            certificate: token.identity.certificate.map(|thumbprint| thumbprint.to_vec()).unwrap_or_default(),
            services: token.services.clone(),
            nonce,
        }
        .encode_to_vec();
        let mac = Self::mac(self.current, &body)?.finalize().into_bytes();
        body.extend_from_slice(&mac);
        (body.len() <= MAX_BYTES).then(|| carrying::encode(&body))
    }
}

impl ExchangedToken {
    /// The trust that a token names, before anything of it is known to be true: the trust's tenant
    /// has the key.
    ///
    /// # Errors
    /// [`Malformed`] for what is no token of this kind.
    pub fn named_trust(token: &[u8]) -> Result<Digest, Malformed> {
        let bytes = carrying::decode(token)?;
        let (body, _) = split(&bytes).ok_or(Malformed::Damaged)?;
        let encoded = Encoded::decode(body).map_err(|_| Malformed::Damaged)?;
        Digest::try_from(encoded.trust.as_slice()).map_err(|_| Malformed::Damaged)
    }

    /// Verifies and reads a token. `None`: it was not made with this key.
    #[must_use]
    pub fn open(token: &[u8], key: &ExchangeKey<'_>) -> Option<Self> {
        let bytes = carrying::decode(token).ok()?;
        let (body, mac) = split(&bytes)?;
        let made_with = |key: &[u8]| ExchangeKey::mac(key, body).is_some_and(|made| made.verify_slice(mac).is_ok());
        if !made_with(key.current) && !key.previous.is_some_and(made_with) {
            return None;
        }
        let encoded = Encoded::decode(body).ok()?;
        let claim = |claim: EncodedClaim| Claim {
            name: claim.name.into(),
            values: claim.values.into_iter().map(Into::into).collect(),
        };
        let certificate = match encoded.certificate.as_slice() {
            [] => None,
            thumbprint => Some(thumbprint.try_into().ok()?),
        };
        Some(Self {
            trust: encoded.trust.as_slice().try_into().ok()?,
            identity: Identity {
                subject: encoded.subject.into(),
                key: encoded.key.as_slice().try_into().ok()?,
                claims: encoded.claims.into_iter().map(claim).collect(),
                certificate,
                expires_at: encoded.expires_at,
            },
            issued_at: encoded.issued_at,
            expires_at: encoded.expires_at,
            services: encoded.services,
        })
    }
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)
}
