//! The process frame of every binary: configuration, logs, telemetry, connection limits, hardening,
//! shutdown and exit codes.

pub mod alloc;
mod blocking;
pub mod config;
pub mod connections;
mod dedicated_runtime;
pub mod descriptors;
pub mod exit;
pub mod harden;
pub mod http2;
pub mod jitter;
pub mod logs;
pub mod memory_release;
pub mod openmetrics;
pub mod private_file;
pub mod probes;
pub mod process;
pub mod reload;
pub mod service_manager;
pub mod shutdown;
pub mod telemetry;

pub use self::{
    blocking::run_blocking,
    dedicated_runtime::{DedicatedRuntime, lower_thread_priority},
    exit::Exit,
};

/// Version and commit, `0.1.0 (1a2b3c4d5e6f)`, for `--version` and for a node's `Hello`.
///
/// The commit is the one that was checked out when this crate was last compiled. A debug build is
/// marked, because it is not compiled again for each commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SEKS_COMMIT"), ")");

/// [`VERSION`], as a function.
#[must_use]
pub fn version() -> &'static str {
    VERSION
}

/// Installs aws-lc-rs as the process's TLS provider. Call it first in every `main` and in every
/// test that opens a connection: without a provider rustls panics at the first handshake. Repeated
/// calls have no effect.
pub fn install_crypto_provider() {
    // The error means that a provider is installed. The dependency graph has only this one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_a_commit() {
        let (version, commit) = version().split_once(' ').unwrap();
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        assert!(commit.starts_with('(') && commit.ends_with(')') && commit.len() > 2, "{commit}");
    }

    #[test]
    fn the_provider_can_be_installed_twice() {
        install_crypto_provider();
        install_crypto_provider();
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    }
}
