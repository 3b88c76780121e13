//! Figures over the records of a window.

use std::collections::BTreeMap;

use seks_proto::wire::{AuditEntry, AuditRecord, audit_record::Decision};

/// Bars of a chart.
pub(super) const BARS: usize = 60;
/// Microseconds of a bar: a minute.
pub(super) const BAR_US: u64 = 60_000_000;
/// The time that a chart covers, in microseconds.
pub(super) const WINDOW_US: u64 = BARS as u64 * BAR_US;

/// Requests of one service.
#[derive(Default)]
pub(super) struct Requests {
    pub(super) count: usize,
    pub(super) refused: usize,
    /// Answers of the upstream or the node with 5xx that are no refusal.
    pub(super) failed: usize,
    durations_us: Vec<u64>,
}

impl Requests {
    fn add(&mut self, record: &AuditRecord) {
        self.count += 1;
        match record.decision() {
            Decision::Deny => self.refused += 1,
            _ if record.status >= 500 => self.failed += 1,
            _ => {}
        }
        self.durations_us.push(record.whole_us);
    }

    /// The duration that `share` of the requests did not exceed, in milliseconds.
    pub(super) fn quantile_ms(&self, share: f64) -> f64 {
        let mut sorted = self.durations_us.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default() as f64 / 1000.0
    }
}

/// A minute.
#[derive(Clone, Copy, Default)]
pub(super) struct Bar {
    pub(super) allowed: usize,
    pub(super) refused: usize,
}

/// What the records of the last hour add up to.
#[derive(Default)]
pub(super) struct Stats {
    pub(super) all: Requests,
    /// By the service's name; `""` for requests that name none of the tenant's.
    pub(super) services: BTreeMap<String, Requests>,
    /// Refusals by code, the most frequent first.
    pub(super) reasons: Vec<(String, usize)>,
    /// Oldest first.
    pub(super) bars: Vec<Bar>,
    /// When the oldest counted record began, if there were more than are counted.
    pub(super) cut_at_us: Option<u64>,
}

impl Stats {
    /// Adds up `entries`, newest first, of the hour before `now_us`. `is_cut`: there are more.
    pub(super) fn of(entries: &[AuditEntry], now_us: u64, is_cut: bool) -> Self {
        let mut stats = Self { bars: vec![Bar::default(); BARS], ..Self::default() };
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        let since_us = now_us.saturating_sub(WINDOW_US);
        let records = entries.iter().filter_map(|entry| entry.record.as_ref());
        for record in records.filter(|record| record.began_us >= since_us) {
            stats.all.add(record);
            stats.services.entry(record.service.clone()).or_default().add(record);
            let is_refused = record.decision() == Decision::Deny;
            if is_refused {
                *reasons.entry(&record.reason).or_default() += 1;
            }
            let bar = usize::try_from((record.began_us - since_us) / BAR_US).unwrap_or(BARS).min(BARS - 1);
            if let Some(bar) = stats.bars.get_mut(bar) {
                let count = if is_refused { &mut bar.refused } else { &mut bar.allowed };
                *count += 1;
            }
            stats.cut_at_us = Some(stats.cut_at_us.map_or(record.began_us, |oldest| oldest.min(record.began_us)));
        }
        stats.cut_at_us = stats.cut_at_us.filter(|_| is_cut);
        stats.reasons = reasons.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
        stats.reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_the_hour_are_counted_by_service_reason_and_minute() {
        let now_us = 10 * WINDOW_US;
        let entry = |ago_us: u64, decision: Decision, whole_us: u64| {
            let mut record =
                AuditRecord { began_us: now_us - ago_us, service: "s".into(), whole_us, ..Default::default() };
            record.set_decision(decision);
            record.reason = if decision == Decision::Deny { "policy_denied".into() } else { String::new() };
            AuditEntry { record: Some(record), ..AuditEntry::default() }
        };
        let entries = [
            entry(0, Decision::Allow, 1000),
            entry(BAR_US, Decision::Deny, 3000),
            entry(2 * WINDOW_US, Decision::Allow, 1),
        ];
        let stats = Stats::of(&entries, now_us, true);
        assert_eq!((stats.all.count, stats.all.refused, stats.services["s"].count), (2, 1, 2));
        assert_eq!(stats.reasons, [("policy_denied".to_owned(), 1)]);
        assert_eq!((stats.bars[BARS - 1].allowed, stats.bars[BARS - 1].refused), (1, 1));
        assert_eq!((stats.all.quantile_ms(0.5), stats.all.quantile_ms(0.99)), (1.0, 3.0));
        assert_eq!(stats.cut_at_us, Some(now_us - BAR_US));
    }
}
