//! A process that may have few file descriptors.

use seks_tests::{Sandbox, Upstream, raw, sandbox::Options, upstream::Answer};

use super::attackers::{Attack, says, used};

/// As many as a careless container gives.
const OPEN_FILES: u32 = 512;

#[test]
fn a_node_with_few_descriptors_says_so_and_keeps_its_control_plane_its_probes_and_its_agents() {
    let upstream = Upstream::start(|_| Answer::text("hello"));
    let options = Options { open_files: Some(OPEN_FILES), ..Options::planes("") };
    let mut sandbox = Sandbox::with(options);
    sandbox.service("openai", &upstream, "sk-real-0123456789abcdef");
    let (token, other) = (sandbox.token("agent", &["openai"]), sandbox.token("other", &["openai"]));
    let log = sandbox.process().stderr();
    let warning =
        log.lines().find(|line| line.contains("proxy.limits.max_connections")).unwrap_or_else(|| panic!("{log}"));
    assert!(warning.contains("WARN") && warning.contains("512"), "{warning}");

    let attack = Attack::start(sandbox.proxy(), 600, 60, says("GET /"));
    let pid = sandbox.process().id();
    let (before, _) = used(pid);
    for _ in 0..20 {
        assert_eq!(sandbox.get("/api/openai/v1/models", &token.secret).status, 200);
        let probe = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert_eq!(raw::exchange(sandbox.metrics(), probe).status, 200);
    }
    // It hears of revocations, on the connection that it has and on a new one.
    assert_eq!(sandbox.cli().revoke(&other.id)["enforced"], true);
    assert_eq!(sandbox.get("/api/openai/v1/models", &other.secret).status, 401);
    let (after, _) = used(pid);
    println!("{:?} of CPU", after - before);
    drop(attack);
    assert_eq!(sandbox.process().terminate().code(), Some(0));
}
