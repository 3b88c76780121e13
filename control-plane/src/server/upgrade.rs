//! Brings a store of an earlier version up to date, once no replica is left that couldn't read what is written then.
//!
//! The order for operators: replace every replica; the last one to come writes the store anew; then replace the nodes.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{distribution::Distribution, registry::Registry, store::STORE_FORMAT};

/// How often it is looked whether the older replicas are gone, and how long a store that fails is left alone.
const RETRY: Duration = Duration::from_secs(2);

/// Until it is done.
pub(super) async fn run(registry: Arc<Registry>, distribution: Distribution, stop: CancellationToken) {
    let mut said = false;
    loop {
        let older = distribution.replicas_older_than(STORE_FORMAT);
        if older.is_empty() {
            match registry.bind_credentials().await {
                Ok(0) => return,
                Ok(credentials) => {
                    tracing::info!(
                        credentials,
                        "credentials of an earlier version are bound to the destinations of their services"
                    );
                    return;
                }
                Err(error) => tracing::warn!(%error, "credentials can't be bound to their destinations; trying again"),
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
