//! A trust: whose tokens are accepted, and which agent each stands for.

use seks_proto::wire;
use seks_types::id::AgentName;
use serde_json::{Map, Value};

use super::{
    MAX_EXCHANGED_SECONDS,
    glob::Glob,
    jwt::{Jwt, Rejected},
    keys::KeySet,
    template::Template,
};

/// Most audiences, conditions and listed claims of a trust.
const MAX_ITEMS: usize = 16;
/// Most subjects that a trust denies by name.
const MAX_DENIED: usize = 256;
/// Longest value of a claim that a trust uses, in bytes.
const MAX_VALUE_BYTES: usize = 512;
/// Most values of a claim that is a list.
const MAX_VALUES: usize = 32;

/// Why a trust is not accepted. Each names its field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct RuleError {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it, and what it has to be.
    pub reason: String,
}

fn invalid(field: &'static str, reason: impl Into<String>) -> RuleError {
    RuleError { field, reason: reason.into() }
}

/// The values of one claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its name, or a JSON pointer.
    pub name: Box<str>,
    /// Its value, or the items of a list. Numbers and booleans are in their JSON form.
    pub values: Box<[Box<str>]>,
}

/// What a token of an issuer was verified to say, as far as its trust asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its `sub`.
    pub subject: Box<str>,
    /// The thumbprint (RFC 7638) of the key that signed it.
    pub key: [u8; 32],
    /// The claims that the trust names, in order.
    pub claims: Box<[Claim]>,
    /// The client certificate that it is bound to.
    pub certificate: Option<[u8; 32]>,
    /// When it ends, in Unix seconds.
    pub expires_at: i64,
}

impl Identity {
    /// The values of a claim; none when it is missing.
    #[must_use]
    pub fn values(&self, name: &str) -> &[Box<str>] {
        self.claims.iter().find(|claim| *claim.name == *name).map_or(&[], |claim| &claim.values)
    }
}

/// A checked trust, without its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustRule {
    /// Its name, unique in the tenant.
    pub name: Box<str>,
    /// Exactly the `iss` of its tokens.
    pub issuer: Box<str>,
    /// One of these is in `aud`.
    pub audiences: Box<[Box<str>]>,
    conditions: Box<[(Box<str>, Glob)]>,
    agent: Template,
    /// Life of an exchanged token, in seconds.
    pub ttl_seconds: i64,
    /// Claims that policies see.
    pub listed: Box<[Box<str>]>,
    denied: Box<[Box<str>]>,
}

impl TryFrom<&wire::Trust> for TrustRule {
    type Error = RuleError;

    fn try_from(trust: &wire::Trust) -> Result<Self, RuleError> {
        check_issuer(&trust.issuer)?;
        let audiences = texts("audience", &trust.audiences, 1)?;
        let conditions: Box<[(Box<str>, Glob)]> =
            trust.matches.iter().map(|text| condition(text)).collect::<Result<_, _>>()?;
        if conditions.is_empty() || conditions.len() > MAX_ITEMS {
            return Err(invalid("match", format!("1 to {MAX_ITEMS} conditions, each `CLAIM GLOB`")));
        }
        if conditions.iter().all(|(_, glob)| glob.matches_anything()) {
            return Err(invalid("match", "stars alone would accept everybody that the issuer knows"));
        }
        let agent = Template::parse(&trust.agent)
            .ok_or_else(|| invalid("agent", "an agent's name, in which {CLAIM} stands for a claim's value"))?;
        for claim in agent.claims().chain(trust.claims.iter().map(String::as_str)) {
            check_claim(claim)?;
        }
        let ttl_seconds = i64::from(trust.ttl_seconds);
        if !(60..=MAX_EXCHANGED_SECONDS).contains(&ttl_seconds) {
            return Err(invalid("ttl", "1 min to 15 min"));
        }
        if trust.denied_subjects.len() > MAX_DENIED {
            return Err(invalid("deny_subject", format!("at most {MAX_DENIED} subjects: narrow `match` instead")));
        }
        Ok(Self {
            name: trust.name.as_str().into(),
            issuer: trust.issuer.as_str().into(),
            audiences,
            conditions,
            agent,
            ttl_seconds,
            listed: texts("claim", &trust.claims, 0)?,
            denied: trust.denied_subjects.iter().map(|subject| subject.as_str().into()).collect(),
        })
    }
}

/// Whether keys may be fetched from `url`: over TLS, or from a loopback address. Whoever can change
/// a key set on the way can make tokens.
#[must_use]
pub fn is_trustworthy_transport(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let secure = scheme == "https" || (scheme == "http" && matches!(host, "localhost" | "127.0.0.1" | "[::1]"));
    secure && !authority.contains('@')
}

/// Whether `issuer` is a URL that discovery can start from: `https`, or `http` on a loopback
/// address, with neither query nor user, and in ASCII, so that no other character looks like one of
/// its own.
///
/// # Errors
/// [`RuleError`].
pub fn check_issuer(issuer: &str) -> Result<(), RuleError> {
    let wrong =
        || invalid("issuer", "a URL such as https://token.actions.githubusercontent.com, without `?`, `#` and user");
    let (scheme, rest) = issuer.split_once("://").ok_or_else(wrong)?;
    let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let plain = issuer.len() <= 512 && issuer.bytes().all(|b| b.is_ascii_graphic() && !b"?#@\\\"<>%".contains(&b));
    let loopback = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
    if plain && !host.is_empty() && (scheme == "https" || (scheme == "http" && loopback)) {
        Ok(())
    } else {
        Err(wrong())
    }
}

