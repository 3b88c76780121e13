//! A node that speaks the protocol by hand.

use std::time::Duration;

use seks_proto::wire::{
    self, NodeMessage, distribution_client::DistributionClient, node_message::Message as ToReplica,
    replica_message::Message as FromReplica,
};
use seks_protocol::{MESSAGE_BYTES, Recipient, features};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::replica::Replica;

pub struct Peer {
    outbox: mpsc::Sender<NodeMessage>,
    pub inbound: Streaming<wire::ReplicaMessage>,
}

pub fn hello(node: &str) -> wire::Hello {
    wire::Hello {
        protocol: 1,
        node: node.into(),
        region: "eu".into(),
        version: "test".into(),
        features: features::ALL.iter().map(|&f| f.into()).collect(),
        session_key: Recipient::generate().unwrap().public_key().to_vec(),
        ..Default::default()
    }
}

/// A connection with a small window, so that who doesn't read is noticed, as `pems` (certificate,
/// key) or as nobody.
pub async fn channel(replica: &Replica, pems: Option<(String, String)>) -> Channel {
    let ca = Certificate::from_pem(replica.foundation.authority.ca_pem());
    let mut tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("seks-control-plane");
    if let Some((certificate, key)) = pems {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(replica.endpoint()).unwrap().initial_stream_window_size(64 * 1024);
    endpoint.initial_connection_window_size(64 * 1024).tls_config(tls).unwrap().connect().await.unwrap()
}

impl Peer {
    /// Says `hello` as the node `name`.
    pub async fn say(replica: &Replica, name: &str, hello: wire::Hello) -> Result<Self, Status> {
        let (certificate, key, _) = replica.pems(name).await;
        Self::say_as(replica, (certificate, key), hello).await
    }

    /// Says `hello` with this certificate and key.
    pub async fn say_as(replica: &Replica, pems: (String, String), hello: wire::Hello) -> Result<Self, Status> {
        let channel = channel(replica, Some(pems)).await;
        let (outbox, messages) = mpsc::channel(64);
        outbox.send(NodeMessage { message: Some(ToReplica::Hello(hello)) }).await.unwrap();
        let mut client = DistributionClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        let inbound = client.sync(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Self { outbox, inbound })
    }

    /// A stream of the node `name` that begins with nothing, up to its Welcome.
    pub async fn welcome(replica: &Replica, name: &str) -> Self {
        let mut peer = Self::say(replica, name, hello(name)).await.unwrap();
        assert!(matches!(peer.next().await, Ok(FromReplica::Welcome(_))));
        peer
    }

    /// As [`welcome`](Self::welcome), with the snapshot read to its end, whose revision is
    /// returned.
    pub async fn loaded(replica: &Replica, name: &str) -> (Self, u64) {
        let mut peer = Self::welcome(replica, name).await;
        let revision = peer.load().await;
        (peer, revision)
    }

    /// Reads a snapshot to its end; returns its revision.
    pub async fn load(&mut self) -> u64 {
        let mut revision = 0;
        loop {
            match self.next().await.unwrap() {
                FromReplica::SnapshotBegin(begin) => revision = begin.revision,
                FromReplica::Delta(delta) => revision = delta.revision,
                FromReplica::SnapshotEnd(_) => return revision,
                _ => {}
            }
        }
    }

    /// Reads until the revision `revision` is here, and acknowledges it.
    pub async fn load_to(&mut self, revision: u64) {
        let mut loaded = 0;
        while loaded < revision {
            loaded = match self.next().await.unwrap() {
                FromReplica::SnapshotBegin(begin) => begin.revision.max(loaded),
                FromReplica::Delta(delta) => delta.revision,
                FromReplica::Deltas(deltas) => deltas.deltas.last().map_or(loaded, |delta| delta.revision),
                _ => loaded,
            };
        }
        self.ack(revision).await;
    }

    pub async fn send(&self, message: ToReplica) {
        // The stream may be over: then the replica says why.
        let _ = self.outbox.send(NodeMessage { message: Some(message) }).await;
    }

    pub async fn ack(&self, revision: u64) {
        self.send(ToReplica::Ack(wire::Ack { revision, ..Default::default() })).await;
    }

    /// The next message, or how the stream ended.
    pub async fn next(&mut self) -> Result<FromReplica, Status> {
        let next = timeout(Duration::from_secs(30), self.inbound.message()).await.expect("the replica is silent");
        next?.and_then(|m| m.message).ok_or_else(|| Status::ok("closed"))
    }

    /// How the stream ends; what comes before doesn't matter.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    /// A lease: how much of it is left, and the revision that it is for.
    pub async fn lease(&mut self) -> wire::LeaseGrant {
        self.send(ToReplica::Renew(wire::Renew { nonce: 7, ..Default::default() })).await;
        loop {
            if let FromReplica::Grant(grant) = self.next().await.unwrap() {
                return grant;
            }
        }
    }
}
