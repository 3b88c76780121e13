//! Three etcd members, two replicas, six nodes in three regions: processes as an operator runs
//! them, and the wires between.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use seks_tests::{
    Forwarder, Upstream,
    etcd::Cluster,
    forwarder::Mode,
    plane::{self, Serving, put_log_aside, write_private},
    process::{self, PATIENCE, Process, binary, wait_for},
    raw, runtime,
    sandbox::{Cli, Token},
};
use serde_json::Value;
use tempfile::TempDir;

use super::hammer::Hammer;

pub const REPLICAS: usize = 2;
/// Region and round trip, two nodes each. The first of a region prefers the first replica, the
/// second the second.
const REGIONS: [(&str, u64); 3] = [("near", 20), ("mid", 80), ("far", 150)];
pub const NODES: usize = REGIONS.len() * 2;
/// The real credential, which agents never see.
const KEY: &str = "sk-real-fleet-9f3c-0001";

/// One control plane.
pub struct Replica {
    pub process: Process,
    pub cli: Cli,
    pub distribution: SocketAddr,
    /// To each etcd member.
    pub store: Vec<Forwarder>,
    directory: PathBuf,
}

/// One proxy node.
pub struct Node {
    pub process: Process,
    pub proxy: SocketAddr,
    pub metrics: SocketAddr,
    /// To each replica, in the order of preference.
    pub links: Vec<Forwarder>,
    directory: PathBuf,
}

/// All of it. Killed when dropped; a test that fails prints what the processes said.
pub struct Fleet {
    pub nodes: Vec<Node>,
    pub replicas: Vec<Replica>,
    pub etcd: Cluster,
    pub lease: Duration,
    _upstream: Upstream,
    directory: TempDir,
}

/// What `token revoke` has said, and when.
pub struct Revoked {
    pub answer: Value,
    /// The CLI had ended.
    pub at: Instant,
}

impl Fleet {
    /// Starts one with leases of this length.
    pub fn start(test: &str, lease: Duration) -> Self {
        Self::with(test, lease, &[])
    }

    /// As [`start`](Self::start), with further arguments for etcd.
    pub fn with(test: &str, lease: Duration, etcd: &[&str]) -> Self {
        let begun = Instant::now();
        let etcd = runtime().block_on(Cluster::start(etcd));
        let directory = tempfile::tempdir().unwrap();
        let upstream = Upstream::ok();
        let replicas: Vec<_> = (0..REPLICAS).map(|n| Replica::start(directory.path(), n, &etcd, lease)).collect();
        let cli = &replicas[0].cli;
        cli.json(&["tenant", "update", "default", "--private-network", "127.0.0.0/8"]);
        cli.enable("openai", "openai", &upstream);
        cli.put_credential("openai", "openai", KEY);
        cli.create_agent("bot");
        let mut nodes: Vec<_> = (0..NODES).map(|n| Node::start(directory.path(), n, &replicas)).collect();
        nodes.iter_mut().for_each(Node::serves);
        eprintln!(
            "{test}: {NODES} nodes, {REPLICAS} replicas, 3 etcd members up in {:.1} s; round trips of {} ms by forwarders on loopback",
            begun.elapsed().as_secs_f64(),
            REGIONS.map(|(_, rtt)| rtt.to_string()).join(", "),
        );
        Self { nodes, replicas, etcd, lease, _upstream: upstream, directory }
    }

    /// An agent at each node with this token.
    pub fn hammer(&self, token: &Token) -> Hammer {
        let addresses: Vec<_> = self.nodes.iter().map(|node| node.proxy).collect();
        Hammer::start(&addresses, "/api/openai/v1/models", &token.secret)
    }

    /// A new token that every node honours, and agents that use it.
    pub fn agents(&self) -> (Token, Hammer) {
        let token = self.replicas[0].cli.issue("bot", &["openai"], &[]);
        let hammer = self.hammer(&token);
        hammer.accepted_everywhere(Instant::now());
        (token, hammer)
    }

    /// `seks token revoke` at a replica, which must say "enforced".
    pub fn revoke(&self, replica: usize, token: &Token) -> Revoked {
        let answer = self.replicas[replica].cli.revoke(&token.id);
        let at = Instant::now();
        assert_eq!(answer["enforced"], true, "{answer}");
        let waited = Duration::from_millis(answer["waited_ms"].as_u64().unwrap());
        assert!(waited <= self.lease.mul_f64(1.2) + PATIENCE / 2, "{answer}");
        eprintln!("  enforced after {} ms: {}", answer["waited_ms"], summary(&answer));
        Revoked { answer, at }
    }

