//! Join tokens: how a node proves, once, that an operator wants it. `seks_join_ID.SECRET.CAPIN`; the store keeps a hash.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use seks_proto::id::TokenId;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, Zeroizing};

use super::{
    Change, Registry, RegistryError,
    change::decide,
    limits, now,
    record::{JoinRecord, Stored},
};
use crate::store::{Key, key::prefix};

const PREFIX: &str = "seks_join_";

/// A join token that was just made: the only copy.
pub struct JoinToken {
    /// What the node presents; wiped when dropped.
    pub text: Zeroizing<String>,
    /// Until when, in unix seconds.
    pub expires_at: i64,
}

/// What a used join token entitles to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Where the node is.
    pub region: String,
}

impl Registry {
    /// Makes a join token for a node in `region`. `ca_pin` is the SHA-256 of the CA's public key, in hexadecimal: the node
    /// trusts no other control plane. `ttl_seconds` 0: [`limits::JOIN_TTL_SECONDS`].
    ///
    /// # Errors
    /// [`RegistryError::Invalid`].
    pub async fn create_join_token(
        &self,
        region: &str,
        ttl_seconds: u64,
        ca_pin: &str,
    ) -> Result<JoinToken, RegistryError> {
        if !region.is_empty() && !seks_proto::id::is_name(region) {
            return Err(RegistryError::invalid("region", "1 to 63 of a-z, 0-9 and `-`"));
        }
        let ttl = if ttl_seconds == 0 { limits::JOIN_TTL_SECONDS } else { ttl_seconds };
        if ttl > limits::MAX_JOIN_TTL_SECONDS {
            return Err(RegistryError::invalid("ttl_seconds", "1 second to 24 hours"));
        }
        let id = TokenId::generate().map_err(RegistryError::Random)?;
        let id = id.as_str().trim_start_matches("tok-");
        let mut random = [0_u8; 32];
        getrandom::fill(&mut random).map_err(RegistryError::Random)?;
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(random));
        random.zeroize();
        let expires_at = now().saturating_add(i64::try_from(ttl).unwrap_or(i64::MAX));
        let record = JoinRecord { hash: hash(&secret), region: region.into(), expires_at };
        let key = Key::Join(id.into());
        self.commit(Change::new().check_absent(key.clone()).put(key, &record)).await?;
        let text = Zeroizing::new(format!("{PREFIX}{id}.{}.{ca_pin}", *secret));
        Ok(JoinToken { text, expires_at })
    }

    /// Uses a join token up. Whatever is wrong with it, the refusal is the same.
    ///
    /// # Errors
    /// [`RegistryError::JoinRefused`].
    pub async fn use_join_token(&self, text: &str) -> Result<Joined, RegistryError> {
        let mut parts = text.strip_prefix(PREFIX).unwrap_or_default().split('.');
        let (Some(id), Some(secret), Some(_pin), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(RegistryError::JoinRefused);
        };
        if id.is_empty() || id.len() > 32 || !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(RegistryError::JoinRefused);
        }
        let presented = hash(secret);
        decide(|| async {
            let stored: Option<Stored<JoinRecord>> = self.load(Key::Join(id.into())).await?;
            // An unknown id costs the same comparison as a known one.
            let empty = [0_u8; 32];
            let wanted = stored.as_ref().map_or(&empty[..], |s| s.value.hash.as_slice());
            let right = bool::from(wanted.ct_eq(&presented));
            let join = stored.filter(|s| right && s.value.expires_at > now()).ok_or(RegistryError::JoinRefused)?;
            self.commit(Change::new().check(&join).delete(join.key.clone())).await?;
            Ok(Joined { region: join.value.region })
        })
        .await
    }

    /// Deletes join tokens that nobody used in time.
    pub(super) async fn forget_join_tokens(&self) -> Result<(), RegistryError> {
        for join in self.load_all::<JoinRecord>(prefix::JOINS).await? {
            if join.value.expires_at <= now() {
                self.commit(Change::new().delete(join.key)).await?;
            }
        }
        Ok(())
    }
}

fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}
