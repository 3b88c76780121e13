//! Join tokens: how a node proves, once, that an operator wants it. `seks_join_ID.SECRET.CAPIN`;
//! the store keeps a hash.
//!
//! What uses a token up makes the node's record, in one transaction: there is no node without a
//! record, and no second one of a name. The id of the token becomes the id of the enrolment, which
//! the node's certificates carry.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use seks_types::id::{NodeId, PoolName, TenantName, TokenId};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, Zeroizing};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    limits, now,
    pool::named_once,
    record::{JoinRecord, Node, Stored},
};
use crate::store::{Key, StoreError, key::prefix};

const PREFIX: &str = "seks_join_";

/// A join token that was just made: the only copy.
pub struct JoinToken {
    /// What the node presents; wiped when dropped.
    pub text: Zeroizing<String>,
    /// Until when, in unix seconds.
    pub expires_at: i64,
}

/// What an operator grants with a join token.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// Where the node will be.
    pub region: String,
    /// Whose tokens and credentials it may hold; none: every tenant's.
    pub tenants: Vec<TenantName>,
    /// The pools that it belongs to: of credentials that are assigned to pools it may hold those of
    /// these.
    pub pools: Vec<PoolName>,
    /// Of the token; 0: [`limits::JOIN_TTL_SECONDS`].
    pub ttl_seconds: u64,
}

/// The same, in a record's words.
struct Checked {
    region: String,
    tenants: Vec<String>,
    pools: Vec<String>,
}

/// A node that presents a join token.
pub struct Joining<'a> {
    /// The token.
    pub token: &'a str,
    /// The name that it wants; `None`: we pick one.
    pub node: Option<NodeId>,
    /// SHA-256 of its public key, whose private half it has shown to hold.
    pub key_sha256: [u8; 32],
}

