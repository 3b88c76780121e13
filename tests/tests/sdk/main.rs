//! The vendors' own SDKs and `curl`, unchanged, through the broker to stand-ins that accept the
//! real key only and refuse whoever brings them a byte of a token.
//!
//! `tests/sdk/install` puts the SDKs into `.test-env`; without them these tests are ignored.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod agents;
mod catalogue;
mod curl;
mod following;
mod key;
mod matrix;
mod retries;

use std::{path::Path, process::Command};

use seks_tests::{
    Sandbox, Upstream,
    process::{installed, run},
    upstream::vendors::Vendor,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A program that has nothing of a developer's environment: no proxy, no key.
fn client(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in ["PATH", "HOME"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
}

/// A broker with one vendor behind it, and a token for it.
fn start_vendor(service: &str, vendor: Vendor, key: &str) -> (Sandbox, Upstream, String) {
    let (sandbox, upstream) = (Sandbox::start(), vendor.start(key));
    sandbox.service(service, &upstream, key);
    let token = sandbox.token("agent", &[service]).secret;
    (sandbox, upstream, token)
}

/// What matters most, seen by the upstream itself: the key and only the key.
fn only_the_key_arrived(upstream: &Upstream, sandbox: &Sandbox, key: &str, at_least: usize) {
    let (requests, received) = (upstream.requests(), upstream.received());
    assert!(requests.len() >= at_least, "{requests:?}");
    assert!(!received.windows(11).any(|w| w == b"seks_token_"), "a token reached the vendor");
    assert!(!sandbox.everything_emitted().contains(key), "the key was emitted");
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn the_seed_example_as_it_stands() {
    let python = installed("python/bin/python");
    let key = "sk-proj-real-openai-key-000000000000001";
    let (sandbox, upstream, token) = start_vendor("openai", Vendor::OpenAi, key);
    let mut command = client(&python);
    command.arg(root().join("tests/sdk/python/seed_example.py")).args([token.as_str(), sandbox.proxy_url()]);
    let finished = run(&mut command, b"");
    assert_eq!((finished.code, finished.stdout.trim()), (Some(0), "Hello from the stand-in"), "{}", finished.stderr);
    only_the_key_arrived(&upstream, &sandbox, key, 1);
}
