//! Every way in which a token of an issuer can be wrong, as tables.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod signer;

use std::sync::LazyLock;

use seks_proto::wire;
use seks_types::{
    secret::{Fields, Secret},
    token::Digest,
};
use serde_json::{Value, json};

use self::signer::{Signer, base64url};
use super::*;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://issuer.example";

static SIGNER: LazyLock<Signer> = LazyLock::new(Signer::new);

fn trust() -> wire::Trust {
    wire::Trust {
        name: "ci".into(),
        issuer: ISSUER.into(),
        audiences: vec!["seks".into(), "seks-2".into()],
        matches: vec!["sub repo:acme/*:ref:refs/heads/main".into(), "environment prod".into()],
        agent: "ci-{environment}".into(),
        ttl_seconds: 900,
        claims: vec!["run".into(), "/nested/deep".into()],
        ..Default::default()
    }
}

fn rule() -> TrustRule {
    TrustRule::try_from(&trust()).unwrap()
}

fn keys() -> KeySet {
    KeySet::parse(SIGNER.jwks().to_string().as_bytes()).unwrap()
}

fn header() -> Value {
    json!({ "alg": "RS256", "kid": "rsa", "typ": "JWT" })
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "seks", "sub": "repo:acme/api:ref:refs/heads/main", "environment": "prod",
        "iat": NOW - 10, "nbf": NOW - 10, "exp": NOW + 300, "jti": "1", "run": 7, "nested": { "deep": ["a", "b"] },
    })
}

fn verify(token: &str) -> Result<String, Rejected> {
    let rule = rule();
    let identity = rule.verify(&Jwt::parse(token.as_bytes())?, &keys(), NOW)?;
    rule.admit(&identity).map(|agent| agent.to_string())
}

/// With some members of the header and claims set; `null` removes one.
fn altered(header_changes: Value, claim_changes: Value, with: &str) -> Result<String, Rejected> {
    let change = |mut object: Value, changes: Value| {
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(object.as_object_mut().unwrap().remove(name)),
                value => drop(object.as_object_mut().unwrap().insert(name.clone(), value.clone())),
            }
        }
        object.to_string()
    };
    verify(&SIGNER.token(&change(header(), header_changes), &change(claims(), claim_changes), with))
}

fn kind(result: &Result<String, Rejected>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(Rejected::Malformed(_)) => "malformed",
        Err(Rejected::Algorithm) => "algorithm",
        Err(Rejected::Untrusted) => "untrusted",
        Err(Rejected::UnknownKey) => "key",
        Err(Rejected::Signature) => "signature",
        Err(Rejected::Expired) => "expired",
        Err(Rejected::NotYetValid) => "early",
        Err(Rejected::LivesTooLong) => "long",
        Err(Rejected::NoMatch) => "match",
        Err(Rejected::SubjectRevoked) => "revoked",
        Err(Rejected::NoAgent) => "agent",
    }
}

