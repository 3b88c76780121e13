//! Minted credentials: when the next token is due, who fetches it, and what came of it. The
//! long-lived secret is an envelope of its own, which nothing but a claim opens.

use std::sync::OnceLock;

use prost::Message as _;
use seks_network::address::Networks;
use seks_proto::wire;
use seks_types::{
    id::{CredentialName, OperatorName, PoolName, ServiceName, TenantName},
    secret::{Fields, Secret},
};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    credential::{Binding, Bound},
    now,
    record::{Credential, MintRecord, Service, Stored, destination_of},
};
use crate::{
    mint::{Kind, MintError, Minted, public_part},
    seal::{RecordId, SealError},
    store::{Key, Revision, StoreError, key::prefix},
};

/// How long a claim keeps others away, in seconds: three times the longest exchange.
const CLAIM_SECONDS: i64 = 60;
/// Seconds until an attempt that failed is repeated: doubled each time, up to the second.
const RETRY_SECONDS: (i64, i64) = (5, 300);
/// The same when a person has to do something about it.
const FINAL_RETRY_SECONDS: i64 = 600;
/// Least seconds between two refreshes that nodes ask for.
const FORCED_SECONDS: i64 = 30;

/// When a minted credential wants attention.
#[derive(Clone, Debug)]
pub(crate) struct MintTimes {
    refresh_at: i64,
    claimed_by: String,
    claimed_until: i64,
    pub(crate) failing: bool,
}

impl MintTimes {
    /// From a record's bytes.
    pub(crate) fn read(value: &bytes::Bytes) -> Option<Self> {
        MintRecord::decode(value.clone()).ok().map(Self::from)
    }

    /// When `replica` may do something about it, in unix seconds.
    pub(crate) fn due(&self, replica: &str) -> i64 {
        let others = !self.claimed_by.is_empty() && self.claimed_by != replica;
        if others { self.refresh_at.max(self.claimed_until + 1) } else { self.refresh_at }
    }
}

impl From<MintRecord> for MintTimes {
    fn from(record: MintRecord) -> Self {
        let MintRecord { refresh_at, claimed_by, claimed_until, failing_since, .. } = record;
        Self { refresh_at, claimed_by, claimed_until, failing: failing_since != 0 }
    }
}

/// The right to trade a secret, for a while.
pub(crate) struct Claim {
    pub(crate) tenant: TenantName,
    pub(crate) credential: CredentialName,
    pub(crate) kind: String,
    pub(crate) secret: Secret,
    /// The private networks that the endpoint may be in.
    pub(crate) networks: Networks,
    /// The service's credentials have several fields.
    pub(crate) has_several_fields: bool,
}

/// What a credential of a service may be fetched with.
pub(crate) struct Mintable {
    /// The private networks that token endpoints may be in.
    pub(crate) networks: Networks,
    /// Its credentials have several fields.
    pub(crate) has_several_fields: bool,
}

impl Registry {
    /// Every minted credential, and the revision that this is of.
    pub(crate) async fn mints(
        &self,
    ) -> Result<(Vec<((TenantName, CredentialName), MintTimes)>, Revision), RegistryError> {
        let revision = self.store().revision().await?; // before: what changes meanwhile is seen twice
        let mut all = Vec::new();
        for tenant in self.tenants().await? {
            let Ok(tenant) = TenantName::try_from(tenant.name.as_str()) else { continue };
            for record in self.load_all::<MintRecord>(&prefix::kind(&tenant, "mint")).await? {
                if let Key::Mint(tenant, name) = record.key {
                    all.push(((tenant, name), record.value.into()));
                }
            }
        }
        Ok((all, revision))
    }

