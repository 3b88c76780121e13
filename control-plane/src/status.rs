//! How this replica is: its store, its revision, and whether it can serve.

use std::time::Duration;

use seks_proto::{runtime::VERSION, wire::StatusResponse};

use crate::store::Store;

/// A store that doesn't answer within this is not healthy.
const PATIENCE: Duration = Duration::from_secs(2);

/// What can be said without the fleet.
pub async fn of(store: &dyn Store) -> StatusResponse {
    let revision = tokio::time::timeout(PATIENCE, store.revision()).await;
    let revision = revision.ok().and_then(Result::ok);
    StatusResponse {
        version: VERSION.into(),
        store: store.kind().into(),
        store_healthy: revision.is_some(),
        epoch: store.epoch().into(),
        revision: revision.unwrap_or_default(),
        ..StatusResponse::default()
    }
}
