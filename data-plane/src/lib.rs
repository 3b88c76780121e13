//! The data plane: a proxy node. It identifies an agent by its fake token, decides whether the
//! request is allowed, replaces the token by the real credential and relays the response.
//!
//! A request passes through [`http::server`] and then the stages that [`proxy`] lists:
//! `admit → lookup → authorize → connect → inject → forward → relay`. Each stage is one file of
//! [`pipeline`]. [`table`] holds what the stages read; [`sync`] fills it from the control plane.
//! ARCHITECTURE.md has the layers of these modules.

mod code;
pub mod config;
#[cfg(test)]
#[path = "../../tests/fuzz/run.rs"]
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
mod health;
pub mod http;
mod node;
mod pipeline;
mod proxy;
mod span_export;
mod spans;
pub mod spool;
pub mod sync;
pub mod table;
pub mod telemetry;
mod tunnel;
mod upstream;

pub use self::{
    config::Config,
    node::{Enrolled, METRICS_LISTEN, Node, StartError},
};
