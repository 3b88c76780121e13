//! Data keys that a key service must unwrap before a message can be sealed to the node.
//!
//! The task that drives a node's connection never calls a key service. A separate task does, and
//! the connection continues meanwhile. With local keys this module does nothing.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Session, next_message::NextMessage};
use crate::changefeed::{
    change::{CredentialChange, Payload},
    log::LogEntry,
};

impl Session {
    /// Envelopes in `next` of which nothing is known without the key service.
    pub(super) fn missing_deks(&self, next: &NextMessage) -> Vec<Bytes> {
        if self.shared.sealer.is_local() {
            return Vec::new();
        }
        match next {
            NextMessage::Delta(entry) => self.missing_in_entry(entry),
            NextMessage::Chunk => {
                let credentials = self.loading.iter().flat_map(|loading| loading.next_credentials());
                credentials.filter_map(|credential| self.missing_dek(credential)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether everything in `entry` can be sealed now.
    pub(super) fn has_deks_of(&self, entry: &LogEntry) -> bool {
        self.shared.sealer.is_local() || self.missing_in_entry(entry).is_empty()
    }

    /// Has the key service asked for the data keys of `envelopes`. Ready when it has answered, or
    /// was silent for too long.
    pub(super) fn load_deks(&self, envelopes: Vec<Bytes>) -> BoxFuture<'static, ()> {
        let sealer = self.shared.sealer.clone();
        let loading = tokio::spawn(async move { sealer.load_deks(&envelopes).await });
        Box::pin(async move {
            let _ = loading.await; // a panic in there has been reported
        })
    }

    fn missing_in_entry(&self, entry: &LogEntry) -> Vec<Bytes> {
        let changes = entry.changes.iter().filter(|change| self.tracker.scope().includes_tenant(&change.tenant));
        let missing = changes.filter_map(|change| match &change.payload {
            Payload::Credential(credential) => self.missing_dek(credential),
            Payload::Shared { .. } | Payload::Requiring { .. } => None,
        });
        missing.collect()
    }

    fn missing_dek(&self, credential: &CredentialChange) -> Option<Bytes> {
        let is_sealed = !credential.is_unbound() && !self.tracker.is_withheld(credential);
        let missing = is_sealed && self.shared.sealer.needs_dek(&credential.envelope);
        missing.then(|| credential.envelope.clone())
    }
}
