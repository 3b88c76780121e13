//! A real etcd process on free ports, with a data directory of its own; or a [`Cluster`] of them.

pub mod cluster;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

pub use self::cluster::Cluster;
use crate::process::{Process, program};

/// A running etcd. Killed, and its data removed, when dropped.
#[derive(Debug)]
pub struct Etcd {
    binary: PathBuf,
    directory: TempDir,
    process: Process,
    client: SocketAddr,
    tls: Option<SocketAddr>,
    arguments: Vec<String>,
}

impl Etcd {
    /// Starts one.
    ///
    /// # Panics
    /// When it doesn't come up, or when this machine has none.
    pub async fn start() -> Self {
        Self::with(None, &[]).await
    }

    /// Starts one with further arguments and, beside the plain listener (which the test itself
    /// needs), one with TLS.
    ///
    /// # Panics
    /// When it doesn't come up, or when this machine has none.
    pub async fn with(tls: Option<&Tls>, arguments: &[&str]) -> Self {
        let binary = program("etcd");
        let mut arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        if let Some(tls) = tls {
            arguments.extend(tls.arguments());
        }
        // Between our finding a free port and etcd's taking it another process may be faster.
        for _ in 0..5 {
            let [client, peer, secure] = free_ports();
            let directory = tempfile::tempdir().unwrap();
            let secure = tls.map(|_| secure);
            let mut all = listeners(client, peer, secure);
            all.extend(arguments.iter().cloned());
            let process = launch(&binary, "etcd", directory.path(), &all);
            let mut etcd = Self { binary: binary.clone(), directory, process, client, tls: secure, arguments: all };
            if etcd.healthy().await {
                return etcd;
            }
        }
        panic!("etcd does not start");
    }

    /// `host:port` of the plain listener.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.client
    }

    /// URL of the plain listener.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// URL of the listener with TLS.
    ///
    /// # Panics
    /// When it was started without.
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("https://{}", self.tls.unwrap())
    }

    /// `SIGKILL`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same data and ports.
    ///
    /// # Panics
    /// When it doesn't come up.
    pub async fn restart(&mut self) {
        self.process = launch(&self.binary, "etcd", self.directory.path(), &self.arguments);
        assert!(self.healthy().await, "etcd does not start again:\n{}", self.process.output());
    }

    /// A copy of its data, while it is down.
    ///
    /// # Panics
    /// When it can't be copied.
    #[must_use]
    pub fn copy_data(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_tree(&self.data(), &copy.path().join("data"));
        copy
    }

    /// Replaces its data by such a copy, while it is down.
    ///
    /// # Panics
    /// When it can't be replaced.
    pub fn put_back(&self, copy: &TempDir) {
        let data = self.data();
        std::fs::remove_dir_all(&data).unwrap();
        copy_tree(&copy.path().join("data"), &data);
    }

    fn data(&self) -> PathBuf {
        data(self.directory.path(), "etcd")
    }

    /// `SIGSTOP`: it stays there and says nothing.
    pub fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    /// `SIGCONT`.
    pub fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }

    /// One call of etcd's JSON interface, unauthenticated: `("kv/put", {"key": base64, …})`.
    ///
    /// # Panics
    /// When it fails.
    pub async fn call(&self, method: &str, body: serde_json::Value) -> serde_json::Value {
        let answer = http(self.client, "POST", &format!("/v3/{method}"), &body.to_string()).await.unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert!(parsed.get("error").is_none(), "{method}: {answer}");
        parsed
    }

    /// Compacts history up to `revision`.
    pub async fn compact(&self, revision: u64) {
        self.call("kv/compaction", serde_json::json!({"revision": revision, "physical": true})).await;
    }

    /// Up, and with a leader; false when it ended.
    async fn healthy(&mut self) -> bool {
        let began = std::time::Instant::now();
        while self.process.is_alive() {
            assert!(
                began.elapsed() < crate::process::PATIENCE,
                "etcd does not get healthy:\n{}",
                self.process.output()
            );
            if http(self.client, "GET", "/health", "").await.is_ok_and(|answer| answer.contains("true")) {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        false
    }
}

/// Where a member keeps its data.
fn data(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}-data"))
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// PEM files for a listener that asks for client certificates.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Roots of clients.
    pub ca: PathBuf,
    /// Its certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Tls {
    fn arguments(&self) -> Vec<String> {
        let path = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        vec![
            path("trusted-ca-file", &self.ca),
            path("cert-file", &self.cert),
            path("key-file", &self.key),
            "--client-cert-auth".into(),
        ]
    }
}

fn launch(binary: &Path, name: &str, directory: &Path, arguments: &[String]) -> Process {
    let mut command = Command::new(binary);
    command.arg("--data-dir").arg(data(directory, name)).args(arguments).arg("--unsafe-no-fsync");
    command.env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH);
    Process::spawn(name, directory, &mut command)
}

fn listeners(client: SocketAddr, peer: SocketAddr, tls: Option<SocketAddr>) -> Vec<String> {
    let clients = tls.map_or_else(|| format!("http://{client}"), |tls| format!("http://{client},https://{tls}"));
    vec![
        "--name=n1".into(),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls=http://{peer}"),
        format!("--initial-advertise-peer-urls=http://{peer}"),
        format!("--initial-cluster=n1=http://{peer}"),
    ]
}

/// Ports that were free a moment ago, all at once, so that they differ.
fn free_ports<const N: usize>() -> [SocketAddr; N] {
    let listeners: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    std::array::from_fn(|n| listeners[n].local_addr().unwrap())
}

async fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
