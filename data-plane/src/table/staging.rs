//! A table under construction: a snapshot's records go here, unseen by requests, until it is whole.

use std::sync::Arc;

use seks_protocol::SessionKey;

use super::{
    Change, ChecksumUpdate, Delta,
    apply::{self, ApplyError, PreparedChange},
    generation::Generation,
};

/// What becomes the table when it is complete, or is dropped.
pub struct Staging {
    table: Generation,
    memory_key: Arc<SessionKey>,
    /// What it will replace.
    live: Arc<Generation>,
}

impl Staging {
    pub(super) fn new(table: Generation, memory_key: Arc<SessionKey>, live: Arc<Generation>) -> Self {
        Self { table, memory_key, live }
    }

    /// Takes in what a record adds to the table's sum.
    pub fn mark(&mut self, mark: ChecksumUpdate) {
        self.table.checksum().mark(mark);
    }

    /// Adds one record.
    ///
    /// # Errors
    /// When a credential can't be sealed; the staging is of no use then.
    pub fn put(&mut self, change: Change) -> Result<(), ApplyError> {
        if let Change::PolicyTexts(tenant, _) = &change
            && let Some(live) = self.live.directory(tenant)
        {
            self.table.directory_or_new(tenant).tenant.compile_after(&live.tenant);
        }
        PreparedChange::new(&self.memory_key, change)?.run(&self.table);
        Ok(())
    }

    /// Applies a delta that came while the snapshot was on its way: after all of the snapshot's own
    /// records.
    ///
    /// # Errors
    /// As [`Table::apply`](super::Table::apply).
    pub fn apply(&mut self, delta: Delta) -> Result<(), ApplyError> {
        apply::apply(&self.table, &self.memory_key, delta)
    }

    pub(super) fn finish(self) -> Generation {
        self.table
    }
}