    /// Cuts or mends all links between a node and the replicas.
    pub fn link(&self, node: usize, mode: Mode) {
        self.nodes[node].links.iter().for_each(|link| link.set(mode));
    }

    /// `seks node list` at a replica, in the nodes' order.
    pub fn list(&self, replica: usize) -> Vec<Value> {
        let mut listed = self.replicas[replica].cli.json(&["node", "list"]).as_array().unwrap().clone();
        listed.sort_by_key(|node| node["id"].as_str().unwrap_or_default().to_owned());
        listed
    }

    /// Waits until both replicas serve, and every node serves.
    pub fn healthy(&mut self) {
        let ok = runtime().block_on(self.etcd.healthy());
        assert!(ok, "an etcd member has ended");
        self.nodes.iter_mut().for_each(Node::serves);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // What is frozen doesn't take a signal other than this.
        let frozen = self.nodes.iter().map(|n| &n.process).chain(self.replicas.iter().map(|r| &r.process));
        frozen.for_each(|process| process.signal(Signal::CONT));
        if std::thread::panicking() {
            for process in self.nodes.iter().map(|n| &n.process).chain(self.replicas.iter().map(|r| &r.process)) {
                let said = process.stderr();
                let news = |line: &&str| !line.contains("\"message\":\"request\"") && !line.contains("admin call");
                let tail: Vec<&str> = said.lines().rev().filter(news).take(25).collect();
                eprintln!("--- {process:?}");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        drop(fs::remove_dir_all(self.directory.path()));
    }
}

fn summary(answer: &Value) -> String {
    let nodes = answer["nodes"].as_array().cloned().unwrap_or_default();
    let each: Vec<String> = nodes.iter().map(|n| format!("{} {} {}", n["node"], n["state"], n["ms"])).collect();
    each.join(", ").replace('"', "")
}

impl Replica {
    fn start(base: &Path, n: usize, etcd: &Cluster, lease: Duration) -> Self {
        let directory = base.join(format!("replica-{n}"));
        fs::create_dir(&directory).unwrap();
        write_private(&directory.join("kek"), &"4b".repeat(32));
        // Each its own member first, then the next.
        let mut members = etcd.addresses();
        members.rotate_left(n);
        let wire = |address: SocketAddr| runtime().block_on(Forwarder::to(address));
        let store: Vec<_> = members.into_iter().map(wire).collect();
        configure(&directory, &store, n, lease, ["127.0.0.1:0", "127.0.0.1:0"]);
        if n == 0 {
            bootstrap(&directory, &base.join("operator"));
        }
        let mut process = spawn("seks-control-plane", &format!("replica-{n}"), &directory, &[]);
        let serving = Serving::wait(&mut process);
        let (admin, distribution) = (serving.at("admin"), serving.at("distribution"));
        // From now on everybody knows these.
        configure(&directory, &store, n, lease, [&admin, &distribution]);
        let context = directory.join("context.toml");
        write_private(&context, &plane::context(&admin, "../operator"));
        let cli = Cli::new(&directory, &context);
        Self { process, cli, distribution: distribution.parse().unwrap(), store, directory }
    }

    /// Starts it again. Returns when it serves.
    pub fn restart(&mut self) {
        self.process.kill();
        let name = self.directory.file_name().unwrap().to_str().unwrap().to_owned();
        self.process = spawn("seks-control-plane", &name, &self.directory, &[]);
        Serving::wait(&mut self.process);
    }

    /// Cuts or mends all links to etcd.
    pub fn link(&self, mode: Mode) {
        self.store.iter().for_each(|link| link.set(mode));
    }
}

impl Node {
    fn start(base: &Path, n: usize, replicas: &[Replica]) -> Self {
        let (region, round_trip) = REGIONS[n / 2];
        let directory = base.join(format!("node-{n}"));
        fs::create_dir(&directory).unwrap();
        let mut order: Vec<&Replica> = replicas.iter().collect();
        order.rotate_left(n % replicas.len());
        let enrolled = order[0].cli.json(&["node", "enroll", "--region", region]);
        write_private(&directory.join("join-token"), enrolled["join_token"].as_str().unwrap());
        let wire = |replica: &&Replica| {
            let link = runtime().block_on(Forwarder::to(replica.distribution));
            link.delay(Duration::from_millis(round_trip / 2));
            link
        };
        let links: Vec<_> = order.iter().map(wire).collect();
        let endpoints: Vec<_> = links.iter().map(|link| format!("\"https://{}\"", link.address())).collect();
        let config = format!(
            "[node]\nname = \"node-{n}\"\nregion = \"{region}\"\ndata_dir = \"identity\"\n[control]\nendpoints = [{}]\n\
             join_token_file = \"join-token\"\n[upstream]\nprivate_networks = [\"127.0.0.0/8\"]\n",
            endpoints.join(", ")
        );
        fs::write(directory.join("data-plane.toml"), config).unwrap();
        let free = ["--proxy-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
        let process = spawn("seks-data-plane", &format!("node-{n}"), &directory, &free);
        // Its ports are read when it serves: until then it enrols, at the same time as the others.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { process, proxy: nowhere, metrics: nowhere, links, directory }
    }

    /// Waits until it has a table and a lease.
    pub fn serves(&mut self) {
        if self.proxy.port() == 0 {
            let serving = Serving::wait(&mut self.process);
            (self.proxy, self.metrics) = (serving.at("proxy").parse().unwrap(), serving.at("metrics").parse().unwrap());
        }
        let metrics = self.metrics;
        self.process.wait_for("a table and a lease", || (page(metrics, "/readyz").0 == 200).then_some(()));
    }

    /// Starts it again on the same ports. Returns when it serves.
    pub fn restart(&mut self) {
        self.process.kill();
        let name = self.directory.file_name().unwrap().to_str().unwrap().to_owned();
        let (proxy, metrics) = (self.proxy.to_string(), self.metrics.to_string());
        let ports = ["--proxy-listen", &proxy, "--metrics-listen", &metrics];
        self.process = spawn("seks-data-plane", &name, &self.directory, &ports);
        Serving::wait(&mut self.process);
        self.serves();
    }

    /// Of each stream that it has had, whether it went on with deltas; the first has nothing to go
    /// on from.
    pub fn resumed(&self) -> Vec<bool> {
        let said = self.process.stderr();
        let lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let fields = lines.map(|line| line.get("fields").cloned().unwrap_or(line));
        let followed = fields.filter(|fields| fields["message"] == "following a control plane");
        followed.filter_map(|fields| fields["resumed"].as_bool()).collect()
    }

    /// When its lease ends, at the earliest: it may be extended meanwhile.
    pub fn lease_ends(&self) -> Instant {
        let asked = Instant::now();
        let (_, text) = page(self.metrics, "/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix("seks_lease_remaining_seconds "));
        asked + Duration::from_secs_f64(line.unwrap().parse().unwrap())
    }
}

/// Status and text of a page of a node's metrics listener; status 0 where nobody listens.
fn page(address: SocketAddr, path: &str) -> (u16, String) {
    if std::net::TcpStream::connect(address).is_err() {
        return (0, String::new());
    }
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let reply = raw::exchange(address, request);
    (reply.status, reply.text())
}

fn configure(directory: &Path, store: &[Forwarder], n: usize, lease: Duration, [admin, distribution]: [&str; 2]) {
    let endpoints: Vec<_> = store.iter().map(|wire| format!("\"http://{}\"", wire.address())).collect();
    let config = format!(
        "[store]\nkind = \"etcd\"\nendpoints = [{}]\nallow_plaintext = true\nrequest_timeout = \"1s\"\n\
         keep_alive = \"500ms\"\n[seal]\npath = \"kek\"\n[admin]\nlisten = \"{admin}\"\n[distribution]\n\
         listen = \"{distribution}\"\nlease = \"{}ms\"\n[telemetry]\nservice_instance = \"replica-{n}\"\n",
        endpoints.join(", "),
        lease.as_millis()
    );
    fs::write(directory.join("control-plane.toml"), config).unwrap();
}

fn bootstrap(directory: &Path, out: &Path) {
    let mut command = Command::new(binary("seks-control-plane"));
    command.current_dir(directory).args(["--config", "control-plane.toml", "bootstrap-operator", "--name", "root"]);
    command.arg("--out").arg(out).env_clear();
    let done = process::run(&mut command, b"");
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
}

/// Starts a plane.
fn spawn(program: &str, name: &str, directory: &Path, more: &[&str]) -> Process {
    let mut command = Command::new(binary(program));
    let config = format!("{}.toml", program.trim_start_matches("seks-"));
    command.current_dir(directory).env_clear().args(["--config", &config]).args(more);
    put_log_aside(directory, name);
    Process::spawn(name, directory, &mut command)
}

/// Waits until a replica lists every node, and those that it serves itself have applied everything.
pub fn caught_up(fleet: &Fleet, replica: usize) -> Vec<Value> {
    wait_for("every node to have applied everything", || {
        let listed = fleet.list(replica);
        let current = |node: &Value| node["lag"] == 0 && node["applied_revision"].as_u64() > Some(0);
        let served = |node: &&Value| node["connected"] == true;
        (listed.len() == NODES && listed.iter().filter(served).all(current)).then_some(listed)
    })
}
