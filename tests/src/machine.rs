//! A machine of its own with a booted systemd: namespaces of this one, with an empty `/etc`, `/var`
//! and `/usr/local`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use tempfile::TempDir;

use crate::{
    part,
    process::{Finished, run, wait_for},
};

/// A booted machine. Everything in it ends when this is dropped.
pub struct Machine {
    /// `unshare`; its only child is process 1 of the machine.
    outer: Child,
    init: u32,
    cgroup: PathBuf,
    _directory: TempDir,
}

impl Machine {
    /// Boots a machine in which `hosts` are names of its loopback address, and `/mnt` is `shared`.
    ///
    /// # Panics
    /// When it doesn't boot. The part `systemd` ([`crate::part`]) says whether it can.
    pub fn boot(hosts: &[&str], shared: &Path) -> Self {
        static BOOTED: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(directory.path().join("root.hosts"), format!("127.0.0.1 {}\n", hosts.join(" "))).unwrap();
        std::os::unix::fs::symlink(shared, directory.path().join("root.shared")).unwrap();
        let cgroups = part::cgroup2().expect("a cgroup2 mount");
        let cgroup = cgroups.join(format!("seks-test-{}-{}", std::process::id(), BOOTED.fetch_add(1, Relaxed)));
        fs::create_dir(&cgroup).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/machine/boot");
        let mut command = Command::new("sh");
        command.arg("-c").arg(
            "echo $$ >\"$0/cgroup.procs\" && exec unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child \"$@\"",
        );
        command.arg(&cgroup).arg(&script).arg(&root).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let log = fs::File::create(directory.path().join("boot.log")).unwrap();
        let outer = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let mut machine = Self { init: 0, outer, cgroup, _directory: directory };
        machine.init =
            wait_for("process 1", || fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok());
        wait_for("a booted machine", || {
            let state = machine.output("systemctl is-system-running 2>&1 || true");
            // `degraded`: a unit of the distribution that doesn't suit a container has failed.
            ["running", "degraded"].contains(&state.trim()).then_some(())
        });
        machine
    }

    /// Runs a script of bash as root in the machine, with `-eu`.
    pub fn run(&self, script: &str) -> Finished {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup"]);
        command.args([
            "--root",
            "--wd",
            "env",
            "-i",
            "HOME=/root",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]);
        command.args(["TERM=dumb", "bash", "-euo", "pipefail", "-c", script]);
        run(&mut command, b"")
    }

    /// [`Machine::run`], which must succeed: what it printed to standard output.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn output(&self, script: &str) -> String {
        let done = self.run(script);
        assert_eq!(done.code, Some(0), "{script}\n{}\n{}", done.stdout, done.stderr);
        done.stdout
    }

    /// Waits until a script succeeds.
    pub fn until(&self, script: &str) {
        wait_for(script, || (self.run(script).code == Some(0)).then_some(()));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(init) = rustix::process::Pid::from_raw(self.init.cast_signed()) {
            let _ = rustix::process::kill_process(init, rustix::process::Signal::KILL);
        }
        let _ = self.outer.wait();
        remove_cgroups(&self.cgroup);
    }
}

fn remove_cgroups(path: &Path) {
    let inner = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    inner.filter(|path| path.is_dir()).for_each(|path| remove_cgroups(&path));
    let _ = fs::remove_dir(path);
}
