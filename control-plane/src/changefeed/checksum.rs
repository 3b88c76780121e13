//! The checksum of a table. Nodes and replicas compare it to detect a table that diverged.

use std::{collections::BTreeMap, sync::Arc};

use seks_protocol::TableChecksum;
use seks_types::id::TenantName;

use super::recipient::Recipient;

/// What a tenant's records add up to at a node: [`TableChecksum`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checksum {
    /// What is the same for all nodes.
    pub(crate) plain: TableChecksum,
    /// The records that not every node can enforce, by what they require. No part is nothing.
    pub(crate) requiring: BTreeMap<Requires, TableChecksum>,
    /// The credentials, by recipient, because some nodes do not get all of them. A missing entry
    /// means an empty sum.
    pub(crate) credentials: BTreeMap<Audience, TableChecksum>,
}

/// The recipients of a credential.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Audience {
    pub(crate) pools: Pools,
    /// It is bound to another destination than its service has: only nodes that check bindings are
    /// told of it.
    pub(crate) unbound: bool,
}

impl Default for Audience {
    fn default() -> Self {
        Self { pools: Pools::from([]), unbound: false }
    }
}

/// Features that a record requires of a node.
pub(crate) type Requires = Arc<[String]>;

/// Pools that a credential is assigned to; none: every node may have it.
pub(crate) type Pools = Arc<[String]>;

impl Checksum {
    pub(crate) fn plus(mut self, more: &Self) -> Self {
        self.plain = self.plain.plus(more.plain);
        more.requiring.iter().for_each(|(requires, more)| self.add_requiring(requires, |sum| sum.plus(*more)));
        more.credentials.iter().for_each(|(audience, more)| self.shift(audience, |sum| sum.plus(*more)));
        self
    }

    pub(crate) fn minus(mut self, less: &Self) -> Self {
        self.plain = self.plain.minus(less.plain);
        less.requiring.iter().for_each(|(requires, less)| self.add_requiring(requires, |sum| sum.minus(*less)));
        less.credentials.iter().for_each(|(audience, less)| self.shift(audience, |sum| sum.minus(*less)));
        self
    }

    /// What `node` should come to.
    pub(crate) fn for_node(&self, node: &Recipient) -> TableChecksum {
        let is_sent =
            |audience: &Audience| (node.checks_binding() || !audience.unbound) && node.takes_pools(&audience.pools);
        let requiring = self.requiring.iter().filter(|(requires, _)| node.can_enforce(requires));
        let sent = self.credentials.iter().filter(|(audience, _)| is_sent(audience));
        let sums = requiring.map(|(_, sum)| sum).chain(sent.map(|(_, sum)| sum));
        sums.fold(self.plain, |sum, more| sum.plus(*more))
    }

    /// Changes the part of the records that require `requires`; none: that of every node.
    pub(crate) fn add_requiring(&mut self, requires: &[String], by: impl FnOnce(TableChecksum) -> TableChecksum) {
        if requires.is_empty() {
            self.plain = by(self.plain);
            return;
        }
        let sum = by(self.requiring.get(requires).copied().unwrap_or_default());
        match sum == TableChecksum::default() {
            true => drop(self.requiring.remove(requires)),
            false => drop(self.requiring.insert(requires.into(), sum)),
        }
    }

    pub(crate) fn shift(&mut self, audience: &Audience, by: impl FnOnce(TableChecksum) -> TableChecksum) {
        let sum = by(self.credentials.get(audience).copied().unwrap_or_default());
        match sum == TableChecksum::default() {
            true => drop(self.credentials.remove(audience)),
            false => drop(self.credentials.insert(audience.clone(), sum)),
        }
    }
}

/// By what a revision changed the sum of a tenant's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChecksumDelta {
    pub(crate) tenant: TenantName,
    pub(crate) delta: Checksum,
}
