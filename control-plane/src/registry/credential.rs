//! Credentials: metadata in one record, each version's secret in an envelope of its own.

use std::{collections::HashMap, sync::OnceLock};

use seks_service::record_destination;
use seks_types::{
    destination::Destination,
    id::{CredentialName, OperatorName, PoolName, ServiceName, TenantName},
    secret::{Fields, Secret},
};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    delete::list_names,
    limits, now,
    pool::named_once,
    record::{Credential, CredentialVersion, Mint, Service, Stored, Token, destination_of},
};
use crate::{
    seal::RecordId,
    store::{Key, Revision, key::prefix},
};

const KIND: &str = "credential";

/// What a new version is made of.
struct NewVersion<'a> {
    secret: &'a Secret,
    by: &'a OperatorName,
    /// 0: it is new.
    restored_from: u32,
    /// The kind that it was minted by; empty: it was put as it is.
    mint: &'a str,
    /// The pools that it is assigned to from now on; none: as it was.
    pools: &'a [PoolName],
    bound_to: Bound,
}

/// What a version is bound to.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) destination: Destination,
    /// Its origin, for people.
    pub(super) origin: String,
}

impl Bound {
    /// Where `service` sends its credentials.
    pub(super) fn of(service: &Service) -> Result<Self, RegistryError> {
        let checked = seks_service::Service::try_from(service)
            .map_err(|_| RegistryError::Corrupt { key: format!("{}/{}", service.tenant, service.name) })?;
        Ok(Self { destination: checked.destination(), origin: checked.upstream.to_string() })
    }

    /// What version `version` is bound to; one that was stored before credentials were bound: to
    /// where `service` sends it.
    pub(super) fn kept(credential: &Credential, version: u32, service: &Service) -> Result<Self, RegistryError> {
        match (destination_of(credential, version), credential.versions.iter().find(|v| v.version == version)) {
            (Some(destination), Some(known)) => Ok(Self { destination, origin: known.origin.clone() }),
            _ => Self::of(service),
        }
    }
}

/// Says which destination a new version is stored for.
#[derive(Clone, Copy)]
pub(super) enum Binding<'a> {
    /// The one that the service has. It is remembered here, so that a change that is decided again
    /// can't mean another one.
    Service(&'a OnceLock<Destination>),
    /// The one that the current version is bound to.
    Kept,
}

impl Registry {
    /// Stores a secret for `service`, under a new name or as the next version of an old one, for
    /// the nodes of `pools`; none: for those that might hold it before, every node of the tenant
    /// when it is new. Nothing gives it back.
    ///
    /// # Errors
    /// [`RegistryError::Invalid`] when the secret doesn't have the service's fields,
    /// [`RegistryError::Conflict`] when the name belongs to another service,
    /// [`RegistryError::Quota`].
    pub async fn put_credential(
        &self,
        tenant: &TenantName,
        name: &CredentialName,
        service: &ServiceName,
        secret: &Secret,
        pools: &[PoolName],
        by: &OperatorName,
    ) -> Result<(Credential, Revision), RegistryError> {
        let destination = OnceLock::new();
        retry_on_conflict(|| async {
            // What it was minted from, if it was, is of no use any more.
            let change = Change::new()
                .delete(Key::Mint(tenant.clone(), name.clone()))
                .delete(Key::MintSecret(tenant.clone(), name.clone()));
            let binding = Binding::Service(&destination);
            self.put_fields(change, (tenant, name, service), secret, ("", pools, binding), by).await
        })
        .await
    }

