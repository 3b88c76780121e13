//! The protocol by which a revocation is known to be enforced, as a model that is checked
//! exhaustively for small sizes.
//!
//! What replica and node decide is decided here by the same functions, `seks_lease::rules`; the
//! model adds what surrounds them: a store with one total order, replicas that follow it, nodes,
//! time, and everything that may go wrong. `README.md` says what is checked and what the model
//! leaves out.
#![allow(
    clippy::indexing_slicing,
    reason = "arrays of a size that is part of the type, indexed by who is in them; a mistake here fails a test"
)]

mod check;
mod guard;
mod properties;
mod protocol;
mod rules;
mod state;
mod symmetry;

pub use self::{
    check::{Found, check},
    guard::Guard,
    state::Bounds,
};
