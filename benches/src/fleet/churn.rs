//! Many changes a second to all nodes: a lag that grows would never end.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use seks_control_plane::{
    ControlPlane,
    store::{Store, Transaction},
};
use seks_runtime::telemetry::Telemetry;
use tokio::sync::Semaphore;

use super::{
    FleetUnderTest, Nodes, nodes, percentile,
    replica::{ReplicaHost, token},
};
use crate::sys;

/// How fast, how long.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Changes a second, in all
    #[arg(long, default_value_t = 10_000)]
    rate: usize,
    /// Changes in one transaction, and so of one revision
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// Between two groups of commits.
const TICK: Duration = Duration::from_millis(10);
/// Commits that may be under way: the store makes one fsync of what waits.
const AT_ONCE: usize = 1024;
/// Thirds of the time: the lag of the last is compared with that of the first.
const PARTS: usize = 3;

/// When each revision was committed.
type Committed = Arc<Mutex<VecDeque<(u64, Instant)>>>;

/// Store and replica live in this process, so that commits cost no gRPC: what is measured is the
/// way from the store to the nodes.
pub(super) async fn run(fleet: &FleetUnderTest, args: Args) {
    let host = ReplicaHost::with_fixtures(&fleet.control_plane).await;
    let plane = ControlPlane::start(host.config(), Telemetry::disabled()).await.unwrap();
    let client = host.client(plane.admin_addr()).await;
    let address = plane.distribution_addr();
    let nodes = fleet.populate(&client, address, host.nodes()).await;
    let store = Arc::clone(plane.registry().store());
    let committed = Committed::default();
    let writing = tokio::spawn(write(store, args.clone(), Arc::clone(&committed)));
    let (cpu, wall) = (sys::cpu(std::process::id()), Instant::now());
    let mut lags = Vec::new();
    while !writing.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        lags.push(lag(&nodes, &committed).as_secs_f64() * 1000.0);
    }
    let done = writing.await.unwrap();
    let cores = (sys::cpu(std::process::id()) - cpu).as_secs_f64() / wall.elapsed().as_secs_f64();
    let rate = done as f64 / wall.elapsed().as_secs_f64();
    let head = committed.lock().back().map_or(0, |(revision, _)| *revision);
    let drained = nodes::until("all nodes have everything", || nodes.revision() >= head).await;
    println!(
        "{rate:.0} changes a second ({} a revision) to {} {} for {} s; {cores:.2} cores, store and nodes included",
        args.batch,
        fleet.nodes,
        nodes.kind(),
        args.seconds
    );
    println!("| lag of the slowest node, ms | p50 | p99 | max |\n|---|---|---|---|");
    let part = lags.len().div_ceil(PARTS).max(1);
    for (n, part) in lags.chunks_mut(part).enumerate() {
        let at = [0.5, 0.99, 1.0].map(|share| percentile(part, share));
        println!("| third {} of the time | {:.0} | {:.0} | {:.0} |", n + 1, at[0], at[1], at[2]);
    }
    println!(
        "all nodes had everything {drained:.2?} after the last commit; snapshots taken on the way: {}",
        nodes.snapshots()
    );
    drop(nodes); // they would say that their replica is gone
    plane.shutdown().await;
}

/// How old what the slowest node lacks is.
fn lag(nodes: &Nodes, committed: &Committed) -> Duration {
    let slowest = nodes.revision();
    let mut committed = committed.lock();
    while committed.len() > 1 && committed.front().is_some_and(|(revision, _)| *revision <= slowest) {
        committed.pop_front();
    }
    committed.front().filter(|(revision, _)| *revision > slowest).map_or(Duration::ZERO, |(_, at)| at.elapsed())
}

/// Commits at the rate, whatever becomes of it; gives back how many changes were made.
async fn write(store: Arc<dyn Store>, args: Args, committed: Committed) -> usize {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let (begun, mut next) = (Instant::now(), 0);
    let mut tick = tokio::time::interval(TICK);
    while begun.elapsed() < Duration::from_secs(args.seconds) {
        tick.tick().await;
        let due = (begun.elapsed().as_secs_f64() * args.rate as f64) as usize;
        while next + args.batch <= due {
            // A store that is too slow holds the writer up, and the rate that was reached says so.
            let place = Arc::clone(&places).acquire_owned().await.unwrap();
            let writes = (next..next + args.batch).map(token).collect();
            let (store, committed) = (Arc::clone(&store), Arc::clone(&committed));
            tokio::spawn(async move {
                let revision = store.commit(Transaction { writes, ..Transaction::default() }).await.unwrap();
                note(&committed, revision);
                drop(place);
            });
            next += args.batch;
        }
    }
    let _all = places.acquire_many(u32::try_from(AT_ONCE).unwrap()).await.unwrap();
    next
}

/// Commits of one fsync return in any order.
fn note(committed: &Committed, revision: u64) {
    let mut committed = committed.lock();
    let at = committed.iter().rposition(|(earlier, _)| *earlier < revision).map_or(0, |at| at + 1);
    committed.insert(at, (revision, Instant::now()));
}