    /// Stores what tokens are minted from, with the first token that was.
    ///
    /// # Errors
    /// As [`put_credential`](Self::put_credential).
    pub(crate) async fn put_minted(
        &self,
        (tenant, name, service): (&TenantName, &CredentialName, &ServiceName),
        kind: &str,
        secret: &Secret,
        minted: &Minted,
        pools: &[PoolName],
        by: &OperatorName,
    ) -> Result<(Credential, Revision), RegistryError> {
        let destination = OnceLock::new();
        retry_on_conflict(|| async {
            let reference = if Kind::is_reference(kind) { public_part(secret) } else { String::new() };
            let record = MintRecord { kind: kind.into(), reference, ..Default::default() };
            let record = record.renewed(minted.lifetime, now());
            let bound_to = Bound::of(&self.living_service(tenant, service).await?.value)?.destination;
            // Where the service goes elsewhere before this is committed, `put_fields` refuses.
            let bound_to = *destination.get_or_init(|| bound_to);
            let id = RecordId::mint(self.store().store_id(), tenant, name).bound_to(Some(bound_to));
            let envelope = self.sealer.seal(&id, minted.rotated.as_ref().unwrap_or(secret)).await?;
            let change = Change::new()
                .put(Key::Mint(tenant.clone(), name.clone()), &record)
                .put_bytes(Key::MintSecret(tenant.clone(), name.clone()), envelope);
            let how = (kind, pools, Binding::Service(&destination));
            self.put_fields(change, (tenant, name, service), &minted.token, how, by).await
        })
        .await
    }

    /// What a credential of the service may be fetched with, and whether it can be by `kind`.
    pub(crate) async fn mintable(
        &self,
        tenant: &TenantName,
        service: &ServiceName,
        kind: &str,
    ) -> Result<Mintable, RegistryError> {
        let service = self.living_service(tenant, service).await?.value;
        let has_several_fields = service.fields.len() > 1;
        if has_several_fields && !Kind::is_reference(kind) {
            let reason = "a minted token is one field, and the service's credentials have several";
            return Err(RegistryError::invalid("mint", reason));
        }
        Ok(Mintable { networks: self.networks_of(tenant, Some(&service)).await?, has_several_fields })
    }

    /// The tenant's private networks.
    pub(crate) async fn tenant_networks_of(&self, tenant: &TenantName) -> Result<Networks, RegistryError> {
        let tenant = self.load_tenant(tenant).await?.value;
        Networks::parse(&tenant.private_networks).map_err(|e| RegistryError::invalid("private_networks", e.to_string()))
    }

    /// The tenant's private networks, where `service` asks for private upstreams; else none.
    async fn networks_of(&self, tenant: &TenantName, service: Option<&Service>) -> Result<Networks, RegistryError> {
        if !service.is_some_and(|s| s.allow_private) {
            return Ok(Networks::default());
        }
        self.tenant_networks_of(tenant).await
    }

    /// Claims the refresh, if it is due and no other replica has claimed it.
    pub(crate) async fn claim_mint(
        &self,
        tenant: &TenantName,
        name: &CredentialName,
        replica: &str,
    ) -> Result<Option<Claim>, RegistryError> {
        let key = Key::Mint(tenant.clone(), name.clone());
        retry_on_conflict(|| async {
            let Some(mut stored) = self.load::<MintRecord>(key.clone()).await? else { return Ok(None) };
            let at = now();
            if MintTimes::from(stored.value.clone()).due(replica) > at {
                return Ok(None);
            }
            let credential = self.load_credential(tenant, name).await?.value;
            let service = ServiceName::try_from(credential.service.as_str()).ok();
            let service: Option<Stored<Service>> = match service {
                Some(service) => self.load(Key::Service(tenant.clone(), service)).await?,
                None => None,
            };
            let networks = self.networks_of(tenant, service.as_ref().map(|s| &s.value)).await?;
            let Some(envelope) = self.store().get(&Key::MintSecret(tenant.clone(), name.clone())).await? else {
                return Err(RegistryError::Corrupt { key: key.to_string() });
            };
            let id = self.mint_secret_id(tenant, name, &credential);
            let secret = self.sealer.open(&id, &envelope.value).await?;
            (stored.value.claimed_by, stored.value.claimed_until) = (replica.into(), at + CLAIM_SECONDS);
            self.commit(Change::new().check(&stored).put(key.clone(), &stored.value)).await?;
            Ok(Some(Claim {
                tenant: tenant.clone(),
                credential: name.clone(),
                kind: stored.value.kind,
                secret,
                networks,
                has_several_fields: service.is_some_and(|s| s.value.fields.len() > 1),
            }))
        })
        .await
    }

