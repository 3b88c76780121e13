//! `seks run` and `seks env`: a command gets a token of its own for as long as it runs, and ends as
//! it would have ended alone.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{fs, path::Path, process::Command};

use rustix::process::Signal;
use seks_tests::{
    Sandbox, Upstream,
    process::{Process, binary, program, run, wait_for},
    sandbox::Options,
    upstream::Answer,
};

const KEY: &str = "sk-real-run-CANARY-000000000001";
const PATH: &str = "/api/openai/v1/models";

fn sandbox(upstream: &Upstream) -> Sandbox {
    let sandbox = Sandbox::start();
    sandbox.service("openai", upstream, KEY);
    sandbox.cli().create_agent("bot");
    sandbox
}

fn tokens(sandbox: &Sandbox) -> usize {
    sandbox.cli().json(&["token", "list"]).as_array().unwrap().len()
}

#[test]
fn the_commands_exit_code_is_ours() {
    let upstream = Upstream::ok();
    let sandbox = sandbox(&upstream);
    for (script, code) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
    {
        let finished = sandbox.cli().run(&["run", "--agent", "bot", "--", "sh", "-c", script], "");
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(code), ""), "{script}");
    }
    for (program, code) in [("/nonexistent/program", 127), ("/etc/passwd", 126)] {
        let finished = sandbox.cli().run(&["run", "--agent", "bot", "--", program], "");
        assert_eq!(finished.code, Some(code), "{finished:?}");
        assert!(finished.stderr.starts_with(&format!("error: {program}: ")), "{finished:?}");
    }
    assert_eq!(tokens(&sandbox), 0, "every token was revoked");
}

#[test]
fn the_command_has_a_working_token_until_it_ends() {
    let upstream = Upstream::ok();
    let sandbox = sandbox(&upstream);
    let script = "printf '%s\\n' \"$OPENAI_API_KEY\" \"$OPENAI_BASE_URL\" \"${SEKS_CONTEXT_FILE-unset}\"; cat";
    // The tenant has one agent, so nobody needs to say which.
    let finished = sandbox.cli().run(&["run", "--", "sh", "-c", script], "standard input is the command's");
    let lines: Vec<_> = finished.stdout.lines().collect();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(lines[0].starts_with("seks_token_"), "{finished:?}");
    assert_eq!(lines[1], format!("{}/api/openai/v1", sandbox.proxy_url()));
    assert_eq!(lines[2..], ["unset", "standard input is the command's"]);
    assert_eq!(sandbox.get(PATH, lines[0]).status, 401, "revoked when it ended");
}

fn start(sandbox: &Sandbox, folder: &Path, script: &str) -> Process {
    let mut command = Command::new(binary("seks"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).arg("--context-file");
    command.arg(sandbox.data_dir().join("context.toml")).args(["run", "--agent", "bot", "--", "sh", "-c", script]);
    Process::spawn("run", folder, &mut command)
}

#[test]
fn signals_reach_the_command_and_its_end_is_waited_for() {
    let upstream = Upstream::ok();
    let sandbox = sandbox(&upstream);
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::HUP, "HUP"), (Signal::USR1, "USR1")] {
        let folder = tempfile::tempdir().unwrap();
        let script =
            format!("trap 'echo got {name}; exit 9' {name}; echo \"$OPENAI_API_KEY\"; while :; do sleep 0.02; done");
        let mut process = start(&sandbox, folder.path(), &script);
        let token = process.wait_for("the command to run", || {
            let text = fs::read_to_string(folder.path().join("run.out")).ok()?;
            text.ends_with('\n').then(|| text.trim().to_owned())
        });
        assert_eq!(sandbox.get(PATH, &token).status, 200, "it works meanwhile");
        process.signal(signal);
        wait_for("it to end", || (!process.is_alive()).then_some(()));
        assert_eq!(process.terminate().code(), Some(9), "{name}: {}", process.output());
        assert!(process.output().contains(&format!("got {name}")), "{}", process.output());
        assert_eq!(sandbox.get(PATH, &token).status, 401, "{name}: the token is revoked");
    }
}