impl Registry {
    /// Makes a join token. `ca_pin` is the SHA-256 of the CA's public key, in hexadecimal: the node
    /// trusts no other control plane.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`], [`RegistryError::NotFound`] for a tenant that isn't there.
    pub async fn create_join_token(&self, admission: Admission, ca_pin: &str) -> Result<JoinToken, RegistryError> {
        let ttl = match admission.ttl_seconds {
            0 => limits::JOIN_TTL_SECONDS,
            seconds => seconds,
        };
        if ttl > limits::MAX_JOIN_TTL_SECONDS {
            return Err(RegistryError::invalid("ttl_seconds", "1 second to 24 hours"));
        }
        let Checked { region, tenants, pools } = self.checked(admission).await?;
        let id = TokenId::generate().map_err(RegistryError::Random)?;
        let id = id.as_str().trim_start_matches("tok-");
        let mut random = [0_u8; 32];
        getrandom::fill(&mut random).map_err(RegistryError::Random)?;
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(random));
        random.zeroize();
        let expires_at = now().saturating_add(i64::try_from(ttl).unwrap_or(i64::MAX));
        let record = JoinRecord { hash: hash(&secret), region, expires_at, tenants, pools, ..JoinRecord::default() };
        let key = Key::Join(id.into());
        self.commit(Change::new().check_absent(key.clone()).put(key, &record)).await?;
        let text = Zeroizing::new(format!("{PREFIX}{id}.{}.{ca_pin}", *secret));
        Ok(JoinToken { text, expires_at })
    }

    /// Where the node will be, and whose secrets it may hold.
    async fn checked(&self, admission: Admission) -> Result<Checked, RegistryError> {
        let Admission { region, mut tenants, pools, .. } = admission;
        if !region.is_empty() && !seks_types::id::is_name(&region) {
            return Err(RegistryError::invalid("region", "1 to 63 of a-z, 0-9 and `-`"));
        }
        tenants.sort_unstable();
        tenants.dedup();
        if tenants.len() > limits::NODE_TENANTS {
            return Err(RegistryError::invalid("tenants", format!("{} at most", limits::NODE_TENANTS)));
        }
        for tenant in &tenants {
            self.active_tenant(tenant).await?; // a typing error would leave the node with nothing to serve
        }
        let tenants = tenants.iter().map(ToString::to_string).collect();
        Ok(Checked { region, tenants, pools: named_once(&pools)? })
    }

    /// Makes a node that shows the mesh's certificate for `spiffe_id` instead of one of ours:
    /// nothing has to be handed to it.
    ///
    /// # Errors
    /// [`RegistryError::NodeExists`] when the name is taken; [`RegistryError::Conflict`] when
    /// another node has that id.
    pub async fn admit_workload(
        &self,
        id: &NodeId,
        spiffe_id: &str,
        admission: Admission,
    ) -> Result<Node, RegistryError> {
        let Checked { region, tenants, pools } = self.checked(admission).await?;
        if let Some(other) = self.nodes().await?.into_iter().find(|node| node.enrolment == spiffe_id) {
            let reason = format!("node `{}` has this SPIFFE ID already", other.id);
            return Err(RegistryError::conflict(reason, "each node needs one of its own"));
        }
        let enrolled_at = now();
        let (name, enrolment) = (id.to_string(), spiffe_id.to_owned());
        let node = Node { id: name, region, tenants, pools, enrolment, enrolled_at, ..Node::default() };
        let key = Key::Node(id.clone());
        match self.commit(Change::new().check_absent(key.clone()).put(key, &node)).await {
            Ok(_) => Ok(node),
            Err(RegistryError::Store(StoreError::Conflict)) => Err(RegistryError::NodeExists(id.clone())),
            Err(other) => Err(other),
        }
    }

    /// Whether a join token is valid, or was used by a node that may repeat its request. It costs
    /// one read of one record, and none for a text that cannot be a join token. A caller without a
    /// certificate can cause no more.
    ///
    /// # Errors
    /// [`RegistryError::JoinRefused`], with the same text for every cause.
    pub async fn check_join_token(&self, token: &str) -> Result<(), RegistryError> {
        self.load_join(token).await.map(drop)
    }

    /// The record of a token that is good or was used, if the secret is right.
    async fn load_join(&self, token: &str) -> Result<Stored<JoinRecord>, RegistryError> {
        let (id, secret) = parts(token).ok_or(RegistryError::JoinRefused)?;
        let presented = hash(secret);
        let stored: Option<Stored<JoinRecord>> = self.load(Key::Join(id.into())).await?;
        // An unknown id costs the same comparison as a known one.
        let empty = [0_u8; 32];
        let wanted = stored.as_ref().map_or(&empty[..], |s| match s.value.node.as_str() {
            "" => &s.value.hash,
            _ => &s.value.used_hash,
        });
        let right = bool::from(wanted.ct_eq(&presented));
        stored.filter(|s| right && s.value.expires_at > now()).ok_or(RegistryError::JoinRefused)
    }

    /// Uses a join token and creates its node. The refusal has the same text for every cause. A
    /// node that did not get the response may repeat the request with the same token and key, and
    /// remains the same node.
    ///
    /// # Errors
    /// [`RegistryError::JoinRefused`]; [`RegistryError::NodeExists`] if the name is taken. The
    /// token then stays valid.
    pub async fn enrol(&self, joining: &Joining<'_>) -> Result<Node, RegistryError> {
        let (id, _) = parts(joining.token).ok_or(RegistryError::JoinRefused)?;
        let picked = match &joining.node {
            Some(name) => name.clone(),
            None => pick_name()?,
        };
        retry_on_conflict(|| async {
            let join = self.load_join(joining.token).await?;
            if !join.value.node.is_empty() {
                return self.enrolled_before(id, &join.value.node, joining).await?.ok_or(RegistryError::JoinRefused);
            }
            let key = Key::Node(picked.clone());
            if self.store().get(&key).await?.is_some() {
                return Err(RegistryError::NodeExists(picked.clone()));
            }
            let node = Node {
                id: picked.to_string(),
                region: join.value.region.clone(),
                tenants: join.value.tenants.clone(),
                pools: join.value.pools.clone(),
                enrolment: id.into(),
                key_sha256: joining.key_sha256.to_vec(),
                enrolled_at: now(),
                ..Node::default()
            };
            let used = join.value.used(picked.as_str(), now() + limits::ENROLMENT_RETRY_SECONDS);
            let change = Change::new().check(&join).check_absent(key.clone());
            self.commit(change.put(join.key.clone(), &used).put(key, &node)).await?;
            Ok(node)
        })
        .await
    }

    /// The node that this very enrolment has made a moment ago, for the holder of the same key.
    async fn enrolled_before(
        &self,
        id: &str,
        name: &str,
        joining: &Joining<'_>,
    ) -> Result<Option<Node>, RegistryError> {
        let retried = |node: &Node| {
            node.enrolment == id
                && node.key_sha256 == joining.key_sha256
                && joining.node.as_ref().is_none_or(|name| node.id == name.as_str())
                && now() - node.enrolled_at <= limits::ENROLMENT_RETRY_SECONDS
        };
        let Ok(name) = name.parse() else { return Ok(None) };
        Ok(self.node(&name).await?.filter(retried))
    }

    /// Deletes expired join tokens.
    pub(super) async fn forget_join_tokens(&self) -> Result<(), RegistryError> {
        for join in self.load_all::<JoinRecord>(prefix::JOINS).await? {
            if join.value.expires_at <= now() {
                self.commit(Change::new().delete(join.key)).await?;
            }
        }
        Ok(())
    }
}

/// The id and the secret of a token that looks like one.
fn parts(text: &str) -> Option<(&str, &str)> {
    let mut parts = text.strip_prefix(PREFIX)?.split('.');
    let (Some(id), Some(secret), Some(_pin), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    let is_id = !id.is_empty() && id.len() <= 32 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    is_id.then_some((id, secret))
}

fn pick_name() -> Result<NodeId, RegistryError> {
    let id = TokenId::generate().map_err(RegistryError::Random)?;
    let name = id.as_str().replacen("tok-", "node-", 1);
    name.parse().map_err(|_| RegistryError::invalid("node", "cannot pick a name"))
}

fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}