#[test]
fn headers_and_signatures() {
    let cases = [
        ("ok", json!({}), "RS256"),
        ("ok", json!({ "alg": "RS384" }), "RS384"),
        ("ok", json!({ "alg": "RS512" }), "RS512"),
        ("ok", json!({ "alg": "PS256" }), "PS256"),
        ("ok", json!({ "alg": "PS384" }), "PS384"),
        ("ok", json!({ "alg": "PS512" }), "PS512"),
        ("ok", json!({ "alg": "ES256", "kid": "p256" }), "ES256"),
        ("ok", json!({ "alg": "ES384", "kid": "p384" }), "ES384"),
        ("ok", json!({ "alg": "EdDSA", "kid": "ed" }), "EdDSA"),
        ("ok", json!({ "typ": null }), "RS256"),
        ("ok", json!({ "typ": "at+JWT" }), "RS256"),
        ("ok", json!({ "typ": "application/at+jwt" }), "RS256"),
        ("ok", json!({ "typ": "application/JWT" }), "RS256"),
        // No signature, and every spelling of "none".
        ("malformed", json!({ "alg": "none" }), "nothing"),
        ("malformed", json!({}), "nothing"),
        ("algorithm", json!({ "alg": "none" }), "RS256"),
        ("algorithm", json!({ "alg": "None" }), "RS256"),
        ("algorithm", json!({ "alg": "" }), "RS256"),
        ("algorithm", json!({ "alg": null }), "RS256"),
        ("algorithm", json!({ "alg": ["RS256"] }), "RS256"),
        ("algorithm", json!({ "alg": "rs256" }), "RS256"),
        ("algorithm", json!({ "alg": "RS256 " }), "RS256"),
        // HMAC with the public key.
        ("algorithm", json!({ "alg": "HS256" }), "HS256"),
        ("algorithm", json!({ "alg": "HS512" }), "HS256"),
        ("signature", json!({ "alg": "RS256" }), "HS256"),
        ("algorithm", json!({ "alg": "ES512", "kid": "p384" }), "ES384"),
        ("algorithm", json!({ "alg": "ES256K", "kid": "p256" }), "ES256"),
        // The algorithm and the key do not fit together.
        ("signature", json!({ "alg": "RS512" }), "RS256"),
        ("signature", json!({ "alg": "PS256" }), "RS256"),
        ("key", json!({ "alg": "ES256" }), "ES256"),
        ("key", json!({ "alg": "RS256", "kid": "p256" }), "ES256"),
        ("key", json!({ "alg": "ES384", "kid": "p256" }), "ES384"),
        ("signature", json!({}), "zeros"),
        ("signature", json!({ "kid": "rsa" }), "old"),
        ("key", json!({ "kid": "rsa-old" }), "old"),
        // The key's id is matched exactly.
        ("key", json!({ "kid": "RSA" }), "RS256"),
        ("key", json!({ "kid": "rsa " }), "RS256"),
        ("key", json!({ "kid": "../rsa" }), "RS256"),
        ("malformed", json!({ "kid": null }), "RS256"),
        ("malformed", json!({ "kid": "" }), "RS256"),
        ("malformed", json!({ "kid": 1 }), "RS256"),
        ("malformed", json!({ "kid": "k".repeat(257) }), "RS256"),
        // Keys that the token brings along are not used.
        ("signature", json!({ "jwk": SIGNER.old_jwks()["keys"][0] }), "old"),
        ("signature", json!({ "jku": "https://attacker.example/jwks" }), "old"),
        ("signature", json!({ "x5u": "https://attacker.example/cert", "x5c": ["MII"] }), "old"),
        ("ok", json!({ "jwk": SIGNER.old_jwks()["keys"][0], "jku": "https://attacker.example" }), "RS256"),
        ("malformed", json!({ "crit": ["exp"] }), "RS256"),
        ("malformed", json!({ "crit": [] }), "RS256"),
        ("malformed", json!({ "b64": false }), "RS256"),
        ("malformed", json!({ "zip": "DEF" }), "RS256"),
        ("malformed", json!({ "enc": "A256GCM" }), "RS256"),
        ("malformed", json!({ "typ": "logout+jwt" }), "RS256"),
        ("malformed", json!({ "typ": "dpop+jwt" }), "RS256"),
        ("malformed", json!({ "typ": 1 }), "RS256"),
    ];
    assert!(cases.len() >= 50);
    for (want, changes, with) in cases {
        assert_eq!(kind(&altered(changes.clone(), json!({}), with)), want, "{changes} {with}");
    }
}

/// What becomes of a token when `changes` are made to its claims.
fn assert_kinds<const N: usize>(cases: [(&str, Value); N]) {
    for (want, changes) in cases {
        assert_eq!(kind(&altered(json!({}), changes.clone(), "RS256")), want, "{changes}");
    }
}

#[test]
fn the_issuer_is_compared_byte_by_byte() {
    assert_kinds([
        ("ok", json!({})),
        ("untrusted", json!({ "iss": "https://issuer.example/" })),
        ("untrusted", json!({ "iss": "https://Issuer.example" })),
        ("untrusted", json!({ "iss": "http://issuer.example" })),
        ("untrusted", json!({ "iss": "https://issuer.example." })),
        ("untrusted", json!({ "iss": "https://issuer.example:443" })),
        ("untrusted", json!({ "iss": "https://\u{456}ssuer.example" })),
        ("untrusted", json!({ "iss": "https://issuer.example\u{200b}" })),
        ("untrusted", json!({ "iss": "https://issuer\u{2024}example" })),
        ("untrusted", json!({ "iss": "https://issuer.example\u{0}" })),
        ("malformed", json!({ "iss": null })),
        ("malformed", json!({ "iss": [ISSUER] })),
        ("malformed", json!({ "iss": "" })),
    ]);
}

