//! A token of an issuer (RFC 7519), read strictly (RFC 8725).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::{MAX_JWT_BYTES, MAX_LIFE_SECONDS, algorithm::algorithm, json};

/// By how much the clock of an issuer may differ: 60 s.
pub const SKEW_SECONDS: i64 = 60;

/// Why a token of an issuer is refused. The texts are fixed: they hold nothing of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Its form.
    #[error("the subject token is malformed: {0}")]
    Malformed(&'static str),
    /// Its algorithm.
    #[error("the subject token's `alg` is not RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or EdDSA")]
    Algorithm,
    /// No trust names its issuer and audience.
    #[error("no trust names the subject token's issuer and audience")]
    Untrusted,
    /// The issuer has no key of its `kid` and algorithm, as far as the node knows.
    #[error("the issuer has no key of the subject token's `kid` and `alg`")]
    UnknownKey,
    /// Its signature.
    #[error("the subject token's signature is wrong")]
    Signature,
    /// `exp` has passed.
    #[error("the subject token has expired")]
    Expired,
    /// `nbf` or `iat` is in the future.
    #[error("the subject token is not valid yet")]
    NotYetValid,
    /// From `iat` to `exp` is more than 24 h.
    #[error("the subject token lives longer than 24 h")]
    LivesTooLong,
    /// A claim does not match.
    #[error("no trust matches the subject token's claims")]
    NoMatch,
    /// The subject is denied by name.
    #[error("the subject is revoked")]
    SubjectRevoked,
    /// The template gives no agent's name.
    #[error("the subject token's claims give no agent name")]
    NoAgent,
}

/// Whether a value could be a token of an issuer: it begins as base64url of `{"` does, and has two
/// dots.
#[must_use]
pub fn looks_like_jwt(value: &[u8]) -> bool {
    value.starts_with(b"ey") && value.len() <= MAX_JWT_BYTES && value.iter().filter(|b| **b == b'.').count() == 2
}

/// A token of an issuer whose form is right. Nothing in it is known to be true until
/// [`KeySet`](super::KeySet) has verified it.
pub struct Jwt<'a> {
    signed: &'a str,
    signature: &'a str,
    alg: Algorithm,
    kid: String,
    claims: Map<String, Value>,
}

