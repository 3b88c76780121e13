//! The protocol holds in every state that a small system can reach, and every guard is needed for
//! that.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use seks_model::{Bounds, check};

mod exhaustive;
mod guards;

/// More states than a test may take: a bound that is reached is a failure, not an answer.
const MOST: usize = 250_000_000;

/// Checks, and prints how much that was.
fn run(name: &str, bounds: Bounds) {
    let found = check(bounds, None, MOST);
    println!("{name}: {} states, {} steps deep, {:.1?}", found.states, found.depth, found.took);
    assert!(found.exhausted && found.never.is_empty(), "{name}: {found:#?}");
}
