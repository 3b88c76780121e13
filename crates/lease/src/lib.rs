//! Leases: how long a node may serve, and what a replica must wait for ([`rules`]), on a clock that runs while the machine sleeps
//! ([`clock`]).
//!
//! Replica and node decide by these functions. `tests/model` calls the same ones for every state of small systems, so this crate
//! depends on as little as possible.

pub mod clock;
pub mod rules;

pub use self::clock::BootInstant;

/// How much a clock may run fast or slow against another, as a fraction. A node lets its lease end this much early; who waits for
/// a lease to end waits this much longer. Real clocks differ by 10^-4: the rest is for virtual machines that are starved.
pub const CLOCK_SKEW: f64 = 0.1;