    /// Commits `change` with a new version of these fields. `mint` is the kind of minting, and
    /// `pools` is a new assignment, if there is one.
    ///
    /// A new credential also writes its service's record again. An operator who has just seen that
    /// the service has no credential, and may therefore change its destination, then gets a
    /// conflict.
    pub(super) async fn put_fields(
        &self,
        change: Change,
        (tenant, name, service): (&TenantName, &CredentialName, &ServiceName),
        secret: &Secret,
        (mint, pools, binding): (&str, &[PoolName], Binding<'_>),
        by: &OperatorName,
    ) -> Result<(Credential, Revision), RegistryError> {
        let parent = self.active_tenant(tenant).await?;
        let definition = self.living_service(tenant, service).await?;
        let fields = Fields::parse(&definition.value.fields, secret)
            .map_err(|error| RegistryError::invalid("secret", error.to_string()))?;
        let checked = seks_service::Service::try_from(&definition.value);
        if let Some(field) = checked.as_ref().ok().and_then(|service| service.unusable_field(&fields)) {
            let reason = format!("field `{field}` is a user name of HTTP Basic, which holds no colon");
            return Err(RegistryError::invalid("secret", reason));
        }
        let fields = self.with_aws_key(tenant, &definition.value, fields).await?;
        let old = self.load::<Credential>(Key::Credential(tenant.clone(), name.clone())).await?;
        let mut change = change.check(&parent).check(&definition);
        if let Some(old) = &old {
            check_same_service(old, service)?;
        } else {
            self.check_quota(tenant, KIND, limits::CREDENTIALS).await?;
            change = change.put(definition.key.clone(), &definition.value);
        }
        let bound_to = match (binding, &old) {
            (Binding::Kept, Some(old)) => Bound::kept(&old.value, old.value.version, &definition.value)?,
            (Binding::Kept, None) => Bound::of(&definition.value)?,
            (Binding::Service(first), _) => {
                let bound_to = Bound::of(&definition.value)?;
                check_same_destination(*first.get_or_init(|| bound_to.destination), &bound_to, service)?;
                bound_to
            }
        };
        let new = NewVersion { secret: fields.encoded(), by, restored_from: 0, mint, pools, bound_to };
        self.add_version(change, (tenant, name, service), old, new).await
    }

    /// Makes an earlier version's secret the current one, as a new version. `version` 0: the one
    /// before the current. It stays bound to the destination that it was stored for.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the credential or a version that isn't kept any more;
    /// [`RegistryError::Conflict`] when the service has another destination than that version was
    /// stored for.
    pub async fn rollback_credential(
        &self,
        tenant: &TenantName,
        name: &CredentialName,
        version: u32,
        by: &OperatorName,
    ) -> Result<(Credential, Revision), RegistryError> {
        retry_on_conflict(|| async {
            let old = self.load_credential(tenant, name).await?;
            if old.value.mint.is_some() {
                let reason = format!("credential `{name}` is minted: its earlier versions have expired");
                return Err(RegistryError::conflict(reason, "put what it is minted from again"));
            }
            let service = service_of(&old.value)?;
            let definition = self.living_service(tenant, &service).await?;
            let wanted = if version == 0 { previous(&old.value) } else { Some(version) };
            let wanted = wanted.filter(|w| *w != old.value.version).ok_or_else(|| {
                RegistryError::conflict(format!("credential `{name}` has no earlier version to roll back to"), "")
            })?;
            let kept = old.value.versions.iter().any(|v| v.version == wanted);
            let envelope = self.store().get(&Key::Envelope(tenant.clone(), name.clone(), wanted)).await?;
            let Some(envelope) = envelope.filter(|_| kept) else {
                return Err(RegistryError::not_found("credential version", format!("{name}@{wanted}")));
            };
            let bound_to = Bound::kept(&old.value, wanted, &definition.value)?;
            if bound_to.destination != Bound::of(&definition.value)?.destination {
                let reason = format!(
                    "version {wanted} of credential `{name}` was stored for another destination ({}) than service `{service}` has",
                    bound_to.origin
                );
                return Err(RegistryError::conflict(reason, "put the secret again"));
            }
            let id = RecordId::credential(self.store().store_id(), tenant, name, wanted);
            let id = id.bound_to(destination_of(&old.value, wanted));
            let secret = self.sealer.open(&id, &envelope.value).await?;
            let change = Change::new().check(&definition);
            let new = NewVersion { secret: &secret, by, restored_from: wanted, mint: "", pools: &[], bound_to };
            self.add_version(change, (tenant, name, &service), Some(old), new).await
        })
        .await
    }

    /// The current version again, bound to `bound_to`.
    pub(super) async fn rebound_version(
        &self,
        change: Change,
        (tenant, name): (&TenantName, &CredentialName),
        old: Stored<Credential>,
        bound_to: Bound,
        mint: &str,
        by: &OperatorName,
    ) -> Result<(Credential, Revision), RegistryError> {
        let (version, service) = (old.value.version, service_of(&old.value)?);
        let envelope = self.store().get(&Key::Envelope(tenant.clone(), name.clone(), version)).await?;
        let Some(envelope) = envelope else {
            return Err(RegistryError::not_found("credential version", format!("{name}@{version}")));
        };
        let id = RecordId::credential(self.store().store_id(), tenant, name, version);
        let secret = self.sealer.open(&id.bound_to(destination_of(&old.value, version)), &envelope.value).await?;
        let new = NewVersion { secret: &secret, by, restored_from: version, mint, pools: &[], bound_to };
        self.add_version(change, (tenant, name, &service), Some(old), new).await
    }

    /// Seals `secret` as the next version, and forgets the oldest beyond
    /// [`limits::CREDENTIAL_VERSIONS`], in one transaction.
    async fn add_version(
        &self,
        change: Change,
        (tenant, name, service): (&TenantName, &CredentialName, &ServiceName),
        old: Option<Stored<Credential>>,
        NewVersion { secret, by, restored_from, mint, pools, bound_to }: NewVersion<'_>,
    ) -> Result<(Credential, Revision), RegistryError> {
        let key = Key::Credential(tenant.clone(), name.clone());
        let mut change = match &old {
            Some(old) => change.check(old),
            None => change.check_absent(key.clone()),
        };
        let (at, mut credential) = (now(), old.map(|old| old.value).unwrap_or_default());
        let version = credential.version.checked_add(1).ok_or(RegistryError::Busy)?;
        if version == 1 {
            credential.created_at = at;
        }
        (credential.tenant, credential.name) = (tenant.to_string(), name.to_string());
        (credential.service, credential.version) = (service.to_string(), version);
        (credential.updated_at, credential.deleting) = (at, false);
        credential.mint = (!mint.is_empty()).then(|| Mint { kind: mint.into(), ..Default::default() });
        if !pools.is_empty() {
            credential.pools = named_once(pools)?;
        }
        let Bound { destination, origin } = bound_to;
        let made = CredentialVersion {
            version,
            created_at: at,
            created_by: by.to_string(),
            restored_from,
            destination: destination.as_bytes().to_vec(),
            origin,
        };
        credential.versions.insert(0, made);
        while credential.versions.len() > limits::CREDENTIAL_VERSIONS {
            if let Some(oldest) = credential.versions.pop() {
                change = change.delete(Key::Envelope(tenant.clone(), name.clone(), oldest.version));
            }
        }
        let id = RecordId::credential(self.store().store_id(), tenant, name, version).bound_to(Some(destination));
        let envelope = self.sealer.seal(&id, secret).await?;
        let change =
            change.put(key, &credential).put_bytes(Key::Envelope(tenant.clone(), name.clone(), version), envelope);
        let revision = self.commit(change).await?;
        Ok((self.described(credential).await?, revision))
    }

    /// All credentials of a tenant, by name: what is known of them without being able to use them.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the tenant.
    pub async fn credentials(&self, tenant: &TenantName) -> Result<Vec<Credential>, RegistryError> {
        self.load_tenant(tenant).await?;
        let services: HashMap<String, Service> =
            self.services(tenant).await?.into_iter().map(|service| (service.name.clone(), service)).collect();
        let mut all = Vec::new();
        for mut credential in self.values::<Credential>(&prefix::kind(tenant, KIND)).await? {
            credential.unbound = is_unbound(&credential, services.get(&credential.service));
            let minted = credential.mint.is_some();
            all.push(if minted { self.with_mint(credential).await? } else { credential });
        }
        Ok(all)
    }

    /// One credential's metadata.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn credential(&self, tenant: &TenantName, name: &CredentialName) -> Result<Credential, RegistryError> {
        self.described(self.load_credential(tenant, name).await?.value).await
    }

