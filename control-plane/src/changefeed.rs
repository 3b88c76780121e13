//! The change feed: what changed in the store, in order, as nodes are told it.
//!
//! The [`watcher`] follows the store's watch. [`compile`] turns its events into changes of the
//! nodes' table, which are appended to the [`log`]. A node that is too far behind the log gets a
//! [`snapshot`]. At start the log is filled by a [`replay`] of the store's history, and [`verify`]
//! compares the result with the store from time to time.

pub(crate) mod change;
pub(crate) mod checksum;
pub(crate) mod compile;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod recipient;
pub(crate) mod replay;
pub(crate) mod scope;
pub(crate) mod snapshot;
pub(crate) mod verify;
pub(crate) mod watcher;

use std::sync::Arc;

use self::{log::ChangeLog, metrics::Metrics, snapshot::Snapshots};
use crate::store::Revision;

/// A replica's change feed. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ChangeFeed {
    /// The table as the watch has brought it, and the snapshots of it that are being sent.
    pub(crate) snapshots: Arc<Snapshots>,
    /// The changes that nodes may lack.
    pub(crate) log: Arc<ChangeLog>,
    /// Where this replica began: what is at or before it in the log happened before.
    pub(crate) started_at: Revision,
    /// What is counted of the feed.
    pub(crate) metrics: Arc<Metrics>,
}
