//! A secret that a command prints. References name a command of `[[sources.command]]`; they never
//! bring a program of their own.

use std::process::Stdio;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use seks_types::secret::Secret;
use serde::Deserialize;
use tokio::{io::AsyncReadExt as _, process::Command};
use zeroize::Zeroizing;

use super::{
    Access, MintError, Minted,
    config::{ARGUMENT, CommandConfig},
    reference,
};

/// The largest output, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// What an operator stores: which command.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    /// The name in the control plane's configuration.
    command: String,
    /// Replaces `{argument}`. It is no secret: other users see arguments of processes.
    #[serde(default)]
    argument: String,
    /// A key, when the output is a JSON object. Default: the whole output.
    #[serde(default)]
    field: String,
    /// Seconds between two runs. Default: 300.
    #[serde(default = "reference::default_refresh")]
    refresh_seconds: u64,
}

/// Runs the command that a reference names.
pub(super) async fn read(secret: &Secret, access: &Access) -> Result<Minted, MintError> {
    let reference: Reference = reference::parse(secret, "command; optionally argument, field, refresh_seconds")?;
    reference::check_refresh(reference.refresh_seconds)?;
    // One answer for a command that is another tenant's and for one that is not there.
    let command = access.sources.command.iter().find(|command| {
        command.name == reference.command && command.tenants.iter().any(|tenant| tenant == access.tenant.as_str())
    });
    let command = command.ok_or_else(|| {
        MintError::Invalid(
            "field `command` names no `[[sources.command]]` of this tenant in the control plane's configuration".into(),
        )
    })?;
    let output = run(command, &reference.argument).await?;
    access.select(&reference.field, reference.refresh_seconds).of_document(&output)
}

/// Runs it; the output when it exits with 0. Error output is dropped, because it can hold a secret.
async fn run(config: &CommandConfig, argument: &str) -> Result<Zeroizing<Vec<u8>>, MintError> {
    let failed =
        |why: &str| MintError::Source { text: format!("the command `{}` {why}", config.name), is_final: false };
    let argv = arguments(config, argument)?;
    let (program, rest) = argv.split_first().ok_or_else(|| failed("has no program"))?;
    let mut command = Command::new(program);
    command.args(rest).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    command.envs(config.env.iter().filter_map(|pair| pair.split_once('=')));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A group of its own: children are ended with it.
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|_| failed("cannot be started"))?;
    let mut group = Some(Group(child.id()));
    let mut stdout = child.stdout.take().ok_or_else(|| failed("has no output"))?;
    let mut output = Zeroizing::new(vec![0; MAX_BYTES + 1]);
    let whole = async {
        let mut exit = exit_of(child.id());
        let mut length = 0;
        loop {
            let rest = output.get_mut(length..).filter(|rest| !rest.is_empty());
            let rest = rest.ok_or_else(|| failed("printed more than 64 KiB"))?;
            tokio::select! {
                read = stdout.read(rest) => match read.map_err(|_| failed("gave an output that can't be read"))? {
                    0 => break,
                    read => length += read,
                },
                // Children that it leaves behind hold its output open.
                _ = &mut exit, if group.is_some() => drop(group.take()),
            }
        }
        if group.is_some() {
            let _ = exit.await; // it has closed its output, and goes on
            drop(group.take());
        }
        Ok::<_, MintError>((length, child.wait().await.map_err(|_| failed("can't be waited for"))?))
    };
    let ended = tokio::time::timeout(config.timeout, whole).await;
    drop(group);
    let (length, status) = ended.map_err(|_| failed("did not end in time, and was killed"))??;
    if !status.success() {
        let why = status.code().map_or_else(|| "was ended by a signal".into(), |code| format!("exited with {code}"));
        return Err(failed(&why));
    }
    output.truncate(length);
    Ok(output)
}

/// Ends when a child has exited, and leaves it to be waited for: until then nobody else gets its
/// id, nor that of its group.
fn exit_of(id: Option<u32>) -> tokio::task::JoinHandle<()> {
    let pid = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    tokio::task::spawn_blocking(move || {
        let wait = |pid| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let _exited = pid.map(|pid| rustix::io::retry_on_intr(|| wait(pid)));
    })
}

/// Ends every process of the group when dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL); // none is left: nothing to end
        }
    }
}

