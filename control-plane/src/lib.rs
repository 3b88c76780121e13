//! The control plane: it keeps encrypted credentials and policies in a store, and pushes the table to every node.
//!
//! The life of a write: [`admin`](self) parses an operator's message and calls the registry; the registry asks `seal` for an
//! envelope, commits one transaction to the [`store`] and learns the revision; distribution hears the store's watch, compiles
//! the change, appends it to the feed, every session sends it, each node acks.

pub mod seal;
pub mod store;
