//! The data plane: a node that takes agents' requests, decides, puts the real credential in and relays the answer.
//!
//! The path of a request, one file a stage: [`http::server`] → [`proxy`] (`admit` → `lookup` → `authorize` → connect → `inject` →
//! `forward` → `scrub` → `audit`).

mod code;
pub mod config;
mod health;
pub mod http;
mod node;
mod pipeline;
mod proxy;
pub mod sync;
pub mod table;
pub mod telemetry;
mod tunnel;
mod upstream;

pub use self::{
    config::Config,
    node::{Node, StartError},
};
