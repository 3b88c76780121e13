//! Runs a fuzz target: over its seeds, the kept corpus (`tests/fuzz/corpus/TARGET`) and seeded
//! mutations of both.
//!
//! In `cargo test` a run is bounded and the same each time.
//! `SEKS_FUZZ_SECONDS=3600 cargo test fuzz_` goes on for an hour a target, from another seed. A
//! target returns a number for what it saw, such as a hash of the outcome. An input with a new
//! number joins the pool that is mutated, and with `SEKS_FUZZ_KEEP=1` the corpus. An input that
//! panics is written to the corpus as `crash-…` before the panic goes on, so that every later run
//! begins with it.

#[path = "../src/mutation.rs"]
mod mutation;

use std::{
    collections::HashSet,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use self::mutation::Mutator;

/// Mutations of a run in `cargo test`.
const ROUNDS: usize = 4_000;
/// Longest input.
const MAX_BYTES: usize = 16 * 1024;

/// Runs the target. `check` panics where something is wrong.
pub(crate) fn run(target: &str, seeds: &[&[u8]], check: impl Fn(&[u8]) -> u64) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("tests/fuzz/corpus"))
        .find(|folder| folder.is_dir())
        .expect("the workspace has a corpus")
        .join(target);
    let mut inputs: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
    inputs.extend(kept(&directory));
    let mut seen = HashSet::new();
    for input in &inputs {
        seen.insert(checked(&directory, input, &check));
    }
    let seconds: Option<u64> = std::env::var("SEKS_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let run = mutation::Run { seed: if seconds.is_some() { moment() } else { 1 }, rounds: ROUNDS };
    let begun = Instant::now();
    let goes_on = |round: usize| match seconds {
        Some(seconds) => begun.elapsed() < Duration::from_secs(seconds),
        None => round < run.rounds,
    };
    let mut round = 0;
    while goes_on(round) {
        let mut mutator = run.mutator(round);
        let input = next(&mut mutator, &inputs);
        if seen.insert(checked(&directory, &input, &check)) {
            if std::env::var("SEKS_FUZZ_KEEP").is_ok() {
                write(&directory, "", &input);
            }
            inputs.push(input);
        }
        round += 1;
    }
    if seconds.is_some() {
        println!("{target}: {round} inputs, {} outcomes, 0 panics", seen.len());
    }
}

/// A mutation of one input, or of the beginning of one and the end of another.
fn next(mutator: &mut Mutator, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut input = mutator.pick(inputs).clone();
    if mutator.below(4) == 0 {
        let other = mutator.pick(inputs);
        input.truncate(mutator.below(input.len() + 1));
        input.extend_from_slice(&other[mutator.below(other.len() + 1)..]);
    }
    let mut input = mutator.mutate(&input);
    input.truncate(MAX_BYTES);
    input
}

fn checked(directory: &Path, input: &[u8], check: &impl Fn(&[u8]) -> u64) -> u64 {
    match catch_unwind(AssertUnwindSafe(|| check(input))) {
        Ok(outcome) => outcome,
        Err(panic) => {
            eprintln!("this input panics, and is kept in {}", write(directory, "crash-", input).display());
            resume_unwind(panic)
        }
    }
}

fn kept(directory: &Path) -> Vec<Vec<u8>> {
    let Ok(files) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn write(directory: &Path, prefix: &str, input: &[u8]) -> PathBuf {
    fs::create_dir_all(directory).unwrap();
    let path = directory.join(format!("{prefix}{:016x}", outcome(&input)));
    fs::write(&path, input).unwrap();
    path
}

/// A number for what a target saw.
pub(crate) fn outcome(of: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Cuts `bytes` where its own content says: a target is given the input in one piece and in these.
pub(crate) fn pieces(bytes: &[u8]) -> Vec<&[u8]> {
    let mut mutator = mutation::Run { seed: outcome(bytes), rounds: 0 }.mutator(bytes.len());
    let (mut pieces, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let most = if mutator.below(3) == 0 { 64 } else { 3 };
        let (piece, next) = rest.split_at((1 + mutator.below(most)).min(rest.len()));
        pieces.push(piece);
        rest = next;
    }
    pieces
}

fn moment() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_secs())
}
