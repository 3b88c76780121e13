//! A machine on which one user runs `seks dev` and `seks run`: a home, a project, and the ports and
//! sockets around them.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::UnixListener,
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use seks_tests::process::{Finished, Process, binary, run};
use serde_json::{Value, json};

/// What the quick start stores.
pub const KEY: &str = "sk-real-CANARY-host-0000000000000001";
/// `nobody`: the user that tests run as beside root.
const NOBODY: u32 = 65534;

/// The machine.
pub struct Host {
    directory: tempfile::TempDir,
    program: PathBuf,
    uid: Option<u32>,
    dev: Process,
    pub ready: Value,
    pub distribution: u16,
}

impl Host {
    /// With this process's own user.
    pub fn start() -> Self {
        Self::of(None)
    }

    /// With every kind of user that this process can be: itself, and without rights where it is
    /// root.
    pub fn each() -> Vec<Self> {
        let unprivileged = rustix::process::geteuid().is_root().then_some(NOBODY);
        std::iter::once(None).chain(unprivileged.map(Some)).map(Self::of).collect()
    }

    fn of(uid: Option<u32>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("bin/seks");
        for folder in ["home", "project", "bin"] {
            fs::create_dir(directory.path().join(folder)).unwrap();
        }
        // Copied by another process: a descriptor that is open for writing, in a child of another
        // test, would make it busy.
        if uid.is_some() || fs::hard_link(binary("seks"), &program).is_err() {
            let copied = run(Command::new("cp").arg(binary("seks")).arg(&program), b"");
            assert_eq!(copied.code, Some(0), "{copied:?}");
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if uid.is_some() {
            for path in ["", "home", "project", "bin", "bin/seks"] {
                chown(directory.path().join(path), uid, uid).unwrap();
            }
        }
        let mut dev = command(directory.path(), &program, uid);
        dev.args(["dev", "--ready-file", "../ready.json"]);
        for listener in ["--proxy-listen", "--admin-listen", "--metrics-listen"] {
            dev.args([listener, "127.0.0.1:0"]);
        }
        let mut dev = Process::spawn("dev", directory.path(), &mut dev);
        let file = directory.path().join("ready.json");
        let ready: Value = dev.wait_for("seks dev to be ready", || serde_json::from_slice(&fs::read(&file).ok()?).ok());
        let log = dev.output();
        let serving = log.lines().find(|line| line.contains("\"distribution\"")).unwrap();
        let serving: Value = serde_json::from_str(serving).unwrap();
        let distribution = port(serving["distribution"].as_str().unwrap());
        Self { directory, program, uid, dev, ready, distribution }
    }

    /// The quick start: a service, a key, an agent.
    pub fn quick_start(&self, upstream: &str) {
        fs::write(self.project().join("../key.txt"), KEY).unwrap();
        self.admin(&["service", "enable", "openai", "--upstream", upstream, "--allow-private"]);
        self.admin(&["credential", "put", "openai-main", "--service", "openai", "--from-file", "../key.txt"]);
        fs::remove_file(self.project().join("../key.txt")).unwrap();
        self.admin(&["agent", "create", "my-agent"]);
    }

    pub fn project(&self) -> PathBuf {
        self.directory.path().join("project")
    }

    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    pub fn data(&self) -> PathBuf {
        self.home().join(".local/state/seks/dev")
    }

    pub fn is_root(&self) -> bool {
        self.uid.is_none() && rustix::process::geteuid().is_root()
    }

    /// `seks ARGS…` in the project, as the user of this machine.
    pub fn seks(&self, arguments: &[&str]) -> Finished {
        run(command(self.directory.path(), &self.program, self.uid).args(arguments), b"")
    }

    /// The same under another program: `PROGRAM ARGS… seks …`.
    pub fn command(&self) -> Command {
        command(self.directory.path(), &self.program, self.uid)
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The same, which must succeed.
    pub fn admin(&self, arguments: &[&str]) -> Finished {
        let finished = self.seks(arguments);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        finished
    }

    /// `seks run --sandbox FORM -- COMMAND…`.
    pub fn confined(&self, form: &str, command: &[&str]) -> Finished {
        self.seks(&[&["run", "--sandbox", form, "--"], command].concat())
    }

    pub fn port_of(&self, listener: &str) -> u16 {
        port(self.ready[listener].as_str().unwrap())
    }

    /// The red team's script in the project, and what it is told.
    pub fn red_team(&self, strict: bool, outside: &Outside) -> PathBuf {
        let script = self.project().join("red_team.py");
        fs::write(&script, include_str!("red_team.py")).unwrap();
        let data = self.data();
        let kek = fs::read_to_string(data.join("kek")).unwrap();
        let directories = [self.home().join(".config/seks"), self.home().join(".local/state/seks"), data.clone()];
        let files = ["context.toml", "kek", "store.redb", "node/identity.json"].map(|name| data.join(name));
        let told = json!({
            "secrets": [kek.trim(), "PRIVATE KEY-----", "redb"], "files": files, "directories": directories,
            "search": [self.directory.path()], "broker": self.dev.id(), "strict": strict, "seks": self.program,
            "closed": [self.port_of("admin"), self.port_of("metrics"), self.distribution],
            "tcp": outside.tcp.local_addr().unwrap().port(), "udp": outside.udp.local_addr().unwrap().port(),
            "abstract": outside.name, "sockets": outside.paths, "planted": outside.planted,
        });
        fs::write(self.project().join("where.json"), told.to_string()).unwrap();
        script
    }
}

/// What listens on the machine and is none of SEKS's.
pub struct Outside {
    pub tcp: TcpListener,
    pub udp: UdpSocket,
    pub planted: String,
    name: String,
    /// A socket at its name, one that was renamed, and one that was linked, as OpenSSH's
    /// `ControlMaster`.
    paths: Vec<PathBuf>,
    _sockets: Vec<UnixListener>,
}

impl Outside {
    pub fn start(host: &Host) -> Self {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("seks-test-{}", host.project().display());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let at = |name: &str| fs::canonicalize(host.project().join("..")).unwrap().join(name);
        let mut sockets = vec![UnixListener::bind_addr(&address).unwrap()];
        sockets.extend(["session-bus", "before", "first"].map(|name| UnixListener::bind(at(name)).unwrap()));
        fs::rename(at("before"), at("renamed")).unwrap();
        fs::hard_link(at("first"), at("linked")).unwrap();
        let paths: Vec<_> = ["session-bus", "renamed", "first", "linked"].map(at).into();
        for path in &paths {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let context = fs::read_to_string(host.data().join("context.toml")).unwrap();
        let planted = context.replace(&format!("127.0.0.1:{}", host.port_of("admin")), "127.0.0.1:1");
        assert_ne!(planted, context);
        let planted = planted.replace("PRIVATE KEY", "PLANTED KEY"); // the search for the real one doesn't find it
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_nonblocking(true).unwrap();
        Self { tcp: TcpListener::bind("127.0.0.1:0").unwrap(), udp, planted, name, paths, _sockets: sockets }
    }
}

fn command(directory: &Path, program: &Path, uid: Option<u32>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory.join("project")).env_clear().env("HOME", directory.join("home"));
    // Not the machine's first `python3`, which may be in a home that `nobody` can't enter.
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("SEKS_TEST_LEAK", "1");
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command
}

fn port(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}
