//! Nodes. Enrolment creates a node's record. A certificate without a record is refused.

use std::sync::Arc;

use seks_types::id::{NodeId, ReplicaId};

use super::{
    Change, Registry, RegistryError,
    change::retry_on_conflict,
    record::{Node, Stored},
};
use crate::store::{Key, Revision, StoreError, key::prefix};

const KIND: &str = "node";

impl Registry {
    /// Remembers what a node is like, before it is granted a lease of up to `seen.lease_ttl_ms`.
    /// Never makes a node: one that was revoked meanwhile stays so. Where the caller has `known`
    /// the record, of that revision, it isn't read first: with a far store a node that moves waits
    /// half as long.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] without a record of the same enrolment.
    pub async fn see_node(
        &self,
        id: &NodeId,
        seen: &Node,
        known: Option<(Arc<Node>, Revision)>,
    ) -> Result<Revision, RegistryError> {
        if let Some((value, modified)) = known {
            let known = Stored { key: Key::Node(id.clone()), value: Arc::unwrap_or_clone(value), modified };
            match self.put_seen(known, seen).await {
                Err(RegistryError::Store(StoreError::Conflict)) => {} // it has changed since
                done => return done,
            }
        }
        retry_on_conflict(|| async {
            let stored = self.load(Key::Node(id.clone())).await?;
            self.put_seen(stored.ok_or_else(|| RegistryError::not_found(KIND, id))?, seen).await
        })
        .await
    }

    async fn put_seen(&self, mut stored: Stored<Node>, seen: &Node) -> Result<Revision, RegistryError> {
        let node = &mut stored.value;
        node.version.clone_from(&seen.version);
        node.features.clone_from(&seen.features);
        node.last_seen_at = seen.last_seen_at;
        node.replica.clone_from(&seen.replica);
        node.instance.clone_from(&seen.instance);
        node.lease_ttl_ms = node.lease_ttl_ms.max(seen.lease_ttl_ms);
        if node.first_seen_at == 0 {
            node.first_seen_at = seen.first_seen_at;
        }
        if node.region.is_empty() {
            node.region.clone_from(&seen.region); // enrolment's word counts
        }
        self.commit(Change::new().check(&stored).put(stored.key.clone(), &stored.value)).await
    }

    /// Removes a node from the fleet. It is a delete, so it works in a full store. From then on no
    /// replica serves the node or renews its certificate. A node that later joins under its name
    /// has another enrolment.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`].
    pub async fn revoke_node(&self, id: &NodeId) -> Result<Revision, RegistryError> {
        retry_on_conflict(|| async {
            let stored = self.load::<Node>(Key::Node(id.clone())).await?;
            let stored = stored.ok_or_else(|| RegistryError::not_found(KIND, id))?;
            self.commit(Change::new().check(&stored).delete(stored.key.clone())).await
        })
        .await
    }

    /// One node, or nothing.
    ///
    /// # Errors
    /// Of the store.
    pub async fn node(&self, id: &NodeId) -> Result<Option<Node>, RegistryError> {
        Ok(self.load(Key::Node(id.clone())).await?.map(|stored| stored.value))
    }

    /// Takes back that `replica` answers for a node, if the record is still the one of revision
    /// `at`: no lease of it was left then.
    ///
    /// # Errors
    /// Of the store.
    pub async fn release_node(&self, id: &NodeId, replica: &ReplicaId, at: Revision) -> Result<(), RegistryError> {
        let Some(mut stored) = self.load::<Node>(Key::Node(id.clone())).await? else { return Ok(()) };
        if stored.modified != at || stored.value.replica != replica.as_str() {
            return Ok(());
        }
        stored.value.replica.clear();
        match self.commit(Change::new().check(&stored).put(stored.key.clone(), &stored.value)).await {
            // Another replica has just become its owner.
            Ok(_) | Err(RegistryError::Store(StoreError::Conflict)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All nodes, by id.
    ///
    /// # Errors
    /// Of the store.
    pub async fn nodes(&self) -> Result<Vec<Node>, RegistryError> {
        self.values(prefix::NODES).await
    }
}
