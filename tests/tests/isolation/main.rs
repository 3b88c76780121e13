//! Isolation from what runs beside SEKS: the agent on the same machine, the tenant on the same
//! fleet, whoever writes to the store, the client without a token, the slow dependency.
//! `tests/run isolation` runs them all; SECURITY.md gives the figures.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "the figures of the noisy-neighbour tests")]
#![allow(unreachable_pub, reason = "the modules are this test's own")]

mod agent_on_host;
mod availability;
mod discard;
mod edge;
mod enforced;
mod measure;
mod socket;
mod store_writer;
mod tenants_on_node;
mod tenants_on_replica;
