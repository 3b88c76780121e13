//! What tables add up to: by it nodes and replicas notice a table that isn't what it should be.

use std::{collections::BTreeMap, sync::Arc};

use seks_protocol::TableChecksum;
use seks_types::id::TenantName;

use super::scope::NodeScope;

/// What a tenant's records add up to at a node: [`TableChecksum`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checksum {
    /// What is the same for all nodes.
    pub(crate) plain: TableChecksum,
    /// The credentials, which are withheld from some, by who is sent them. No part is nothing.
    pub(crate) credentials: BTreeMap<Audience, TableChecksum>,
}

/// Who is sent a credential.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Audience {
    pub(crate) pools: Pools,
    /// It is bound to another destination than its service has: only nodes that check bindings are told of it.
    pub(crate) unbound: bool,
}

impl Default for Audience {
    fn default() -> Self {
        Self { pools: Pools::from([]), unbound: false }
    }
}

/// Pools that a credential is assigned to; none: every node may have it.
pub(crate) type Pools = Arc<[String]>;

impl Checksum {
    pub(crate) fn plus(mut self, more: &Self) -> Self {
        self.plain = self.plain.plus(more.plain);
        more.credentials.iter().for_each(|(audience, more)| self.shift(audience, |sum| sum.plus(*more)));
        self
    }

    pub(crate) fn minus(mut self, less: &Self) -> Self {
        self.plain = self.plain.minus(less.plain);
        less.credentials.iter().for_each(|(audience, less)| self.shift(audience, |sum| sum.minus(*less)));
        self
    }

    /// What a node of `scope` should come to, that is sent credentials or isn't, and those that are bound elsewhere or not.
    pub(crate) fn for_node(&self, scope: &NodeScope, withhold: bool, checks_binding: bool) -> TableChecksum {
        let is_sent = |audience: &Audience| {
            !withhold && (checks_binding || !audience.unbound) && scope.includes_pools(&audience.pools)
        };
        let sent = self.credentials.iter().filter(|(audience, _)| is_sent(audience));
        sent.fold(self.plain, |sum, (_, more)| sum.plus(*more))
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
