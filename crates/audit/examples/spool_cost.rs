//! What recording costs a node: CPU a record, and syncs a record where records must be durable.
//!
//! `cargo run -p seks-audit --release --example spool_cost`.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::indexing_slicing, reason = "a measurement")]

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use seks_audit::{
    disk::Directory,
    recorder::{Recorder, RecorderOptions},
    seal::AuditKeyPair,
};

const RECORD_BYTES: usize = 230;
/// Records without anybody who waits, as many as a busy node has in half a minute.
const UNAWAITED: u32 = 600_000;
const AWAITED: usize = 200;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    runtime.block_on(best_effort());
    for waiting in [1, 8, 64] {
        runtime.block_on(required(waiting));
    }
}

fn start() -> (Arc<Recorder>, std::path::PathBuf) {
    let path = std::env::temp_dir().join(format!("seks-spool-cost-{}", std::process::id()));
    let key = AuditKeyPair::generate().unwrap();
    let disk = Arc::new(Directory::open(&path).unwrap());
    (Arc::new(Recorder::start(disk, key.public().clone(), RecorderOptions::default()).unwrap()), path)
}

/// 20,000 records a second, as requests would bring them.
async fn best_effort() {
    let (recorder, path) = start();
    let record = vec![7_u8; RECORD_BYTES];
    let before = cpu();
    let mut pushing = Duration::ZERO;
    for _ in 0..UNAWAITED / 200 {
        let start = Instant::now();
        for _ in 0..200 {
            recorder.push(&record, None);
        }
        pushing += start.elapsed();
        std::thread::sleep(Duration::from_millis(10));
    }
    recorder.close().await;
    let counts = recorder.counts();
    println!(
        "nobody waits: {:.0} ns CPU a record, of which {:.0} ns in the caller; {:.5} syncs a record; {} dropped",
        (cpu() - before).as_nanos() as f64 / f64::from(UNAWAITED),
        pushing.as_nanos() as f64 / f64::from(UNAWAITED),
        counts.syncs.load(Relaxed) as f64 / f64::from(UNAWAITED),
        counts.dropped.load(Relaxed),
    );
    std::fs::remove_dir_all(path).unwrap();
}

/// Each of `waiting` tasks records an intent, waits, and records its outcome.
async fn required(waiting: usize) {
    let (recorder, path) = start();
    let before = cpu();
    let tasks: Vec<_> = (0..waiting)
        .map(|_| {
            let recorder = recorder.clone();
            tokio::spawn(async move {
                let (record, mut times) = (vec![7_u8; RECORD_BYTES], Vec::new());
                for _ in 0..AWAITED {
                    let (start, reservation) = (Instant::now(), recorder.reserve());
                    recorder.push_durable(&record).unwrap().wait().await.unwrap();
                    times.push(start.elapsed());
                    recorder.push(&record, reservation);
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times.sort();
    let requests = times.len();
    println!(
        "{waiting} wait: {:.0} ns CPU a request; {:.3} syncs a request; p50 {:?}, p99 {:?}",
        (cpu() - before).as_nanos() as f64 / requests as f64,
        recorder.counts().syncs.load(Relaxed) as f64 / requests as f64,
        times[requests / 2],
        times[requests * 99 / 100],
    );
    recorder.close().await;
    std::fs::remove_dir_all(path).unwrap();
}

/// CPU time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
