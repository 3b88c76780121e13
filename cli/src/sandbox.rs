//! Confines the command of `seks run`: it gets a token, and no other access to SEKS.
//!
//! The command runs as a user who may also be SEKS's operator. Without confinement it could read
//! the operator's key and redirect a service to itself. On Linux, mounts hide SEKS's files
//! ([`mounts`]). Landlock closes ports, processes, signals and abstract sockets
//! ([`landlock_rules`]). seccomp refuses system calls that bypass these ([`seccomp`]). The strict
//! mode has its own network ([`network`]). On macOS a Seatbelt profile confines the command
//! ([`seatbelt`]).

#[cfg(target_os = "linux")]
pub(crate) mod helper;
#[cfg(target_os = "linux")]
mod landlock_rules;
#[cfg(target_os = "linux")]
mod mounts;
#[cfg(target_os = "linux")]
mod network;
mod plan;
mod protected;
#[cfg_attr(not(target_os = "macos"), allow(dead_code, reason = "tested here, used on macOS"))]
mod seatbelt;
#[cfg(target_os = "linux")]
mod seccomp;
mod support;
mod unix_sockets;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use http::Uri;
use tokio::process::Command;

use self::{plan::Plan, support::Support};
use crate::{
    error::{CliError, Exit, Result, plain_io},
    output::notice,
};

/// How strictly a command is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// SEKS's files, listeners and processes are not accessible
    Default,
    /// Also, only the proxy is reachable over the network
    Strict,
    /// No confinement: the command has all of your access
    None,
}

/// The confinement of one command.
#[derive(Debug)]
pub(crate) struct Sandbox {
    mode: Mode,
    support: Support,
}

/// What the command may reach, and what it may not.
#[derive(Debug)]
pub(crate) struct SandboxTargets<'a> {
    /// The context file and the files that it names.
    pub(crate) context_files: &'a [PathBuf],
    /// The admin API, a URL for each replica.
    pub(crate) endpoints: &'a [&'a str],
    /// URLs of the proxy.
    pub(crate) proxies: Vec<String>,
}

/// What this machine cannot confine in a mode, in words.
pub(crate) async fn not_confined(mode: Mode) -> Vec<&'static str> {
    Support::probe(mode == Mode::Strict).await.missing()
}

impl Sandbox {
    /// Checks what this machine supports. The default mode names what is missing on stderr.
    ///
    /// # Errors
    /// Exit code 2 for the strict mode on a machine without full support.
    pub(crate) async fn new(mode: Mode) -> Result<Self> {
        let support = if mode == Mode::None { Support::default() } else { Support::probe(mode == Mode::Strict).await };
        let missing = support.missing();
        match mode {
            Mode::Strict if !missing.is_empty() => {
                Err(CliError::usage("--sandbox strict", format!("this machine cannot confine {}", missing.join(", ")))
                    .hint(support.hint()))
            }
            Mode::Default if !missing.is_empty() => {
                notice(&format!("warning: this machine cannot confine {}: {}", missing.join(", "), support.hint()));
                Ok(Self { mode, support })
            }
            _ => Ok(Self { mode, support }),
        }
    }

    /// The confined command, and the task that forwards its connections.
    ///
    /// # Errors
    /// When a file of SEKS cannot be protected.
    pub(crate) fn command(
        &self,
        command: &[OsString],
        targets: &SandboxTargets<'_>,
    ) -> Result<(Command, Option<ForwardingTask>)> {
        if self.mode == Mode::None {
            return Ok((unconfined(command), None));
        }
        let plan = self.plan(targets)?;
        self.confined(command, plan)
    }

    fn plan(&self, targets: &SandboxTargets<'_>) -> Result<Plan> {
        let strict = self.mode == Mode::Strict;
        let found = protected::files(targets.context_files);
        refuse_hard_links(found.iter())?;
        let hidden = found.iter().filter_map(|path| fs::canonicalize(path).ok()).collect::<Vec<_>>();
        let inside = |path: &Path| hidden.iter().any(|dir| path != dir && path.starts_with(dir));
        let proxies: Vec<_> = targets.proxies.iter().filter_map(|url| host_and_port(url)).collect();
        let endpoints: Vec<_> = targets.endpoints.iter().filter_map(|url| host_and_port(url)).collect();
        let proxy_ports: Vec<_> = proxies.iter().map(|(_, port)| *port).collect();
        let mut forwarded: Vec<_> = proxies.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        forwarded.sort();
        forwarded.dedup();
        Ok(Plan {
            strict,
            namespaces: self.support.namespaces,
            hidden: hidden.iter().filter(|path| !inside(path)).cloned().collect(),
            sockets: unix_sockets::reachable(strict).into_iter().collect(),
            read_only: own_program().into_iter().collect(),
            fixed: fixed_dirs(found.iter()),
            closed_ports: if strict { Vec::new() } else { protected::closed_ports(&endpoints, &proxy_ports) },
            forwarded,
            ..Plan::default()
        })
    }

