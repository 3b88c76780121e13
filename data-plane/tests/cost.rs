//! What a request allocates, counted and not timed.
//!
//! A node with a spool serves from a table in this process, on one thread, of which the allocations
//! are counted. The client and the upstream are other threads. The count of a debug build is nearly
//! that of a product. `benches/run` measures the product.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout, reason = "a test")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use seks_audit::seal::AuditKeyPair;
use seks_data_plane::{
    Config, Node,
    spool::Spool,
    table::{Change, Table, TokenRecord},
};
use seks_lease::BootInstant;
use seks_network::address::Networks;
use seks_policy::Policies;
use seks_proto::wire;
use seks_runtime::{
    alloc::{Allocator, Counting},
    telemetry::Telemetry,
};
use seks_service::Service;
use seks_types::{
    secret::{Fields, Secret},
    token::FreshToken,
};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: Counting<Allocator> = Counting::new();

/// Most allocations of a request and its answer, 0.7 more than was counted. Runs differ by less
/// than 0.1. The aim is 5.
const MOST_ALLOCATIONS: f64 = 20.5;
const WARM_UP: usize = 100;
const REQUESTS: usize = 200;
const BODY: usize = 1024;

/// A node on a thread of its own that is counted.
struct Served {
    runtime: Runtime,
    node: Node,
    token: FreshToken,
    _data: TempDir,
}

impl Served {
    fn start(upstream: SocketAddr) -> Self {
        seks_runtime::install_crypto_provider();
        let data = tempfile::tempdir().unwrap();
        let token = FreshToken::generate().unwrap();
        let table = table(upstream, &token);
        let mut config = Config::default();
        config.upstream.private_networks = Networks::parse(&["127.0.0.0/8"]).unwrap();
        config.proxy.listen = "127.0.0.1:0".parse().unwrap();
        config.telemetry.metrics_listen = Some("127.0.0.1:0".parse().unwrap());
        let spool = Spool::open(data.path(), &config.audit, false).unwrap();
        spool.use_key(AuditKeyPair::generate().unwrap().public().as_bytes()).unwrap();
        let mut runtime = Builder::new_multi_thread();
        let count = Counting::<Allocator>::count_this_thread;
        let runtime = runtime.worker_threads(1).enable_all().on_thread_start(count).build().unwrap();
        // Started by the runtime's thread, so that its listeners are that thread's.
        let starting = async { Node::with_spool(config, Telemetry::disabled(), table, spool).await };
        let node = runtime.block_on(runtime.spawn(starting)).unwrap().unwrap();
        Self { runtime, node, token, _data: data }
    }
}

fn name<T: for<'a> TryFrom<&'a str, Error: std::fmt::Debug>>(text: &str) -> T {
    T::try_from(text).unwrap()
}

fn table(upstream: SocketAddr, token: &FreshToken) -> Arc<Table> {
    let table = Arc::new(Table::new().unwrap());
    let policy = wire::Policy {
        tenant: "default".into(),
        id: "granted".into(),
        text:
            "@id(\"granted\")\npermit (principal, action, resource) when { context.token.services.contains(resource) };"
                .into(),
        ..Default::default()
    };
    let fields = Fields::parse(&["key"], &Secret::new(b"sk-cost-0123456789abcdef0123456789abcdef".to_vec())).unwrap();
    let changes = vec![
        Change::Policies(name("default"), Some(Arc::new(Policies::compile(&[policy]).unwrap()))),
        Change::Service(Box::new(Service::try_from(&service(upstream)).unwrap())),
        Change::Credential {
            minted: false,
            tenant: name("default"),
            name: name("key"),
            service: name("openai"),
            version: 1,
            destination: None,
            secret: Some(Secret::new(fields.encoded().expose().to_vec())),
        },
        Change::Agent { tenant: name("default"), name: name("bot"), attributes: Default::default(), disabled: false },
        Change::Token(Box::new(TokenRecord {
            digest: token.digest(),
            id: "tok-1".into(),
            tenant: name("default"),
            agent: name("bot"),
            grants: vec![(name("openai"), name("key"))],
            issued_at: 1,
            expires_at: i64::MAX / 2_000_000_000,
            cidrs: Vec::new(),
            certificate: None,
            trust: None,
        })),
    ];
    table.load("epoch", 1, changes).unwrap();
    table.lease().extend(BootInstant::now().plus(Duration::from_secs(3600)));
    table
}

