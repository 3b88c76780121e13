//! A node without its proxy: a table, and the stream that fills it.

use std::{sync::Arc, time::Duration};

use seks_data_plane::{
    sync::{Identity, Sync, SyncConfig, SyncStatus},
    table::{Found, Table},
};
use seks_tests::wait::wait_until;
use seks_types::token::Digest;

use super::replica::Replica;

pub struct TestNode {
    pub table: Arc<Table>,
    sync: Sync,
}

impl TestNode {
    /// Follows `endpoints` as `identity`.
    pub fn follow(identity: Identity, endpoints: Vec<String>) -> Self {
        let table = Arc::new(Table::new().unwrap());
        let return_every = Duration::from_secs(2);
        let config = SyncConfig { endpoints, region: "eu".into(), return_every, ..SyncConfig::default() };
        let sync = Sync::start(config, identity, table.clone());
        Self { table, sync }
    }

    /// Follows `replica`, and may serve when this returns.
    pub async fn of(replica: &Replica, name: &str) -> Self {
        let node = Self::follow(replica.identity(name).await, vec![replica.endpoint()]);
        node.ready().await;
        node
    }

    pub async fn ready(&self) {
        wait_until("the node may serve", || self.serves()).await;
    }

    pub fn serves(&self) -> bool {
        self.table.is_loaded() && self.table.lease().valid()
    }

    pub async fn reaches(&self, revision: u64) {
        wait_until("the node has the revision", || self.table.revision() >= revision).await;
    }

    /// Whether a request with this token would be served now.
    pub fn honours(&self, digest: &Digest) -> bool {
        self.serves() && self.knows(digest)
    }

    /// Whether the token is in the table, lease or not.
    pub fn knows(&self, digest: &Digest) -> bool {
        match self.table.find(digest) {
            Found::Token(token) => token.agent().is_some_and(|agent| !agent.disabled),
            _ => false,
        }
    }

    /// The real credential that a request with this token would carry.
    pub fn credential(&self, digest: &Digest) -> Option<String> {
        let Found::Token(token) = self.table.find(digest) else { return None };
        let fields = token.grant("api")?.credential()?.open().unwrap();
        Some(String::from_utf8(fields.get("key")?.to_vec()).unwrap())
    }

    pub fn status(&self) -> SyncStatus {
        self.sync.status()
    }

    pub async fn stop(self) {
        tokio::time::timeout(Duration::from_secs(5), self.sync.shutdown()).await.unwrap();
    }
}
