//! Names. There is one grammar and one canonical form. Text that does not match is refused and
//! never normalized.

use std::{fmt, sync::Arc};

/// Why a name is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {kind} name is 1 to 63 of a-z, 0-9 and `-`, and starts and ends with a letter or digit")]
pub struct NameError {
    kind: &'static str,
}

/// `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`: a DNS label, so a name is safe in a store key, a URL
/// path, a host name, a certificate and a metric label without escaping.
#[must_use]
pub fn is_name(s: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = s.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name's text, shared: an attribute of a span costs no copy.
            #[must_use]
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }
        impl TryFrom<&str> for $name {
            type Error = NameError;
            fn try_from(s: &str) -> Result<Self, NameError> {
                if is_name(s) { Ok(Self(s.into())) } else { Err(NameError { kind: $kind }) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                Self::try_from(s.as_str())
            }
        }
        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                Self::try_from(s)
            }
        }
        /// Hashes and compares as its text.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    )*};
}

names! {
    /// The isolation boundary.
    TenantName = "tenant";
    /// A principal that sends requests.
    AgentName = "agent";
    /// A group of nodes, to which credentials are assigned.
    PoolName = "pool";
    /// An upstream API.
    ServiceName = "service";
    /// A stored real secret.
    CredentialName = "credential";
    /// The public id of a token, `tok-…`.
    TokenId = "token";
    /// A Cedar policy's `@id`.
    PolicyId = "policy";
    /// A data-plane process.
    NodeId = "node";
    /// One run of a control-plane process.
    ReplicaId = "replica";
    /// A person or pipeline that administers SEKS.
    OperatorName = "operator";
}

/// How the ids of canary tokens begin.
pub const CANARY_PREFIX: &str = "tok-canary-";

impl TokenId {
    /// A fresh random id of a canary: a token that grants nothing and is there to be found. Its id
    /// says so in every record.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate_canary() -> Result<Self, getrandom::Error> {
        Ok(Self(random(CANARY_PREFIX.into(), 16)?.into()))
    }

    /// Whether it is a canary's.
    #[must_use]
    pub fn is_canary(&self) -> bool {
        self.as_str().starts_with(CANARY_PREFIX)
    }

    /// A fresh random id: `tok-` and 16 characters of base 36, about 82 bits. Nothing depends on it
    /// being unguessable.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        Ok(Self(random("tok-".into(), 16)?.into()))
    }
}

impl PolicyId {
    /// A fresh random id of an approval, and of the policy that grants it: `apr-` and 16 characters
    /// of base 36. Nothing depends on it being unguessable.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate_approval() -> Result<Self, getrandom::Error> {
        Ok(Self(random("apr-".into(), 16)?.into()))
    }
}

impl ReplicaId {
    /// A fresh id for a process of this `name`: `NAME-` and 12 characters of base 36. `name` may be
    /// any text.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate(name: &str) -> Result<Self, getrandom::Error> {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let mut id: String = name.chars().map(plain).skip_while(|c| *c == '-').take(40).collect();
        if id.is_empty() {
            id.push('r');
        }
        id.push('-');
        Ok(Self(random(id, 12)?.into()))
    }
}

/// `text` and `count` random characters of base 36.
fn random(mut text: String, count: usize) -> Result<String, getrandom::Error> {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let length = text.len() + count;
    while text.len() < length {
        let byte = random_byte()?;
        // 252 is the largest multiple of 36 in a byte. Larger values would bias the result.
        if byte < 252
            && let Some(c) = ALPHABET.get(usize::from(byte % 36))
        {
            text.push(char::from(*c));
        }
    }
    Ok(text)
}

fn random_byte() -> Result<u8, getrandom::Error> {
    #[cfg(feature = "simulation")]
    if let Some(random) = seks_simulated_host::random() {
        return Ok((random >> 56) as u8);
    }
    let mut byte = [0_u8];
    getrandom::fill(&mut byte).map(|()| byte[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label() {
        for good in ["a", "0", "default", "a-b", "a--b", &"x".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in
            ["", "-", "-a", "a-", "A", "a/b", ".", "..", "a.b", "a_b", "a b", "a\0", "a%2fb", "é", &"x".repeat(64)]
        {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn token_ids_are_names_and_differ() {
        let (a, b) = (TokenId::generate().unwrap(), TokenId::generate().unwrap());
        assert!(is_name(a.as_str()) && a != b);
    }

    #[test]
    fn replica_ids_are_names_whatever_the_process_is_called() {
        for name in ["", "control-plane", "--Pod.7/é", &"x".repeat(200)] {
            let (a, b) = (ReplicaId::generate(name).unwrap(), ReplicaId::generate(name).unwrap());
            assert!(is_name(a.as_str()) && a != b, "{a}");
        }
    }
}
