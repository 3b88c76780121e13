//! What goes beyond a request and its answer, with the clients that people use, against whole
//! processes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod bodies;
mod clients;
mod go;
mod grpc;
mod intercepting_sandbox;
mod packages;
mod passage;
mod websocket;

use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// What is run through `HTTPS_PROXY`: each client by its name in the README, and the test that runs
/// it.
macro_rules! through_https_proxy {
    ($($(#[$attribute:meta])* $client:literal => $module:ident::$test:ident,)*) => {
        $(#[test]
        $(#[$attribute])*
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
    #[cfg_attr(not(has = "curl"), ignore = "needs curl")]
    "curl" => clients::curl_with_the_token_for_the_proxy_and_with_the_token_in_the_request,
    #[cfg_attr(not(has = "git"), ignore = "needs git")]
    "git" => clients::git_lists_a_remote,
    #[cfg_attr(not(has = "gh"), ignore = "needs gh")]
    #[cfg_attr(all(has = "gh", not(has = "host-name")), ignore = "needs host-name")]
    "gh" => go::gh_asks_an_enterprise_host,
    #[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
    "pip" => packages::pip_installs_from_a_private_index,
    #[cfg_attr(not(has = "npm"), ignore = "needs npm")]
    "npm" => packages::npm_installs_from_a_private_registry,
    #[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
    "Python's requests" => clients::python_requests_gets,
    #[cfg_attr(not(has = "node-sdks"), ignore = "needs node-sdks")]
    "Node's fetch" => clients::node_fetches,
    #[cfg_attr(not(has = "go-client"), ignore = "needs go-client")]
    #[cfg_attr(all(has = "go-client", not(has = "host-name")), ignore = "needs host-name")]
    "Go's net/http" => go::the_standard_library_of_go_calls_and_streams,
    #[cfg_attr(not(has = "java"), ignore = "needs java")]
    "Java's HttpClient" => clients::a_java_client_gets,
}
