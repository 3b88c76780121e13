//! A real Prometheus that scrapes a test's planes every second.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use serde_json::Value;

use crate::{
    process::{Process, program, wait_for},
    raw,
};

/// A running Prometheus.
pub struct Prometheus {
    _process: Process,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts one in `directory`. `jobs` are names with the addresses that they scrape; `rules` is
    /// a file of alerts.
    ///
    /// # Panics
    /// When it doesn't come up, or when this machine has none.
    pub fn start(directory: &Path, jobs: &[(&str, Vec<SocketAddr>)], rules: &Path) -> Self {
        let mut config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{:?}]\nscrape_configs:\n",
            rules.display().to_string()
        );
        for (job, targets) in jobs {
            let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
            config += &format!("  - job_name: {job}\n    static_configs: [{{targets: {targets:?}}}]\n");
        }
        let file = directory.join("prometheus.yml");
        fs::write(&file, config).unwrap();
        // Between our finding a free port and its taking it another process may be faster.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut command = Command::new(program("prometheus"));
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("tsdb").display()));
        command.arg(format!("--web.listen-address={address}"));
        let mut process = Process::spawn("prometheus", directory, &mut command);
        process.wait_for("prometheus to be ready", || std::net::TcpStream::connect(address).ok().map(drop));
        wait_for("prometheus to be ready", || (get(address, "/-/ready").status == 200).then_some(()));
        Self { _process: process, address }
    }

    /// The result of an instant query.
    ///
    /// # Panics
    /// When the query is none.
    pub fn query(&self, query: &str) -> Vec<Value> {
        let escape = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => (byte as char).to_string(),
            byte => format!("%{byte:02X}"),
        };
        let escaped: String = query.bytes().map(escape).collect();
        let reply = get(self.address, &format!("/api/v1/query?query={escaped}"));
        let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_else(|e| panic!("{e}: {}", reply.text()));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// The names of the alerts that fire.
    pub fn firing(&self) -> Vec<String> {
        let alerts = self.query("ALERTS{alertstate=\"firing\"}");
        alerts.iter().filter_map(|alert| alert["metric"]["alertname"].as_str().map(str::to_owned)).collect()
    }
}

fn get(address: SocketAddr, path: &str) -> raw::Reply {
    raw::exchange(address, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
}
