//! Memory of records that were deleted is given back, whichever thread had allocated them. The only
//! test of its process: it measures the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use seks_runtime::{
    alloc::{self, Allocator},
    memory_release::{records_deleted, release_after_deletes, release_on_park},
};
use tokio::runtime::Builder;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new();

const WORKERS: usize = 4;
const RECORDS: usize = 400_000;
/// Bytes of one record.
const RECORD: usize = 256;
/// How long the memory may take: a look, a pause after the delete, and the rounds.
const WITHIN: Duration = Duration::from_secs(30);

fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn memory_of_deleted_records_is_given_back_whichever_thread_had_allocated_them() {
    alloc::keep_memory_small();
    let runtime =
        Builder::new_multi_thread().worker_threads(WORKERS).enable_all().on_thread_park(release_on_park).build();
    let runtime = runtime.unwrap();
    let before = resident();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let kept = kept.clone();
            runtime.spawn(async move {
                let records: Vec<Box<[u8; RECORD]>> = (0..RECORDS / 100).map(|_| Box::new([1; RECORD])).collect();
                kept.lock().push(records);
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
    let full = resident();
    assert!(full >= before + RECORDS * RECORD, "{before} before, {full} with the records");
    kept.lock().clear();
    runtime.spawn(release_after_deletes(vec![runtime.handle().clone()]));
    records_deleted(RECORDS as u64);
    let began = Instant::now();
    let mut after = resident();
    while after > before + (full - before) / 10 {
        assert!(began.elapsed() < WITHIN, "{before} before, {full} with the records, {after} after");
        thread::sleep(Duration::from_millis(50));
        after = resident();
    }
    println!("{} MiB, {} MiB, {} MiB", before >> 20, full >> 20, after >> 20);
}
