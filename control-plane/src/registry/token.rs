//! Tokens: issued once, rotated in place, revoked by deleting.

use std::time::Duration;

use ipnet::IpNet;
use seks_network::address::canonical_network;
use seks_protocol::features;
use seks_service::EXCHANGE;
use seks_types::{
    id::{AgentName, CredentialName, OperatorName, ServiceName, TenantName, TokenId},
    token::{FreshToken, SHAPES, shape_prefix},
};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    limits, now,
    record::{Grant, RequestRecord, Stored, Token},
};
use crate::store::{Key, Revision, StoreError, key::prefix};

const KIND: &str = "token";
/// Length of a SHA-256 digest.
const DIGEST_BYTES: usize = 32;

/// What a token is to be.
#[derive(Clone, Debug)]
pub struct Issue {
    /// Whose it is.
    pub agent: AgentName,
    /// What it reaches; `None`: the service's only credential.
    pub grants: Vec<(ServiceName, Option<CredentialName>)>,
    /// Its lifetime; `None`: [`limits::TOKEN_TTL_SECONDS`].
    pub ttl: Option<Duration>,
    /// Source networks that it is bound to; empty: any.
    pub cidrs: Vec<String>,
    /// The vendor's key format that the token imitates, one of [`SHAPES`]; empty for none.
    pub shape: String,
    /// A repetition with the same id makes no second token; empty: no such promise.
    pub request_id: String,
    /// SHA-256 of the client certificate that it is bound to; `None`: it is not.
    pub certificate: Option<[u8; 32]>,
    /// It grants nothing, and its first use is an alarm.
    pub is_canary: bool,
    /// Who issues it.
    pub by: OperatorName,
}

/// A token that was just made, with the only copy of its secret.
pub struct Issued {
    /// What is stored.
    pub token: Token,
    /// What the agent presents, without the shape's prefix.
    pub secret: FreshToken,
    /// When.
    pub revision: Revision,
}

impl Registry {
    /// Issues a token.
    ///
    /// # Errors
    /// [`RegistryError::TokenIssued`] when the request id has been used (the secret can't be shown
    /// twice), [`RegistryError::NotFound`], [`RegistryError::Invalid`],
    /// [`RegistryError::Conflict`].
    pub async fn issue_token(&self, tenant: &TenantName, issue: Issue) -> Result<Issued, RegistryError> {
        let (cidrs, ttl) = (check_cidrs(&issue.cidrs)?, check_ttl(issue.ttl)?);
        check_shape(&issue.shape)?;
        let request = check_request_id(tenant, &issue.request_id)?;
        if issue.is_canary && !issue.grants.is_empty() {
            return Err(RegistryError::invalid("grants", "a canary grants nothing"));
        }
        if (issue.grants.is_empty() && !issue.is_canary) || issue.grants.len() > limits::GRANTS {
            return Err(RegistryError::invalid("grants", format!("1 to {}", limits::GRANTS)));
        }
        let (issue, cidrs) = (&issue, &cidrs);
        retry_on_conflict(|| async {
            let mut change = Change::new();
            if let Some(request) = &request {
                self.check_request(request).await?;
                self.check_requests(tenant)?;
                change = change.check_absent(request.clone());
            }
            let parent = self.active_tenant(tenant).await?;
            self.check_quota(tenant, KIND, limits::TOKENS).await?;
            let agent = self.load_agent(tenant, &issue.agent).await?;
            if agent.value.deleting {
                return Err(RegistryError::being_deleted("agent", &issue.agent));
            }
            let (change, grants) =
                self.resolve_grants(change.check(&parent).check(&agent), tenant, &issue.grants).await?;
            let (id, secret) = match issue.is_canary {
                true => (TokenId::generate_canary().map_err(RegistryError::Random)?, fresh()?.1),
                false => fresh()?,
            };
            let issued_at = now();
            let token = Token {
                id: id.to_string(),
                tenant: tenant.to_string(),
                agent: issue.agent.to_string(),
                grants,
                issued_at,
                expires_at: issued_at.saturating_add(ttl),
                cidrs: cidrs.clone(),
                shape: issue.shape.clone(),
                digest: secret.digest().0.to_vec(),
                issued_by: issue.by.to_string(),
                requires: issue.certificate.map(|_| features::CERTIFICATE_V1.to_owned()).into_iter().collect(),
                certificate_sha256: issue.certificate.map(|sha256| sha256.to_vec()).unwrap_or_default(),
                trust: None,
                replaced_by: String::new(),
                last_used_at: 0,
            };
            let key = Key::Token(tenant.clone(), id);
            let change = change.check_absent(key.clone()).put(key, &token);
            let change = match &request {
                Some(request) => {
                    change.put(request.clone(), &RequestRecord { token: token.id.clone(), created_at: issued_at })
                }
                None => change,
            };
            let revision = self.commit(change).await?;
            Ok(Issued { token, secret, revision })
        })
        .await
    }