    /// Writes down what came of a claim: a new version and, in the same transaction, the secret
    /// that replaces the old one; or that it failed, and then the last good token stays. What an
    /// operator has stored since is left alone.
    pub(crate) async fn settle_mint(
        &self,
        claim: &Claim,
        minted: Result<&Minted, &MintError>,
        by: &OperatorName,
    ) -> Result<(), RegistryError> {
        let Claim { tenant, credential: name, .. } = claim;
        let (key, secret_key) =
            (Key::Mint(tenant.clone(), name.clone()), Key::MintSecret(tenant.clone(), name.clone()));
        retry_on_conflict(|| async {
            let stored = self.load::<MintRecord>(key.clone()).await?;
            let stored = stored.ok_or_else(|| RegistryError::not_found("credential", name))?;
            let Some(envelope) = self.store().get(&secret_key).await? else { return Ok(()) };
            let credential = self.load_credential(tenant, name).await?.value;
            let id = self.mint_secret_id(tenant, name, &credential);
            match self.sealer.holds(&id, &envelope.value, &claim.secret).await {
                Ok(true) => {}
                Ok(false) => return Ok(()), // replaced, or this was written and its answer lost
                // Bound to another destination between the two reads, if nothing is wrong with it.
                Err(SealError::Rejected) => return Err(StoreError::Conflict.into()),
                Err(error) => return Err(error.into()),
            }
            let change = Change::new().check(&stored).check_at(secret_key.clone(), envelope.modified);
            let minted = match minted {
                Err(error) => {
                    let record = stored.value.clone().failed(error, now());
                    return self.commit(change.put(key.clone(), &record)).await.map(drop);
                }
                Ok(minted) => minted,
            };
            let mut change = change.put(key.clone(), &stored.value.clone().renewed(minted.lifetime, now()));
            if let Some(rotated) = &minted.rotated {
                let envelope = self.sealer.seal(&id, rotated).await?;
                change = change.put_bytes(secret_key.clone(), envelope);
            }
            let service = credential.service.parse().map_err(|_| RegistryError::Corrupt { key: key.to_string() })?;
            let kind = stored.value.kind.as_str();
            if Kind::is_reference(kind) && self.is_current(&credential, (tenant, name, &service), &minted.token).await?
            {
                return self.commit(change).await.map(drop);
            }
            // A token goes where the secret that it is minted from may go, wherever the service is
            // sent meanwhile.
            let how = (kind, &[][..], Binding::Kept);
            self.put_fields(change, (tenant, name, &service), &minted.token, how, by).await.map(drop)
        })
        .await
    }

    /// Whether the current version holds this secret already.
    async fn is_current(
        &self,
        credential: &Credential,
        (tenant, name, service): (&TenantName, &CredentialName, &ServiceName),
        secret: &Secret,
    ) -> Result<bool, RegistryError> {
        let definition = self.living_service(tenant, service).await?.value;
        let Ok(fields) = Fields::parse(&definition.fields, secret) else { return Ok(false) };
        let fields = self.with_aws_key(tenant, &definition, fields).await?;
        let version = credential.version;
        let Some(envelope) = self.store().get(&Key::Envelope(tenant.clone(), name.clone(), version)).await? else {
            return Ok(false);
        };
        let id = RecordId::credential(self.store().store_id(), tenant, name, version);
        let id = id.bound_to(destination_of(credential, version));
        Ok(self.sealer.holds(&id, &envelope.value, fields.encoded()).await?)
    }

