//! What every process shows of itself: its build, and what it takes from the machine. The names are
//! those of Prometheus' client libraries.

use std::{
    fmt::Write as _,
    fs,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use super::VERSION;

/// The unit of times in `/proc`: USER_HZ, which is 100 on every architecture that Linux runs Rust
/// on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Metrics of the process in Prometheus' text format. What the system doesn't say is left out.
#[must_use]
pub fn metrics() -> String {
    let mut out = String::with_capacity(2048);
    let (version, commit) = VERSION.split_once(" (").unwrap_or((VERSION, ""));
    let commit = commit.split([',', ')']).next().unwrap_or_default(); // a debug build says so behind it
    let labels = format!("{{version=\"{version}\",commit=\"{commit}\"}}");
    family(&mut out, "seks_build_info", "gauge", "The version that runs; always 1.", &labels, 1.0);
    let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").unwrap_or_default());
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |name| status_number(&status, name).map(|kib| kib * 1024.0);
    let cpu = stat.as_ref().map(|stat| stat.cpu_ticks as f64 / TICKS_PER_SECOND);
    let gauges = [
        ("process_cpu_seconds_total", "counter", "CPU time, user and system.", cpu),
        ("process_start_time_seconds", "gauge", "When the process started, in Unix time.", started(stat.as_ref())),
        ("process_resident_memory_bytes", "gauge", "Resident memory.", bytes("VmRSS:")),
        ("process_virtual_memory_bytes", "gauge", "Address space.", bytes("VmSize:")),
        ("process_threads", "gauge", "Threads.", status_number(&status, "Threads:")),
        ("process_open_fds", "gauge", "Open file descriptors.", open_files()),
        ("process_max_fds", "gauge", "Most file descriptors.", Some(super::descriptors::limit() as f64)),
    ];
    for (name, kind, help, value) in gauges {
        if let Some(value) = value {
            family(&mut out, name, kind, help, "", value);
        }
    }
    out
}

fn family(out: &mut String, name: &str, kind: &str, help: &str, labels: &str, value: f64) {
    // Writing to a String can't fail.
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}\n");
}

fn open_files() -> Option<f64> {
    // The directory is open while it is read.
    fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as f64)
}

/// Read once: the wall clock may be set later.
fn started(stat: Option<&Stat>) -> Option<f64> {
    static STARTED: OnceLock<Option<f64>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let after_boot = stat?.start_ticks as f64 / TICKS_PER_SECOND;
        let uptime: f64 = fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
        Some(now - (uptime - after_boot))
    })
}

/// A number of `/proc/self/status`.
fn status_number(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// The used part of `/proc/self/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may hold anything, parentheses too.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at - 3)?.parse::<u64>().ok(); // numbered from 1 in proc(5); 3 is the first here
        Some(Self { cpu_ticks: number(14)? + number(15)?, start_ticks: number(22)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_stat_are_those_of_proc_5() {
        let text = "7 (a (b) c) S 1 7 7 0 -1 4194560 10 0 0 0 31 11 0 0 20 0 5 0 987 123456 42 18446744073709551615 1";
        let stat = Stat { cpu_ticks: 42, start_ticks: 987 };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (x) S"), None);
    }
}
