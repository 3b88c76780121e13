//! What a user may get wrong on the command line: one line that says what and why, a hint, the
//! contract's exit code. None of these needs a control plane.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use seks_tests::process::{Finished, binary, run};

const SECRET: &str = "sk-live-CANARY-0123456789";

fn seks(folder: &Path, arguments: &[&str], input: &str) -> Finished {
    let mut command = Command::new(binary("seks"));
    command.current_dir(folder).env_clear().env("HOME", folder).args(arguments);
    run(&mut command, input.as_bytes())
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The error line and the exit code, after checking the form that every failure has.
#[track_caller]
fn failure(finished: &Finished) -> (i32, String) {
    let lines: Vec<_> = finished.stderr.lines().collect();
    assert!(lines[0].starts_with("error: ") && lines[0].matches(": ").count() >= 2, "{finished:?}");
    assert!(lines.len() == 1 || (lines.len() == 2 && lines[1].starts_with("hint: ")), "{finished:?}");
    assert_eq!(finished.stdout, "", "an error leaves stdout alone");
    (finished.code.unwrap(), lines[0].to_owned())
}

#[test]
fn usage_errors_are_one_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        "token",
        "nonsense",
        "token nonsense",
        "status --colour",
        "status extra",
        "status -o xml",
        "status --timeout soon",
        "status --timeout -1s",
        "token issue --agent a",
        "token issue --agent a --service s --ttl 0",
        "token issue --agent a --service =",
        "agent create a --attr novalue",
        "credential put a",
        "credential rollback a --version x",
        "operator create o --role root --out f",
        "policy simulate --agent a --service s --method GET --path / --source here",
        "service apply",
        "run --agent a",
        "completions tcsh",
        "dev --proxy-listen 8300",
        "dev --admin-listen localhost",
        "dev --page-listen 8304",
        "dev --page-listen 0.0.0.0:0",
        "tokens list",
        "list tokens",
        "token list --limit -1",
        "token list --limit many",
        "token issue --agent a --service s --ttl -1h",
        "token issue --agent a --service s --ttl 24",
        "token issue --agent a --service s --bind-certificate .",
        "token list --timeout 0",
        "token list --timeout 5",
        "token list --no-such",
        "agent create a --attr a=b --attr a=c",
        "node enroll --region r --ttl 0",
        "node enroll --region r --out .",
        "node enroll --region r --out gone/token",
        "audit search --since yesterday",
        "audit search --decision maybe",
        "operator create o --role admin --out f",
        "top --window 2h",
        "top --interval 0",
        "page extra",
        "doctor --config gone.toml",
        "doctor --config .",
        "status -o",
        "status -o json=x",
        "help nonsense",
        "nonsense --help",
        "run --",
        "run ls",
        "service apply -f /dev/null",
    ] {
        let arguments: Vec<_> = line.split(' ').filter(|a| !a.is_empty()).collect();
        let (code, text) = failure(&seks(folder.path(), &arguments, ""));
        assert_eq!(code, 2, "seks {line}: {text}");
    }
}

#[test]
fn an_empty_value_is_refused_where_one_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["node", "enroll", "--region", ""][..],
        &["token", "issue", "--agent", "a", "--service", ""],
        &["agent", "create", "a", "--attr", ""],
        &["status", "--timeout", ""],
        &["status", "--context-file", ""],
    ] {
        assert_eq!(failure(&seks(folder.path(), arguments, "")).0, 2, "{arguments:?}");
    }
}

#[test]
fn seks_alone_lists_its_commands_and_what_to_do_first() {
    let finished = seks(tempfile::tempdir().unwrap().path(), &[], "");
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
    for text in ["  credential   Real secrets", "The fleet:", "Next:", "seks dev --demo"] {
        assert!(finished.stdout.contains(text), "{}", finished.stdout);
    }
}

#[test]
fn a_secret_on_the_command_line_is_refused_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--secret", "--from-stdin", "--value", "--key"].map(|f| format!("{f}={SECRET}"));
    let put = ["credential", "put", "key", "--service", "openai"];
    for last in flags.iter().map(String::as_str).chain([SECRET]) {
        let finished = seks(folder.path(), &[&put[..], &[last]].concat(), "");
        assert_eq!(failure(&finished).0, 2);
        assert!(!finished.stderr.contains("CANARY"), "{last}: {}", finished.stderr);
    }
}

#[test]
fn missing_and_broken_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    file("bad.toml", "name = 3\n");
    file("bad.yaml", "name: [\n");
    file("bad.json", "{\"name\": \"a\",}");
    file("unknown.toml", "name='a'\nupstream='https://h.test'\ninject='bearer'\nnope=1\n");
    file("binary.cedar", "");
    fs::write(folder.path().join("binary.cedar"), [0xff, 0xfe]).unwrap();
    for (line, expect) in [
        ("service apply -f none.toml", "none.toml: no such file or directory"),
        ("service apply -f .", ".: "),
        ("service apply -f bad.toml", "bad.toml: line 1: "),
        ("service apply -f bad.yaml", "bad.yaml: "),
        ("service apply -f bad.json", "bad.json: trailing comma"),
        ("service apply -f unknown.toml", "unknown.toml: line 4: unknown field `nope`"),
        ("service enable openai --upstream-ca none.pem", "none.pem: no such file or directory"),
        ("policy apply -f none.cedar", "none.cedar: no such file or directory"),
        ("policy check -f binary.cedar", "binary.cedar: not UTF-8 text"),
        ("policy simulate --agent a --service s --method GET --path / --body none", "none: no such file or directory"),
        ("dev --config none.toml", "none.toml"),
        ("status --context-file none.toml", "none.toml: no such file or directory"),
        ("status", "no context file"),
    ] {
        let arguments: Vec<_> = line.split(' ').collect();
        let (code, text) = failure(&seks(folder.path(), &arguments, ""));
        assert_eq!(code, 2, "seks {line}: {text}");
        assert!(text.contains(expect), "seks {line}: {text}");
    }
    assert!(!folder.path().join(".local").exists(), "a failed start leaves nothing behind");
}

