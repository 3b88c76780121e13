//! A node with two tenants: `default`, who is the victim, and `hostile`.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use seks_tests::{
    Sandbox, Upstream,
    process::Finished,
    raw::{Connection, Reply},
    sandbox::{Options, Token},
};

pub struct World {
    pub sandbox: Sandbox,
    /// Of the tenant `default`, for the service `model`.
    pub victim: Token,
    /// Of the tenant `hostile`, for its service `model`.
    pub hostile: Token,
    pub upstream: Upstream,
    /// The hostile tenant's: a stand-in records every byte, which takes time.
    _hostile_upstream: Upstream,
}

impl World {
    pub fn start(config: &str) -> Self {
        let sandbox = Sandbox::with(Options { config: config.into(), ..Options::default() });
        let upstream = Upstream::ok();
        let hostile_upstream = Upstream::ok();
        let cli = sandbox.cli();
        cli.json(&["tenant", "create", "hostile"]);
        let token = |tenant: &str, upstream: &Upstream| {
            cli.json(&["agent", "create", "agent", "--tenant", tenant]);
            service(&sandbox, tenant, "model", &upstream.origin());
            cli.issue("agent", &["model"], &["--tenant", tenant])
        };
        let (victim, hostile) = (token("default", &upstream), token("hostile", &hostile_upstream));
        Self { victim, hostile, upstream, _hostile_upstream: hostile_upstream, sandbox }
    }

    pub fn get(&self, token: &Token) -> Reply {
        self.sandbox.get("/api/model/v1/x", &token.secret)
    }

    /// Another token of a tenant's agent.
    pub fn token(&self, tenant: &str, services: &[&str]) -> Token {
        self.sandbox.cli().issue("agent", services, &["--tenant", tenant])
    }

    pub fn apply(&self, tenant: &str, cedar: &str) -> Finished {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), cedar).unwrap();
        self.sandbox.cli().run(&["policy", "apply", "--tenant", tenant, "-f", &file.path().display().to_string()], "")
    }

    /// A gauge or counter without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.sandbox.metrics_page();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no `{name}` in {page}"))
    }
}

/// A service that takes a bearer token, with a credential.
pub fn service(sandbox: &Sandbox, tenant: &str, name: &str, origin: &str) {
    let enable =
        ["service", "enable", "openai", "--as", name, "--upstream", origin, "--allow-private", "--tenant", tenant];
    sandbox.cli().json(&enable);
    let put = ["credential", "put", name, "--service", name, "--from-stdin", "--tenant", tenant];
    sandbox.cli().json_with(&put, "sk-not-a-real-key");
}

/// How long a phase lasts: `SEKS_ISOLATION_SECONDS`, for as long as the issue asks; short where it isn't set.
pub fn duration() -> Duration {
    let seconds = std::env::var("SEKS_ISOLATION_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// Threads that repeat something until they are dropped.
pub struct Repeating {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
    /// How often it was done.
    pub done: Arc<AtomicUsize>,
}

impl Repeating {
    pub fn start(count: usize, work: impl Fn(usize) + Send + Sync + 'static) -> Self {
        let (stop, work, done) = (Arc::new(AtomicBool::new(false)), Arc::new(work), Arc::new(AtomicUsize::new(0)));
        let threads = (0..count).map(|n| {
            let (stop, work, done) = (stop.clone(), work.clone(), done.clone());
            thread::spawn(move || {
                while !stop.load(SeqCst) {
                    work(n);
                    done.fetch_add(1, SeqCst);
                }
            })
        });
        Self { threads: threads.collect(), stop, done }
    }
}

impl Drop for Repeating {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// What a client that asks one request after the other sees.
#[derive(Debug, Default)]
pub struct Seen {
    pub latencies: Vec<Duration>,
    pub refused: Vec<(u16, String)>,
}

impl Seen {
    pub fn p99(&self) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort();
        sorted.get(sorted.len() * 99 / 100).copied().unwrap_or_default()
    }
}

/// Asks over one connection, again and again for `time`.
pub fn ask_for(time: Duration, proxy: SocketAddr, token: &str) -> Seen {
    let request = format!("GET /api/model/v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
    let (mut seen, begun) = (Seen::default(), Instant::now());
    let mut connection = Connection::open(proxy);
    while begun.elapsed() < time {
        let asked = Instant::now();
        connection.send(&request);
        let reply = connection.read_reply(false);
        seen.latencies.push(asked.elapsed());
        if reply.status != 200 {
            seen.refused.push((reply.status, reply.code()));
            connection = Connection::open(proxy);
        }
    }
    seen
}

/// A name server on loopback: `silent…` isn't answered, every other name is at 127.0.0.1.
pub struct NameServer {
    pub at: SocketAddr,
    pub asked: Arc<AtomicUsize>,
}

impl NameServer {
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (at, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = asked.clone();
        // Ends with the process: it blocks in the read.
        thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((len, from)) = socket.recv_from(&mut query) {
                counted.fetch_add(1, SeqCst);
                if let Some(answer) = answer(&query[..len]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { at, asked }
    }

    pub fn config(&self) -> String {
        format!("[upstream]\nname_servers = [\"{}\"]\n", self.at)
    }
}

/// RFC 1035 §4: one question, and one address record where one is asked for.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let name_end = 12 + query[12..].iter().position(|b| *b == 0)? + 1;
    if query[13..name_end].to_ascii_lowercase().starts_with(b"silent") {
        return None;
    }
    let is_ipv4 = query[name_end + 1] == 1;
    let counts = [0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0];
    let mut answer = [&query[..2], &[0x81, 0x80], &counts, &query[12..name_end + 4]].concat();
    if is_ipv4 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}