fn service(upstream: SocketAddr) -> wire::Service {
    use wire::{injection, token_slot::At};
    let site = injection::NamedValue { name: "authorization".into(), value: "Bearer {key}".into() };
    let site = injection::Site { at: Some(injection::site::At::Header(site)) };
    let denied = ["POST /v1/organization/**", "* /v1/projects/*/api_keys/**", "* /v1/*/service_accounts/**"];
    wire::Service {
        tenant: "default".into(),
        name: "openai".into(),
        upstream: format!("http://{upstream}"),
        base_path: "/v1".into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection { sites: vec![site], ..Default::default() }),
        slots: vec![wire::TokenSlot { at: Some(At::Scheme("Bearer".into())) }],
        allow_private: true,
        private_networks: vec!["127.0.0.0/8".into()],
        denied_paths: denied.map(Into::into).into(),
        ..Default::default()
    }
}

/// Reads a head and a body of [`BODY`] bytes. `false` at the end of the connection.
fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    buffer.clear();
    let mut chunk = [0; 8192];
    loop {
        if let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n")
            && buffer.len() >= head + 4 + BODY
        {
            return true;
        }
        match stream.read(&mut chunk) {
            Ok(read @ 1..) => buffer.extend_from_slice(&chunk[..read]),
            _ => return false,
        }
    }
}

/// An upstream that answers each request with 1 KiB.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let body = json_body();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {BODY}\r\n\r\n");
    let answer = Arc::new([head.as_bytes(), &body].concat());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let mut buffer = Vec::new();
                while read_message(&mut stream, &mut buffer) && stream.write_all(&answer).is_ok() {}
            });
        }
    });
    address
}

fn json_body() -> Vec<u8> {
    let mut body: Vec<u8> =
        b"{\"choices\":[{\"content\":\"The quick brown fox jumps over the lazy dog. \"}]}".repeat(16);
    body.resize(BODY, b' ');
    body
}

/// Sends requests one after the other, on one connection.
struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    fn new(node: SocketAddr, token: &str) -> Self {
        let stream = TcpStream::connect(node).unwrap();
        stream.set_nodelay(true).unwrap();
        let head = format!(
            "POST /api/openai/v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nUser-Agent: cost\r\nAccept: */*\r\nContent-Length: {BODY}\r\n\r\n"
        );
        Self { stream, request: [head.as_bytes(), &json_body()].concat(), buffer: Vec::new() }
    }

    fn send(&mut self, requests: usize) {
        for _ in 0..requests {
            self.stream.write_all(&self.request).unwrap();
            assert!(read_message(&mut self.stream, &mut self.buffer), "{}", String::from_utf8_lossy(&self.buffer));
            assert!(self.buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&self.buffer));
        }
    }
}

#[test]
fn a_request_needs_no_more_allocations_than_before() {
    let served = Served::start(upstream());
    let mut client = Client::new(served.node.proxy_addr(), served.token.as_str());
    client.send(WARM_UP);
    let before = Counting::<Allocator>::allocations();
    client.send(REQUESTS);
    let each = (Counting::<Allocator>::allocations() - before) as f64 / REQUESTS as f64;
    println!("{each:.2} allocations a request");
    assert!(each <= MOST_ALLOCATIONS, "{each:.2} allocations a request, at most {MOST_ALLOCATIONS}");
    assert!(each > 1.0, "the serving thread is not counted");
    served.runtime.block_on(served.node.shutdown());
}
