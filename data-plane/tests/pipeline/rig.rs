//! A node that serves from a table which the test filled, between a raw client and a raw upstream.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use seks_data_plane::{
    Config, Node,
    table::{Change, Delta, Table, TokenRecord},
};
use seks_lease::BootInstant;
use seks_network::address::Networks;
use seks_policy::Policies;
use seks_proto::wire;
use seks_runtime::telemetry::Telemetry;
use seks_service::Service;
use seks_types::{
    secret::{Fields, Secret},
    token::FreshToken,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Every escaping of it differs from it.
pub const CREDENTIAL: &str = r#"sk-REAL-9f3c/A+b=Zq"7\Kx-DEADBEEF0123456789"#;
/// Longer than anything here should take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What an upstream saw: the bytes of each connection.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<Vec<u8>>>>);

impl Seen {
    pub fn connections(&self) -> Vec<String> {
        self.0.lock().iter().map(|b| String::from_utf8_lossy(b).into_owned()).collect()
    }

    pub fn text(&self) -> String {
        self.connections().concat()
    }

    /// Begins the record of a connection.
    pub fn open(&self) -> usize {
        let mut all = self.0.lock();
        all.push(Vec::new());
        all.len() - 1
    }

    pub fn record(&self, index: usize, bytes: &[u8]) {
        self.0.lock()[index].extend_from_slice(bytes);
    }

    /// Requests whose head arrived.
    pub fn requests(&self) -> usize {
        self.text().matches(" HTTP/1.1\r\n").count()
    }

    /// Waits until the upstream has seen `what`.
    pub async fn wait_for(&self, what: &str) {
        wait(&format!("{what:?} at the upstream"), || self.text().contains(what)).await;
    }
}

/// Waits for a condition, with a deadline.
pub async fn wait(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What an upstream does when it has a whole request: these bytes, and whether it then closes.
pub type Script = Arc<dyn Fn(&str) -> (Vec<u8>, bool) + Send + Sync>;

/// An upstream that reads whole requests and answers as the script says.
pub async fn upstream(script: impl Fn(&str) -> (Vec<u8>, bool) + Send + Sync + 'static) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, script): (Seen, Script) = (Seen::default(), Arc::new(script));
    let recorder = seen.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(answer(tcp, recorder.clone(), script.clone()));
        }
    });
    (address, seen)
}

async fn answer(mut tcp: TcpStream, seen: Seen, script: Script) {
    let index = seen.open();
    let mut buffer = Vec::new();
    let mut chunk = vec![0; 256 << 10]; // a large body is looked at often enough as it is;
    loop {
        while let Some(len) = whole(&buffer) {
            let request: Vec<u8> = buffer.drain(..len).collect();
            let (bytes, close) = script(&String::from_utf8_lossy(&request));
            if tcp.write_all(&bytes).await.is_err() || close {
                return;
            }
        }
        match tcp.read(&mut chunk).await {
            Ok(n) if n > 0 => {
                buffer.extend_from_slice(&chunk[..n]);
                seen.record(index, &chunk[..n]);
            }
            _ => return,
        }
    }
}

