//! A replica is killed and started again, and all of its nodes come back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{
    FleetUnderTest,
    nodes::{self, Node},
    replica::ReplicaHost,
};

/// How often.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Restarts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Tokens in the store
    #[arg(long, default_value_t = 1000)]
    tokens: usize,
    /// Tokens that are written while the replica is away, each at a revision of its own
    #[arg(long, default_value_t = 1000)]
    written: usize,
}

pub(super) async fn run(fleet: &FleetUnderTest, args: Args) {
    let mut host = ReplicaHost::with_fixtures(&fleet.control_plane).await;
    host.fill(args.tokens).await;
    let mut replica = host.start().await;
    let client = host.client(replica.admin).await;
    let identities = nodes::enrol(&client, replica.nodes, fleet.nodes, host.nodes()).await;
    let nodes = Arc::new(nodes::start(identities, replica.nodes).await);
    println!(
        "{} tokens written while the replica is away\n\n\
         | restart | serving after | last node back after | snapshots | nodes whose lease lapsed |\n|---|---|---|---|---|",
        args.written
    );
    for round in 1..=args.rounds {
        let lapses = Lapses::watch(Arc::clone(&nodes));
        let before: Vec<_> = nodes.iter().map(|node| node.sync.status()).collect();
        let begun = Instant::now();
        drop(replica);
        let from = args.tokens + (round - 1) * args.written;
        host.write(from..from + args.written).await;
        replica = host.start().await;
        let serving = begun.elapsed();
        nodes::until("every node is back", || {
            nodes.iter().zip(&before).all(|(node, before)| {
                let now = node.sync.status();
                now.connected.is_some() && now.streams > before.streams
            })
        })
        .await;
        let back = begun.elapsed();
        let snapshots: u64 =
            nodes.iter().zip(&before).map(|(node, before)| node.sync.status().snapshots - before.snapshots).sum();
        // A lease that isn't renewed after all would end within this.
        tokio::time::sleep(Duration::from_secs(12)).await;
        println!("| {round} | {serving:.2?} | {back:.2?} | {snapshots} | {} |", lapses.count());
    }
}

/// Looks at every lease all the time.
struct Lapses {
    lapsed: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Lapses {
    fn watch(nodes: Arc<Vec<Node>>) -> Self {
        let (lapsed, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&lapsed), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut seen = vec![false; nodes.len()];
            while !stopped.load(Relaxed) {
                for (node, seen) in nodes.iter().zip(&mut seen) {
                    *seen |= !node.table.lease().valid();
                }
                counted.store(seen.iter().filter(|seen| **seen).count(), Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { lapsed, stop }
    }

    fn count(&self) -> usize {
        self.lapsed.load(Relaxed)
    }
}

impl Drop for Lapses {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}