fn texts(field: &'static str, all: &[String], least: usize) -> Result<Box<[Box<str>]>, RuleError> {
    let fits = |text: &String| !text.is_empty() && text.len() <= MAX_VALUE_BYTES;
    if all.len() < least || all.len() > MAX_ITEMS || !all.iter().all(fits) {
        return Err(invalid(field, format!("{least} to {MAX_ITEMS}, each of 1 to {MAX_VALUE_BYTES} bytes")));
    }
    Ok(all.iter().map(|text| text.as_str().into()).collect())
}

fn check_claim(claim: &str) -> Result<(), RuleError> {
    let wrong = claim.is_empty() || claim.len() > 128 || claim.chars().any(|c| c.is_control() || c.is_whitespace());
    if wrong {
        Err(invalid("claim", "a claim's name, or a JSON pointer such as /kubernetes.io/namespace"))
    } else {
        Ok(())
    }
}

fn condition(text: &str) -> Result<(Box<str>, Glob), RuleError> {
    let (claim, glob) =
        text.split_once(' ').ok_or_else(|| invalid("match", "`CLAIM GLOB`, such as `sub repo:acme/*:**`"))?;
    check_claim(claim)?;
    let glob = Glob::parse(glob)
        .ok_or_else(|| invalid("match", "the glob has 1 to 512 bytes and at most 16 stars; `\\*` is a star"))?;
    Ok((claim.into(), glob))
}

impl TrustRule {
    /// Verifies a token of the issuer at `now`, in Unix seconds, and returns what it says.
    ///
    /// # Errors
    /// [`Rejected`]; [`Rejected::Untrusted`] when it names another issuer or audience.
    pub fn verify(&self, jwt: &Jwt<'_>, keys: &KeySet, now: i64) -> Result<Identity, Rejected> {
        if jwt.issuer()? != &*self.issuer || !jwt.is_for(&self.audiences)? {
            return Err(Rejected::Untrusted);
        }
        let key = keys.verify(jwt)?;
        let expires_at = jwt.check_times(now)?;
        let subject = match jwt.claims().get("sub") {
            Some(Value::String(subject)) if (1..=MAX_VALUE_BYTES).contains(&subject.len()) => subject.as_str().into(),
            _ => return Err(Rejected::Malformed("`sub` is no text of 1 to 512 bytes")),
        };
        let claims = self.mentioned().into_iter().filter_map(|name| claim(jwt.claims(), name)).collect();
        let identity = Identity { subject, key, claims, certificate: jwt.certificate()?, expires_at };
        self.admit(&identity)?;
        Ok(identity)
    }

    /// The agent that an identity stands for under this trust.
    ///
    /// # Errors
    /// [`Rejected::SubjectRevoked`], [`Rejected::NoMatch`], [`Rejected::NoAgent`].
    pub fn admit(&self, identity: &Identity) -> Result<AgentName, Rejected> {
        if self.denied.contains(&identity.subject) {
            return Err(Rejected::SubjectRevoked);
        }
        let matches = |(claim, glob): &(Box<str>, Glob)| match &**claim {
            "sub" => glob.matches(&identity.subject),
            claim => identity.values(claim).iter().any(|value| glob.matches(value)),
        };
        if !self.conditions.iter().all(matches) {
            return Err(Rejected::NoMatch);
        }
        let one = |claim: &str| match (claim, identity.values(claim)) {
            ("sub", _) => Some(&*identity.subject),
            (_, [value]) => Some(&**value),
            _ => None,
        };
        self.agent.fill(one).ok_or(Rejected::NoAgent)
    }

    /// The claims that policies see, each `NAME=VALUE`. A list has one for each of its values.
    #[must_use]
    pub fn listed_claims(&self, identity: &Identity) -> Box<[Box<str>]> {
        let of = |name: &str| -> Vec<Box<str>> {
            let pair = |value: &str| format!("{name}={value}").into_boxed_str();
            match name {
                "sub" => vec![pair(&identity.subject)],
                name => identity.values(name).iter().map(|value| pair(value)).collect(),
            }
        };
        self.listed.iter().flat_map(|name| of(name)).collect()
    }

    /// The claims that the trust reads, each once, without `sub`.
    fn mentioned(&self) -> Vec<&str> {
        let conditions = self.conditions.iter().map(|(claim, _)| &**claim);
        let mut names: Vec<&str> =
            conditions.chain(self.agent.claims()).chain(self.listed.iter().map(|claim| &**claim)).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| *name != "sub");
        names
    }
}

/// A claim's values. `None`: it is missing, or is nothing that a glob can match.
fn claim(claims: &Map<String, Value>, name: &str) -> Option<Claim> {
    let value = match name.strip_prefix('/') {
        None => claims.get(name)?,
        Some(pointer) => {
            let mut segments = pointer.split('/').map(|segment| segment.replace("~1", "/").replace("~0", "~"));
            let first = claims.get(&segments.next()?)?;
            segments.try_fold(first, |value, segment| value.as_object()?.get(&segment))?
        }
    };
    let text = |value: &Value| match value {
        Value::String(text) if text.len() <= MAX_VALUE_BYTES => Some(text.as_str().into()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string().into()),
        _ => None,
    };
    let values: Box<[Box<str>]> = match value {
        Value::Array(items) if items.len() <= MAX_VALUES => items.iter().map(text).collect::<Option<_>>()?,
        other => [text(other)?].into(),
    };
    Some(Claim { name: name.into(), values })
}
