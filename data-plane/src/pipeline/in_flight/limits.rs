//! Limits of requests in flight: for one token, and for one tenant. Tunnels and WebSockets count
//! while they are open.
//!
//! A tenant can have any number of tokens, so a limit on tokens alone would give it every
//! connection of the node. The limit of a tenant follows the number of free slots (a dynamic
//! threshold, Choudhury and Hahne 1998): it may have three times as many. So one tenant takes at
//! most three quarters of the node, and two take three sevenths each. The rest is free for the next
//! tenant.

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
        // A node that serves one tenant needs no reserve for others.
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
