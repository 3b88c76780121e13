//! The contract between the planes: the gRPC messages ([`wire`]), the domain types that both planes must agree on
//! ([`address`], [`id`], [`secret`], [`token`], [`service`], [`table`], [`policy`], [`catalogue`]), and the process frame that every
//! binary shares ([`runtime`]).
//!
//! The planes never import each other; both import this crate.

pub mod address;
pub mod catalogue;
pub mod destination;
pub mod id;
pub mod policy;
pub mod request;
pub mod resolve;
pub mod runtime;
pub mod secret;
pub mod service;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod table;
pub mod token;
pub mod wire;