    /// Says of a credential what its own record doesn't: how it is minted, and whether nodes use
    /// it.
    pub(super) async fn described(&self, mut credential: Credential) -> Result<Credential, RegistryError> {
        if let (Ok(tenant), Ok(service)) = (TenantName::try_from(credential.tenant.as_str()), service_of(&credential)) {
            let service = self.load::<Service>(Key::Service(tenant, service)).await?;
            credential.unbound = is_unbound(&credential, service.as_ref().map(|service| &service.value));
        }
        self.with_mint(credential).await
    }

    pub(super) async fn load_credential(
        &self,
        tenant: &TenantName,
        name: &CredentialName,
    ) -> Result<Stored<Credential>, RegistryError> {
        match self.load(Key::Credential(tenant.clone(), name.clone())).await? {
            Some(credential) => Ok(credential),
            None => Err(self.missing(tenant, KIND, name.as_str()).await),
        }
    }

    /// Deletes a credential and all its versions, unless a living token is granted it.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Conflict`] names the tokens.
    pub async fn delete_credential(
        &self,
        tenant: &TenantName,
        name: &CredentialName,
    ) -> Result<Revision, RegistryError> {
        let granted = |token: &Token| token.grants.iter().any(|g| g.credential == name.as_str());
        retry_on_conflict(|| async {
            let mut credential = self.load_credential(tenant, name).await?;
            credential.value.deleting = false; // a mark that another delete left is not to be restored
            let marked = Credential { deleting: true, ..credential.value.clone() };
            let (envelopes, _) = self.store().list(&prefix::envelopes(tenant, name)).await?;
            let of = |key: fn(TenantName, CredentialName) -> Key| key(tenant.clone(), name.clone());
            let also =
                envelopes.into_iter().map(|record| record.key).chain([of(Key::Mint), of(Key::MintSecret)]).collect();
            self.delete_unused(&credential, &marked, also, || async {
                let tokens = self.living_tokens(tenant, granted).await?;
                if tokens.is_empty() {
                    return Ok(());
                }
                let reason = format!("credential `{name}` is granted to token {}", list_names(&tokens));
                Err(RegistryError::conflict(reason, "revoke the tokens first, or replace the secret instead"))
            })
            .await
        })
        .await
    }
}

