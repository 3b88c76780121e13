//! The heads of nodes' chains of audit records. Without them, the removal of a trail's newest
//! records could not be detected.

use prost::Message;
use seks_types::id::NodeId;

use super::{Change, Registry, RegistryError};
use crate::store::{Key, Revision, key::prefix};

/// The end of one chain.
#[derive(Clone, PartialEq, Message)]
pub struct AuditHead {
    /// Its chain, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub chain: Vec<u8>,
    /// The sequence of the last record on the node's disk.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// The digest after that.
    #[prost(bytes = "vec", tag = "3")]
    pub digest: Vec<u8>,
    /// The first sequence that was still on the node's disk.
    #[prost(uint64, tag = "4")]
    pub kept_from: u64,
    /// Unix microseconds.
    #[prost(uint64, tag = "5")]
    pub reported_us: u64,
}

/// The ends of a node's chains.
#[derive(Clone, PartialEq, Message)]
pub struct AuditHeads {
    /// Oldest first.
    #[prost(message, repeated, tag = "1")]
    pub heads: Vec<AuditHead>,
}

impl Registry {
    /// Stores the ends of a node's chains over whatever was stored.
    ///
    /// # Errors
    /// Of the store.
    pub async fn put_audit_heads(&self, node: &NodeId, heads: &AuditHeads) -> Result<Revision, RegistryError> {
        self.commit(Change::new().put(Key::AuditHead(node.clone()), heads)).await
    }

    /// The ends of every node's chains.
    ///
    /// # Errors
    /// Of the store.
    pub async fn audit_heads(&self) -> Result<Vec<(NodeId, AuditHeads)>, RegistryError> {
        let (mut heads, mut pages) = (Vec::new(), self.pages(prefix::AUDIT_HEADS));
        while let Some(page) = pages.next::<AuditHeads>().await? {
            for stored in page {
                if let Key::AuditHead(node) = stored.key {
                    heads.push((node, stored.value));
                }
            }
        }
        Ok(heads)
    }
}
