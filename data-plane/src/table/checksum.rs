//! The checksum of the table, updated with every change. The control plane compares it with its
//! own, so a lost event is noticed.

use std::collections::HashMap;

use seks_protocol::TableChecksum;
use seks_types::{id::TenantName, token::Digest};

use super::change::{ChecksumUpdate, RecordKind};

#[derive(Default)]
struct Account {
    sum: TableChecksum,
    records: HashMap<(RecordKind, Box<str>), TableChecksum, foldhash::quality::RandomState>,
}

/// The sum of a generation. Only the table's writer touches it.
#[derive(Default)]
pub(super) struct Checksum {
    total: TableChecksum,
    tenants: HashMap<TenantName, Account, foldhash::quality::RandomState>,
    /// The table holds less than its revision says: nothing is comparable.
    narrowed: bool,
}

impl Checksum {
    /// `None` when the table isn't that of any revision.
    pub(super) fn sum(&self) -> Option<TableChecksum> {
        (!self.narrowed).then_some(self.total)
    }

    /// Rights were taken away ahead of the revision that does so.
    pub(super) fn narrow(&mut self) {
        self.narrowed = true;
    }

    pub(super) fn mark(&mut self, mark: ChecksumUpdate) {
        let account = self.tenants.entry(mark.tenant).or_default();
        let key = (mark.kind, mark.name);
        let (old, new) = match mark.sum {
            Some(sum) => (account.records.insert(key, sum), sum),
            None => (account.records.remove(&key), TableChecksum::default()),
        };
        let old = old.unwrap_or_default();
        account.sum = account.sum.minus(old).plus(new);
        self.total = self.total.minus(old).plus(new);
    }

    /// A token has come.
    pub(super) fn add(&mut self, tenant: &TenantName, digest: &Digest) {
        let sum = TableChecksum::of_token(digest);
        self.account(tenant, |account| *account = account.plus(sum));
        self.total = self.total.plus(sum);
    }

    /// A token has gone.
    pub(super) fn remove(&mut self, tenant: &TenantName, digest: &Digest) {
        let sum = TableChecksum::of_token(digest);
        self.account(tenant, |account| *account = account.minus(sum));
        self.total = self.total.minus(sum);
    }

    /// A tenant has gone, and all that it had.
    pub(super) fn remove_tenant(&mut self, tenant: &TenantName) {
        if let Some(account) = self.tenants.remove(tenant) {
            self.total = self.total.minus(account.sum);
        }
    }

    fn account(&mut self, tenant: &TenantName, change: impl FnOnce(&mut TableChecksum)) {
        // Cloning the name for each of a million tokens would be most of the work.
        match self.tenants.get_mut(tenant) {
            Some(account) => change(&mut account.sum),
            None => change(&mut self.tenants.entry(tenant.clone()).or_default().sum),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(kind: RecordKind, name: &str, sum: Option<&[u8]>) -> ChecksumUpdate {
        let tenant = "acme".parse().unwrap();
        ChecksumUpdate { kind, tenant, name: name.into(), sum: sum.map(TableChecksum::of_record) }
    }

    #[test]
    fn the_sum_is_of_what_is_there_however_it_came_to_be() {
        let (acme, digest) = ("acme".parse().unwrap(), Digest::of(b"t"));
        let (mut a, mut b) = (Checksum::default(), Checksum::default());
        a.mark(mark(RecordKind::Agent, "bot", Some(b"1")));
        a.mark(mark(RecordKind::Agent, "bot", Some(b"2")));
        a.mark(mark(RecordKind::Service, "bot", Some(b"3")));
        a.mark(mark(RecordKind::Service, "bot", None));
        a.mark(mark(RecordKind::Service, "never", None));
        a.add(&acme, &digest);
        b.add(&acme, &digest);
        b.mark(mark(RecordKind::Agent, "bot", Some(b"2")));
        assert_eq!(a.sum(), b.sum());
        a.remove(&acme, &digest);
        assert_ne!(a.sum(), b.sum());
        b.remove_tenant(&acme);
        assert_eq!(b.sum(), Some(TableChecksum::default()));
        b.narrow();
        assert_eq!(b.sum(), None);
    }
}