    /// A repetition of a request that went through: says which token it made.
    async fn check_request(&self, request: &Key) -> Result<(), RegistryError> {
        match self.load::<RequestRecord>(request.clone()).await? {
            None => Ok(()),
            Some(made) => Err(RegistryError::TokenIssued { id: made.value.token }),
        }
    }

    /// Finds the credential of each grant, and makes the change depend on service and credential.
    pub(super) async fn resolve_grants(
        &self,
        mut change: Change,
        tenant: &TenantName,
        wanted: &[(ServiceName, Option<CredentialName>)],
    ) -> Result<(Change, Vec<Grant>), RegistryError> {
        let mut grants: Vec<Grant> = Vec::with_capacity(wanted.len());
        for (service, credential) in wanted {
            if service.as_str() == EXCHANGE {
                let reason = format!("service `{EXCHANGE}` holds the tenant's exchange key, and no token reaches it");
                return Err(RegistryError::invalid("grants", reason));
            }
            if grants.iter().any(|g| g.service == service.as_str()) {
                return Err(RegistryError::invalid("grants", format!("service `{service}` stands twice")));
            }
            change = change.check(&self.living_service(tenant, service).await?);
            let credential = match credential {
                Some(credential) => credential.clone(),
                None => self.only_credential(tenant, service).await?,
            };
            let stored = self.load_credential(tenant, &credential).await?;
            if stored.value.deleting {
                return Err(RegistryError::being_deleted("credential", &credential));
            }
            if stored.value.service != service.as_str() {
                let reason = format!("credential `{credential}` is for service `{}`", stored.value.service);
                return Err(RegistryError::invalid("grants", reason));
            }
            change = change.check(&stored);
            grants.push(Grant { service: service.to_string(), credential: credential.to_string() });
        }
        Ok((change, grants))
    }

    async fn only_credential(
        &self,
        tenant: &TenantName,
        service: &ServiceName,
    ) -> Result<CredentialName, RegistryError> {
        let names = self.credentials_of(tenant, service.as_str()).await?;
        match names.as_slice() {
            [name] => name.parse().map_err(|_| RegistryError::Corrupt { key: name.clone() }),
            [] => Err(RegistryError::conflict(
                format!("service `{service}` has no credential"),
                format!("seks credential put NAME --service {service}"),
            )),
            several => Err(RegistryError::conflict(
                format!(
                    "service `{service}` has {} credentials: {}",
                    several.len(),
                    super::delete::list_names(several)
                ),
                format!("say which: --service {service}=CREDENTIAL"),
            )),
        }
    }

    /// All tokens of a tenant, by id, however many: for tools and tests. Their digests are in them:
    /// they are not for an operator's eyes.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the tenant.
    pub async fn tokens(&self, tenant: &TenantName) -> Result<Vec<Token>, RegistryError> {
        self.load_tenant(tenant).await?;
        self.values(&prefix::kind(tenant, KIND)).await
    }