#[test]
fn nothing_is_run_when_there_is_no_token_to_be_had() {
    let upstream = Upstream::ok();
    let sandbox = sandbox(&upstream);
    let touch = sandbox.data_dir().join("../touched");
    let path = touch.to_str().unwrap();
    for (more, code) in [
        (&["--agent", "nobody"][..], 3),
        (&["--agent", "bot", "--service", "github"], 3),
        (&["--agent", "bot", "--proxy", "nonsense"], 2),
    ] {
        let line = [&["run"], more, &["--", "touch", path]].concat();
        assert_eq!(sandbox.cli().run(&line, "").code, Some(code), "{more:?}");
    }
    sandbox.cli().create_agent("second");
    assert_eq!(sandbox.cli().run(&["run", "--", "touch", path], "").code, Some(2), "which of the two?");
    assert!(!touch.exists());
}

#[test]
fn env_prints_lines_that_a_shell_can_evaluate() {
    let upstream = Upstream::ok();
    let sandbox = sandbox(&upstream);
    let lines = sandbox.cli().run(&["env", "--agent", "bot"], "").stdout;
    let script = format!("{lines}\nprintf '%s %s' \"$OPENAI_API_KEY\" \"$OPENAI_BASE_URL\"");
    let told = run(Command::new("sh").env_clear().arg("-c").arg(&script), b"").stdout;
    let (token, base) = told.split_once(' ').unwrap();
    assert_eq!(sandbox.get(PATH, token).status, 200);
    assert_eq!(base, format!("{}/api/openai/v1", sandbox.proxy_url()));
    let json = sandbox.cli().json(&["env", "--agent", "bot", "--token", token, "--proxy", "https://proxy.test/"]);
    assert_eq!(json["OPENAI_API_KEY"], token);
    assert_eq!(json["OPENAI_BASE_URL"], "https://proxy.test/api/openai/v1");
    assert_eq!(tokens(&sandbox), 1, "a token that is given is used, not another issued");
    for (line, code) in [
        (&["env", "--agent", "bot", "--token", "sk-not-ours"][..], 2),
        (&["env", "--agent", "nobody"], 3),
        (&["env", "--agent", "bot", "--service", "nothing"], 3),
    ] {
        let refused = sandbox.cli().run(line, "");
        assert_eq!(refused.code, Some(code), "{refused:?}");
        assert!(!refused.stderr.contains("sk-not-ours"), "{refused:?}");
    }
}

#[test]
fn a_proxy_of_the_environment_is_not_sent_the_token() {
    let upstream = Upstream::ok();
    let sandbox = sandbox(&upstream);
    let mut command = Command::new(binary("seks"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HTTPS_PROXY", "http://proxy.test:3128");
    command.env("no_proxy", "corp.test").arg("--context-file").arg(sandbox.data_dir().join("context.toml"));
    let finished = run(command.args(["run", "--", "sh", "-c", "echo $NO_PROXY $no_proxy $HTTPS_PROXY"]), b"");
    assert_eq!(finished.stdout, "corp.test,127.0.0.1 corp.test,127.0.0.1 http://proxy.test:3128\n", "{finished:?}");
}

#[test]
fn a_private_authority_of_the_node_is_trusted_beside_the_machines() {
    let upstream = Upstream::start_tls(|_| seks_tests::upstream::Answer::json(200, "{}"));
    let sandbox = sandbox(&Upstream::ok());
    let (folder, pem) = (tempfile::tempdir().unwrap(), upstream.ca_pem().unwrap());
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, pem).unwrap();
    fs::write(folder.path().join("machine.pem"), "# the machine's\n").unwrap();
    let mut command = Command::new(binary("seks"));
    command.env_clear().env("XDG_CACHE_HOME", folder.path()).env("SSL_CERT_FILE", folder.path().join("machine.pem"));
    command.arg("--context-file").arg(sandbox.data_dir().join("context.toml"));
    let finished = run(command.args(["env", "--agent", "bot", "-o", "json", "--proxy-ca"]).arg(&ca), b"");
    let variables: serde_json::Value =
        serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e} {finished:?}"));
    for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "AWS_CA_BUNDLE", "PIP_CERT"] {
        let roots = fs::read_to_string(variables[name].as_str().unwrap()).unwrap();
        assert_eq!(roots, format!("# the machine's\n{pem}"), "{name}");
    }
}

