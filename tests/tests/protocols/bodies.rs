//! `Expect: 100-continue`, as curl does it.

use std::process::Command;

use seks_tests::{
    Sandbox, Upstream,
    process::{program, run},
    upstream::Answer,
};

const KEY: &str = "sk-real-waiting-key-0000000000001";

#[test]
#[cfg_attr(not(has = "curl"), ignore = "needs curl")]
fn a_body_is_asked_for_once_the_nodes_checks_have_passed_and_not_before() {
    let curl = program("curl");
    let upstream = Upstream::start(|request| Answer::json(200, &request.body_length.to_string()));
    let sandbox = Sandbox::start();
    sandbox.service("openai", &upstream, KEY);
    let token = sandbox.token("agent", &["openai"]).secret;
    let post = |token: &str| {
        let mut command = Command::new(&curl);
        command.args(["--silent", "--verbose", "--noproxy", "*", "--expect100-timeout", "30", "--data-binary", "@-"]);
        command.args(["-H", "Expect: 100-continue", "-H", &format!("Authorization: Bearer {token}")]);
        command.arg(format!("{}/api/openai/v1/files", sandbox.proxy_url()));
        run(&mut command, &[b'x'; 100_000])
    };
    let sent = post(&token);
    assert!(
        sent.stderr.contains("< HTTP/1.1 100 Continue") && sent.stdout == "100000",
        "{} {}",
        sent.stdout,
        sent.stderr
    );
    let head = String::from_utf8_lossy(&upstream.requests()[0].head).to_lowercase();
    assert!(!head.contains("expect"), "{head}");
    let refused = post("seks_token_wrong");
    assert!(refused.stdout.contains("token_malformed"), "{}", refused.stdout);
    assert!(!refused.stderr.contains("100 Continue"), "{}", refused.stderr);
    assert_eq!(upstream.requests().len(), 1);
}
