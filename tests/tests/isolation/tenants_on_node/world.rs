//! A node with two tenants: `default`, who is the victim, and `hostile`.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use seks_tests::{
    Sandbox,
    process::Finished,
    raw::Reply,
    sandbox::{Options, Token},
};

use crate::discard::{Discard, Of};

pub struct World {
    pub sandbox: Sandbox,
    /// Of the tenant `default`, for the service `model`.
    pub victim: Token,
    /// Of the tenant `hostile`, for its service `model`.
    pub hostile: Token,
    /// Of `default`.
    pub upstream: Discard,
    /// Of `hostile`.
    pub hostile_upstream: Discard,
}

impl World {
    pub fn start(config: &str) -> Self {
        let sandbox = Sandbox::with(Options { config: config.into(), ..Options::default() });
        let (upstream, hostile_upstream) = (Discard::start(Of::Victim), Discard::start(Of::Attacker));
        let cli = sandbox.cli();
        cli.json(&["tenant", "create", "hostile"]);
        let token = |tenant: &str, upstream: &Discard| {
            cli.json(&["agent", "create", "agent", "--tenant", tenant]);
            service(&sandbox, tenant, "model", &upstream.origin());
            cli.issue("agent", &["model"], &["--tenant", tenant])
        };
        let (victim, hostile) = (token("default", &upstream), token("hostile", &hostile_upstream));
        Self { victim, hostile, upstream, hostile_upstream, sandbox }
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