#[test]
#[cfg_attr(not(has = "curl"), ignore = "needs curl")]
fn a_command_reaches_a_services_own_host_through_https_proxy_once_there_is_a_ca() {
    let upstream = Upstream::start_tls(|r| Answer::json(200, &r.header("authorization").unwrap_or_default()));
    let config = "[forward_proxy]\nlisten = \"127.0.0.1:0\"\n".to_owned();
    let sandbox = Sandbox::with(Options { config, ..Options::default() });
    // Not the node's own name, which no proxy is asked for.
    let origin = upstream.origin().replace("127.0.0.1", "localhost");
    sandbox.cli().apply_service(&format!(
        "name = 'code'\nupstream = '{origin}'\nallow_private = true\ninject = 'bearer'\nupstream_ca_pem = '''\n{}'''\n",
        upstream.ca_pem().unwrap()
    ));
    sandbox.cli().put_credential("code", "code", KEY);
    sandbox.cli().create_agent("bot");
    let curl = program("curl");
    let curl = curl.to_str().unwrap();
    let asks = ["run", "--", curl, "--silent", "--show-error", &origin];
    let without = sandbox.cli().run(&asks, "");
    assert!(without.code == Some(60) && upstream.requests().is_empty(), "no CA, no HTTPS_PROXY: {without:?}");
    let missing = sandbox.cli().run(&["env", "--agent", "bot", "--forward-proxy", "http://127.0.0.1:1"], "");
    assert!(missing.code == Some(3) && missing.stderr.contains("seks ca create"), "{missing:?}");

    sandbox.cli().json(&["ca", "create"]);
    let through = sandbox.cli().run(&asks, "");
    assert_eq!(
        (through.code, through.stdout),
        (Some(0), format!("Bearer {}", "*".repeat(KEY.len()))),
        "{}",
        through.stderr
    );
    assert_eq!(upstream.requests()[0].header("authorization").unwrap(), format!("Bearer {KEY}"));
    let strict = [&["run", "--sandbox", "strict"], &asks[1..]].concat();
    let strict = sandbox.cli().run(&strict, "");
    assert_eq!((strict.code, strict.stdout.len()), (Some(0), "Bearer ".len() + KEY.len()), "{}", strict.stderr);
    let set = sandbox.cli().json(&["env", "--agent", "bot", "--service", "code"]);
    let (token, node) = (set["SEKS_TOKEN"].as_str().unwrap(), sandbox.forward_proxy().unwrap());
    for name in ["HTTPS_PROXY", "https_proxy", "npm_config_https_proxy"] {
        assert_eq!(set[name], format!("http://agent:{token}@{node}"), "{name}");
    }
    assert_eq!(set["NO_PROXY"], "127.0.0.1", "the node itself is reached directly");
    let shown = sandbox.cli().run(&["ca", "show"], "").stdout;
    for name in [
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
        "npm_config_cafile",
    ] {
        let roots = fs::read_to_string(set[name].as_str().unwrap()).unwrap();
        assert!(roots.trim_end().ends_with(shown.trim_end()), "{name}");
    }
    let off = sandbox.cli().json(&["env", "--agent", "bot", "--forward-proxy", ""]);
    assert!(off.get("HTTPS_PROXY").is_none(), "{off}");
}

#[test]
fn two_services_that_set_one_variable_are_named() {
    let upstream = Upstream::ok();
    let sandbox = sandbox(&upstream);
    sandbox.cli().enable("openai", "second", &upstream);
    sandbox.cli().put_credential("second", "second", KEY);
    let both = sandbox.cli().run(&["env", "--agent", "bot"], "");
    assert_eq!(both.code, Some(0), "{both:?}");
    assert!(both.stderr.contains("OPENAI_BASE_URL is set by several"), "{both:?}");
    let one = sandbox.cli().run(&["env", "--agent", "bot", "--service", "second"], "");
    assert!(one.stderr.is_empty() && one.stdout.contains("/api/second/v1'"), "{one:?}");
}
