//! Deletes records that others may refer to, in three steps: mark, search for references, delete.
//!
//! A transaction that adds a reference checks the revision of the record that it refers to. The
//! mark changes that revision. A writer that read the record before the mark gets a conflict, and
//! one that reads it after the mark refuses. So the search finds every reference. After an
//! interruption the record stays marked and usable. Deleting it again or applying it again removes
//! the mark.

use prost::Message;
use seks_types::{id::TenantName, similar::closest};

use super::{Change, Registry, RegistryError, record::Stored};
use crate::store::{Key, Revision, StoreError, key::prefix};

/// Names that a mistyped one is compared with.
const COMPARED_NAMES: usize = 256;

impl Registry {
    /// Deletes `record` and `also` unless `in_use` finds something; `marked` is the record with its
    /// mark.
    pub(super) async fn delete_unused<T, F>(
        &self,
        record: &Stored<T>,
        marked: &T,
        also: Vec<Key>,
        in_use: impl Fn() -> F,
    ) -> Result<Revision, RegistryError>
    where
        T: Message,
        F: Future<Output = Result<(), RegistryError>>,
    {
        in_use().await?; // most refusals are found here, without a write
        let key = &record.key;
        let modified = match self.commit(Change::new().check(record).put(key.clone(), marked)).await {
            Ok(revision) => revision,
            Err(RegistryError::Store(StoreError::Full)) => record.modified, // only deletes are taken now
            Err(other) => return Err(other),
        };
        if let Err(refusal) = in_use().await {
            let unmark = Change::new().check_at(key.clone(), modified).put(key.clone(), &record.value);
            if let Err(error) = self.commit(unmark).await {
                tracing::warn!(%key, %error, "a refused delete left its mark");
            }
            return Err(refusal);
        }
        let delete = Change::new().check_at(key.clone(), modified).delete(key.clone());
        self.commit(also.into_iter().fold(delete, Change::delete)).await
    }

    /// What to say when `name` isn't in `tenant`: the tenant itself may be what is missing.
    pub(super) async fn missing(&self, tenant: &TenantName, kind: &'static str, name: &str) -> RegistryError {
        match self.load_tenant(tenant).await {
            Ok(_) => {
                let similar = self.similar_name(tenant, kind, name).await.unwrap_or_default();
                RegistryError::NotFound { kind, name: name.into(), similar }
            }
            Err(error) => error,
        }
    }

    /// The name that a mistyped one was probably meant to be, among the first names of the tenant.
    /// Ids of tokens are not typed.
    pub(crate) async fn similar_name(&self, tenant: &TenantName, kind: &'static str, name: &str) -> Option<String> {
        if kind == "token" {
            return None;
        }
        let prefix = prefix::kind(tenant, kind);
        let page = self.store().list_page(&prefix, "", COMPARED_NAMES).await.ok()?;
        let keys: Vec<String> = page.records.iter().map(|record| record.key.to_string()).collect();
        let names = keys.iter().filter_map(|key| key.strip_prefix(&prefix));
        closest(name, names).map(str::to_owned)
    }
}

/// Names for a message: at most five, then how many more.
pub(super) fn list_names(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(5).map(|n| format!("`{n}`")).collect();
    match names.len().saturating_sub(5) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
