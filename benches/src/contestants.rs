//! Who is compared: the bare upstream, nginx swapping headers, SEKS with everything on.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use seks_cli::{client::Client, context::ContextSelector};
use seks_proto::wire;
use tokio::task::JoinSet;

use crate::sys;

/// Core of the proxy under test.
const TESTED_CORE: &str = "0";
/// Core of everything else.
const OTHER_CORE: &str = "1";
/// The real credential; public, for nothing accepts it.
const CREDENTIAL: &str = "sk-bench-0123456789abcdef0123456789abcdef0123456789ab";

/// A process that dies with the benchmark.
pub struct Part {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Part {
    /// Its processes.
    pub fn pids(&self) -> Vec<u32> {
        sys::family(self.child.id())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        for pid in self.pids().into_iter().rev() {
            drop(Command::new("kill").arg(pid.to_string()).status()); // nginx's worker outlives a killed master
        }
        drop(self.child.wait());
    }
}

/// Where requests go in the end.
pub struct Upstream {
    /// Its address.
    pub address: SocketAddr,
    /// Its answers are streams of events, which proxies must not hold back.
    pub streams: bool,
    /// The PEM root of its certificate, where it serves TLS.
    pub root: Option<PathBuf>,
}

impl Upstream {
    fn scheme(&self) -> &'static str {
        if self.root.is_some() { "https" } else { "http" }
    }
}

/// A way to the upstream.
pub struct Contestant {
    /// Its name in the table.
    pub name: &'static str,
    /// Path of its requests.
    pub path: &'static str,
    /// Where its requests go.
    pub address: SocketAddr,
    /// The process under test; the bare upstream has none.
    pub part: Option<Part>,
    /// Its own tokens, one a line; `None`: those of the first SEKS, which nginx has too.
    pub tokens: Option<PathBuf>,
    /// Where SEKS shows its metrics.
    pub metrics: Option<SocketAddr>,
}

impl Contestant {
    /// What SEKS has counted since it was started. `None`: it does not count syncs of audit
    /// records.
    #[must_use]
    pub fn audit_counts(&self) -> Option<AuditCounts> {
        let mut stream = TcpStream::connect(self.metrics?).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        let sum = |name: &str| {
            let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
            let values = page.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            values.reduce(|sum, value| sum + value)
        };
        Some(AuditCounts { requests: sum("seks_proxy_requests_total")?, syncs: sum("seks_audit_syncs_total")? })
    }
}

/// Counters of SEKS.
#[derive(Clone, Copy, Debug)]
pub struct AuditCounts {
    /// Requests.
    pub requests: f64,
    /// Syncs of the audit spool.
    pub syncs: f64,
}

fn pinned(core: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(program);
    command
}

/// Starts one of our own parts, which prints its address first.
pub fn own(arguments: &[&str]) -> Part {
    let mut command = pinned(OTHER_CORE, &std::env::current_exe().unwrap());
    let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().parse().unwrap();
    Part { child, address }
}

/// The load generator's command, pinned.
pub fn load_command() -> Command {
    let mut command = pinned(OTHER_CORE, &std::env::current_exe().unwrap());
    command.arg("load");
    command
}

/// The upstream itself.
pub fn direct(upstream: SocketAddr) -> Contestant {
    Contestant {
        name: "direct",
        path: "/v1/chat/completions",
        address: upstream,
        part: None,
        tokens: None,
        metrics: None,
    }
}

/// nginx with one worker: looks the agent's header up in a map of all tokens and puts the real one
/// in its place.
pub fn nginx(directory: &Path, program: &Path, upstream: &Upstream, tokens: &[String], log: bool) -> Contestant {
    let name = if log { "nginx, access log on" } else { "nginx, access log off" };
    let home = directory.join(if log { "nginx-log" } else { "nginx" });
    fs::create_dir_all(home.join("logs")).unwrap();
    // nginx can't say which port it was given: this one was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let map: String = tokens.iter().map(|t| format!("\"Bearer {t}\" \"Bearer {CREDENTIAL}\";\n")).collect();
    fs::write(home.join("tokens.map"), map).unwrap();
    let verify = upstream.root.as_ref().map_or(String::new(), |root| {
        format!(
            "proxy_ssl_verify on; proxy_ssl_trusted_certificate {}; proxy_ssl_name localhost; proxy_ssl_server_name on;\n",
            root.display()
        )
    });
    let buffering = if upstream.streams { "proxy_buffering off;\n" } else { "" };
    let (scheme, upstream) = (upstream.scheme(), upstream.address);
    let access_log = if log { "access_log logs/access.log combined;" } else { "access_log off;" };
    let config = format!(
        "worker_processes 1;\nerror_log logs/error.log;\npid logs/nginx.pid;\ndaemon off;\n{}\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         map_hash_max_size 65536; map_hash_bucket_size 256; keepalive_requests 100000000; {access_log}\n\
         client_body_temp_path logs; proxy_temp_path logs; fastcgi_temp_path logs; uwsgi_temp_path logs; scgi_temp_path logs;\n\
         map $http_authorization $credential {{ default \"\"; include tokens.map; }}\n\
         upstream api {{ server {upstream}; keepalive 512; keepalive_requests 100000000; }}\n\
         server {{ listen {address}; tcp_nodelay on;\n\
         location /api/openai/ {{\n\
         if ($credential = \"\") {{ return 401; }}\n\
         {verify}{buffering}\
         proxy_pass {scheme}://api/; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_set_header Authorization $credential; }} }}\n}}\n",
        if is_root() { "user root;\n" } else { "" }
    );
    fs::write(home.join("nginx.conf"), config).unwrap();
    let mut command = pinned(TESTED_CORE, program);
    let child = command.arg("-p").arg(&home).args(["-c", "nginx.conf"]).stderr(Stdio::null()).spawn().unwrap();
    let part = Part { child, address };
    wait("nginx", || TcpStream::connect(address).ok());
    Contestant { name, path: "/api/openai/v1/chat/completions", address, part: Some(part), tokens: None, metrics: None }
}

