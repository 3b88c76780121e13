//! One control plane: its directory, its process, and what is in its store.

use std::{
    fs,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use prost::Message as _;
use seks_control_plane::{
    Config,
    config::{AdminConfig, DistributionConfig},
    seal::{SealConfig, Sealer},
    server::Components,
    store::{Key, Store, StoreConfig, Transaction, Write},
};
use seks_proto::wire::{self, admin_client::AdminClient};
use seks_types::{id::TenantName, token::Digest};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// Longest wait for a process.
const PATIENCE: Duration = Duration::from_secs(120);
/// Agents that the tokens are spread over.
const AGENTS: usize = 100;
/// The tenant of everything.
pub const TENANT: &str = "default";

/// Everything of a control plane that outlives its process: an embedded store on this machine's
/// disk, and the first operator.
pub struct ReplicaHost {
    program: PathBuf,
    directory: TempDir,
    /// What nodes keep. In memory where there is such a place: they write down once a second what
    /// they have seen, each to a disk of its own, and a thousand of those on this machine's one
    /// disk would be what is measured.
    nodes: TempDir,
    /// Where the operators' and the nodes' listeners are, once it has run.
    ports: [SocketAddr; 2],
}

/// A running `seks-control-plane`. Killed when dropped.
pub struct Replica {
    child: Child,
    /// Where operators reach it.
    pub admin: SocketAddr,
    /// Where nodes reach it.
    pub nodes: SocketAddr,
    /// From the start of the process to its listeners.
    pub started_in: Duration,
}

impl ReplicaHost {
    /// A new one, with a service, a credential and a hundred agents.
    pub async fn with_fixtures(program: &Path) -> Self {
        let host = Self::new(program);
        let foundation = host.open().await;
        let (registry, tenant) = (&foundation.registry, tenant());
        let service = wire::Service {
            tenant: TENANT.into(),
            name: "api".into(),
            upstream: "https://api.example.com".into(),
            fields: vec!["key".into()],
            injection: Some(injection()),
            slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("Bearer".into())) }],
            ..Default::default()
        };
        registry.apply_service(service, true).await.unwrap();
        let secret = seks_types::secret::Secret::new("sk-bench-0123456789abcdef".into());
        let (name, service, by) = ("main".parse().unwrap(), "api".parse().unwrap(), "root".parse().unwrap());
        registry.put_credential(&tenant, &name, &service, &secret, &[], &by).await.unwrap();
        for n in 0..AGENTS {
            registry.create_agent(&tenant, &format!("agent-{n}").parse().unwrap(), Default::default()).await.unwrap();
        }
        host
    }

    fn new(program: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Sealer::create_file(&directory.path().join("kek")).unwrap();
        let nodes = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let host =
            Self { program: program.into(), directory, nodes, ports: [SocketAddr::from(([127, 0, 0, 1], 0)); 2] };
        host.configure();
        let done = host.command().args(["bootstrap-operator", "--name", "root", "--out", "operator"]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        host
    }

    fn configure(&self) {
        let [admin, nodes] = self.ports;
        let text = format!(
            "[store]\npath = \"data/store\"\n[seal]\npath = \"kek\"\n[admin]\nlisten = \"{admin}\"\n[distribution]\n\
             listen = \"{nodes}\"\n"
        );
        fs::write(self.directory.path().join("control-plane.toml"), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(self.directory.path()).env_clear().args(["--config", "control-plane.toml"]);
        command
    }

    /// The same, for the library: while no process has it open.
    #[must_use]
    pub fn config(&self) -> Config {
        let path = |name: &str| self.directory.path().join(name);
        let [admin, nodes] = self.ports;
        Config {
            store: StoreConfig::embedded(path("data/store")),
            seal: SealConfig::file(path("kek")),
            admin: AdminConfig { listen: admin, ..AdminConfig::default() },
            distribution: DistributionConfig { listen: nodes, ..DistributionConfig::default() },
            ..Config::default()
        }
    }

    async fn open(&self) -> Components {
        Components::open(&self.config()).await.unwrap()
    }

    /// Writes `count` tokens straight into the store. They are what the registry would have
    /// written; their secrets are unknown.
    pub async fn fill(&self, count: usize) {
        let foundation = self.open().await;
        let numbers: Vec<usize> = (0..count).collect();
        let mut batches = numbers.chunks(100);
        loop {
            let commits = batches.by_ref().take(32).map(|batch| put(&*foundation.store, batch));
            if futures_util::future::join_all(commits).await.is_empty() {
                return;
            }
        }
    }

    /// Writes these tokens while no process has the store open, one a transaction.
    pub async fn write(&self, numbers: Range<usize>) {
        let foundation = self.open().await;
        let numbers: Vec<usize> = numbers.collect();
        futures_util::future::join_all(numbers.chunks(1).map(|one| put(&*foundation.store, one))).await;
    }

    /// Starts the process, on the ports of its last run. Returns when it serves.
    pub async fn start(&mut self) -> Replica {
        let log = self.directory.path().join("log");
        let (begun, sink) = (Instant::now(), fs::File::create(&log).unwrap());
        let child = self.command().stdout(Stdio::null()).stderr(sink).spawn().unwrap();
        let serving = loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            if let Some(line) = lines.find(|line| line["message"] == "serving") {
                break line;
            }
            assert!(begun.elapsed() < PATIENCE, "the control plane does not serve: {text}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let started_in = begun.elapsed();
        let port = |name: &str| serving[name].as_str().unwrap().parse().unwrap();
        self.ports = [port("admin"), port("distribution")];
        self.configure();
        Replica { child, admin: self.ports[0], nodes: self.ports[1], started_in }
    }

    /// A client that shows the operator's certificate.
    pub async fn client(&self, admin: SocketAddr) -> AdminClient<Channel> {
        let read = |name: &str| fs::read_to_string(self.directory.path().join("operator").join(name)).unwrap();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")))
            .identity(Identity::from_pem(read("operator.pem"), read("operator.key")));
        let endpoint = Endpoint::from_shared(format!("https://{admin}")).unwrap().tls_config(tls).unwrap();
        AdminClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(64 << 20)
    }

    /// A directory for what nodes keep.
    #[must_use]
    pub fn nodes(&self) -> &Path {
        self.nodes.path()
    }

    /// A directory for what else the benchmark needs.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Replica {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The tenant of everything.
#[must_use]
pub fn tenant() -> TenantName {
    TENANT.parse().unwrap()
}

fn injection() -> wire::Injection {
    let value = wire::injection::NamedValue { name: "authorization".into(), value: "Bearer {key}".into() };
    wire::Injection {
        sites: vec![wire::injection::Site { at: Some(wire::injection::site::At::Header(value)) }],
        ..Default::default()
    }
}

/// The write that issues token `n`.
#[must_use]
pub fn token(n: usize) -> Write {
    let id = format!("tok-{n:016x}");
    let token = wire::Token {
        id: id.clone(),
        tenant: TENANT.into(),
        agent: format!("agent-{}", n % AGENTS),
        grants: vec![wire::Grant { service: "api".into(), credential: "main".into() }],
        issued_at: 1_700_000_000,
        expires_at: 4_000_000_000,
        digest: Digest::of(&n.to_be_bytes()).0.to_vec(),
        issued_by: "root".into(),
        ..Default::default()
    };
    Write::Put(Key::Token(tenant(), id.parse().unwrap()), token.encode_to_vec().into())
}

async fn put(store: &dyn Store, batch: &[usize]) {
    let writes = batch.iter().map(|n| token(*n)).collect();
    store.commit(Transaction { writes, ..Transaction::default() }).await.unwrap();
}
