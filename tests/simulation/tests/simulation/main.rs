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
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Instant,
};

use seks_simulation::{Defect, Report};

/// Seeds, where `SEKS_SIM_SEEDS` doesn't say otherwise.
const SEEDS: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: `{text}` is not a number")))
}

/// The library that makes a seed's randomness the operating system's, for processes that load it
/// first.
fn fixed_world() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/fixed_world.c");
        // Two runs of this test may share the folder: each builds its own file, and the name never
        // shows half of one.
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let library = folder.join("fixed_world.so");
        let own = folder.join(format!("fixed_world.{}.so", std::process::id()));
        let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
        let built = Command::new(&compiler).args(["-O1", "-shared", "-fPIC", "-o"]).arg(&own).arg(source).status();
        assert!(built.is_ok_and(|status| status.success()), "`{compiler}` can't build {source}");
        std::fs::rename(&own, &library).unwrap();
        library
    })
}

/// `seed`, in a process of its own.
fn process(seed: u64, defect: Option<Defect>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seks-simulation"));
    command.arg(seed.to_string()).args(defect.map(Defect::name));
    command.env("LD_PRELOAD", fixed_world()).env("SEKS_SIM_RANDOM", seed.to_string());
    command
}

fn run(seed: u64, defect: Option<Defect>) -> Report {
    let done = process(seed, defect).stderr(Stdio::inherit()).output().unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "seed {seed}: {}: {said}", done.status);
    let report = said.lines().last().unwrap_or_default();
    serde_json::from_str(report).unwrap_or_else(|error| panic!("seed {seed}: {error}: {said}"))
}

/// Runs `seeds`, as many at a time as there are cores; stops at the first that `stop`s.
fn all(seeds: std::ops::Range<u64>, defect: Option<Defect>, stop: impl Fn(&Report) -> bool + Sync) -> Vec<Report> {
    let (next, stopped) = (AtomicU64::new(seeds.start), AtomicUsize::new(0));
    let work = || {
        let mut reports = Vec::new();
        while stopped.load(SeqCst) == 0 {
            let seed = next.fetch_add(1, SeqCst);
            if seed >= seeds.end {
                break;
            }
            let report = run(seed, defect);
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
        let status = process(seed, None).arg("--trace").status().unwrap();
        assert!(status.success(), "{status}");
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

/// Not what they were any more, as nothing is that the code has changed: but where they once went
/// is where faults are.
#[test]
fn seeds_that_found_a_fault_break_nothing_any_more() {
    for seed in [10_883, 12_181] {
        let report = run(seed, None);
        assert!(report.broken.is_empty(), "{report:#?}");
    }
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in 1..=12 {
        assert_eq!(run(seed, None), run(seed, None), "every message of every host, and when");
    }
}

/// Whether a node honoured a token whose revocation was enforced. A store that does what it must
/// not can do other harm before.
fn is_broken(report: &Report) -> bool {
    report.broken.iter().any(|broken| broken.contains("honours token"))
}

#[test]
fn a_watch_that_loses_a_deletion_is_noticed() {
    let reports = all(1..500, Some(Defect::WatchLosesDeletes), is_broken);
    assert!(reports.iter().any(is_broken), "it went unnoticed");
}

#[test]
fn a_clone_that_nobody_can_tell_apart_is_noticed() {
    let reports = all(1..2000, Some(Defect::ClonesUnnamed), is_broken);
    assert!(reports.iter().any(is_broken), "it went unnoticed in {} seeds", reports.len());
}

#[test]
fn a_request_that_is_decided_once_is_noticed() {
    let reports = all(1..500, Some(Defect::DecidesOnce), is_broken);
    assert!(reports.iter().any(is_broken), "it went unnoticed");
}

#[test]
fn an_answer_that_is_not_cut_while_its_agent_does_not_read_is_noticed() {
    let reports = all(1..500, Some(Defect::CutUnpolled), is_broken);
    assert!(reports.iter().any(is_broken), "it went unnoticed");
}

#[test]
fn a_store_whose_reads_are_stale_is_noticed() {
    let reports = all(1..2000, Some(Defect::StaleReads), is_broken);
    assert!(reports.iter().any(is_broken), "it went unnoticed in {} seeds", reports.len());
}
