//! Tracks the checksum that a node's table should have at each revision that it was sent.

use std::{collections::VecDeque, time::Duration};

use seks_protocol::TableChecksum;
use tokio::time::Instant;

use crate::{
    changefeed::{change::CredentialChange, checksum::Checksum, log::LogEntry, recipient::Recipient, scope::NodeScope},
    store::Revision,
};

/// Checksums that are remembered until the node has acknowledged their revision.
const MAX_SUMS: usize = 1024;
/// A table that differs again isn't helped by another snapshot at once: a person has to look.
/// Doubled each time.
const REPAIR_EVERY: Duration = Duration::from_secs(60);
/// How often it is doubled at most: to 17 hours.
const MAX_DOUBLINGS: u32 = 10;

pub(super) struct ChecksumTracker {
    node: Recipient,
    /// At each revision that was sent and may not be applied yet, the oldest first. Empty: not
    /// known.
    sums: VecDeque<(Revision, TableChecksum)>,
    /// When it was repaired last, and how often.
    repaired: Option<(Instant, u32)>,
}

impl ChecksumTracker {
    pub(super) fn new(node: Recipient) -> Self {
        Self { node, sums: VecDeque::new(), repaired: None }
    }

    /// What the node is sent.
    pub(super) fn node(&self) -> &Recipient {
        &self.node
    }

    pub(super) fn scope(&self) -> &NodeScope {
        &self.node.scope
    }

    /// Whether `credential` is kept from it.
    pub(super) fn is_withheld(&self, credential: &CredentialChange) -> bool {
        !self.node.takes_pools(&credential.pools)
    }

    /// The node is to hold at `revision` what adds up to `checksum`.
    pub(super) fn restart(&mut self, revision: Revision, checksum: &Checksum) {
        self.sums.clear();
        self.sums.push_back((revision, checksum.for_node(&self.node)));
    }

    /// `delta` is sent.
    pub(super) fn delta_sent(&mut self, delta: &LogEntry) {
        let Some((_, mut sum)) = self.sums.back().copied() else { return };
        for shift in delta.checksum_deltas.iter().filter(|shift| self.node.scope.includes_tenant(&shift.tenant)) {
            sum = sum.plus(shift.delta.for_node(&self.node));
        }
        self.sums.push_back((delta.revision, sum));
        if self.sums.len() > MAX_SUMS {
            self.sums.pop_front();
        }
    }

    /// Whether a node that is at `revision` says what it should. What isn't known on either side
    /// agrees.
    pub(super) fn matches(&mut self, revision: Revision, hash: &[u8]) -> bool {
        while self.sums.get(1).is_some_and(|(next, _)| *next <= revision) {
            self.sums.pop_front();
        }
        let due = self.sums.front().filter(|(at, _)| *at <= revision);
        due.is_none_or(|(_, sum)| hash.is_empty() || sum.to_bytes() == hash)
    }

    /// Whether it is time for another try.
    pub(super) fn may_repair(&mut self) -> bool {
        let (last, times) = self.repaired.unzip();
        let times = times.unwrap_or_default();
        let pause = REPAIR_EVERY * (1 << times.min(MAX_DOUBLINGS));
        let may = last.is_none_or(|at| at.elapsed() >= pause);
        if may {
            self.repaired = Some((Instant::now(), times + 1));
        }
        may
    }
}
