//! What the whole-system tests stand on: real processes on free ports, and the peers around them.
//!
//! [`Sandbox`] runs `seks dev` as a user would; [`Upstream`] is an API that records every byte it
//! receives and answers as told; [`Collector`] is an OpenTelemetry collector; [`Etcd`] is a real
//! etcd, [`Forwarder`] a wire to it that can be cut; [`raw`] speaks to a node byte by byte;
//! [`oracle`] searches for a secret in every form in which it may come back. All of it blocks: a
//! test reads top-down, and the peers live on a runtime of their own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails fails the test that called it"
)]

pub mod collector;
pub mod control;
pub mod control_plane_host;
pub mod etcd;
pub mod forwarder;
pub mod host;
pub mod machine;
pub mod metrics;
pub mod mutation;
pub mod oracle;
pub mod part;
pub mod plane;
pub mod process;
pub mod prometheus;
pub mod raw;
pub mod sandbox;
pub mod upstream;
pub mod wait;

use std::sync::OnceLock;

use tokio::runtime::Runtime;

pub use self::{
    collector::Collector, control::Control, control_plane_host::ControlPlaneHost, etcd::Etcd, forwarder::Forwarder,
    sandbox::Sandbox, upstream::Upstream,
};

/// Where the stand-in peers run, so that tests themselves can block.
///
/// # Panics
/// When the operating system refuses two threads.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        install_crypto_provider();
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    })
}

/// Makes aws-lc-rs the process's crypto provider; any number of calls.
pub fn install_crypto_provider() {
    // Err: another test of this process was first.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}
