//! Time and memory to load many tokens: at a replica when it starts, and at a node when it joins.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use seks_proto::wire::EnrollNodeRequest;

use super::{FleetUnderTest, nodes::until, replica::ReplicaHost};
use crate::sys;

/// How many.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Tokens
    #[arg(long, default_value_t = 1_000_000)]
    tokens: usize,
}

/// What one of the two has needed.
struct Needed {
    time: Duration,
    /// Resident memory, in KiB, a moment after.
    memory: u64,
}

pub(super) async fn run(fleet: &FleetUnderTest, args: Args) {
    let (empty_replica, empty_node) = measure(fleet, 0).await;
    let (replica, node) = measure(fleet, args.tokens).await;
    println!("| {} tokens | time | memory | empty | bytes a token |\n|---|---|---|---|---|", args.tokens);
    for (name, with, without) in
        [("replica, start to serving", replica, empty_replica), ("node, start to ready", node, empty_node)]
    {
        let each = with.memory.saturating_sub(without.memory) as f64 * 1024.0 / args.tokens as f64;
        let mib = |kib: u64| kib as f64 / 1024.0;
        println!(
            "| {name} | {:.2?} | {:.0} MiB | {:.0} MiB, {:.2?} | {each:.0} |",
            with.time,
            mib(with.memory),
            mib(without.memory),
            without.time
        );
    }
}

async fn measure(fleet: &FleetUnderTest, tokens: usize) -> (Needed, Needed) {
    let mut host = ReplicaHost::with_fixtures(&fleet.control_plane).await;
    host.fill(tokens).await;
    let replica = host.start().await;
    let for_replica = Needed { time: replica.started_in, memory: settled(replica.pid()).await };
    let mut client = host.client(replica.admin).await;
    let request = EnrollNodeRequest { region: "bench".into(), ..Default::default() };
    let join = client.enroll_node(request).await.unwrap().into_inner().join_token;
    let node = Process::start(&fleet.data_plane, &host.path("node"), &replica.nodes.to_string(), &join);
    let begun = Instant::now();
    until("the node is ready", || node.is_ready()).await;
    let time = begun.elapsed();
    (for_replica, Needed { time, memory: settled(node.0.id()).await })
}

/// Resident memory when the allocator has given back what was needed for a moment.
async fn settled(pid: u32) -> u64 {
    tokio::time::sleep(Duration::from_secs(3)).await;
    sys::rss_kib(pid)
}

/// A running `seks-data-plane`. Killed when dropped.
struct Process(Child, std::path::PathBuf);

impl Process {
    fn start(program: &Path, home: &Path, replica: &str, join: &str) -> Self {
        fs::create_dir(home).unwrap();
        fs::write(home.join("join-token"), join).unwrap();
        let config = format!(
            "[proxy]\nlisten = \"127.0.0.1:0\"\n[telemetry]\nmetrics_listen = \"127.0.0.1:0\"\n[node]\ndata_dir = \"id\"\n\
             [control]\nendpoints = [\"https://{replica}\"]\njoin_token_file = \"join-token\"\n"
        );
        fs::write(home.join("data-plane.toml"), config).unwrap();
        let log = home.join("log");
        let mut command = Command::new(program);
        command.current_dir(home).env_clear().args(["--config", "data-plane.toml"]).stdout(Stdio::null());
        let child = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        Self(child, log)
    }

    /// What `/readyz` says.
    fn is_ready(&self) -> bool {
        use std::io::{Read as _, Write as _};
        let text = fs::read_to_string(&self.1).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let Some(serving) = lines.find(|line| line["message"] == "serving") else { return false };
        let Ok(mut stream) = TcpStream::connect(serving["metrics"].as_str().unwrap()) else { return false };
        let mut answer = String::new();
        drop(stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
