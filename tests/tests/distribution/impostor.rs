//! A control plane with the right certificate that says what a test tells it to.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use seks_control_plane::{
    config::ListenerTlsConfig,
    server::{
        Components,
        listener::Listener,
        tls::{ClientCertificate, Source},
    },
};
use seks_proto::wire::{
    self, NodeMessage, ReplicaMessage, change::Change, distribution_server::DistributionServer,
    node_message::Message as FromNode, replica_message::Message as ToNode,
};
use seks_protocol::{SessionKey, credential_aad};
use seks_types::{
    secret::{Fields, Secret},
    token::Digest,
};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub const EPOCH: &str = "e1";

/// Hands every stream that a node begins to the test.
pub struct Impostor {
    pub address: SocketAddr,
    streams: mpsc::Receiver<Session>,
    stop: CancellationToken,
}

/// One stream, from the control plane's side.
pub struct Session {
    pub hello: wire::Hello,
    inbound: Streaming<NodeMessage>,
    outbox: mpsc::Sender<Result<ReplicaMessage, Status>>,
    key: Option<SessionKey>,
}

struct Service(mpsc::Sender<Session>);

#[tonic::async_trait]
impl wire::distribution_server::Distribution for Service {
    type SyncStream = ReceiverStream<Result<ReplicaMessage, Status>>;

