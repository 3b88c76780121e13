//! Hundreds of seeds of trouble, and not one broken promise. `README.md` says how to replay one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::{
    env,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    thread,
    time::Instant,
};

use seks_simulation::{Defect, Plan, Report, run};

/// Seeds, where `SEKS_SIM_SEEDS` doesn't say otherwise.
const SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: `{text}` is not a number")))
}

fn plan(seed: u64, defect: Option<Defect>) -> Plan {
    Plan { seed, defect, trace: false }
}

/// Runs `seeds` on as many threads as there are cores; stops at the first that `stop`s.
fn all(seeds: std::ops::Range<u64>, defect: Option<Defect>, stop: impl Fn(&Report) -> bool + Sync) -> Vec<Report> {
    let (next, stopped) = (AtomicU64::new(seeds.start), AtomicUsize::new(0));
    let work = || {
        let mut reports = Vec::new();
        while stopped.load(SeqCst) == 0 {
            let seed = next.fetch_add(1, SeqCst);
            if seed >= seeds.end {
                break;
            }
            let report = run(plan(seed, defect));
            if stop(&report) {
                stopped.fetch_add(1, SeqCst);
            }
            reports.push(report);
        }
        reports
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(seed) = number("SEKS_SIM_SEED") {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).without_time().with_test_writer().try_init();
        for _ in 0..number("SEKS_SIM_TIMES").unwrap_or(1) {
            let report = run(Plan { trace: true, ..plan(seed, None) });
            assert!(report.broken.is_empty(), "{report:#?}");
        }
        return;
    }
    let (first, seeds) = (number("SEKS_SIM_FIRST").unwrap_or(1), number("SEKS_SIM_SEEDS").unwrap_or(SEEDS));
    let start = Instant::now();
    let reports = all(first..first + seeds, None, |report| !report.broken.is_empty());
    let broken: Vec<_> = reports.iter().filter(|report| !report.broken.is_empty()).collect();
    let sum = |what: fn(&Report) -> u64| reports.iter().map(what).sum::<u64>();
    println!(
        "{} seeds in {:.1?}: {} s simulated, {} faults, {} tokens enforced, {} looks, {} of them at a token that was honoured",
        reports.len(),
        start.elapsed(),
        reports.iter().map(|report| report.time.as_secs()).sum::<u64>(),
        sum(|report| report.faults as u64),
        sum(|report| report.enforced as u64),
        sum(|report| report.looks),
        sum(|report| report.accepted),
    );
    assert!(broken.is_empty(), "replay with SEKS_SIM_SEED={}: {broken:#?}", broken[0].seed);
    assert!(sum(|report| report.accepted) > 0 && sum(|report| report.enforced as u64) > 0, "nothing happened");
}

/// Whether a node honoured a token whose revocation was enforced. A store that does what it must not can do other harm before.
fn is_broken(report: &Report) -> bool {
    report.broken.iter().any(|broken| broken.contains("honours token"))
}

#[test]
fn a_watch_that_loses_a_deletion_is_noticed() {
    let reports = all(1..500, Some(Defect::WatchLosesDeletes), is_broken);
    assert!(reports.iter().any(is_broken), "it went unnoticed");
}

#[test]
fn a_store_whose_reads_are_stale_is_noticed() {
    let reports = all(1..2000, Some(Defect::StaleReads), is_broken);
    assert!(reports.iter().any(is_broken), "it went unnoticed in {} seeds", reports.len());
}
