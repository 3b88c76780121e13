//! Rules of limits, without I/O and clocks: what a limit says ([`Limit`]), its windows
//! ([`Window`]), and how its budget reaches the nodes that spend it.
//!
//! The budget of a window is divided in two steps. The store has one record for each limit and
//! window, the [`WindowRecord`]. A replica takes a **step** from it by compare-and-set, and keeps
//! it as a [`Share`]. It cuts its share into **slices** for its nodes. A node spends its slice
//! ([`Slice`]) without asking anybody.
//!
//! # Bounds
//!
//! - Never over: the sum of all steps of a window is at most the limit, because each step is a
//!   compare-and-set of one record. What a node spends was granted to it, what a replica grants it
//!   has taken. Lost messages, crashes and partitions only lose budget.
//! - Never stuck: a request is refused only when everything was taken from the record. What may be
//!   left then are unspent shares and slices. A share is an eighth of what was left when it was
//!   taken, and a slice at most half of a share. All of it returns with the next window.
//! - Usage: what an answer uses is known at its end. A request reserves an amount, and what its
//!   answer used beyond that is charged then ([`Slice::settle`]): to the slice, or where nothing is
//!   left to the node's next ones. So a window is over by at most what its answers used beyond
//!   their reservations, and the windows behind it pay for it. A node that crashes forgets what it
//!   owes.
//! - Clocks: the record's window counts, and it only moves forward. A node keeps no wall clock: a
//!   slice says how long it is valid, counted from when the node asked. A replica whose clock is
//!   ahead by `d` begins a window up to `d` early, for all.

mod limit;
mod node;
mod replica;
mod window;

pub use self::{
    limit::{Limit, LimitError, PER_USD, Quantity, Usd},
    node::{Grant, Reserved, Slice, Take},
    replica::{Cut, Share, WindowRecord},
    window::{Span, Window},
};
