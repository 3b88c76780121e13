//! Nodes that were seen, and so may hold a lease.

use seks_proto::id::NodeId;

use super::{Change, Registry, RegistryError, record::Node};
use crate::store::{Key, Revision, key::prefix};

impl Registry {
    /// Remembers a node, before it is granted its first lease.
    ///
    /// # Errors
    /// Of the store.
    pub async fn put_node(&self, id: &NodeId, node: &Node) -> Result<Revision, RegistryError> {
        self.commit(Change::new().put(Key::Node(id.clone()), node)).await
    }

    /// All nodes that were ever seen, by id.
    ///
    /// # Errors
    /// Of the store.
    pub async fn nodes(&self) -> Result<Vec<Node>, RegistryError> {
        self.values(prefix::NODES).await
    }
}