#[test]
fn one_audience_must_be_ours() {
    assert_kinds([
        ("ok", json!({ "aud": "seks-2" })),
        ("ok", json!({ "aud": ["other", "seks"] })),
        ("untrusted", json!({ "aud": "other" })),
        ("untrusted", json!({ "aud": ["other"] })),
        ("untrusted", json!({ "aud": "seks other" })),
        ("untrusted", json!({ "aud": "SEKS" })),
        ("malformed", json!({ "aud": [] })),
        ("malformed", json!({ "aud": null })),
        ("malformed", json!({ "aud": 1 })),
        ("malformed", json!({ "aud": ["seks", 1] })),
        ("malformed", json!({ "aud": { "seks": true } })),
    ]);
}

#[test]
fn times_are_compared_with_60_s_of_skew() {
    let day = 24 * 60 * 60;
    assert_kinds([
        ("ok", json!({ "exp": NOW - 59 })),
        ("expired", json!({ "exp": NOW - 60 })),
        ("expired", json!({ "exp": 0 })),
        ("ok", json!({ "exp": NOW as f64 + 0.5 })),
        ("malformed", json!({ "exp": null })),
        ("malformed", json!({ "exp": (NOW + 300).to_string() })),
        ("malformed", json!({ "exp": -1 })),
        ("malformed", json!({ "exp": 1e300 })),
        ("malformed", json!({ "exp": true })),
        ("malformed", json!({ "exp": [NOW + 300] })),
        ("ok", json!({ "nbf": NOW + 60 })),
        ("early", json!({ "nbf": NOW + 61 })),
        ("ok", json!({ "iat": NOW + 60 })),
        ("early", json!({ "iat": NOW + 61 })),
        ("malformed", json!({ "nbf": "0" })),
        ("malformed", json!({ "iat": {} })),
        ("ok", json!({ "nbf": null, "iat": null })),
        ("ok", json!({ "iat": NOW, "exp": NOW + day })),
        ("long", json!({ "iat": NOW - 1, "exp": NOW + day })),
        ("long", json!({ "iat": null, "exp": NOW + day + 1 })),
    ]);
}

#[test]
fn a_subject_matches_its_rule_as_a_whole() {
    assert_kinds([
        ("malformed", json!({ "sub": null })),
        ("malformed", json!({ "sub": "" })),
        ("malformed", json!({ "sub": 1 })),
        ("malformed", json!({ "sub": "s".repeat(513) })),
        ("match", json!({ "sub": "repo:acme/api:ref:refs/heads/main2" })),
        ("match", json!({ "sub": "repo:acme/api:ref:refs/heads/main\n" })),
        ("match", json!({ "sub": "REPO:acme/api:ref:refs/heads/main" })),
        ("match", json!({ "sub": "repo:acme-evil/api:ref:refs/heads/main" })),
        ("match", json!({ "sub": "repo:acme/a:environment:b:ref:refs/heads/main" })),
        ("match", json!({ "sub": "repo:acme/a/b:ref:refs/heads/main" })),
    ]);
}

#[test]
fn further_claims_match_their_rules_and_a_binding_is_one_that_can_be_checked() {
    assert_kinds([
        ("match", json!({ "environment": "production" })),
        ("match", json!({ "environment": null })),
        ("match", json!({ "environment": { "prod": "prod" } })),
        ("match", json!({ "environment": [["prod"]] })),
        ("ok", json!({ "environment": ["prod"] })),
        ("agent", json!({ "environment": ["prod", "dev"] })),
        ("ok", json!({ "cnf": { "x5t#S256": base64url([7; 32]) } })),
        ("malformed", json!({ "cnf": { "x5t#S256": "short" } })),
        ("malformed", json!({ "cnf": { "jkt": "abc" } })),
        ("malformed", json!({ "cnf": {} })),
        ("malformed", json!({ "act": { "sub": "deployer" } })),
        ("ok", json!({ "may_act": { "sub": "deployer" } })),
        ("malformed", json!({ "cnf": "x" })),
    ]);
    assert_eq!(altered(json!({}), json!({}), "RS256").unwrap(), "ci-prod");
}

