//! The change feed: what changed in the store, in order, as nodes are told it.
//!
//! The [`watcher`] follows the store's watch. [`compile`] turns its events into changes of the nodes' table, which are appended to
//! the [`log`]. A node that is too far behind the log gets a [`snapshot`]. At start the log is filled by a [`replay`] of the
//! store's history, and [`verify`] compares the result with the store from time to time.

pub(crate) mod change;
pub(crate) mod compile;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod replay;
pub(crate) mod scope;
pub(crate) mod snapshot;
pub(crate) mod verify;
pub(crate) mod watcher;
