//! A real WebSocket client and server (Python's `websockets`), with the broker between them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use seks_tests::{Collector, Sandbox, process::installed, sandbox::Options};

use super::root;

const KEY: &str = "sk-proj-real-realtime-key-0000000000001";

/// A script whose lines are read as they come; killed when dropped.
pub(crate) struct Script {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Script {
    pub(crate) fn start(python: &Path, name: &str, arguments: &[&str], input: &str) -> Self {
        let mut command = Command::new(python);
        command.arg(root().join("tests/sdk").join(name)).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn a_realtime_client_talks_is_scrubbed_for_and_is_cut_when_its_token_is_revoked() {
    let python = installed("python/bin/python");
    let mut server = Script::start(&python, "websocket_server.py", &[], &format!("{KEY}\n"));
    let port = server.line();
    let collector = Collector::start();
    let sandbox = Sandbox::with(Options::default().collector(&collector));
    let upstream = format!("http://127.0.0.1:{port}");
    let enabled = sandbox.cli().run(&["service", "enable", "openai", "--upstream", &upstream, "--allow-private"], "");
    assert_eq!(enabled.code, Some(0), "{}", enabled.stderr);
    sandbox.cli().put_credential("openai", "openai", KEY);
    for place in ["header", "subprotocol"] {
        let token = sandbox.token(&format!("agent-{place}"), &["openai"]);
        let url = format!("ws://{}/api/openai/v1/realtime?model=m", sandbox.proxy());
        let mut client = Script::start(&python, "websocket_client.py", &[&url, &token.secret, place], "");
        let masked = format!("your key is {}", "*".repeat(KEY.len()));
        assert_eq!(client.line(), format!("got {masked}"), "{place}");
        assert_eq!(client.line(), format!("got {masked}"), "{place}, in fragments");
        assert_eq!(client.line(), format!("got b'{}'", "*".repeat(KEY.len())), "{place}, as bytes");
        assert_eq!(client.line(), "open");
        let revoked = sandbox.cli().revoke(&token.id);
        assert_eq!(revoked["enforced"], true, "{revoked}");
        assert_eq!(client.line(), "closed 1008 token_revoked", "{place}");
    }
    let span = collector.wait_for("the socket's record", |s| {
        s.get("seks.reason") == "token_revoked" && s.get("http.response.status_code") == "101"
    });
    let number = |name| span.get(name).parse::<u64>().unwrap();
    assert!(number("http.request.body.size") > 1 << 20, "what the agent said is counted");
    assert!(number("http.response.body.size") > 1 << 20, "what it heard is counted");
    assert!(number("seks.scrub.count") >= 3);
    assert!(!sandbox.everything_emitted().contains(KEY));
}
