//! References to secrets in `seks apply`: which differ from what is stored, and storing them.

use seks_proto::wire::{Credential, TenantChange};
use seks_types::{
    id::{CredentialName, OperatorName, PoolName, ServiceName, TenantName},
    secret::Secret,
};
use serde_json::{Map, Value};

use super::{
    super::{
        Admin,
        credential::put_fetched,
        parse::{name, names},
        problem::Problem,
    },
    Answer,
};
use crate::{registry::RegistryError, store::Revision};

/// A credential whose reference differs from the stored one, or that is not stored.
pub(super) struct ChangedSource {
    tenant: TenantName,
    name: CredentialName,
    service: ServiceName,
    pools: Vec<PoolName>,
    kind: String,
    reference: String,
    is_new: bool,
}

/// Those of `wanted` that name a source and are not stored so.
pub(super) async fn changed(admin: &Admin, tenant: &TenantName, wanted: &[Credential]) -> Answer<Vec<ChangedSource>> {
    let mut changed = Vec::new();
    for credential in wanted {
        let Some(mint) = credential.mint.as_ref().filter(|mint| !mint.kind.is_empty()) else { continue };
        let name: CredentialName = name("credentials", &credential.name)?;
        let stored = match admin.registry().credential(tenant, &name).await {
            Ok(stored) => Some(stored),
            Err(RegistryError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let stored_mint = stored.as_ref().and_then(|stored| stored.mint.as_ref());
        let is_same = |stored: &seks_proto::wire::Mint| {
            stored.kind == mint.kind && object(&stored.reference) == object(&mint.reference)
        };
        if stored_mint.is_some_and(is_same) {
            continue;
        }
        changed.push(ChangedSource {
            tenant: tenant.clone(),
            name,
            service: super::super::parse::name("credentials", &credential.service)?,
            pools: names("pools", &credential.pools)?,
            kind: mint.kind.clone(),
            reference: mint.reference.clone(),
            is_new: stored.is_none(),
        });
    }
    Ok(changed)
}

impl ChangedSource {
    /// The line of the diff.
    pub(super) fn to_wire(&self) -> TenantChange {
        TenantChange {
            kind: "credential".into(),
            name: self.name.to_string(),
            action: if self.is_new { "create" } else { "update" }.into(),
            details: vec![format!("source: {} {}", self.kind, self.reference)],
        }
    }

    /// Reads the secret and stores it.
    pub(super) async fn put(&self, admin: &Admin, by: &OperatorName) -> Answer<Revision> {
        let secret = Secret::new(self.reference.clone().into_bytes());
        let of = (&self.tenant, &self.name, &self.service);
        let stored = put_fetched(admin, of, &self.kind, &secret, (&self.pools, by)).await;
        let (_, revision) = stored.map_err(|problem: Problem| problem.about(&format!("credential `{}`", self.name)))?;
        Ok(revision)
    }
}

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}
