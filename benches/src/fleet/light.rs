//! Light nodes: real streams of the real protocol, each with its own certificate, TLS connection and lease, that apply nothing. What a replica
//! costs shows better when a thousand tables don't share its two cores.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use seks_proto::{
    table::{PROTOCOL, Recipient, features},
    wire::{
        self, NodeMessage, distribution_client::DistributionClient, node_message::Message as ToReplica,
        replica_message::Message as FromReplica,
    },
};
use serde::Deserialize;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as Own};

use super::nodes::until;

/// The name in a control plane's certificate.
const SERVER_NAME: &str = "seks-control-plane";
/// As a node has it.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// What enrolment has left in a node's data directory.
#[derive(Deserialize)]
struct Identity {
    node: String,
    certificate_pem: String,
    ca_pem: String,
    key_pem: String,
}

/// One stream, for as long as this is kept.
pub struct Light {
    applied: Arc<AtomicU64>,
    leased: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Light {
    /// The revision that it has acknowledged.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.applied.load(Relaxed)
    }
}

impl Drop for Light {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a stream for each of `count` nodes that were enrolled with their data under `home`. Returns when each was granted a lease.
pub async fn start(count: usize, home: &Path, replica: SocketAddr) -> Vec<Light> {
    let one = |n: usize| {
        let file = home.join(format!("node-{n:04}/identity.json"));
        let identity: Identity = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let (applied, leased) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn(follow(identity, replica, Arc::clone(&applied), Arc::clone(&leased)));
        Light { applied, leased, task }
    };
    let nodes: Vec<Light> = (0..count).map(one).collect();
    until("every stream has a lease", || nodes.iter().all(|node| node.leased.load(Relaxed) > 0)).await;
    nodes
}

async fn connect(identity: &Identity, replica: SocketAddr) -> Channel {
    let tls = ClientTlsConfig::new()
        .identity(Own::from_pem(&identity.certificate_pem, &identity.key_pem))
        .ca_certificate(Certificate::from_pem(&identity.ca_pem))
        .domain_name(SERVER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://{replica}")).unwrap().tls_config(tls).unwrap();
    let endpoint = endpoint.tcp_nodelay(true).initial_stream_window_size(WINDOW_BYTES);
    endpoint.initial_connection_window_size(WINDOW_BYTES).connect().await.unwrap()
}

/// Acknowledges everything, and asks for leases as a node does.
async fn follow(identity: Identity, replica: SocketAddr, applied: Arc<AtomicU64>, leased: Arc<AtomicU64>) {
    let mut client = DistributionClient::new(connect(&identity, replica).await);
    let (outbox, messages) = mpsc::channel(64);
    let send = |message| outbox.try_send(NodeMessage { message: Some(message) }).unwrap();
    let recipient = Recipient::generate().unwrap();
    send(ToReplica::Hello(wire::Hello {
        protocol: PROTOCOL,
        node: identity.node.clone(),
        region: "bench".into(),
        features: features::ALL.iter().chain([&features::DELTAS]).map(|&f| f.to_owned()).collect(),
        session_key: recipient.public_key().to_vec(),
        ..Default::default()
    }));
    let mut inbound = client.sync(ReceiverStream::new(messages)).await.unwrap().into_inner();
    let (mut snapshot, mut nonce, mut renewal) = (0, 0, Duration::MAX);
    let mut renew_at = Instant::now() + Duration::from_secs(3600);
    loop {
        tokio::select! {
            biased;
            received = inbound.message() => {
                let done = match received.unwrap().unwrap().message.unwrap() {
                    FromReplica::Welcome(welcome) => {
                        renewal = Duration::from_millis(welcome.lease_ttl_ms) / 4;
                        None
                    }
                    FromReplica::SnapshotBegin(begin) => {
                        snapshot = begin.revision;
                        None
                    }
                    FromReplica::SnapshotEnd(_) => {
                        renew_at = Instant::now();
                        Some(snapshot)
                    }
                    FromReplica::Delta(delta) => (delta.previous >= snapshot).then_some(delta.revision),
                    FromReplica::Deltas(several) => several.deltas.last().map(|delta| delta.revision),
                    FromReplica::Grant(grant) => {
                        leased.store(grant.ttl_left_ms, Relaxed);
                        None
                    }
                    FromReplica::Chunk(_) => None,
                    FromReplica::Fence(_) | FromReplica::GoAway(_) => return,
                };
                if let Some(revision) = done {
                    applied.store(revision, Relaxed);
                    send(ToReplica::Ack(wire::Ack { revision, ..Default::default() }));
                }
            }
            () = sleep_until(renew_at) => {
                nonce += 1;
                send(ToReplica::Renew(wire::Renew { nonce }));
                renew_at = Instant::now() + renewal;
            }
        }
    }
}
