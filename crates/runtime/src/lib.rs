//! The process frame that every binary shares: configuration, logs, telemetry, hardening, shutdown, exit codes.

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
pub mod probes;
pub mod shutdown;
pub mod telemetry;

pub use self::{
    blocking::run_blocking,
    dedicated_runtime::{DedicatedRuntime, lower_thread_priority},
    exit::Exit,
};

/// Version and commit, `0.1.0 (1a2b3c4d5e6f)`, for `--version` and for what a node reports of itself.
///
/// The commit is the one that was checked out when this crate was last compiled; a debug build says so, because it is
/// not compiled again for every commit.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SEKS_COMMIT"), ")");

/// [`VERSION`], as a function.
#[must_use]
pub fn version() -> &'static str {
    VERSION
}

/// Makes aws-lc-rs the process's TLS provider. First line of every `main` and of every test that opens a connection:
/// with none installed rustls panics at the first handshake. Calling it again changes nothing.
pub fn install_crypto_provider() {
    // An error says that one is installed already, and there is only one kind in the dependency graph.
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