/// Answers 401 to whatever comes, before any body, and keeps the connection.
pub async fn upstream_that_answers_at_once() -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let recorder = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let index = recorder.open();
            let recorder = recorder.clone();
            tokio::spawn(async move {
                let mut chunk = [0; 4096];
                while let Ok(n) = tcp.read(&mut chunk).await {
                    if n == 0 {
                        return;
                    }
                    recorder.record(index, &chunk[..n]);
                    let answer = "HTTP/1.1 401 Unauthorized\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}";
                    let _ = tcp.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    (address, seen)
}

/// Length of the request at the beginning of `bytes`, if it is all there.
fn whole(bytes: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(bytes);
    let head = text.find("\r\n\r\n")? + 4;
    let field = |name: &str| {
        let lower = text[..head].to_ascii_lowercase();
        lower.lines().find_map(|l| l.strip_prefix(name).map(|v| v.trim().to_owned()))
    };
    if let Some(len) = field("content-length:") {
        let end = head + len.parse::<usize>().unwrap();
        return (bytes.len() >= end).then_some(end);
    }
    if field("transfer-encoding:").is_some() {
        let rest = &text[head..];
        return if rest.starts_with("0\r\n\r\n") {
            Some(head + 5)
        } else {
            rest.find("\r\n0\r\n\r\n").map(|at| head + at + 7)
        };
    }
    Some(head)
}

/// What the node's `/metrics` say.
pub async fn metrics(rig: &Rig) -> String {
    let mut tcp = TcpStream::connect(rig.node.metrics_addr()).await.unwrap();
    tcp.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.unwrap();
    text
}

pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// A node and what it serves from.
pub struct Rig {
    pub node: Node,
    pub token: FreshToken,
    pub other: FreshToken,
    pub expired: FreshToken,
}

pub const POLICY: &str = r#"permit (principal, action in [Seks::Action::"GET", Seks::Action::"HEAD", Seks::Action::"POST"], resource)
  when { context.path like "/v1/*" && context.token.services.contains(resource) };"#;
pub const NO_ADMIN: &str =
    r#"forbid (principal, action, resource) when { context.path like "/v1/admin/*" || context.path == "/v1/admin" };"#;

impl Rig {
    pub async fn start(upstream: SocketAddr) -> Self {
        Self::with(upstream, |_| {}, |_| {}).await
    }

    /// Starts a node; `service` may change the definition of `openai`, `config` the node's
    /// configuration.
    pub async fn with(
        upstream: SocketAddr,
        service: impl Fn(&mut wire::Service),
        config: impl Fn(&mut Config),
    ) -> Self {
        seks_runtime::install_crypto_provider();
        let table = Arc::new(Table::new().unwrap());
        let (token, other, expired) =
            (FreshToken::generate().unwrap(), FreshToken::generate().unwrap(), FreshToken::generate().unwrap());
        let mut changes = vec![tenant_policies(&[("reads-and-posts", POLICY), ("no-admin", NO_ADMIN)])];
        for name in ["openai", "github"] {
            let mut definition = definition(name, upstream);
            service(&mut definition);
            changes.push(Change::Service(Box::new(Service::try_from(&definition).unwrap())));
        }
        changes.push(credential("openai-key", "openai", CREDENTIAL, 1));
        changes.push(Change::Agent {
            tenant: name("default"),
            name: name("bot"),
            attributes: Default::default(),
            disabled: false,
        });
        changes.push(grant(&token, "tok-1", 0));
        changes.push(grant(&other, "tok-2", 0));
        changes.push(grant(&expired, "tok-3", 1));
        table.load("epoch", 1, changes).unwrap();
        table.lease().extend(BootInstant::now().plus(Duration::from_secs(3600)));
        let mut settings = Config::default();
        settings.upstream.private_networks = Networks::parse(&["127.0.0.0/8", "::1/128"]).unwrap();
        settings.proxy.listen = "127.0.0.1:0".parse().unwrap();
        settings.proxy.hosts = vec!["broker".into()];
        settings.telemetry.metrics_listen = Some("127.0.0.1:0".parse().unwrap());
        config(&mut settings);
        let node = Node::with_table(settings, Telemetry::disabled(), table).await.unwrap();
        Self { node, token, other, expired }
    }

    pub fn table(&self) -> &Arc<Table> {
        self.node.table()
    }

    /// Applies changes as the next revision.
    pub fn apply(&self, changes: Vec<Change>) {
        let previous = self.table().revision();
        let delta = Delta { epoch: "epoch".into(), previous, revision: previous + 1, changes, marks: Vec::new() };
        self.table().apply(delta).unwrap();
    }

    pub fn revoke(&self) {
        self.apply(vec![Change::RevokeToken {
            digest: self.token.digest(),
            id: "tok-1".into(),
            tenant: name("default"),
            agent: name("bot"),
            until: i64::MAX,
        }]);
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.node.proxy_addr()).await.unwrap()
    }

    /// Sends bytes on a fresh connection and reads until it closes, or until a whole answer is
    /// there. `{T1}` is the token.
    pub async fn send(&self, raw: &str) -> Reply {
        let mut tcp = self.connect().await;
        tcp.write_all(self.fill(raw).as_bytes()).await.unwrap();
        read_reply(&mut tcp, raw.starts_with("HEAD")).await
    }

    pub fn fill(&self, raw: &str) -> String {
        let token = self.token.as_str();
        raw.replace("{T1}", token)
            .replace("{T2}", self.other.as_str())
            .replace("{T_EXPIRED}", self.expired.as_str())
            .replace("{T1_MINUS_1}", &token[..token.len() - 1])
            .replace("{T1_TAIL}", &token[11..])
            .replace("{C}", CREDENTIAL)
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {{T1}}\r\n\r\n")).await
    }
}

/// What came back on a connection.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub text: String,
    /// The node closed it.
    pub closed: bool,
}

