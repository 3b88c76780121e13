//! The requests of the last minute or so, and what follows from them.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, UNIX_EPOCH},
};

use seks_proto::wire::{
    AuditEntry, AuditRecord,
    audit_record::{Decision, Kind},
};
use serde::Serialize;

/// Records may arrive this much later than others that began after them.
const LATE: Duration = Duration::from_secs(10);
/// Most requests that are kept.
const MAX_REQUESTS: usize = 200_000;

/// Unix microseconds.
pub(super) fn now_us() -> u64 {
    u64::try_from(UNIX_EPOCH.elapsed().unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

struct Seen {
    /// The record's place in the trail.
    position: String,
    began_us: u64,
    service: String,
    whole_us: u64,
    status: u32,
    refused_for: Option<String>,
}

/// Requests that began within a time.
pub(super) struct Window {
    length: Duration,
    /// In the order of their arrival, the newest last.
    seen: VecDeque<Seen>,
    /// Some were not read.
    pub(super) is_cut: bool,
    /// When everything was read last.
    read_at: u64,
}

/// A service in the window.
#[derive(Debug, Serialize)]
pub(super) struct ServiceView {
    service: String,
    requests: usize,
    per_second: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    refused: usize,
    client_errors: usize,
    server_errors: usize,
}

/// A reason for refusals.
#[derive(Debug, Serialize)]
pub(super) struct RefusalView {
    reason: String,
    count: usize,
}

impl Window {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, seen: VecDeque::new(), is_cut: false, read_at: 0 }
    }

    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// From when on the trail is searched: the whole window at first, then what may be new.
    pub(super) fn since_us(&mut self, now: u64) -> u64 {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let start = now.saturating_sub(micros(self.length));
        let read_at = std::mem::replace(&mut self.read_at, now);
        start.max(read_at.saturating_sub(micros(LATE)))
    }

    pub(super) fn forget_before(&mut self, now: u64) {
        let start = now.saturating_sub(u64::try_from(self.length.as_micros()).unwrap_or(u64::MAX));
        self.seen.retain(|seen| seen.began_us >= start);
        if self.seen.is_empty() {
            self.is_cut = false;
        }
    }

    /// Adds a record. `false`: it is known.
    pub(super) fn add(&mut self, entry: &AuditEntry) -> bool {
        let Some(record) = entry.record.as_ref().filter(|record| record.kind() != Kind::Intent) else { return true };
        if self.seen.iter().rev().any(|seen| seen.position == entry.token) {
            return false;
        }
        if self.seen.len() >= MAX_REQUESTS {
            self.is_cut = true;
            return true;
        }
        self.seen.push_back(Seen::new(entry.token.clone(), record));
        true
    }

    /// By the number of requests.
    pub(super) fn services(&self) -> Vec<ServiceView> {
        let mut by_service: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
        for seen in &self.seen {
            by_service.entry(&seen.service).or_default().push(seen);
        }
        let mut views: Vec<ServiceView> =
            by_service.into_iter().map(|(service, seen)| ServiceView::new(service, &seen, self.length)).collect();
        views.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| a.service.cmp(&b.service)));
        views
    }

    /// The most frequent first.
    pub(super) fn refusals(&self) -> Vec<RefusalView> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.seen.iter().filter_map(|seen| seen.refused_for.as_deref()) {
            *counts.entry(reason).or_default() += 1;
        }
        let mut views: Vec<RefusalView> =
            counts.into_iter().map(|(reason, count)| RefusalView { reason: reason.into(), count }).collect();
        views.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
        views
    }
}

impl Seen {
    fn new(position: String, record: &AuditRecord) -> Self {
        let refused = record.decision() == Decision::Deny;
        let reason = if record.reason.is_empty() { "unknown" } else { &record.reason };
        Self {
            position,
            began_us: record.began_us,
            service: if record.service.is_empty() { "-".into() } else { record.service.clone() },
            whole_us: record.whole_us,
            status: record.status,
            refused_for: refused.then(|| reason.to_owned()),
        }
    }
}

impl ServiceView {
    pub(super) const COLUMNS: [&'static str; 8] =
        ["service", "req/s", "p50_ms", "p95_ms", "p99_ms", "refused", "4xx", "5xx"];

    fn new(service: &str, seen: &[&Seen], length: Duration) -> Self {
        let mut times: Vec<u64> = seen.iter().map(|seen| seen.whole_us).collect();
        times.sort_unstable();
        let quantile = |of: f64| {
            let rank = ((times.len() as f64 * of).ceil() as usize).clamp(1, times.len().max(1)) - 1;
            times.get(rank).map_or(0.0, |time| *time as f64 / 1000.0)
        };
        let count = |is: &dyn Fn(&Seen) -> bool| seen.iter().filter(|seen| is(seen)).count();
        Self {
            service: service.into(),
            requests: seen.len(),
            per_second: seen.len() as f64 / length.as_secs_f64(),
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
            refused: count(&|seen| seen.refused_for.is_some()),
            client_errors: count(&|seen| seen.refused_for.is_none() && (400..500).contains(&seen.status)),
            server_errors: count(&|seen| seen.refused_for.is_none() && seen.status >= 500),
        }
    }

    pub(super) fn row(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            format!("{:.1}", self.per_second),
            format!("{:.1}", self.p50_ms),
            format!("{:.1}", self.p95_ms),
            format!("{:.1}", self.p99_ms),
            self.refused.to_string(),
            self.client_errors.to_string(),
            self.server_errors.to_string(),
        ]
    }
}

impl RefusalView {
    pub(super) fn row(&self) -> Vec<String> {
        vec![self.reason.clone(), self.count.to_string()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(token: usize, began_us: u64, status: u32, reason: &str) -> AuditEntry {
        let mut record = AuditRecord {
            began_us,
            status,
            reason: reason.into(),
            service: "openai".into(),
            whole_us: token as u64 * 1000,
            ..AuditRecord::default()
        };
        record.set_kind(Kind::Whole);
        record.set_decision(if reason.is_empty() { Decision::Allow } else { Decision::Deny });
        AuditEntry { record: Some(record), token: token.to_string(), ..AuditEntry::default() }
    }

    #[test]
    fn rates_and_refusals_are_those_of_the_window() {
        let mut window = Window::new(Duration::from_secs(10));
        for token in 1..=100 {
            assert!(window.add(&entry(token, 1_000_000, if token == 100 { 502 } else { 200 }, "")));
        }
        assert!(!window.add(&entry(7, 1_000_000, 200, "")), "known");
        window.add(&entry(101, 20_000_000, 403, "policy_denied"));
        let services = window.services();
        let openai = &services[0];
        assert_eq!((openai.requests, openai.refused, openai.server_errors), (101, 1, 1));
        assert_eq!((openai.per_second, openai.p50_ms, openai.p99_ms), (10.1, 51.0, 100.0));
        assert_eq!(window.refusals()[0].row(), ["policy_denied", "1"]);
        window.forget_before(25_000_000);
        assert_eq!(window.services()[0].requests, 1);
        assert_eq!(window.since_us(25_000_000), 15_000_000);
        assert_eq!(window.since_us(26_000_000), 16_000_000);
        assert_eq!(window.since_us(27_000_000), 17_000_000);
    }
}