    /// A node reports that an upstream has refused version `version`. The next token is then due
    /// now, unless the version has changed already or the refresh was requested just before. Any
    /// number of reports cause one refresh.
    pub(crate) async fn force_mint(
        &self,
        tenant: &TenantName,
        name: &CredentialName,
        version: u32,
    ) -> Result<bool, RegistryError> {
        let key = Key::Mint(tenant.clone(), name.clone());
        retry_on_conflict(|| async {
            let Some(mut stored) = self.load::<MintRecord>(key.clone()).await? else { return Ok(false) };
            let (at, current) = (now(), self.load_credential(tenant, name).await?.value.version);
            let record = &mut stored.value;
            if current != version || record.refresh_at <= at || at < record.forced_at + FORCED_SECONDS {
                return Ok(false);
            }
            (record.refresh_at, record.forced_at) = (at, at);
            self.commit(Change::new().check(&stored).put(key.clone(), &stored.value)).await?;
            Ok(true)
        })
        .await
    }

    /// Says of credentials whether and how they are minted, and whether nodes use them.
    ///
    /// # Errors
    /// Of the store.
    pub async fn with_mints(&self, credentials: Vec<Credential>) -> Result<Vec<Credential>, RegistryError> {
        let mut all = Vec::with_capacity(credentials.len());
        for credential in credentials {
            all.push(self.described(credential).await?);
        }
        Ok(all)
    }

    /// What a credential is minted from is bound to the same destination as its current version.
    pub(super) fn mint_secret_id<'a>(
        &'a self,
        tenant: &'a TenantName,
        name: &'a CredentialName,
        credential: &Credential,
    ) -> RecordId<'a> {
        let bound_to = destination_of(credential, credential.version);
        RecordId::mint(self.store().store_id(), tenant, name).bound_to(bound_to)
    }

    /// Says of a credential whether and how it is minted.
    pub(super) async fn with_mint(&self, mut credential: Credential) -> Result<Credential, RegistryError> {
        if let (Ok(tenant), Ok(name)) = (credential.tenant.parse(), credential.name.parse()) {
            let record = self.load::<MintRecord>(Key::Mint(tenant, name)).await?;
            credential.mint = record.map(|stored| stored.value.into()).or(credential.mint);
        }
        Ok(credential)
    }
}

impl MintRecord {
    /// A token was minted: the next is due when a third of its life is left.
    fn renewed(self, lifetime: i64, at: i64) -> Self {
        Self {
            kind: self.kind,
            reference: self.reference,
            expires_at: at.saturating_add(lifetime),
            refresh_at: at.saturating_add((lifetime.saturating_mul(2) / 3).max(1)),
            refreshed_at: at,
            forced_at: self.forced_at,
            ..Self::default()
        }
    }

    fn failed(self, error: &MintError, at: i64) -> Self {
        let failures = self.failures.saturating_add(1);
        let (first, most) = RETRY_SECONDS;
        let pause = if error.is_final() {
            FINAL_RETRY_SECONDS
        } else {
            (first << failures.min(10).saturating_sub(1)).min(most)
        };
        Self {
            failing_since: if self.failing_since == 0 { at } else { self.failing_since },
            error: error.to_string(),
            failures,
            refresh_at: at.saturating_add(pause),
            claimed_by: String::new(),
            claimed_until: 0,
            ..self
        }
    }
}

impl From<MintRecord> for wire::Mint {
    fn from(record: MintRecord) -> Self {
        let MintRecord {
            kind, expires_at, refresh_at, refreshed_at, failing_since, error, failures, reference, ..
        } = record;
        Self { kind, expires_at, refresh_at, refreshed_at, failing_since, error, failures, reference }
    }
}