impl Reply {
    pub fn code(&self) -> String {
        let body = self.text.split_once("\r\n\r\n").map_or("", |(_, b)| b);
        let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        problem["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Reads one answer, and then looks for the end of the connection for a short while.
pub async fn read_reply(tcp: &mut TcpStream, head_only: bool) -> Reply {
    let (mut bytes, mut chunk, mut closed) = (Vec::new(), [0; 4096], false);
    loop {
        let enough = {
            let text = String::from_utf8_lossy(&bytes);
            let whole = (head_only && text.contains("\r\n\r\n")) || whole_answer(&bytes);
            whole && !text.starts_with("HTTP/1.1 1")
        };
        let wait = if enough { Duration::from_millis(100) } else { PATIENCE };
        match tokio::time::timeout(wait, tcp.read(&mut chunk)).await {
            Ok(Ok(n)) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            Ok(_) => {
                closed = true;
                break;
            }
            Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Reply { status, text, closed }
}

fn whole_answer(bytes: &[u8]) -> bool {
    !bytes.is_empty() && whole(bytes).is_some()
}

pub fn name<T: for<'a> TryFrom<&'a str, Error: std::fmt::Debug>>(text: &str) -> T {
    T::try_from(text).unwrap()
}

pub fn tenant_policies(policies: &[(&str, &str)]) -> Change {
    let policies: Vec<wire::Policy> = policies
        .iter()
        .map(|(id, text)| wire::Policy {
            tenant: "default".into(),
            id: (*id).into(),
            text: format!("@id(\"{id}\")\n{text}"),
            ..Default::default()
        })
        .collect();
    Change::Policies(name("default"), Some(Arc::new(Policies::compile(&policies).unwrap())))
}

pub fn definition(name: &str, upstream: SocketAddr) -> wire::Service {
    use wire::token_slot::At;
    let slot = |at| wire::TokenSlot { at: Some(at) };
    wire::Service {
        tenant: "default".into(),
        name: name.into(),
        upstream: format!("http://{upstream}"),
        base_path: "/v1".into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection {
            sites: vec![header_site("authorization", "Bearer {key}")],
            ..Default::default()
        }),
        slots: vec![
            slot(At::Scheme("Bearer".into())),
            slot(At::Header("x-api-key".into())),
            slot(At::Query("key".into())),
            slot(At::Basic(wire::token_slot::BasicPart::Either.into())),
        ],
        allow_private: true,
        private_networks: vec!["127.0.0.0/8".into(), "::1/128".into()],
        denied_paths: vec!["POST /v1/organization/api_keys".into()],
        ..Default::default()
    }
}

pub fn header_site(name: &str, value: &str) -> wire::injection::Site {
    use wire::injection::{NamedValue, Site, site::At};
    Site { at: Some(At::Header(NamedValue { name: name.into(), value: value.into() })) }
}

pub fn credential(name_: &str, service: &str, key: &str, version: u32) -> Change {
    let fields = Fields::parse(&["key"], &Secret::new(key.as_bytes().to_vec())).unwrap();
    Change::Credential {
        minted: false,
        tenant: name("default"),
        name: name(name_),
        service: name(service),
        version,
        destination: None,
        secret: Some(Secret::new(fields.encoded().expose().to_vec())),
    }
}

pub fn grant(token: &FreshToken, id: &str, expires_at: i64) -> Change {
    Change::Token(Box::new(TokenRecord {
        digest: token.digest(),
        id: id.into(),
        tenant: name("default"),
        agent: name("bot"),
        grants: vec![(name("openai"), name("openai-key"))],
        issued_at: 1,
        expires_at,
        cidrs: Vec::new(),
        certificate: None,
        trust: None,
    }))
}