fn is_root() -> bool {
    fs::read_to_string("/proc/self/status").unwrap_or_default().lines().any(|l| l.starts_with("Uid:\t0"))
}

fn wait<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `seks dev`: control plane and node in one process, its one worker pinned; policy, audit spans to
/// `collector`, scrubbing and metrics are all on. `config` is its configuration file. Gives back
/// the tokens that it has issued.
pub fn seks(
    name: &'static str,
    directory: &Path,
    program: &Path,
    upstream: &Upstream,
    collector: SocketAddr,
    count: usize,
    config: &str,
) -> (Contestant, Vec<String>) {
    let directory = directory.join(name.replace(", ", "-"));
    fs::create_dir_all(&directory).unwrap();
    let mut command = pinned(TESTED_CORE, program);
    command.current_dir(&directory).args(["dev", "--data-dir", "seks", "--ready-file", "ready.json"]);
    for listener in ["--proxy-listen", "--admin-listen", "--metrics-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    if !config.is_empty() {
        fs::write(directory.join("seks.toml"), config).unwrap();
        command.args(["--config", "seks.toml"]);
    }
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}"));
    let log = fs::File::create(directory.join("seks.log")).unwrap();
    let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let mut part = Part { child, address: upstream.address };
    let ready: serde_json::Value =
        wait("seks dev", || serde_json::from_slice(&fs::read(directory.join("ready.json")).ok()?).ok());
    let proxy = ready["proxy"].as_str().unwrap().trim_start_matches("http://");
    part.address = proxy.parse().unwrap();
    let metrics = ready["metrics"].as_str().and_then(|url| url.trim_start_matches("http://").parse().ok());
    let context = directory.join(PathBuf::from(ready["context_file"].as_str().unwrap()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let tokens = runtime.block_on(seed_fixtures(context, upstream, count));
    let list = directory.join("tokens");
    fs::write(&list, tokens.join("\n")).unwrap();
    let (address, path) = (part.address, "/api/openai/v1/chat/completions");
    (Contestant { name, path, address, part: Some(part), tokens: Some(list), metrics }, tokens)
}

/// Enables the service, stores the credential, and issues the tokens, spread over a hundred agents.
async fn seed_fixtures(context: PathBuf, upstream: &Upstream, count: usize) -> Vec<String> {
    let choice = ContextSelector { file: Some(context), name: None };
    let client = Client::connect(&choice.load().unwrap(), None, Duration::from_secs(60)).await.unwrap();
    let (mut rpc, tenant) = (client.rpc(), client.tenant());
    let quota = wire::Quota { writes_per_second: 1_000_000, write_burst: 1_000_000, ..Default::default() };
    let quota = wire::SetTenantQuotaRequest { name: tenant.clone(), quota: Some(quota), reset: false };
    drop(rpc.set_tenant_quota(quota).await); // a `seks` of before has no limits, and doesn't know the method
    let service = wire::EnableServiceRequest {
        tenant: tenant.clone(),
        catalogue: "openai".into(),
        upstream: format!("{}://{}", upstream.scheme(), upstream.address),
        upstream_ca_pem: upstream.root.as_ref().map_or(String::new(), |root| fs::read_to_string(root).unwrap()),
        allow_private: true,
        ..Default::default()
    };
    rpc.enable_service(service).await.unwrap();
    let credential = wire::PutCredentialRequest {
        tenant: tenant.clone(),
        name: "openai".into(),
        service: "openai".into(),
        secret: CREDENTIAL.into(),
        ..Default::default()
    };
    rpc.put_credential(credential).await.unwrap();
    for n in 0..100 {
        let agent =
            wire::CreateAgentRequest { tenant: tenant.clone(), name: format!("agent-{n}"), ..Default::default() };
        rpc.create_agent(agent).await.unwrap();
    }
    let mut issuing = JoinSet::new();
    for worker in 0..16 {
        let (mut rpc, tenant) = (client.rpc(), tenant.clone());
        issuing.spawn(async move {
            let mut tokens = Vec::new();
            for n in (worker..count).step_by(16) {
                let last = n + 16 >= count; // whoever issues last waits until the node has them all
                let request = wire::IssueTokenRequest {
                    tenant: tenant.clone(),
                    agent: format!("agent-{}", n % 100),
                    grants: vec![wire::Grant { service: "openai".into(), ..Default::default() }],
                    wait: Some(wire::Wait { no_wait: !last, timeout_ms: 60_000 }),
                    ..Default::default()
                };
                tokens.push(rpc.issue_token(request).await.unwrap().into_inner().secret);
            }
            tokens
        });
    }
    issuing.join_all().await.into_iter().flatten().collect()
}