fn arguments<'a>(config: &'a CommandConfig, argument: &'a str) -> Result<Vec<&'a str>, MintError> {
    let takes_one = config.argv.iter().any(|part| part == ARGUMENT);
    match (takes_one, argument.is_empty()) {
        (true, true) => return Err(MintError::Invalid("field `argument` is missing: the command takes one".into())),
        (false, false) => return Err(MintError::Invalid("the command takes no `argument`".into())),
        (true, false) if !is_argument(argument) => {
            return Err(MintError::Invalid(
                "field `argument` is letters, digits and `-_./:@`, does not begin with `-`, and has no `..`".into(),
            ));
        }
        _ => {}
    }
    Ok(config.argv.iter().map(|part| if part == ARGUMENT { argument } else { part }).collect())
}

/// What no program takes for an option, and no path leads out of its folder.
fn is_argument(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:@".contains(&b);
    text.len() <= 512 && !text.starts_with('-') && !text.contains("..") && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> CommandConfig {
        CommandConfig {
            name: "test".into(),
            argv: ["/bin/sh", "-c", script].map(String::from).to_vec(),
            tenants: vec![],
            env: vec!["GIVEN=yes".into()],
            timeout: Duration::from_secs(2),
        }
    }

    async fn output(config: &CommandConfig, argument: &str) -> Result<String, String> {
        let output = run(config, argument).await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8(output.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_command_has_an_environment_of_its_own_and_no_input() {
        let environment = output(&shell("env; cat"), "").await.unwrap();
        let names: Vec<&str> = environment.lines().map(|line| line.split('=').next().unwrap()).collect();
        assert!(names.contains(&"GIVEN"), "{environment}");
        assert!(
            names.iter().all(|name| ["GIVEN", "PATH", "PWD", "SHLVL", "_", "OLDPWD"].contains(name)),
            "{environment}"
        );
    }

    #[tokio::test]
    async fn what_goes_wrong_is_said_without_the_output() {
        for (script, why) in [
            ("echo SECRET; echo SECRET >&2; exit 3", "exited with 3"),
            ("echo SECRET; kill -9 $$", "ended by a signal"),
            ("echo SECRET; sleep 60", "did not end in time"),
            ("while :; do echo SECRETSECRETSECRET; done", "more than 64 KiB"),
        ] {
            let error = output(&shell(script), "").await.unwrap_err();
            assert!(error.contains(why) && !error.contains("SECRET"), "{script}: {error}");
        }
        let missing = CommandConfig { argv: vec!["/nonexistent".into()], ..shell("") };
        assert!(output(&missing, "").await.unwrap_err().contains("cannot be started"));
    }

    #[tokio::test]
    async fn children_of_a_command_that_is_killed_end_too() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
        assert!(output(&CommandConfig { timeout: Duration::from_secs(1), ..shell(&script) }, "").await.is_err());
        wait_until_gone(&pid_file).await;
    }

    #[tokio::test]
    async fn children_that_a_command_leaves_behind_hold_nothing_and_end() {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        for redirected in ["", "> /dev/null"] {
            let script = format!("sleep 600 {redirected} & echo $! > {}; echo out", pid_file.display());
            let begun = std::time::Instant::now();
            let patient = CommandConfig { timeout: Duration::from_secs(60), ..shell(&script) };
            assert_eq!(output(&patient, "").await.unwrap(), "out\n", "{redirected}");
            assert!(begun.elapsed() < Duration::from_secs(30), "it waited for the child");
            wait_until_gone(&pid_file).await;
        }
    }

    async fn wait_until_gone(pid_file: &std::path::Path) {
        let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        let begun = std::time::Instant::now();
        // A zombie still answers signals until its new parent has waited for it.
        let is_gone = || {
            rustix::process::test_kill_process(pid).is_err()
                || std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).is_ok_and(|s| s.contains(") Z "))
        };
        while !is_gone() {
            assert!(begun.elapsed() < Duration::from_secs(20), "a child still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[test]
    fn an_argument_is_no_option_and_no_way_out() {
        let config = CommandConfig { argv: ["/bin/echo", ARGUMENT].map(String::from).to_vec(), ..shell("") };
        assert_eq!(arguments(&config, "op://vault/item/field").unwrap(), ["/bin/echo", "op://vault/item/field"]);
        for bad in ["", "-rf", "--help", "a b", "$(id)", "a;b", "a\nb", "../x", "a/../../b", "`id`", "a'b"] {
            assert!(arguments(&config, bad).is_err(), "{bad}");
        }
        assert!(arguments(&shell("true"), "x").is_err(), "it takes none");
    }
}