impl<'a> Jwt<'a> {
    /// Reads a token.
    ///
    /// # Errors
    /// [`Rejected::Malformed`] and [`Rejected::Algorithm`].
    pub fn parse(token: &'a [u8]) -> Result<Self, Rejected> {
        let malformed = |what| Rejected::Malformed(what);
        if token.len() > MAX_JWT_BYTES {
            return Err(malformed("it is longer than 16 KiB"));
        }
        let token = std::str::from_utf8(token).map_err(|_| malformed("it is not three parts of base64url"))?;
        let parts: Vec<&str> = token.split('.').collect();
        let [header, payload, signature] = parts.as_slice() else {
            return Err(malformed("it is not three parts of base64url"));
        };
        let decode = |part: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed("it is not three parts of base64url"))?;
            json::object(&bytes).ok_or_else(|| malformed("a part is no JSON object, or repeats a name"))
        };
        if URL_SAFE_NO_PAD.decode(signature).map_or(0, |signature| signature.len()) < 32 {
            return Err(malformed("it has no signature"));
        }
        let header = decode(header)?;
        let (alg, kid) = read_header(&header)?;
        let claims = decode(payload)?;
        if claims.contains_key("act") {
            return Err(malformed("it stands for an actor beside its subject (`act`)"));
        }
        let signed = token.get(..token.len() - signature.len() - 1).unwrap_or_default();
        Ok(Self { signed, signature, alg, kid, claims })
    }

    pub(crate) fn alg(&self) -> Algorithm {
        self.alg
    }

    /// The id of the key that it was signed with.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub(crate) fn signature(&self) -> &str {
        self.signature
    }

    /// Header and payload as they were signed. One signed text can have several signatures: whoever
    /// has one of ECDSA can compute another.
    #[must_use]
    pub fn signed(&self) -> &str {
        self.signed
    }

    /// The claims.
    #[must_use]
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// The issuer that it names.
    ///
    /// # Errors
    /// [`Rejected::Malformed`] when it names none.
    pub fn issuer(&self) -> Result<&str, Rejected> {
        self.text("iss").ok_or(Rejected::Malformed("`iss` is no text"))
    }

    /// Whether it names one of `audiences`.
    ///
    /// # Errors
    /// [`Rejected::Malformed`] when `aud` is neither text nor a list of texts.
    pub fn is_for(&self, audiences: &[Box<str>]) -> Result<bool, Rejected> {
        let wrong = Rejected::Malformed("`aud` is neither text nor a list of texts");
        let known = |audience: &str| audiences.iter().any(|known| **known == *audience);
        match self.claims.get("aud") {
            Some(Value::String(audience)) => Ok(known(audience)),
            Some(Value::Array(all)) if !all.is_empty() => {
                let all: Option<Vec<&str>> = all.iter().map(Value::as_str).collect();
                Ok(all.ok_or(wrong)?.into_iter().any(known))
            }
            _ => Err(wrong),
        }
    }

    /// Its life at `now`, in Unix seconds: when it ends.
    ///
    /// # Errors
    /// [`Rejected::Expired`], [`Rejected::NotYetValid`], [`Rejected::LivesTooLong`],
    /// [`Rejected::Malformed`].
    pub fn check_times(&self, now: i64) -> Result<i64, Rejected> {
        let exp = self.time("exp")?.ok_or(Rejected::Malformed("it has no `exp`"))?;
        let (nbf, iat) = (self.time("nbf")?, self.time("iat")?);
        if exp.saturating_add(SKEW_SECONDS) <= now {
            return Err(Rejected::Expired);
        }
        if [nbf, iat].into_iter().flatten().any(|begins| begins > now.saturating_add(SKEW_SECONDS)) {
            return Err(Rejected::NotYetValid);
        }
        if exp.saturating_sub(iat.unwrap_or(now)) > MAX_LIFE_SECONDS {
            return Err(Rejected::LivesTooLong);
        }
        Ok(exp)
    }

    /// Its id, by which it is exchanged once.
    ///
    /// # Errors
    /// [`Rejected::Malformed`] for a `jti` that is no text.
    pub fn id(&self) -> Result<Option<&str>, Rejected> {
        match self.claims.get("jti") {
            None => Ok(None),
            Some(Value::String(id)) if !id.is_empty() => Ok(Some(id)),
            Some(_) => Err(Rejected::Malformed("`jti` is no text")),
        }
    }

    /// The thumbprint of the certificate that it is bound to (RFC 8705, 3.1).
    ///
    /// # Errors
    /// [`Rejected::Malformed`] for a confirmation of another kind: what cannot be checked must not
    /// be ignored.
    pub fn certificate(&self) -> Result<Option<[u8; 32]>, Rejected> {
        let Some(confirmation) = self.claims.get("cnf") else { return Ok(None) };
        let thumbprint = confirmation.as_object().filter(|members| members.len() == 1);
        let thumbprint = thumbprint.and_then(|members| members.get("x5t#S256")).and_then(Value::as_str);
        let thumbprint = thumbprint.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok());
        thumbprint.map(Some).ok_or(Rejected::Malformed("`cnf` is not `x5t#S256` alone"))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// A NumericDate: seconds, with or without a fraction.
    fn time(&self, name: &str) -> Result<Option<i64>, Rejected> {
        let wrong = Rejected::Malformed("`exp`, `nbf` or `iat` is no time");
        /// The last second of the year 9999.
        const LAST: f64 = 253_402_300_799.0;
        match self.claims.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_f64() {
                #[expect(clippy::cast_possible_truncation, reason = "it is within the range")]
                Some(seconds) if (0.0..=LAST).contains(&seconds) => Ok(Some(seconds as i64)),
                _ => Err(wrong),
            },
            Some(_) => Err(wrong),
        }
    }
}

/// RFC 7519, 5.1, and RFC 9068, 2.1. `application/` may be written or not (RFC 7515, 4.1.9).
fn is_bearer_type(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    matches!(typ.strip_prefix("application/").unwrap_or(&typ), "jwt" | "at+jwt")
}

/// The algorithm and the key's id. `jwk`, `jku`, `x5u` and `x5c` are never read: the issuer's keys
/// are known.
fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, String), Rejected> {
    let malformed = |what| Rejected::Malformed(what);
    if ["crit", "b64", "zip", "enc"].iter().any(|name| header.contains_key(*name)) {
        return Err(malformed("its header has `crit`, `b64`, `zip` or `enc`"));
    }
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) if is_bearer_type(typ) => {}
        Some(_) => return Err(malformed("its `typ` is neither `JWT` nor `at+jwt`")),
    }
    let alg = header.get("alg").and_then(Value::as_str).and_then(algorithm).ok_or(Rejected::Algorithm)?;
    let kid = header.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty() && kid.len() <= 256);
    Ok((alg, kid.ok_or(malformed("its `kid` is no text of 1 to 256 bytes"))?.to_owned()))
}
