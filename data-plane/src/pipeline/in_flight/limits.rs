//! How many requests may be in flight: of one token, and of one tenant. Tunnels and WebSockets count as long as they are open.
//!
//! A tenant has as many tokens as it likes, so a bound on tokens alone leaves it every connection of the node. Its bound follows what
//! is free (a dynamic threshold, Choudhury and Hahne 1998): it may hold three times as much. One tenant then takes three quarters of
//! the node at most, two take three sevenths each, and a part is free for whoever comes next.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::{
    code::Code,
    pipeline::refusal::Refusal,
    table::{Table, TokenEntry},
};

/// How many times as much as is free a tenant may hold.
const PART_OF_FREE: usize = 3;
/// Requests that every tenant may have in flight, however few connections the node has.
const ALWAYS: usize = 64;

/// What is in flight at a node, and what may be.
pub(crate) struct InFlightLimits {
    of_token: u32,
    capacity: usize,
    total: AtomicUsize,
    refused: AtomicU64,
}

impl InFlightLimits {
    /// At most `of_token` of one token. `capacity`: connections that the node serves.
    pub(crate) fn new(of_token: u32, capacity: usize) -> Self {
        Self { of_token, capacity, total: AtomicUsize::new(0), refused: AtomicU64::new(0) }
    }

    /// Counts a request in, until [`leave`](Self::leave).
    pub(super) fn enter(&self, token: &TokenEntry, table: &Table) -> Result<(), Refusal> {
        if !token.enter(self.of_token) {
            return Err(Code::LimitExceeded.into());
        }
        let free = self.capacity.saturating_sub(self.total.fetch_add(1, Relaxed));
        let bound = free.saturating_mul(PART_OF_FREE).max(ALWAYS);
        // Where nobody else is served, nobody else needs a part.
        if token.tenant_state().enter() < bound || table.is_of_one_tenant() {
            return Ok(());
        }
        self.leave(token);
        self.refused.fetch_add(1, Relaxed);
        Err(Refusal::from(Code::LimitExceeded).with_detail("the tenant has too many requests in flight at this node"))
    }

    /// Counts one out.
    pub(super) fn leave(&self, token: &TokenEntry) {
        self.total.fetch_sub(1, Relaxed);
        token.tenant_state().leave();
        token.leave();
    }

    /// Requests that were refused because their tenant had too many in flight.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}
