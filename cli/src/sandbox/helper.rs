//! The process that becomes the confined command. `seks run` starts `seks` again with a hidden
//! argument. That process restricts itself and then executes the command, so that the command keeps
//! its process id and all restrictions.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{fs::MetadataExt as _, net::UnixStream, process::CommandExt as _},
    path::Path,
    process::{Command, ExitCode},
};

use rustix::thread::CapabilitySet;

use super::{landlock_rules, mounts, network, plan::Plan, seccomp};
use crate::{
    error::{CliError, Exit, plain_io},
    output,
};

/// The first argument of the helper. It is internal and not in `--help`.
pub(super) const EXEC: &str = "__sandbox-exec";
/// The first argument of a check whether namespaces work. Exit code 0 if they do.
pub(super) const PROBE: &str = "__sandbox-probe";

/// Runs the helper if the arguments request it. A successful [`EXEC`] does not return.
pub(crate) fn run_if_asked(args: &[OsString]) -> Option<ExitCode> {
    let first = args.get(1)?;
    if first == PROBE {
        let worked = mounts::probe(args.get(2).is_some_and(|mode| mode == "strict"));
        return Some(if worked.is_ok() { ExitCode::SUCCESS } else { Exit::Failed.into() });
    }
    if first != EXEC {
        return None;
    }
    let (plan, command) = (args.get(2)?, args.get(3..)?);
    Some(match confine(plan) {
        Ok(()) => execute(command),
        Err(error) => {
            let error = CliError::new(Exit::Failed, "sandbox", plain_io(&error));
            output::stderr(&error.hint("nothing was run; `--sandbox none` runs it without confinement").lines());
            Exit::Failed.into()
        }
    })
}

fn confine(plan: &OsString) -> io::Result<()> {
    let plan: Plan = serde_json::from_slice(plan.as_encoded_bytes())?;
    refuse_descriptors(&plan)?;
    let parent = plan.strict.then(|| UnixStream::connect(&plan.handover)).transpose()?;
    if plan.namespaces {
        mounts::enter_namespaces(plan.strict)?;
        mounts::apply(&plan)?;
    }
    if let Some(parent) = parent {
        network::hand_over(&parent, &network::listen(&plan.forwarded)?)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    drop_capabilities()?;
    landlock_rules::apply(&plan).map_err(io::Error::other)?;
    seccomp::apply()
}

/// Executes the command. Returns only when it cannot be started, with a shell's exit codes.
fn execute(command: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else { return Exit::Usage.into() };
    let error = Command::new(program).args(arguments).exec();
    output::notice(&format!("error: {}: {}", program.to_string_lossy(), plain_io(&error)));
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

/// Refuses open directories and SEKS's own files, which the command would inherit. A path relative
/// to such a directory leads below the mounts. Pipes, sockets, terminals and other files are
/// inherited as usual.
fn refuse_descriptors(plan: &Plan) -> io::Result<()> {
    let hidden = |m: &fs::Metadata| plan.hidden.iter().any(|path| is_in(path, m));
    let own = fs::canonicalize("/proc/self")?.join("fd");
    for entry in fs::read_dir(&own)?.flatten() {
        // The descriptor of this very loop is the directory that it reads.
        let (Ok(metadata), Ok(target)) = (fs::metadata(entry.path()), fs::read_link(entry.path())) else { continue };
        if target != own && (metadata.is_dir() || metadata.is_file() && hidden(&metadata)) {
            let name = entry.file_name();
            let why = format!("descriptor {} is open on {}", name.display(), target.display());
            return Err(io::Error::other(format!("{why}: start `seks run` with it closed ({}<&-)", name.display())));
        }
    }
    Ok(())
}

/// Whether the file is `path`, or is directly inside of it.
fn is_in(path: &Path, file: &fs::Metadata) -> bool {
    let same = |m: fs::Metadata| (m.dev(), m.ino()) == (file.dev(), file.ino());
    let beside = fs::read_dir(path).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
    fs::metadata(path).is_ok_and(same) || beside.into_iter().any(same)
}

/// Capabilities that root keeps: file ownership, other users, ports below 1024. Not kept: mounts,
/// tracing, devices, the kernel.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// A program that root executes gets the bounding set. Programs of other users get no capabilities.
fn drop_capabilities() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    rustix::thread::clear_ambient_capability_set()?;
    if sets.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(KEPT).iter() {
            if rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false) {
                rustix::thread::remove_capability_from_bounding_set(capability)?;
            }
        }
    }
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        *set &= KEPT;
    }
    Ok(rustix::thread::set_capabilities(None, sets)?)
}