#[test]
fn a_broken_context_file_is_named_and_its_key_is_not_printed() {
    let folder = tempfile::tempdir().unwrap();
    let context = folder.path().join("context.toml");
    let whole = |endpoint: &str, more: &str| {
        let pem = "-----BEGIN CERTIFICATE-----\\nAA==\\n-----END CERTIFICATE-----\\n";
        format!(
            "current='a'\n[contexts.a]\nendpoint='{endpoint}'\nca=\"{pem}\"\ncertificate=\"{pem}\"\nkey=\"{pem}\"\n{more}"
        )
    };
    for (text, expect) in [
        (format!("current='a'\n[contexts.a]\nkey='{SECRET}\n"), "line 3"),
        (format!("current='a'\n[contexts.a]\nkey='{SECRET}'\n"), "missing field"),
        (whole("https://127.0.0.1:1", "nope=1"), "unknown field `nope`"),
        (whole("https://127.0.0.1:1", ""), "not a certificate"),
        (whole("http://127.0.0.1:1", ""), "begins with https://"),
        (whole("https://127.0.0.1:1", "").replace("'a'", "'b'"), "no context `b`"),
        (
            "current='a'\n[contexts.a]\nendpoint='https://h'\nca='none.pem'\ncertificate='x'\nkey='x'".into(),
            "contexts.a.ca",
        ),
    ] {
        write_private(&context, &text);
        let finished = seks(folder.path(), &["status", "--context-file", "context.toml"], "");
        let (code, line) = failure(&finished);
        assert_eq!(code, 2, "{line}");
        assert!(line.contains(expect) && line.contains("context"), "{expect}: {line}");
        assert!(!finished.stderr.contains("CANARY"), "{}", finished.stderr);
    }
}

#[test]
fn a_control_plane_that_is_not_there_is_exit_code_6() {
    let folder = tempfile::tempdir().unwrap();
    // A port that was free a moment ago, and one that takes connections and never says a word.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap().pem();
    for (address, expect) in [(free, "connection refused"), (silent.local_addr().unwrap(), "no answer in time")] {
        let text = format!(
            "current='a'\n[contexts.a]\nendpoint='https://{address}'\nca='''{certificate}'''\ncertificate='''{certificate}'''\nkey='''{}'''\n",
            key.serialize_pem()
        );
        write_private(&folder.path().join("context.toml"), &text);
        let line = ["status", "--context-file", "context.toml", "--timeout", "300ms"];
        let (code, text) = failure(&seks(folder.path(), &line, ""));
        assert_eq!(code, 6, "{text}");
        assert!(text.contains(&address.to_string()) && text.contains(expect), "{text}");
    }
}

#[test]
fn help_has_examples_everywhere_and_the_version_its_commit() {
    let folder = tempfile::tempdir().unwrap();
    let help = |line: &str| {
        let arguments: Vec<_> = line.split(' ').filter(|a| !a.is_empty()).chain(["--help"]).collect();
        let finished = seks(folder.path(), &arguments, "");
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "seks {line}");
        finished.stdout
    };
    let mut leaves = 0;
    let mut nouns = vec![String::new()];
    while let Some(noun) = nouns.pop() {
        let text = help(&noun);
        // The first page has groups of commands, and each group ends with an empty line.
        let commands = match noun.as_str() {
            "" => text.split("\nOptions:\n").next().unwrap_or_default(),
            _ => text.split("\nCommands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap_or_default(),
        };
        let listed = commands.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
        let verbs: Vec<_> =
            listed.filter_map(|l| l.split_whitespace().next()).filter(|v| *v != "help").map(String::from).collect();
        if verbs.is_empty() {
            leaves += 1;
            assert!(text.contains("Example"), "seks {noun} --help has no example");
        }
        nouns.extend(verbs.into_iter().map(|verb| format!("{noun} {verb}").trim().to_owned()));
    }
    assert!(leaves > 30, "only {leaves} commands were found");
    let version = seks(folder.path(), &["--version"], "").stdout;
    assert!(version.starts_with(&format!("seks {} (", env!("CARGO_PKG_VERSION"))), "{version}");
}

#[test]
fn completion_scripts_are_complete() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = seks(folder.path(), &["completions", shell], "");
        assert_eq!(script.code, Some(0), "{}", script.stderr);
        for word in ["credential", "rollback", "from-stdin", "no-wait"] {
            assert!(script.stdout.contains(word), "{shell}: no `{word}`");
        }
        if shell == "bash" {
            let checked = run(Command::new("bash").args(["-n", "-s"]), script.stdout.as_bytes());
            assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""));
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error_and_a_full_disk_is() {
    let folder = tempfile::tempdir().unwrap();
    let seks = binary("seks");
    let script = format!("{} completions bash | head -n 1 >/dev/null; echo ${{PIPESTATUS[0]}}", seks.display());
    let piped = run(Command::new("bash").current_dir(&folder).args(["-c", &script]), b"");
    assert_eq!((piped.stdout.trim(), piped.stderr.as_str()), ("0", ""));
    let full = run(Command::new("sh").args(["-c", &format!("{} completions bash >/dev/full", seks.display())]), b"");
    assert_eq!(failure(&full), (1, "error: standard output: no space left on device".into()));
}
