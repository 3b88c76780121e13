//! What goes beyond a request and its answer, with the clients that people use, against whole processes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod bodies;
mod clients;
mod grpc;
mod websocket;

use std::{path::PathBuf, process::Command};

use seks_tests::process::{find_program, skip};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A Python in which `module` can be imported, or `None` and a line that says what is skipped.
fn python(module: &str) -> Option<PathBuf> {
    let path = root().join(".test-env/python/bin/python");
    let imports = Command::new(&path).args(["-c", &format!("import {module}")]).output();
    if imports.is_ok_and(|o| o.status.success()) {
        return Some(path);
    }
    skip(&format!("what Python's {module} does"), "tests/sdk/install has not put it there");
    None
}

fn program(name: &str) -> Option<PathBuf> {
    let found = find_program(&format!("SEKS_{}", name.to_uppercase()), name);
    if found.is_none() {
        skip(&format!("what {name} does"), "it is not installed");
    }
    found
}
