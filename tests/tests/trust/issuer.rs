//! An issuer: a server with discovery and a key set, and the key that it signs with.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use seks_tests::{Upstream, upstream::Answer};
use serde_json::{Value, json};

/// An issuer of one key at a time.
pub(crate) struct Issuer {
    server: Upstream,
    keys: Arc<Mutex<Keys>>,
}

struct Keys {
    key: EcdsaKeyPair,
    number: usize,
    /// What the key set is; an outage when it is empty.
    published: String,
}

fn fresh() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

impl Issuer {
    pub(crate) fn start() -> Self {
        let keys = Arc::new(Mutex::new(Keys { key: fresh(), number: 1, published: String::new() }));
        let served = keys.clone();
        let server = Upstream::start(move |request| {
            let issuer = format!("http://{}", request.header("host").unwrap());
            let published = served.lock().published.clone();
            match request.path().as_str() {
                _ if published.is_empty() => Answer::json(503, "{}"),
                "/.well-known/openid-configuration" => {
                    let document = json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") });
                    Answer::json(200, &document.to_string())
                }
                "/keys" => Answer::json(200, &published),
                _ => Answer::json(404, "{}"),
            }
        });
        let issuer = Self { server, keys };
        issuer.publish();
        issuer
    }

    pub(crate) fn url(&self) -> String {
        self.server.origin()
    }

    /// How often it was asked for anything.
    pub(crate) fn asked(&self) -> usize {
        self.server.complete()
    }

    /// Publishes the present key, and no other.
    pub(crate) fn publish(&self) {
        let mut keys = self.keys.lock();
        let point = keys.key.public_key().as_ref()[1..].to_vec();
        let (x, y) = point.split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let kid = format!("key-{}", keys.number);
        keys.published = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y }] }).to_string();
    }

    /// Publishes what is no key set of its own.
    pub(crate) fn publish_text(&self, text: &str) {
        self.keys.lock().published = text.into();
    }

    /// Stops answering.
    pub(crate) fn fail(&self) {
        self.publish_text("");
    }

    /// Makes another key, and signs with it from now on.
    pub(crate) fn rotate(&self) {
        let mut keys = self.keys.lock();
        keys.number += 1;
        keys.key = fresh();
    }

    /// A token with these claims beside the issuer's own; `null` removes one.
    pub(crate) fn token(&self, claims: Value) -> String {
        let mut all = json!({
            "iss": self.url(), "aud": "seks", "sub": "repo:acme/api:ref:refs/heads/main",
            "iat": now(), "exp": now() + 600, "jti": format!("{:?}", std::time::Instant::now()), "environment": "prod",
        });
        for (name, value) in claims.as_object().unwrap() {
            match value {
                Value::Null => drop(all.as_object_mut().unwrap().remove(name)),
                value => all[name] = value.clone(),
            }
        }
        let keys = self.keys.lock();
        let header = json!({ "alg": "ES256", "kid": format!("key-{}", keys.number), "typ": "JWT" });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&all));
        let signature = keys.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The same token with the other signature that its key's curve has for it: `n - s` instead of `s`.
/// Nobody needs the key for that.
pub(crate) fn with_other_signature(token: &str) -> String {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad,
        0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut borrow = 0;
    for (s, n) in signature[32..].iter_mut().zip(ORDER).rev() {
        let difference = i16::from(n) - i16::from(*s) - borrow;
        borrow = i16::from(difference < 0);
        *s = difference.rem_euclid(256) as u8;
    }
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
