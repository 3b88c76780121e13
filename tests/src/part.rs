//! What tests need that this repository doesn't build: programs, SDKs below `.test-env`, rights of
//! the user.
//!
//! The build script includes this file too. It sets `cfg(has = "NAME")` for each part of [`PARTS`]
//! that this machine has, and a test of a missing part is shown as ignored:
//! `#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]`. `tests/run` installs what can be
//! installed, and fails when a part is missing that `tests/may-be-missing` doesn't list.

use std::path::{Path, PathBuf};

use crate::host::Host;

/// Each part by its name, and how it is found.
pub const PARTS: &[(&str, Part)] = &[
    ("etcd", Part::Program),
    ("etcdctl", Part::Program),
    ("chromedriver", Part::Program),
    ("chromium", Part::Program),
    ("curl", Part::Program),
    ("gh", Part::Program),
    ("git", Part::Program),
    ("java", Part::Program),
    ("kubectl", Part::Program),
    ("node", Part::Program),
    ("npm", Part::Program),
    ("prometheus", Part::Program),
    ("promtool", Part::Program),
    ("python3", Part::Program),
    ("shellcheck", Part::Program),
    ("skopeo", Part::Program),
    ("script", Part::Program),
    ("terraform", Part::Program),
    ("wget", Part::Program),
    ("python-sdks", Part::Sdk { file: "python/bin/python", runs_on: None }),
    ("node-sdks", Part::Sdk { file: "node/node_modules", runs_on: Some("node") }),
    ("coding-agents", Part::Sdk { file: "agents/node_modules", runs_on: Some("node") }),
    ("python-agents", Part::Sdk { file: "python-agents/bin/python", runs_on: None }),
    ("java-sdks", Part::Sdk { file: "java/classes", runs_on: Some("java") }),
    ("aws-sdks", Part::Sdk { file: "aws/bin/moto_server", runs_on: None }),
    ("openbao", Part::Sdk { file: "openbao/bao", runs_on: None }),
    ("helm", Part::Sdk { file: "helm/schemas", runs_on: None }),
    ("go-client", Part::Sdk { file: "go/plain", runs_on: None }),
    ("go-sdk", Part::Sdk { file: "go/openai", runs_on: None }),
    ("root", Part::Condition(is_root)),
    ("mount", Part::Condition(may_mount)),
    ("ptrace", Part::Condition(may_read_other_processes)),
    ("namespaces", Part::Condition(may_unshare)),
    ("systemd", Part::Condition(may_boot_systemd)),
    ("host-name", Part::Condition(|| Host::of_this_machine().is_some())),
];

/// How a part is found.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// A program: see [`find_program`].
    Program,
    /// A file below `.test-env`, where `tests/sdk/install` puts it, and the program that it needs
    /// to run.
    Sdk {
        /// Path below `.test-env`.
        file: &'static str,
        /// Name of a program.
        runs_on: Option<&'static str>,
    },
    /// A right of this user, or a property of the machine.
    Condition(fn() -> bool),
}

impl Part {
    /// Whether this machine has it.
    pub fn is_here(self, name: &str) -> bool {
        match self {
            Self::Program => find_program(name).is_some(),
            Self::Sdk { file, runs_on } => {
                test_env().join(file).exists() && runs_on.is_none_or(|program| find_program(program).is_some())
            }
            Self::Condition(holds) => holds(),
        }
    }
}

/// A program on `PATH`, or the one that the variable `SEKS_NAME` names.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable(name)).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join(name))).find(|file| file.is_file())
}

/// The variable that names another program than the one on `PATH`.
pub fn variable(program: &str) -> String {
    format!("SEKS_{}", program.to_uppercase())
}

/// Where `tests/sdk/install` puts the SDKs.
pub fn test_env() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    root.join(".test-env")
}

fn is_root() -> bool {
    status_line("Uid:").is_some_and(|line| line.split_whitespace().nth(1) == Some("0"))
}

/// Whether a small file system can be mounted: tried in a mount namespace that ends with the
/// attempt.
fn may_mount() -> bool {
    succeeds("unshare", &["--mount", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/tmp"])
}

/// Whether user and mount namespaces can be created, and all further ones be forbidden in them.
fn may_unshare() -> bool {
    succeeds(
        "unshare",
        &["-Urm", "sh", "-c", "mount -t tmpfs tmpfs /mnt && echo 0 > /proc/sys/user/max_user_namespaces"],
    )
}

/// Whether this machine's systemd can be booted in namespaces: see `machine.rs`.
fn may_boot_systemd() -> bool {
    let program = Path::new("/usr/lib/systemd/systemd").exists();
    program && may_mount() && cgroup2().is_some_and(|path| std::fs::metadata(path.join("cgroup.procs")).is_ok())
}

/// Where a cgroup2 hierarchy is mounted.
pub fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let mut fields = mounts.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.find(|fields| fields.get(2) == Some(&"cgroup2")).and_then(|fields| fields.get(1).map(PathBuf::from))
}

/// `CAP_SYS_PTRACE`.
fn may_read_other_processes() -> bool {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    let effective = status_line("CapEff:");
    let bits = effective.and_then(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok());
    bits.is_some_and(|bits| bits & CAP_SYS_PTRACE != 0)
}

fn status_line(field: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find(|line| line.starts_with(field)).map(str::to_owned)
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    std::process::Command::new(program).args(arguments).output().is_ok_and(|done| done.status.success())
}
