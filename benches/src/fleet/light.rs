//! Light nodes: real streams of the real protocol, each with its own certificate, TLS connection
//! and lease, that apply nothing. What a replica costs shows better when a thousand tables don't
//! share its two cores.

mod http2;
mod link;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use seks_proto::wire::{self, node_message::Message as ToReplica, replica_message::Message as FromReplica};
use seks_protocol::{PROTOCOL, Recipient, features};
use serde::Deserialize;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use self::link::{Credentials, Link};
use super::nodes::until;

/// Threads that nodes live on, each on the same from beginning to end: passing them around between
/// two would cost as much as some of what they do.
const THREADS: usize = 2;

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
    task: AbortHandle,
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

/// Starts a stream for each of `count` nodes that were enrolled with their data under `home`.
/// Returns when each was granted a lease.
pub async fn start(count: usize, home: &Path, replica: SocketAddr) -> Vec<Light> {
    let one = |n: usize| {
        let file = home.join(format!("node-{n:04}/identity.json"));
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    };
    let identities: Vec<Identity> = (0..count).map(one).collect();
    let (send, started) = mpsc::channel();
    let mut rest = identities.into_iter();
    for _ in 0..THREADS {
        let (share, send) = (rest.by_ref().take(count.div_ceil(THREADS)).collect(), send.clone());
        thread::spawn(move || live(share, replica, &send));
    }
    let nodes: Vec<Light> = started.iter().take(count).collect();
    until("every stream has a lease", || nodes.iter().all(|node| node.leased.load(Relaxed) > 0)).await;
    nodes
}

/// Until all of them are gone.
fn live(identities: Vec<Identity>, replica: SocketAddr, started: &mpsc::Sender<Light>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let start = |identity| {
        let (applied, leased) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let task = runtime.spawn(follow(identity, replica, Arc::clone(&applied), Arc::clone(&leased)));
        started.send(Light { applied, leased, task: task.abort_handle() }).unwrap();
        task
    };
    let tasks: Vec<_> = identities.into_iter().map(start).collect();
    runtime.block_on(futures_util::future::join_all(tasks));
}

/// Acknowledges everything, and asks for leases as a node does.
async fn follow(identity: Identity, replica: SocketAddr, applied: Arc<AtomicU64>, leased: Arc<AtomicU64>) {
    let recipient = Recipient::generate().unwrap();
    let hello = ToReplica::Hello(wire::Hello {
        protocol: PROTOCOL,
        node: identity.node.clone(),
        region: "bench".into(),
        features: features::ALL.iter().chain([&features::DELTAS]).map(|&f| f.to_owned()).collect(),
        session_key: recipient.public_key().to_vec(),
        ..Default::default()
    });
    let Identity { certificate_pem, key_pem, ca_pem, .. } = &identity;
    let mut link = Link::open(&Credentials { certificate_pem, key_pem, ca_pem }, replica, hello).await;
    let (mut snapshot, mut nonce, mut renewal) = (0, 0, Duration::MAX);
    tokio::pin!(let renew = sleep_until(Instant::now() + Duration::from_secs(3600)););
    loop {
        tokio::select! {
            biased;
            received = link.receive() => {
                let done = match received.unwrap() {
                    FromReplica::Welcome(welcome) => {
                        renewal = Duration::from_millis(welcome.lease_ttl_ms) / 4;
                        None
                    }
                    FromReplica::SnapshotBegin(begin) => {
                        snapshot = begin.revision;
                        None
                    }
                    FromReplica::SnapshotEnd(_) => {
                        renew.as_mut().reset(Instant::now());
                        Some(snapshot)
                    }
                    FromReplica::Delta(delta) => (delta.previous >= snapshot).then_some(delta.revision),
                    FromReplica::Deltas(several) => several.deltas.last().map(|delta| delta.revision),
                    FromReplica::Grant(grant) => {
                        leased.store(grant.ttl_left_ms, Relaxed);
                        None
                    }
                    FromReplica::Chunk(_) | FromReplica::LimitSlice(_) | FromReplica::ApprovalAnswer(_) => None,
                    FromReplica::Fence(_) | FromReplica::GoAway(_) => return,
                };
                if let Some(revision) = done {
                    applied.store(revision, Relaxed);
                    link.send(ToReplica::Ack(wire::Ack { revision, ..Default::default() }));
                }
            }
            () = &mut renew => {
                nonce += 1;
                link.send(ToReplica::Renew(wire::Renew { nonce, ..Default::default() }));
                renew.as_mut().reset(Instant::now() + renewal);
            }
        }
    }
}
