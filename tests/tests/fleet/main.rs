//! A fleet of real processes under failure: three etcd members, two replicas, six nodes in three
//! regions with round trips of 20, 80 and 150 ms. In every scenario an agent at each node presents
//! a token that is being revoked: once the CLI has said "enforced" none may be accepted any more,
//! and as long as leases last none may be refused before.
//!
//! The wires between the processes are forwarders in this process ([`seks_tests::forwarder`])
//! rather than network namespaces: they need neither root nor a kernel with `netem`, and can hold
//! back what was sent before a cut and deliver it afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    unreachable_pub,
    reason = "tests"
)]

mod crash;
mod hammer;
mod link;
mod outage;
mod pause;
mod rig;
mod steady;
mod store;

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
/// The shortest lease that there is: for scenarios that wait for one to end.
const SHORT: Duration = Duration::from_secs(2);
/// The default: long enough for a node 150 ms away to find another replica in time, on a busy
/// machine too.
const LONG: Duration = Duration::from_secs(10);

/// One fleet at a time: a dozen processes and their agents are enough for a machine.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}
