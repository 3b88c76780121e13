//! The control plane: it keeps encrypted credentials and policies in a store, and pushes the table
//! to every node.
//!
//! The life of a write: [`admin`] parses an operator's message and calls the registry; the registry
//! asks `seal` for an envelope, commits one transaction to the [`store`] and learns the revision;
//! distribution hears the store's watch, compiles the change, appends it to the feed, every session
//! sends it, each node acks.

pub mod admin;
pub mod approval_webhook;
pub mod authenticated;
pub mod authority;
pub mod backup;
mod changefeed;
mod clock;
pub mod config;
pub mod distribution;
pub mod epoch;
mod fleet;
mod http2_limits;
mod lifecycle;
pub mod mint;
pub mod mint_refresher;
pub mod node_api;
mod page;
mod page_sessions;
pub mod policy_workers;
mod rate;
pub mod registry;
pub mod seal;
pub mod server;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod trail;
pub mod trust_refresher;

pub use self::{
    config::Config,
    distribution::{Distribution, DistributionOptions},
    page_sessions::PageLink,
    server::{Components, ControlPlane, OperatorIdentity, StartError, Storage},
};
