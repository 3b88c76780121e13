//! A real gRPC client and server (Python's `grpcio`, on the C core), with the broker between them
//! in host mode.

use std::process::Command;

use seks_tests::{
    Sandbox,
    process::{installed, run},
    sandbox::Options,
};

use super::{root, websocket::Script};

const KEY: &str = "sk-real-grpc-key-0000000000000000001";

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn a_stream_goes_both_ways_with_its_trailers_and_a_refusal_is_a_status() {
    let python = installed("python/bin/python");
    let mut server = Script::start(&python, "grpc_server.py", &[], &format!("{KEY}\n"));
    let port = server.line();
    let config = "[proxy]\nhost_suffix = \"broker.example\"\n".to_owned();
    let sandbox = Sandbox::with(Options { config, ..Options::default() });
    sandbox.cli().apply_service(&format!(
        "name = 'echo'\nupstream = 'http://127.0.0.1:{port}'\nallow_private = true\nhttp2 = true\ninject = 'bearer'\n"
    ));
    sandbox.cli().put_credential("echo", "echo", KEY);
    let token = sandbox.token("agent", &["echo"]).secret;
    let mut client = Command::new(&python);
    client.arg(root().join("tests/sdk/grpc_client.py"));
    client.args([&sandbox.proxy().to_string(), "echo.broker.example", &token, "seks_token_wrong"]);
    let finished = run(&mut client, b"");
    let stars = "*".repeat(KEY.len());
    let expected = format!(
        "echo of one by {stars}\necho of two by {stars}\nRESOURCE_EXHAUSTED that is all {stars} kept\n\
         UNAUTHENTICATED what was presented is no token\n"
    );
    assert_eq!(finished.stdout, expected, "{}", finished.stderr);
    assert!(!sandbox.everything_emitted().contains(KEY));
}
