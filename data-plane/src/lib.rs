//! The data plane: a node that takes agents' requests, decides, puts the real credential in and relays the answer.
//!
//! The path of a request, one file a stage: [`listener`] → [`proxy`] (`admit` → `lookup` → `authorize` → connect → `inject` →
//! `forward` → `scrub` → `audit`).

pub mod config;
mod health;
mod http1;
pub mod listener;
mod node;
pub mod proxy;
pub mod sync;
pub mod table;
pub mod telemetry;
pub mod upstream;

pub use self::{
    config::Config,
    node::{Node, StartError},
};
