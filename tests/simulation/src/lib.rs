//! Both planes' real code, on a simulated network, a simulated store and simulated clocks, from one
//! seed.
//!
//! What is real: the control plane's `Distribution` and `Registry`, the node's `Sync` and `Table`,
//! tonic, HTTP/2 and tokio in between. What is simulated: the bytes' way from host to host
//! ([`network`]), etcd ([`store`]), time, crashes and pauses ([`host`]). Everything happens in one
//! thread, in an order that the seed decides. `README.md` says what is checked and how to replay a
//! seed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a simulation that fails fails the test that ran it"
)]

mod fixtures;
mod host;
mod network;
mod oracle;
mod plane;
mod random;
mod scenario;
mod store;
mod world;

pub use self::{
    scenario::{Plan, Report, run},
    store::Defect,
};
