//! Whole-system benchmarks: what a request costs through SEKS, through nginx doing the header swap
//! alone, and directly; and what a fleet of nodes costs a replica ([`fleet`]).
//!
//! `benches/run` builds and runs it; `benches/README.md` has the method and the last figures. One
//! binary plays every part, each in a process of its own pinned to a core: [`stub`] the upstream,
//! [`load`] the agents, [`collector`] the OTLP sink; [`compare`] starts them and the
//! [`contestants`] in turns, and prints the table.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark that can't go on stops"
)]

pub mod collector;
pub mod compare;
pub mod contestants;
pub mod fleet;
pub mod load;
pub mod report;
pub mod stub;
pub mod sys;