fn check_same_service(old: &Stored<Credential>, service: &ServiceName) -> Result<(), RegistryError> {
    if old.value.service == service.as_str() {
        return Ok(());
    }
    Err(RegistryError::conflict(
        format!("credential `{}` is for service `{}`", old.value.name, old.value.service),
        "store it under another name",
    ))
}

/// A change that is retried after a conflict must have the same destination as the first time.
fn check_same_destination(first: Destination, now: &Bound, service: &ServiceName) -> Result<(), RegistryError> {
    if first == now.destination {
        return Ok(());
    }
    Err(RegistryError::conflict(
        format!(
            "service `{service}` was changed meanwhile: it sends its credentials to another destination now ({})",
            now.origin
        ),
        "look at the service, and put the credential again if that is where it is to go",
    ))
}

/// Whether the current version is bound to another destination than `service` has.
fn is_unbound(credential: &Credential, service: Option<&Service>) -> bool {
    let bound_to = destination_of(credential, credential.version);
    let has = service.and_then(|service| record_destination(service).ok());
    bound_to.is_some() && bound_to != has
}

pub(super) fn service_of(credential: &Credential) -> Result<ServiceName, RegistryError> {
    credential
        .service
        .parse()
        .map_err(|_| RegistryError::Corrupt { key: format!("{}/{}", credential.tenant, credential.name) })
}

/// The newest version below the current one.
fn previous(credential: &Credential) -> Option<u32> {
    credential.versions.iter().map(|v| v.version).filter(|v| *v < credential.version).max()
}
