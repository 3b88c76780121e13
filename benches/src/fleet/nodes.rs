//! Nodes: identity, stream and table of a data plane each, without a proxy in front.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use seks_data_plane::{
    sync::{
        Identity, Sync, SyncConfig,
        enrol::{self, EnrolConfig},
    },
    table::Table,
};
use seks_proto::wire::{EnrollNodeRequest, admin_client::AdminClient};
use tonic::transport::Channel;

/// Nodes that enrol at the same time.
const AT_ONCE: usize = 32;
/// Longest wait for all nodes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a thousand tables.
const LOOK: Duration = Duration::from_millis(5);

/// One node.
pub struct Node {
    /// What it holds.
    pub table: Arc<Table>,
    /// What keeps it.
    pub sync: Sync,
}

/// Enrols `count` nodes, each with a join token of its own, and gives back who they are.
pub async fn enrol(client: &AdminClient<Channel>, replica: SocketAddr, count: usize, home: &Path) -> Vec<Identity> {
    let numbers: Vec<usize> = (0..count).collect();
    let mut identities = Vec::with_capacity(count);
    for batch in numbers.chunks(AT_ONCE) {
        let one = |n: usize| {
            let (mut client, data_dir) = (client.clone(), home.join(format!("node-{n:04}")));
            async move {
                let request = EnrollNodeRequest { region: "bench".into(), ..Default::default() };
                let token = client.enroll_node(request).await.unwrap().into_inner().join_token;
                std::fs::create_dir_all(&data_dir).unwrap();
                let file = data_dir.join("join-token");
                std::fs::write(&file, token).unwrap();
                let config = EnrolConfig {
                    endpoints: vec![format!("https://{replica}")],
                    roots_pem: String::new(),
                    node: format!("node-{n:04}"),
                    data_dir,
                    join_token_file: Some(file),
                };
                enrol::obtain(&config).await.unwrap()
            }
        };
        identities.extend(futures_util::future::join_all(batch.iter().map(|n| one(*n))).await);
    }
    identities
}

/// Starts nodes that follow `replica`. Returns when each has a table and a lease.
pub async fn start(identities: Vec<Identity>, replica: SocketAddr) -> Vec<Node> {
    let follow = |identity| {
        let table = Arc::new(Table::new().unwrap());
        let config = SyncConfig {
            endpoints: vec![format!("https://{replica}")],
            region: "bench".into(),
            ..SyncConfig::default()
        };
        let sync = Sync::start(config, identity, Arc::clone(&table));
        Node { table, sync }
    };
    let nodes: Vec<Node> = identities.into_iter().map(follow).collect();
    until("every node has a table and a lease", || {
        nodes.iter().all(|node| node.table.is_loaded() && node.table.lease().valid())
    })
    .await;
    nodes
}

/// Looks until something holds; says how long that took.
pub async fn until(what: &str, holds: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(LOOK).await;
    }
    begun.elapsed()
}
