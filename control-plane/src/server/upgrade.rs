//! Upgrades a store of an earlier version, once every replica can read the new form.
//!
//! The order for operators: replace every replica. The last one to start upgrades the store. Then
//! replace the nodes.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    authenticated::Authenticated,
    distribution::Distribution,
    registry::{Registry, RegistryError},
    store::STORE_FORMAT,
};

/// How often it is looked whether the older replicas are gone, and how long a store that fails is
/// left alone.
const RETRY: Duration = Duration::from_secs(2);

/// What is brought up to date.
pub(super) struct Upgrade {
    pub(super) registry: Arc<Registry>,
    pub(super) records: Arc<Authenticated>,
}

impl Upgrade {
    /// Runs until it is done. It can be interrupted at any point and run again.
    pub(super) async fn run(self, distribution: Distribution, stop: CancellationToken) {
        let mut said = false;
        while !self.records.is_complete() {
            let older = distribution.replicas_older_than(STORE_FORMAT);
            if older.is_empty() {
                match self.bring_up_to_date().await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%error, "the store can't be brought up to date; trying again"),
                }
            } else if !said {
                said = true;
                let replicas = older.join(", ");
                tracing::warn!(
                    replicas,
                    "the store is brought up to date once these replicas of an earlier version are stopped"
                );
            }
            if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                return;
            }
        }
    }

    /// The frames come last: what is complete is known to be so in every respect.
    async fn bring_up_to_date(&self) -> Result<(), RegistryError> {
        let credentials = self.registry.bind_credentials().await?;
        let tenants = self.registry.write_policy_sets().await?;
        let records = self.records.upgrade().await?;
        tracing::info!(
            credentials,
            tenants,
            records,
            "the store of an earlier version is brought up to date: its records are authenticated"
        );
        Ok(())
    }
}
