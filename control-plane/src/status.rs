//! How this replica is: its store, its revision, and whether it can serve.

use std::time::Duration;

use seks_proto::wire::StatusResponse;
use seks_runtime::VERSION;

use crate::store::Store;

/// A store that doesn't answer within this is not healthy.
const PATIENCE: Duration = Duration::from_secs(2);

/// What `store_problem` says of a store that doesn't answer.
pub const UNREACHABLE: &str = "unreachable";
/// What it says of one that takes deletes alone. Nodes can be served from it.
pub const FULL: &str = "full";

/// What can be said without the fleet.
pub async fn of(store: &dyn Store) -> StatusResponse {
    let (revision, full) = tokio::join!(
        tokio::time::timeout(PATIENCE, store.revision()),
        tokio::time::timeout(PATIENCE, store.is_full()),
    );
    let revision = revision.ok().and_then(Result::ok);
    let problem = match (revision, full.unwrap_or_default()) {
        (None, _) => UNREACHABLE,
        (Some(_), true) => FULL,
        (Some(_), false) => "",
    };
    StatusResponse {
        version: VERSION.into(),
        store: store.kind().into(),
        store_healthy: problem.is_empty(),
        store_problem: problem.into(),
        epoch: store.store_id().into(),
        revision: revision.unwrap_or_default(),
        ..StatusResponse::default()
    }
}
