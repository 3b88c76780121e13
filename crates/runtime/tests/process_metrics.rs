//! What a process shows of itself. The only test of its binary: files and memory of tests beside it
//! would change the values.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use seks_runtime::process::metrics;

fn value(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn each_value_is_measured() {
    let before = metrics();
    assert!(before.contains(&format!("seks_build_info{{version=\"{}\",commit=\"", env!("CARGO_PKG_VERSION"))));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - value(&before, "process_start_time_seconds");
    assert!((-1.0..3600.0).contains(&age), "started {age} s ago");
    let files: Vec<_> = (0..20).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
    let memory = vec![1_u8; 64 << 20];
    while value(&metrics(), "process_cpu_seconds_total") <= value(&before, "process_cpu_seconds_total") {}
    let after = metrics();
    let grown = |name| value(&after, name) - value(&before, name);
    assert!(grown("process_open_fds") >= 10.0, "{}", grown("process_open_fds"));
    assert!(grown("process_resident_memory_bytes") > 32e6 && memory.iter().all(|byte| *byte == 1));
    assert!(value(&after, "process_virtual_memory_bytes") >= value(&after, "process_resident_memory_bytes"));
    assert!(value(&after, "process_threads") >= 1.0);
    assert!(value(&after, "process_max_fds") >= value(&after, "process_open_fds"));
    drop(files);
}