    async fn sync(&self, request: Request<Streaming<NodeMessage>>) -> Result<Response<Self::SyncStream>, Status> {
        let mut inbound = request.into_inner();
        let (outbox, stream) = mpsc::channel(1024);
        let sessions = self.0.clone();
        tokio::spawn(async move {
            if let Ok(Some(NodeMessage { message: Some(FromNode::Hello(hello)) })) = inbound.message().await {
                let _ = sessions.send(Session { hello, inbound, outbox, key: None }).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Impostor {
    pub async fn start(foundation: &Components) -> Self {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, stop) = (listener.address(), CancellationToken::new());
        let source = Source::new(foundation.authority.clone(), ListenerTlsConfig::default(), Vec::new());
        let (tls, _presented) = source.server_config(ClientCertificate::Required).unwrap();
        let (sender, streams) = mpsc::channel(8);
        let router = tonic::transport::Server::builder().add_service(DistributionServer::new(Service(sender)));
        let (incoming, stopped) = (listener.accept(tls, stop.clone()), stop.clone().cancelled_owned());
        tokio::spawn(async move { router.serve_with_incoming_shutdown(incoming, stopped).await });
        Self { address, streams, stop }
    }

    /// The next stream that a node begins.
    pub async fn stream(&mut self) -> Session {
        timeout(Duration::from_secs(30), self.streams.recv()).await.expect("no node comes").unwrap()
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A snapshot that is right, until it is spoilt.
pub struct Snapshot {
    pub begin: wire::SnapshotBegin,
    pub chunks: Vec<wire::Chunk>,
    pub end: wire::SnapshotEnd,
}

impl Session {
    pub async fn welcome(&mut self, epoch: &str, resumed: bool) {
        let (key, session_enc, session_sealed) = SessionKey::offer(&self.hello.session_key).unwrap();
        self.key = Some(key);
        let (replica, epoch, lease_ttl_ms) = ("impostor".into(), epoch.into(), 10_000);
        let welcome =
            wire::Welcome { replica, epoch, session_enc, session_sealed, lease_ttl_ms, resumed, ..Default::default() };
        self.send(ToNode::Welcome(welcome)).await;
    }

    pub async fn send(&self, message: ToNode) {
        let _ = self.outbox.send(Ok(ReplicaMessage { message: Some(message) })).await;
    }

    pub async fn next(&mut self) -> Option<FromNode> {
        let next = timeout(Duration::from_secs(30), self.inbound.message()).await.expect("the node is silent");
        next.ok().flatten().and_then(|m| m.message)
    }

    /// The next message that isn't a Renew.
    pub async fn verdict(&mut self) -> Option<FromNode> {
        loop {
            match self.next().await {
                Some(FromNode::Renew(_)) => {}
                other => return other,
            }
        }
    }

    /// The nonce of the next Renew.
    pub async fn renewal(&mut self) -> u64 {
        loop {
            if let FromNode::Renew(renew) = self.next().await.unwrap() {
                return renew.nonce;
            }
        }
    }

    pub async fn grant(&mut self, revision: u64) {
        let nonce = self.renewal().await;
        self.grant_as(nonce, revision).await;
    }

    pub async fn grant_as(&self, nonce: u64, revision: u64) {
        let (epoch, ttl_left_ms) = (EPOCH.into(), 10_000);
        self.send(ToNode::Grant(wire::LeaseGrant { nonce, epoch, revision, ttl_left_ms, wall_ms: 0 })).await;
    }

    /// A snapshot of what every request needs, and of `tokens`, one record a chunk.
    pub fn snapshot(&self, revision: u64, tokens: &[u64]) -> Snapshot {
        let mut changes = vec![tenant(), agent(false), service(), self.credential(1, "sk-REAL")];
        changes.extend(tokens.iter().map(|n| token(*n)));
        let mut hash = Sha256::new();
        let encode = |(index, change): (usize, wire::Change)| {
            let changes = Bytes::from(wire::Changes { changes: vec![change] }.encode_to_vec());
            hash.update(&changes);
            wire::Chunk { index: index as u32, changes }
        };
        let chunks: Vec<_> = changes.into_iter().enumerate().map(encode).collect();
        let count = chunks.len() as u64;
        let begin = wire::SnapshotBegin { epoch: EPOCH.into(), revision, chunks: count as u32, count };
        Snapshot { begin, chunks, end: wire::SnapshotEnd { count, hash: hash.finalize().to_vec() } }
    }

    pub async fn load(&self, snapshot: Snapshot) {
        self.send(ToNode::SnapshotBegin(snapshot.begin)).await;
        for chunk in snapshot.chunks {
            self.send(ToNode::Chunk(chunk)).await;
        }
        self.send(ToNode::SnapshotEnd(snapshot.end)).await;
    }

    pub async fn delta(&self, previous: u64, revision: u64, changes: Vec<wire::Change>) {
        let changes = changes.iter().map(|c| Bytes::from(c.encode_to_vec())).collect();
        self.send(ToNode::Delta(wire::Delta { epoch: EPOCH.into(), previous, revision, changes })).await;
    }

    pub fn credential(&self, version: u32, key: &str) -> wire::Change {
        let fields = Fields::parse(&["key"], &Secret::new(key.into())).unwrap();
        let aad = credential_aad(EPOCH, "default", "main", version);
        let sealed = self.key.as_ref().unwrap().seal(&aad, fields.encoded()).unwrap();
        let (tenant, name, service) = ("default".into(), "main".into(), "api".into());
        change(Change::Credential(wire::TableCredential {
            tenant,
            name,
            service,
            version,
            sealed,
            ..Default::default()
        }))
    }
}

pub fn change(change: Change) -> wire::Change {
    wire::Change { change: Some(change) }
}

pub fn digest(n: u64) -> Digest {
    Digest::of(&n.to_be_bytes())
}

pub fn tenant() -> wire::Change {
    change(Change::Tenant(wire::TableTenant { name: "default".into() }))
}

pub fn agent(disabled: bool) -> wire::Change {
    let (tenant, name) = ("default".into(), "bot".into());
    change(Change::Agent(wire::TableAgent { tenant, name, attributes: Default::default(), disabled }))
}

pub fn service() -> wire::Change {
    let value = wire::injection::NamedValue { name: "authorization".into(), value: "Bearer {key}".into() };
    let at = Some(wire::injection::site::At::Header(value));
    let service = wire::Service {
        tenant: "default".into(),
        name: "api".into(),
        upstream: "https://api.example.com".into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection { sites: vec![wire::injection::Site { at }], ..Default::default() }),
        slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("Bearer".into())) }],
        ..Default::default()
    };
    change(Change::Service(wire::TableService { service: Some(service) }))
}

pub fn token(n: u64) -> wire::Change {
    change(Change::Token(wire::TableToken {
        digest: digest(n).0.to_vec().into(),
        id: format!("tok-{n}").into(),
        tenant: "default".into(),
        agent: "bot".into(),
        grants: vec![wire::TableGrant { service: "api".into(), credential: "main".into() }],
        ..Default::default()
    }))
}

pub fn revoke(n: u64) -> wire::Change {
    let token = wire::RevokedToken {
        digest: digest(n).0.to_vec(),
        id: format!("tok-{n}"),
        tenant: "default".into(),
        agent: "bot".into(),
        until: i64::MAX,
    };
    change(Change::Remove(wire::Remove { what: Some(wire::remove::What::Token(token)) }))
}
