//! Three real etcd members. What they tell each other goes through a wire of each, so that one can
//! be made slow.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{free_ports, http, launch};
use crate::{
    Forwarder,
    process::{PATIENCE, Process, program},
};

const MEMBERS: usize = 3;
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for a member to say how it is: one that is frozen, or has no leader, doesn't.
const ANSWER: Duration = Duration::from_secs(1);

/// The cluster. Killed, and its data removed, when dropped.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    directory: TempDir,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    process: Process,
    client: SocketAddr,
    arguments: Vec<String>,
    wire: Forwarder,
}

impl Cluster {
    /// Starts three members with further arguments.
    ///
    /// # Panics
    /// When they don't come up, or when this machine has no etcd.
    pub async fn start(arguments: &[&str]) -> Self {
        let binary = program("etcd");
        // Between our finding free ports and etcd's taking them another process may be faster.
        for _ in 0..5 {
            let mut cluster = Self::launch(binary.clone(), arguments).await;
            if cluster.healthy().await {
                return cluster;
            }
        }
        panic!("three members of etcd do not start")
    }

    async fn launch(binary: PathBuf, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (clients, peers) = (free_ports::<MEMBERS>(), free_ports::<MEMBERS>());
        let mut wires = Vec::new();
        for peer in peers {
            wires.push(Forwarder::to(peer).await);
        }
        let all: Vec<String> =
            wires.iter().enumerate().map(|(n, wire)| format!("etcd-{n}=http://{}", wire.address())).collect();
        let members = wires.into_iter().zip(clients).zip(peers).enumerate().map(|(n, ((wire, client), peer))| {
            let name = format!("etcd-{n}");
            let mut own = vec![
                format!("--name={name}"),
                format!("--listen-client-urls=http://{client}"),
                format!("--advertise-client-urls=http://{client}"),
                format!("--listen-peer-urls=http://{peer}"),
                format!("--initial-advertise-peer-urls=http://{}", wire.address()),
                format!("--initial-cluster={}", all.join(",")),
            ];
            own.extend(arguments.iter().map(|&argument| argument.to_owned()));
            let process = launch(&binary, &name, directory.path(), &own);
            Member { name, process, client, arguments: own, wire }
        });
        let members = members.collect();
        Self { binary, directory, members }
    }

    /// Where each member answers clients.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.client).collect()
    }

    /// `SIGKILL`.
    pub fn kill(&mut self, member: usize) {
        self.members[member].process.kill();
    }

    /// Starts a member again on the same data and ports. Returns at once.
    pub fn restart(&mut self, member: usize) {
        let Member { name, process, arguments, .. } = &mut self.members[member];
        *process = launch(&self.binary, name, self.directory.path(), arguments);
    }

    /// `SIGSTOP`: it stays there and says nothing.
    pub fn freeze(&self, member: usize) {
        self.members[member].process.signal(Signal::STOP);
    }

    /// `SIGCONT`.
    pub fn thaw(&self, member: usize) {
        self.members[member].process.signal(Signal::CONT);
    }

    /// What the others have to say to a member, and it to them, takes this long from now on.
    pub fn slow(&self, member: usize, delay: Duration) {
        self.members[member].wire.delay(delay);
    }

    /// The member that leads.
    ///
    /// # Panics
    /// When there is none within [`PATIENCE`].
    pub async fn leader(&self) -> usize {
        let begun = Instant::now();
        loop {
            for (n, member) in self.members.iter().enumerate() {
                let status = call(member.client, "maintenance/status", &json!({}), ANSWER).await.unwrap_or_default();
                let id = |value: &Value| value.as_str().filter(|id| *id != "0").map(str::to_owned);
                let (leader, own) = (id(&status["leader"]), id(&status["header"]["member_id"]));
                if leader.is_some() && leader == own {
                    return n;
                }
            }
            assert!(begun.elapsed() < PATIENCE, "etcd has no leader:\n{}", self.output());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One call of etcd's JSON interface on a member: `("kv/put", {"key": base64, …})`. Its answer
    /// may be an `error`.
    ///
    /// # Errors
    /// When the member doesn't answer.
    pub async fn call(&self, member: usize, method: &str, body: Value) -> std::io::Result<Value> {
        call(self.members[member].client, method, &body, PATIENCE).await
    }

    /// Waits until all members are up and have a leader; false when one ended instead.
    ///
    /// # Panics
    /// When they get neither within [`PATIENCE`].
    pub async fn healthy(&mut self) -> bool {
        let begun = Instant::now();
        for n in 0..self.members.len() {
            while !self.is_healthy(n).await {
                if !self.members[n].process.is_alive() {
                    return false;
                }
                assert!(begun.elapsed() < PATIENCE, "etcd does not get healthy:\n{}", self.output());
                tokio::time::sleep(LOOK).await;
            }
        }
        true
    }

    async fn is_healthy(&self, member: usize) -> bool {
        let asked = http(self.members[member].client, "GET", "/health", "");
        matches!(tokio::time::timeout(ANSWER, asked).await, Ok(Ok(answer)) if answer.contains("true"))
    }

    /// What the members have printed.
    #[must_use]
    pub fn output(&self) -> String {
        self.members.iter().map(|member| member.process.output()).collect()
    }
}

async fn call(address: SocketAddr, method: &str, body: &Value, limit: Duration) -> std::io::Result<Value> {
    let body = body.to_string();
    let path = format!("/v3/{method}");
    let answer = tokio::time::timeout(limit, http(address, "POST", &path, &body)).await??;
    Ok(serde_json::from_str(&answer).unwrap_or_default())
}