    /// One token.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn token(&self, tenant: &TenantName, id: &TokenId) -> Result<Token, RegistryError> {
        Ok(self.load_token(tenant, id).await?.value)
    }

    async fn load_token(&self, tenant: &TenantName, id: &TokenId) -> Result<Stored<Token>, RegistryError> {
        match self.load(Key::Token(tenant.clone(), id.clone())).await? {
            Some(token) => Ok(token),
            None => Err(self.missing(tenant, KIND, id.as_str()).await),
        }
    }

    /// Ids of the tokens that haven't expired and that `wanted` picks.
    pub(super) async fn living_tokens(
        &self,
        tenant: &TenantName,
        wanted: impl Fn(&Token) -> bool,
    ) -> Result<Vec<String>, RegistryError> {
        let (mut pages, mut found, now) = (self.pages(&prefix::kind(tenant, KIND)), Vec::new(), now());
        while let Some(tokens) = pages.next::<Token>().await? {
            let tokens = tokens.into_iter().map(|stored| stored.value);
            found.extend(tokens.filter(|t| t.expires_at > now && wanted(t)).map(|t| t.id));
        }
        Ok(found)
    }

    /// The token with this digest. Tokens are stored by id, so this reads pages of the tenant's
    /// tokens until it finds the digest.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Invalid`] for a digest of another length.
    pub async fn token_by_digest(&self, tenant: &TenantName, digest: &[u8]) -> Result<Token, RegistryError> {
        if digest.len() != DIGEST_BYTES {
            return Err(RegistryError::invalid("digest", format!("a SHA-256 digest has {} bytes", DIGEST_BYTES)));
        }
        self.load_tenant(tenant).await?;
        let mut pages = self.pages(&prefix::kind(tenant, KIND));
        while let Some(tokens) = pages.next::<Token>().await? {
            if let Some(found) = tokens.into_iter().find(|token| token.value.digest == digest) {
                return Ok(found.value);
            }
        }
        Err(RegistryError::not_found(KIND, "of this value"))
    }

    /// Revokes a token: its record is deleted, whatever it has become meanwhile; the tombstone by
    /// which nodes tell "revoked" from "unknown" is an extra that a full store does without.
    /// Revoking again returns the present revision, so that a wait for enforcement can be repeated.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn revoke_token(&self, tenant: &TenantName, id: &TokenId) -> Result<Revision, RegistryError> {
        let tombstone = Key::Tombstone(tenant.clone(), id.clone());
        let revoked = retry_on_conflict(|| async {
            let token = match self.load_token(tenant, id).await {
                Err(RegistryError::NotFound { kind: KIND, .. }) if self.store().get(&tombstone).await?.is_some() => {
                    return Ok(self.store().revision().await?);
                }
                found => found?,
            };
            let change = Change::new().check(&token).delete(token.key.clone());
            match self.keeps_tombstone(tenant) {
                true => self.commit(change.put(tombstone.clone(), &token.value)).await,
                false => self.commit(change).await,
            }
        })
        .await;
        match revoked {
            // Full, or rotated faster than we can read: to delete needs neither room nor a look.
            Err(RegistryError::Store(StoreError::Full) | RegistryError::Busy) => {
                self.commit(Change::new().delete(Key::Token(tenant.clone(), id.clone()))).await
            }
            decided => decided,
        }
    }

    /// Gives a token a new secret and a new life as long as the first. The id stays, so that what
    /// is counted, limited or revoked by it follows. The old secret is revoked in the same
    /// revision. With a `grace` it works so much longer, under an id of its own, but never longer
    /// than it would have.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Invalid`] for a grace of over 7 days,
    /// [`RegistryError::Conflict`] for one that has expired or was replaced itself,
    /// [`RegistryError::Quota`] when there is no room for two.
    pub async fn rotate_token(
        &self,
        tenant: &TenantName,
        id: &TokenId,
        by: &OperatorName,
        grace: Duration,
    ) -> Result<Issued, RegistryError> {
        if grace > limits::ROTATION_GRACE {
            return Err(RegistryError::invalid("grace_seconds", "at most 7 days"));
        }
        retry_on_conflict(|| async {
            let old = self.load_token(tenant, id).await?;
            let at = now();
            if old.value.trust.is_some() {
                return Err(RegistryError::conflict(
                    format!("`{id}` is a trust, and has no secret"),
                    "seks trust update",
                ));
            }
            if old.value.expires_at <= at {
                return Err(RegistryError::conflict(format!("token `{id}` has expired"), "issue a new one"));
            }
            if !old.value.replaced_by.is_empty() {
                let newer = &old.value.replaced_by;
                let hint = format!("rotate or revoke `{newer}`");
                return Err(RegistryError::conflict(format!("token `{id}` was replaced by `{newer}`"), hint));
            }
            // The old secret gets an id of its own: `id` lives on.
            let (old_id, secret) = fresh()?;
            let life = old.value.expires_at.saturating_sub(old.value.issued_at);
            let token = Token {
                digest: secret.digest().0.to_vec(),
                issued_at: at,
                expires_at: at.saturating_add(life),
                issued_by: by.to_string(),
                ..old.value.clone()
            };
            let mut change = Change::new().check(&old).put(old.key.clone(), &token);
            if grace > Duration::ZERO {
                self.check_quota(tenant, KIND, limits::TOKENS).await?;
                let until = at.saturating_add(i64::try_from(grace.as_secs()).unwrap_or(i64::MAX));
                let kept = Token {
                    id: old_id.to_string(),
                    expires_at: until.min(old.value.expires_at),
                    replaced_by: id.to_string(),
                    ..old.value.clone()
                };
                change = change.put(Key::Token(tenant.clone(), old_id), &kept);
            } else if self.keeps_tombstone(tenant) {
                change = change.put(Key::Tombstone(tenant.clone(), old_id), &old.value);
            }
            let revision = self.commit(change).await?;
            Ok(Issued { token, secret, revision })
        })
        .await
    }

    /// Lets a token expire earlier. A later expiry takes a new token: whoever holds this one may be
    /// the wrong one.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Invalid`] for a time in the past or after the
    /// present expiry.
    pub async fn shorten_token(
        &self,
        tenant: &TenantName,
        id: &TokenId,
        expires_at: i64,
    ) -> Result<(Token, Revision), RegistryError> {
        retry_on_conflict(|| async {
            let mut token = self.load_token(tenant, id).await?;
            if expires_at <= now() {
                return Err(RegistryError::Invalid {
                    field: "expires_at",
                    reason: "in the past".into(),
                    hint: format!("to end it now: seks token revoke {id}"),
                });
            }
            if expires_at > token.value.expires_at {
                return Err(RegistryError::Invalid {
                    field: "expires_at",
                    reason: "later than the present expiry: the life of a token can only be shortened".into(),
                    hint: format!("`seks token rotate {id}` gives it a new secret and a new life"),
                });
            }
            if expires_at == token.value.expires_at {
                return Ok((token.value, token.modified)); // the wait for enforcement is what a repetition is for
            }
            token.value.expires_at = expires_at;
            let revision = self.commit(Change::new().check(&token).put(token.key.clone(), &token.value)).await?;
            Ok((token.value, revision))
        })
        .await
    }
}