#[test]
fn forms() {
    let good = SIGNER.token(&header().to_string(), &claims().to_string(), "RS256");
    let parts: Vec<&str> = good.split('.').collect();
    let [head, payload, signature] = parts.as_slice() else { panic!("{good}") };
    assert_eq!(kind(&verify(&good)), "ok");
    assert!(looks_like_jwt(good.as_bytes()) && !looks_like_jwt(b"seks_token_x.y.z") && !looks_like_jwt(b"eyJ.x"));
    for (want, token) in [
        ("malformed", String::new()),
        ("malformed", "..".into()),
        ("malformed", format!("{head}.{payload}")),
        ("malformed", format!("{good}.{signature}")),
        ("malformed", format!("{head}.{payload}.{signature}=")),
        ("malformed", format!("{head}=.{payload}.{signature}")),
        ("malformed", format!(" {good}")),
        ("malformed", format!("{good}\n")),
        ("malformed", good.replace('.', "\u{3002}")),
        ("malformed", format!("{head}.{payload}.{}", signature.replace(['-', '_'], "+"))),
        ("malformed", format!("{head}.{}.{signature}", base64url("not JSON"))),
        ("malformed", format!("{head}.{}.{signature}", base64url("[]"))),
        ("malformed", format!("{}.{payload}.{signature}", base64url("\"x\""))),
        ("malformed", format!("{head}.{}.{signature}", base64url([0xff, 0xfe]))),
        ("signature", format!("{head}.{}.{signature}", base64url(claims().to_string() + " "))),
        ("signature", format!("{}.{payload}.{signature}", base64url(header().to_string() + " "))),
        ("malformed", SIGNER.token(&header().to_string(), r#"{"iss":"a","iss":"b"}"#, "RS256")),
        ("malformed", SIGNER.token(&header().to_string(), r#"{"sub":"a","\u0073ub":"b"}"#, "RS256")),
        ("malformed", SIGNER.token(r#"{"alg":"RS256","alg":"none","kid":"rsa"}"#, &claims().to_string(), "RS256")),
        ("malformed", format!("{head}.{}.{signature}", base64url("x".repeat(MAX_JWT_BYTES)))),
    ] {
        let result = verify(&token);
        let shown = token.get(..60).unwrap_or(&token);
        let damaged = want == "malformed" && kind(&result) == "signature"; // `+` may not have been in it
        assert!(kind(&result) == want || damaged, "{shown}: {result:?}");
    }
}

#[test]
fn a_rotated_key_and_a_denied_subject_end_what_came_from_them() {
    let token = SIGNER.token(&header().to_string(), &claims().to_string(), "RS256");
    let jwt = Jwt::parse(token.as_bytes()).unwrap();
    let identity = rule().verify(&jwt, &keys(), NOW).unwrap();
    assert!(keys().has(&identity.key));
    let rotated = KeySet::parse(SIGNER.old_jwks().to_string().as_bytes()).unwrap();
    assert_eq!(rule().verify(&jwt, &rotated, NOW), Err(Rejected::UnknownKey));
    assert!(!rotated.has(&identity.key));

    let denied = wire::Trust { denied_subjects: vec![identity.subject.to_string()], ..trust() };
    assert_eq!(TrustRule::try_from(&denied).unwrap().admit(&identity), Err(Rejected::SubjectRevoked));
    let narrowed = wire::Trust { matches: vec!["sub **".into(), "ref main".into()], ..trust() };
    assert_eq!(TrustRule::try_from(&narrowed).unwrap().admit(&identity), Err(Rejected::NoMatch));
}

#[test]
fn key_sets() {
    let parse = |set: Value| KeySet::parse(set.to_string().as_bytes()).map(|keys| keys.ids().count());
    let rsa = SIGNER.jwks()["keys"][0].clone();
    let with = |name: &str, value: Value| {
        let mut key = rsa.clone();
        key[name] = value;
        json!({ "keys": [key] })
    };
    assert_eq!(parse(SIGNER.jwks()), Ok(4));
    for (want, set) in [
        (Err(KeySetError::Malformed), json!({})),
        (Err(KeySetError::Malformed), json!([])),
        (Err(KeySetError::Malformed), json!({ "keys": {} })),
        (Err(KeySetError::Empty), json!({ "keys": [] })),
        (Err(KeySetError::Empty), json!({ "keys": [{ "kty": "oct", "kid": "rsa", "k": "c2VjcmV0" }] })),
        (Err(KeySetError::Empty), with("use", "enc".into())),
        (Err(KeySetError::Empty), with("key_ops", json!(["encrypt"]))),
        (Ok(1), with("key_ops", json!(["verify"]))),
        (Err(KeySetError::Empty), with("alg", "HS256".into())),
        (Err(KeySetError::Empty), with("alg", "ES256".into())),
        (Ok(1), with("alg", "RS256".into())),
        (Err(KeySetError::Empty), with("kid", "".into())),
        (Err(KeySetError::Empty), with("n", base64url([0xff; 128]).into())),
        (Err(KeySetError::Empty), with("n", base64url([0xff; 2048]).into())),
        (Err(KeySetError::Empty), with("n", "!".into())),
        (Err(KeySetError::TooLarge), json!({ "keys": vec![rsa.clone(); 65] })),
        (Err(KeySetError::TooLarge), with("x5c", json!(["x".repeat(MAX_JWKS_BYTES)]))),
    ] {
        assert_eq!(parse(set.clone()), want, "{}", set.to_string().get(..80).unwrap_or_default());
    }
    assert_eq!(KeySet::parse(br#"{"keys":[],"keys":[]}"#).err(), Some(KeySetError::Malformed));
    // Two keys of one id: none is chosen.
    let token = SIGNER.token(&header().to_string(), &claims().to_string(), "RS256");
    let twice = KeySet::parse(json!({ "keys": [rsa, rsa] }).to_string().as_bytes()).unwrap();
    let jwt = Jwt::parse(token.as_bytes()).unwrap();
    assert_eq!(rule().verify(&jwt, &twice, NOW), Err(Rejected::UnknownKey));
    // A key for one algorithm verifies no other.
    let pss = KeySet::parse(with("alg", "PS256".into()).to_string().as_bytes()).unwrap();
    assert_eq!(rule().verify(&jwt, &pss, NOW), Err(Rejected::UnknownKey));
}

#[test]
fn the_stored_form_of_a_key_set_depends_on_its_keys_alone() {
    let set = SIGNER.jwks();
    let mut reversed = set["keys"].as_array().unwrap().clone();
    reversed.reverse();
    reversed.push(json!({ "kty": "oct", "k": "c2VjcmV0" }));
    let canonical = |set: &Value| KeySet::canonical(set.to_string().as_bytes()).unwrap();
    let stored = canonical(&set);
    assert_eq!(stored, canonical(&json!({ "keys": reversed, "more": 1 })));
    assert!(!stored.contains("x5c") && !stored.contains("oct"), "{stored}");
    assert_eq!(canonical(&serde_json::from_str(&stored).unwrap()), stored);
}

#[test]
fn trusts_that_would_accept_too_much_are_refused() {
    let field = |change: &dyn Fn(&mut wire::Trust)| {
        let mut trust = trust();
        change(&mut trust);
        TrustRule::try_from(&trust).err().map_or("", |error| error.field)
    };
    assert_eq!(field(&|_| {}), "");
    for issuer in [
        "",
        "issuer.example",
        "http://issuer.example",
        "https://",
        "https://user@issuer.example",
        "https://issuer.example?x",
        "https://issuer.example#x",
        "https://issuer.example/%2e",
        "https://\u{456}ssuer.example",
        "ftp://127.0.0.1",
        "https://issuer.example/a b",
    ] {
        assert_eq!(field(&|trust| trust.issuer = issuer.into()), "issuer", "{issuer}");
    }
    for issuer in ["http://127.0.0.1:8080", "http://localhost/x", "http://[::1]:1", "https://a.example/realms/x"] {
        assert_eq!(field(&|trust| trust.issuer = issuer.into()), "", "{issuer}");
    }
    for (url, is) in [
        ("https://a.example/keys?x=1", true),
        ("http://127.0.0.1:8080/keys", true),
        ("http://a.example/keys", false),
        ("http://127.0.0.1.evil.example/keys", false),
        ("http://127.0.0.1@evil.example/keys", false),
        ("http://localhost:1@evil.example/keys", false),
        ("file:///etc/passwd", false),
        ("", false),
    ] {
        assert_eq!(is_trustworthy_transport(url), is, "{url}");
    }
    assert_eq!(field(&|trust| trust.audiences.clear()), "audience");
    assert_eq!(field(&|trust| trust.audiences = vec![String::new()]), "audience");
    assert_eq!(field(&|trust| trust.matches.clear()), "match");
    for bad in [vec!["sub *"], vec!["sub **", "x ***"], vec!["sub"], vec!["sub "], vec!["sub a\\"]] {
        assert_eq!(field(&|trust| trust.matches = bad.iter().map(|s| (*s).into()).collect()), "match", "{bad:?}");
    }
    assert_eq!(field(&|trust| trust.matches = vec![" x".into()]), "claim");
    assert_eq!(field(&|trust| trust.agent = "CI".into()), "agent");
    assert_eq!(field(&|trust| trust.ttl_seconds = 59), "ttl");
    assert_eq!(field(&|trust| trust.ttl_seconds = 901), "ttl");
    assert_eq!(field(&|trust| trust.claims = vec!["a b".into()]), "claim");
    assert_eq!(field(&|trust| trust.denied_subjects = vec!["s".into(); 257]), "deny_subject");
}

#[test]
fn an_exchanged_token_is_read_with_its_key_alone_and_no_bit_of_it_can_be_changed() {
    let fields = |keys: &str| Fields::parse(&["current", "previous?"], &Secret::new(keys.into())).unwrap();
    let key = |n: u8| format!("{n:02x}").repeat(32);
    let first = fields(&json!({ "current": key(1) }).to_string());
    let rotated = fields(&json!({ "current": key(2), "previous": key(1) }).to_string());
    let again = fields(&json!({ "current": key(3), "previous": key(2) }).to_string());
    let jwt = SIGNER.token(&header().to_string(), &claims().to_string(), "RS256");
    let mut identity = rule().verify(&Jwt::parse(jwt.as_bytes()).unwrap(), &keys(), NOW).unwrap();
    identity.expires_at = NOW + 60;
    let token = ExchangedToken {
        trust: Digest([9; 32]),
        identity,
        issued_at: NOW,
        expires_at: NOW + 60,
        services: vec!["openai".into()],
    };
    let text = ExchangeKey::of(&first).unwrap().seal(&token, 1).unwrap();
    assert_ne!(text, ExchangeKey::of(&first).unwrap().seal(&token, 2).unwrap());
    let open = |text: &[u8], fields: &Fields| ExchangedToken::open(text, &ExchangeKey::of(fields).unwrap());
    assert_eq!(open(text.as_bytes(), &first).as_ref(), Some(&token));
    assert_eq!(open(text.as_bytes(), &rotated).as_ref(), Some(&token), "a rotation ends no token");
    assert_eq!(open(text.as_bytes(), &again), None, "two do");
    assert_eq!(ExchangedToken::named_trust(text.as_bytes()), Ok(token.trust));
    let bytes = seks_types::token::carrying::decode(text.as_bytes()).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut forged = bytes.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open(seks_types::token::carrying::encode(&forged).as_bytes(), &first), None, "bit {bit}");
    }
    for short in ["", "current", "aabb"] {
        let fields = Fields::parse(&["current"], &Secret::new(format!("x{short}").into_bytes())).unwrap();
        assert!(ExchangeKey::of(&fields).is_none(), "a short key is no key");
    }
    assert_eq!(open(b"seks_token_x", &first), None);
}
