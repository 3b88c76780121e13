//! gRPC through the node: a real tonic client and server, bidirectional, with trailers; the service
//! is found by host.

use std::{net::SocketAddr, pin::Pin};

use seks_proto::wire::{
    self, Ack, Fence, NodeMessage, ReplicaMessage,
    distribution_client::DistributionClient,
    distribution_server::{Distribution, DistributionServer},
    node_message, replica_message,
};
use tokio::sync::mpsc;
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Server},
};

use crate::rig::{CREDENTIAL, PATIENCE, Rig};

/// Any service that streams both ways will do: this one answers every `Ack` at once, and ends as
/// the last one says.
struct Echo {
    authorizations: mpsc::UnboundedSender<String>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<ReplicaMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Distribution for Echo {
    type SyncStream = Answers;

    async fn sync(&self, request: Request<Streaming<NodeMessage>>) -> Result<Response<Answers>, Status> {
        let header = request.metadata().get("authorization").map(|v| v.to_str().unwrap().to_owned());
        self.authorizations.send(header.unwrap_or_default()).unwrap();
        let said = request.into_inner().map(|message| {
            let Some(node_message::Message::Ack(Ack { revision, .. })) = message?.message else {
                return Err(Status::invalid_argument("not an Ack"));
            };
            if revision == 0 {
                let mut ended = Status::failed_precondition(format!("it ends, says {CREDENTIAL}"));
                ended.metadata_mut().insert("x-trailer", MetadataValue::from_static("kept"));
                return Err(ended);
            }
            let fence = Fence { epoch: revision.to_string(), reason: format!("echo of {CREDENTIAL}"), revision: 0 };
            Ok(ReplicaMessage { message: Some(replica_message::Message::Fence(fence)) })
        });
        Ok(Response::new(Box::pin(said)))
    }
}

async fn server() -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    let service = DistributionServer::new(Echo { authorizations: sender });
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    (address, receiver)
}

async fn rig(upstream: SocketAddr) -> Rig {
    let service = |service: &mut wire::Service| {
        service.http2 = true;
        service.base_path = String::new();
    };
    let rig = Rig::with(upstream, service, |c| c.proxy.host_suffix = Some("broker.example".into())).await;
    let permit = r#"permit (principal, action == Seks::Action::"POST", resource) when { context.path like "/seks.v1.Distribution/*" };"#;
    rig.apply(vec![crate::rig::tenant_policies(&[("streams", permit)])]);
    rig
}

/// A channel to the node that names a host.
async fn channel(rig: &Rig, host: &str) -> Channel {
    let node = format!("http://{}", rig.node.proxy_addr());
    let endpoint = Endpoint::from_shared(node).unwrap().origin(format!("http://{host}").parse().unwrap());
    endpoint.connect().await.unwrap()
}

fn call<T: Stream<Item = NodeMessage>>(token: &str, acks: T) -> Request<T> {
    let mut request = Request::new(acks);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn ack(revision: u64) -> NodeMessage {
    NodeMessage { message: Some(node_message::Message::Ack(Ack { revision, ..Ack::default() })) }
}

fn epoch(message: &ReplicaMessage) -> String {
    let Some(replica_message::Message::Fence(fence)) = &message.message else { panic!("{message:?}") };
    assert_eq!(fence.reason, format!("echo of {}", "*".repeat(CREDENTIAL.len())), "scrubbed");
    fence.epoch.clone()
}

#[tokio::test]
async fn a_stream_goes_both_ways_and_ends_with_its_trailers() {
    let (address, mut authorizations) = server().await;
    let rig = rig(address).await;
    let mut client = DistributionClient::new(channel(&rig, "openai.broker.example").await);
    let (say, said) = mpsc::channel(1);
    let mut answers = client.sync(call(rig.token.as_str(), ReceiverStream::new(said))).await.unwrap().into_inner();
    assert_eq!(authorizations.recv().await.unwrap(), format!("Bearer {CREDENTIAL}"));
    for turn in 1..=5 {
        // Each is answered before the next one is said: neither way waits for the other's end.
        say.send(ack(turn)).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await.expect("an answer in time").unwrap();
        assert_eq!(epoch(&answer.unwrap()), turn.to_string());
    }
    say.send(ack(0)).await.unwrap();
    let ended = answers.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::FailedPrecondition);
    let said = ended.message();
    assert!(
        said.starts_with("it ends, says ****") && said.trim_start_matches("it ends, says ").bytes().all(|b| b == b'*'),
        "{said}"
    );
    assert_eq!(ended.metadata().get("x-trailer").unwrap(), "kept");
}

#[tokio::test]
async fn a_silent_half_of_a_stream_is_not_a_slow_upload() {
    let (address, _authorizations) = server().await;
    let rig = {
        let service = |service: &mut wire::Service| {
            service.http2 = true;
            service.base_path = String::new();
        };
        let config = |c: &mut seks_data_plane::Config| {
            c.proxy.host_suffix = Some("broker.example".into());
            c.proxy.limits.idle_timeout = std::time::Duration::from_millis(100);
        };
        let rig = Rig::with(address, service, config).await;
        rig.apply(vec![crate::rig::tenant_policies(&[("all", "permit (principal, action, resource);")])]);
        rig
    };
    let mut client = DistributionClient::new(channel(&rig, "openai.broker.example").await);
    let (say, said) = mpsc::channel(1);
    let mut answers = client.sync(call(rig.token.as_str(), ReceiverStream::new(said))).await.unwrap().into_inner();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await; // five times what an upload may be silent
    say.send(ack(7)).await.unwrap();
    assert_eq!(epoch(&answers.message().await.unwrap().unwrap()), "7");
}

#[tokio::test]
async fn a_revocation_ends_an_open_stream() {
    let (address, _authorizations) = server().await;
    let rig = rig(address).await;
    let mut client = DistributionClient::new(channel(&rig, "openai.broker.example").await);
    let (say, said) = mpsc::channel(1);
    let mut answers = client.sync(call(rig.token.as_str(), ReceiverStream::new(said))).await.unwrap().into_inner();
    say.send(ack(1)).await.unwrap();
    assert_eq!(epoch(&answers.message().await.unwrap().unwrap()), "1");
    rig.revoke();
    let cut = tokio::time::timeout(PATIENCE, answers.message()).await.expect("cut in time");
    assert!(cut.is_err(), "{cut:?}");
    let refused = client.sync(call(rig.token.as_str(), tokio_stream::empty())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "the token was revoked"));
}

#[tokio::test]
async fn a_refusal_is_a_status_that_clients_show() {
    let (address, mut authorizations) = server().await;
    let rig = rig(address).await;
    let mut client = DistributionClient::new(channel(&rig, "openai.broker.example").await);
    let refused = client.sync(call("seks_token_wrong", tokio_stream::empty())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "what was presented is no token"));
    assert!(refused.metadata().get("x-seks-request-id").is_some());
    rig.apply(vec![crate::rig::tenant_policies(&[])]);
    let refused = client.sync(call(rig.token.as_str(), tokio_stream::empty())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "no policy permits this request"));
    let mut other = DistributionClient::new(channel(&rig, "github.broker.example").await);
    let refused = other.sync(call(rig.token.as_str(), tokio_stream::empty())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(authorizations.try_recv().is_err(), "the upstream never heard of them");
}