fn fresh() -> Result<(TokenId, FreshToken), RegistryError> {
    let id = TokenId::generate().map_err(RegistryError::Random)?;
    Ok((id, FreshToken::generate().map_err(RegistryError::Random)?))
}

/// Canonical networks: `10.1.2.3/8` is refused rather than folded into `10.0.0.0/8`, a bare address
/// is its own network.
pub(super) fn check_cidrs(cidrs: &[String]) -> Result<Vec<String>, RegistryError> {
    if cidrs.len() > limits::CIDRS {
        return Err(RegistryError::invalid("cidrs", format!("at most {}", limits::CIDRS)));
    }
    let check = |text: &String| {
        let net = text.parse::<IpNet>().or_else(|_| text.parse().map(|ip: std::net::IpAddr| IpNet::from(ip)));
        let shown: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
        let net = net.map_err(|_| RegistryError::invalid("cidrs", format!("`{shown}` is no network")))?;
        let net = canonical_network(net);
        if net.trunc() == net {
            return Ok(net.to_string());
        }
        let reason = format!("`{shown}` has bits set behind its prefix: `{}` is meant?", net.trunc());
        Err(RegistryError::invalid("cidrs", reason))
    };
    cidrs.iter().map(check).collect()
}

fn check_ttl(ttl: Option<Duration>) -> Result<i64, RegistryError> {
    let seconds = ttl.map_or(limits::TOKEN_TTL_SECONDS, |ttl| ttl.as_secs());
    if !(1..=limits::MAX_TOKEN_TTL_SECONDS).contains(&seconds) {
        return Err(RegistryError::invalid("ttl_seconds", "1 second to 366 days"));
    }
    Ok(i64::try_from(seconds).unwrap_or(i64::MAX))
}

fn check_shape(shape: &str) -> Result<(), RegistryError> {
    if shape_prefix(shape).is_some() {
        return Ok(());
    }
    Err(RegistryError::invalid("shape", format!("one of {}", SHAPES.join(", "))))
}

fn check_request_id(tenant: &TenantName, id: &str) -> Result<Option<Key>, RegistryError> {
    if id.is_empty() {
        return Ok(None);
    }
    if id.len() > limits::REQUEST_ID_BYTES || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(RegistryError::invalid("request_id", "1 to 64 letters, digits, `-` and `_`"));
    }
    Ok(Some(Key::Request(tenant.clone(), id.into())))
}
