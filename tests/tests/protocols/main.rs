//! What goes beyond a request and its answer, with the clients that people use, against whole processes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod bodies;
mod clients;
mod go;
mod grpc;
mod packages;
mod passage;
mod websocket;
mod world;

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

/// What is run through `HTTPS_PROXY`: each client by its name in the README, and the test that runs it.
macro_rules! through_https_proxy {
    ($($client:literal => $module:ident::$test:ident,)*) => {
        $(#[test]
        fn $test() {
            $module::$test();
        })*

        #[test]
        fn the_readme_names_every_client_that_is_run_through_https_proxy_and_no_other() {
            let readme = std::fs::read_to_string(root().join("README.md")).unwrap().replace('\n', " ");
            let sentence = readme.split_once("<!-- https-proxy -->").unwrap().1.split_once('.').unwrap().0;
            let mut named: Vec<_> = sentence.split_once(": ").unwrap().1.split(", ").map(str::trim).collect();
            named.sort_unstable();
            let mut run = vec![$($client),*];
            run.sort_unstable();
            assert_eq!(named, run);
        }
    };
}

through_https_proxy! {
    "curl" => clients::curl_with_the_token_for_the_proxy_and_with_the_token_in_the_request,
    "git" => clients::git_lists_a_remote,
    "gh" => go::gh_asks_an_enterprise_host,
    "pip" => packages::pip_installs_from_a_private_index,
    "npm" => packages::npm_installs_from_a_private_registry,
    "Python's requests" => clients::python_requests_gets,
    "Node's fetch" => clients::node_fetches,
    "Go's net/http" => go::the_standard_library_of_go_calls_and_streams,
    "Java's HttpClient" => clients::a_java_client_gets,
}
