//! The types that every crate shares: names ([`id`]), secrets ([`secret`]), tokens ([`token`]) and
//! destinations of credentials ([`destination`]). No I/O, and no wire types.

pub mod destination;
#[cfg(test)]
#[path = "../../../tests/fuzz/run.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "shared by the tests of several crates"
)]
mod fuzz;
pub mod id;
pub mod secret;
pub mod similar;
pub mod token;
