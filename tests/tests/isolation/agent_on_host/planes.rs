//! Control plane and node as processes of their own, on the agent's machine and with its user:
//! their listeners are closed, too.

use std::fs;

use seks_tests::{Sandbox, Upstream, sandbox::Options};

/// Hardened processes show their listeners to root only; a registered `seks dev` needs no looking.
#[test]
#[cfg_attr(not(has = "python3"), ignore = "needs python3")]
#[cfg_attr(all(has = "python3", not(has = "root")), ignore = "needs root")]
fn the_listeners_of_both_planes_are_closed() {
    let (sandbox, upstream) = (Sandbox::with(Options::planes("")), Upstream::ok());
    sandbox.service("openai", &upstream, super::host::KEY);
    sandbox.cli().create_agent("bot");
    let config = fs::read_to_string(sandbox.data_dir().with_file_name("data-plane.toml")).unwrap();
    let distribution = config.split("endpoints = [\"https://127.0.0.1:").nth(1).unwrap().split('"').next().unwrap();
    let ports = format!("{} {} {distribution}", sandbox.admin().port(), sandbox.metrics().port());
    let script = format!(
        "import socket\nfor port in map(int, '{ports} {}'.split()):\n try: socket.create_connection(('127.0.0.1', port), 5); \
         print('open')\n except PermissionError: print('refused')\n",
        sandbox.proxy().port()
    );
    let run = sandbox.cli().run(&["run", "--proxy", sandbox.proxy_url(), "--", "/usr/bin/python3", "-c", &script], "");
    assert_eq!(run.stdout, "refused\nrefused\nrefused\nopen\n", "{run:?}");
}
