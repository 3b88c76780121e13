//! Landlock: files, TCP ports, signals and abstract sockets. It also prevents a command from
//! tracing processes outside of its domain, from reading their `/proc/PID`, and from changing
//! mounts.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use super::{mounts, plan::Plan};

/// The file rights that are handled. Rights of later kernels are not restricted.
const FILES: ABI = ABI::V5;

/// What this kernel's Landlock supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Landlock {
    /// Files (ABI 3, Linux 6.2: renames between directories and truncation included), processes and
    /// mounts.
    pub(super) files: bool,
    /// TCP ports (ABI 4, Linux 6.7).
    pub(super) ports: bool,
    /// Signals and abstract sockets (ABI 6, Linux 6.12).
    pub(super) scopes: bool,
}

impl Landlock {
    /// Checks the kernel.
    pub(super) fn probe() -> Self {
        let strict = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        Self {
            files: strict().handle_access(AccessFs::from_all(ABI::V3)).is_ok(),
            ports: strict().handle_access(AccessNet::ConnectTcp).is_ok(),
            scopes: strict().scope(Scope::Signal).is_ok(),
        }
    }
}

/// Restricts this thread permanently, as far as the kernel supports it.
///
/// # Errors
/// When a rule cannot be added. Nothing is restricted then.
pub(super) fn apply(plan: &Plan) -> Result<(), RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(FILES))?
        .scope(Scope::from_all(ABI::V6))?;
    if !plan.closed_ports.is_empty() {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    let mut created = ruleset.create()?;
    if !plan.closed_ports.is_empty() && Landlock::probe().ports {
        // Rules can only allow, so nearly 65,535 ports are added. It takes 0.07 s of system time
        // once for a command.
        for port in (1..=u16::MAX).filter(|port| !plan.closed_ports.contains(port)) {
            created = created.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
    }
    let files = AllowedFiles::from_plan(plan);
    let status = files.allow(created, Path::new("/"))?.restrict_self()?;
    debug_assert!(status.ruleset != RulesetStatus::NotEnforced || !Landlock::probe().files);
    Ok(())
}

/// The allowed files below `/`. Landlock's rules only add rights below a directory. A directory
/// with a protected entry therefore gets only the right to be listed, and each other existing entry
/// gets all rights.
struct AllowedFiles {
    /// Directories whose entries cannot be added, removed or renamed.
    fixed: BTreeSet<PathBuf>,
    /// Paths without any rights. Empty where mounts hide them.
    hidden: BTreeSet<PathBuf>,
    /// Paths that can only be read and executed.
    read_only: BTreeSet<PathBuf>,
}

impl AllowedFiles {
    fn from_plan(plan: &Plan) -> Self {
        let mut files =
            Self { fixed: plan.fixed.iter().cloned().collect(), hidden: BTreeSet::new(), read_only: BTreeSet::new() };
        if !plan.namespaces {
            files.hidden = plan.hidden.iter().cloned().collect();
            files.read_only = plan.read_only.iter().cloned().collect();
            let parents = files.hidden.iter().chain(&files.read_only).filter_map(|path| path.parent());
            files.fixed.extend(parents.map(Path::to_path_buf).collect::<Vec<_>>());
        }
        if rustix::process::geteuid().is_root() {
            // Root could make the kernel start a program by `core_pattern` or a control group's
            // `release_agent`.
            files.read_only.extend(["/proc".into(), "/sys".into()]);
            files.fixed.insert("/".into());
        }
        files
    }

    fn allow(&self, mut rules: RulesetCreated, path: &Path) -> Result<RulesetCreated, RulesetError> {
        if !self.fixed.iter().any(|fixed| fixed.starts_with(path)) {
            return add(rules, path, all_rights());
        }
        rules = add(rules, path, AccessFs::ReadDir.into())?;
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type());
            if self.hidden.contains(&path) || kind.is_ok_and(|kind| kind.is_symlink()) {
                continue;
            }
            if self.read_only.contains(&path) {
                rules = add(rules, &path, AccessFs::from_read(FILES) | AccessFs::IoctlDev)?;
            } else {
                rules = self.allow(rules, &path)?;
            }
        }
        Ok(rules)
    }
}

/// All rights except creating device files, so that the disk is no other way to the files.
fn all_rights() -> BitFlags<AccessFs> {
    AccessFs::from_all(FILES) & !(AccessFs::MakeBlock | AccessFs::MakeChar)
}

/// A missing path, or one that this user cannot open, needs no rule.
fn add(rules: RulesetCreated, path: &Path, rights: BitFlags<AccessFs>) -> Result<RulesetCreated, RulesetError> {
    let Ok(opened) = PathFd::new(path) else { return Ok(rules) };
    let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(FILES) };
    rules.add_rule(PathBeneath::new(opened, rights))
}

/// The directories with a symbolic link on the way to `path` that this user could replace.
pub(super) fn replaceable_links(path: &Path) -> Vec<PathBuf> {
    let links = path.ancestors().filter(|part| part.is_symlink()).filter_map(Path::parent);
    links.filter(|dir| mounts::is_writable(dir)).filter_map(|dir| fs::canonicalize(dir).ok()).collect()
}