    #[cfg(target_os = "linux")]
    fn confined(&self, command: &[OsString], mut plan: Plan) -> Result<(Command, Option<ForwardingTask>)> {
        let failed = |e: &std::io::Error| CliError::new(Exit::Failed, "sandbox", plain_io(e));
        let mut forwarding = None;
        if plan.strict {
            let handover = network::Handover::open().map_err(|e| failed(&e))?;
            plan.handover = handover.path().into();
            plan.hosts = network::hosts(&plan.forwarded);
            let forwarded = plan.forwarded.clone();
            forwarding = Some(ForwardingTask(tokio::spawn(async move {
                if let Err(error) = handover.forward(forwarded).await {
                    notice(&format!("warning: the proxy is not reachable for the command: {}", plain_io(&error)));
                }
            })));
        }
        let json = serde_json::to_string(&plan).map_err(|e| CliError::new(Exit::Failed, "sandbox", e))?;
        let mut confined = Command::new("/proc/self/exe");
        confined.args([helper::EXEC, &json]).args(command);
        Ok((confined, forwarding))
    }

    #[cfg(not(target_os = "linux"))]
    fn confined(&self, command: &[OsString], plan: Plan) -> Result<(Command, Option<ForwardingTask>)> {
        let here = |place: &String| ["127.0.0.1:", "localhost:", "[::1]:"].iter().any(|host| place.starts_with(host));
        if plan.strict && !plan.forwarded.iter().all(here) {
            return Err(CliError::usage(
                "--sandbox strict",
                "Seatbelt knows no hosts: the proxy has to be on this machine",
            ));
        }
        let mut confined = Command::new("/usr/bin/sandbox-exec");
        confined.args(["-p", &seatbelt::profile(&plan), "--"]).args(command);
        Ok((confined, None))
    }
}

/// Forwards the command's connections until it is dropped.
#[derive(Debug)]
pub(crate) struct ForwardingTask(tokio::task::JoinHandle<()>);

impl Drop for ForwardingTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn unconfined(command: &[OsString]) -> Command {
    let (program, arguments) = command.split_first().map_or((OsString::new(), &[][..]), |(p, a)| (p.clone(), a));
    let mut direct = Command::new(program);
    direct.args(arguments);
    direct
}

/// Host and port of a URL.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let port = uri.port_u16().or_else(|| match uri.scheme_str()? {
        "https" => Some(443),
        "http" => Some(80),
        _ => None,
    });
    Some((uri.host()?.to_owned(), port?))
}

/// The user's `seks` program, if this user could overwrite it.
fn own_program() -> Option<PathBuf> {
    let program = fs::canonicalize(std::env::current_exe().ok()?).ok()?;
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    (writable(&program) || program.parent().is_some_and(writable)).then_some(program)
}

fn fixed_dirs<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    #[cfg(target_os = "linux")]
    return paths.flat_map(|path| landlock_rules::replaceable_links(path)).collect();
    #[cfg(not(target_os = "linux"))]
    paths.filter(|path| path.is_symlink()).filter_map(|path| path.parent()).map(Path::to_path_buf).collect()
}

/// Refuses files with a second name, which would not be hidden.
fn refuse_hard_links<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let inside = paths.flat_map(|path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.chain([path.clone()]).collect::<Vec<_>>()
    });
    for path in inside {
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_file() && found.nlink() > 1) {
            return Err(CliError::usage(
                path.display().to_string(),
                "the file has another name, which cannot be hidden",
            )
            .hint(format!("a copy has one name: cp -p '{0}' '{0}.new' && mv '{0}.new' '{0}'", path.display())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_urls_place_has_its_schemes_port() {
        assert_eq!(host_and_port("http://127.0.0.1:8300/api"), Some(("127.0.0.1".into(), 8300)));
        assert_eq!(host_and_port("https://proxy.example"), Some(("proxy.example".into(), 443)));
        assert_eq!(host_and_port("http://agent:seks_token@[::1]:1"), Some(("[::1]".into(), 1)));
        assert_eq!(host_and_port("nonsense"), None);
    }

    #[test]
    fn a_file_with_a_second_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kek"), "").unwrap();
        let all = [dir.path().to_path_buf()];
        assert_eq!(refuse_hard_links(all.iter()), Ok(()));
        fs::hard_link(dir.path().join("kek"), dir.path().join("copy")).unwrap();
        assert!(refuse_hard_links(all.iter()).unwrap_err().why.contains("another name"));
    }
}
