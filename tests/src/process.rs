//! Child processes: found beside the test, watched, and never left behind.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use crate::part;
pub use crate::wait::{PATIENCE, wait_for};

/// A binary of this workspace, in the target directory that the test itself was built into.
///
/// # Panics
/// When it has not been built.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().find(|dir| dir.join(name).is_file());
    profile.unwrap_or_else(|| panic!("`{name}` is not built: cargo build --workspace --bins")).join(name)
}

/// A program that the test needs: see [`part`].
///
/// # Panics
/// When it is missing. Such a test is ignored, so that somebody has asked for it all the same.
pub fn program(name: &str) -> PathBuf {
    part::find_program(name).unwrap_or_else(|| {
        panic!("needs {name}: neither on PATH nor in {}; tests/run installs what it can", part::variable(name))
    })
}

/// A file or directory below `.test-env`.
///
/// # Panics
/// When it is missing. Such a test is ignored, so that somebody has asked for it all the same.
pub fn installed(file: &str) -> PathBuf {
    let path = part::test_env().join(file);
    assert!(path.exists(), "needs .test-env/{file}: tests/sdk/install puts it there");
    path
}

/// A running child. Its output goes to files, so that a test can read it while it runs. Killed when
/// dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts a command; what it prints is appended to `NAME.out` and `NAME.err` in `dir`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn(name: &str, dir: &Path, command: &mut Command) -> Self {
        let sink = |end: &str| {
            let path = dir.join(format!("{name}.{end}"));
            (File::options().create(true).append(true).open(&path).unwrap(), path)
        };
        let ((out, stdout), (err, stderr)) = (sink("out"), sink("err"));
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { child, name: name.into(), stdout, stderr }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is still running.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// All that it has printed so far, standard output first.
    pub fn output(&self) -> String {
        let text = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        text(&self.stdout) + &text(&self.stderr)
    }

    /// What it has printed to standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, signal); // it may have ended meanwhile
        }
    }

    /// `SIGTERM`, then its exit status.
    ///
    /// # Panics
    /// When it doesn't end within [`PATIENCE`].
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let name = self.name.clone();
        wait_for(&format!("{name} to end on SIGTERM"), || self.child.try_wait().unwrap())
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// When it doesn't within [`PATIENCE`].
    pub fn ended(&mut self) -> ExitStatus {
        let name = self.name.clone();
        wait_for(&format!("{name} to end"), || self.child.try_wait().unwrap())
    }

    /// `SIGKILL`, as a crash would end it.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Waits until it has done something, and says what it printed when it ended instead.
    ///
    /// # Panics
    /// When it ends, or after [`PATIENCE`].
    pub fn wait_for<T>(&mut self, what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = poll() {
                return found;
            }
            let alive = self.is_alive();
            if !alive || start.elapsed() > PATIENCE {
                let state = if alive { "runs" } else { "ended" };
                panic!("{} {state} and {what} did not come:\n{}", self.name, self.output());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// As [`Self::wait_for`], for something that it prints to standard error.
    ///
    /// # Panics
    /// When it ends, or after [`PATIENCE`].
    pub fn wait_for_output<T>(&mut self, what: &str, find: impl Fn(String) -> Option<T>) -> T {
        let stderr = self.stderr.clone();
        self.wait_for(what, || find(String::from_utf8_lossy(&fs::read(&stderr).ok()?).into_owned()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a command that ran to its end has left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end, with `input` on its standard input.
///
/// # Panics
/// When it can't be started.
pub fn run(command: &mut Command, input: &[u8]) -> Finished {
    use std::io::Write as _;
    let name = Path::new(command.get_program()).file_name().map(OsStr::to_owned).unwrap_or_default();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", name.display()));
    // A command that never reads its input closes the pipe: not an error of this side.
    drop(child.stdin.take().unwrap().write_all(input));
    let done = child.wait_with_output().unwrap();
    Finished {
        code: done.status.code(),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}
