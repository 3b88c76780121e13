//! Leases: how long a node may serve, and what a replica must wait for ([`rules`]), on a clock that
//! runs during suspend ([`clock`]).
//!
//! Replica and node decide with these functions. `tests/model` calls the same functions for every
//! state of small systems, so this crate has few dependencies.

pub mod clock;
pub mod rules;

pub use self::clock::BootInstant;

/// How much one clock may run fast or slow against another, as a fraction. A node ends its lease
/// this much early, and a replica waits this much longer for it. Real clocks differ by 10^-4; the
/// rest is for starved virtual machines.
pub const CLOCK_SKEW: f64 = 0.1;
