//! What is in flight when the right to it ends.

use std::time::Duration;

use seks_data_plane::table::Change;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::rig::{Rig, name};

const GET: &str = "GET /api/openai/models HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n";

/// An agent and an upstream in the middle of a streamed answer.
async fn streaming(rig: &Rig, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut agent = rig.connect().await;
    agent.write_all(rig.fill(GET).as_bytes()).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    let head =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n";
    upstream.write_all(head).await.unwrap();
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains("data: 1") {
        let n = agent.read_buf(&mut got).await.unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&got));
    }
    (agent, upstream)
}

/// The agent's stream ends without its last chunk, and the upstream's connection is closed.
async fn assert_cut(mut agent: TcpStream, mut upstream: TcpStream) {
    let mut rest = Vec::new();
    let both = async {
        let _ = agent.read_to_end(&mut rest).await;
        let mut request = Vec::new();
        let _ = upstream.read_to_end(&mut request).await;
    };
    tokio::time::timeout(Duration::from_secs(5), both).await.expect("both ends are closed");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a cut answer never looks whole");
}

#[tokio::test]
async fn an_open_stream_is_cut_when_its_token_is_revoked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::start(listener.local_addr().unwrap()).await;
    let (agent, upstream) = streaming(&rig, &listener).await;
    rig.revoke();
    assert_cut(agent, upstream).await;
}

#[tokio::test]
async fn an_open_stream_is_cut_when_its_agent_is_disabled() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::start(listener.local_addr().unwrap()).await;
    let (agent, upstream) = streaming(&rig, &listener).await;
    let (tenant, bot) = (name("default"), name("bot"));
    rig.apply(vec![Change::Agent { tenant, name: bot, attributes: Default::default(), disabled: true }]);
    assert_cut(agent, upstream).await;
}

#[tokio::test]
async fn an_open_stream_is_cut_when_the_service_or_the_credential_goes() {
    for change in [
        Change::RemoveService(name("default"), name("openai")),
        Change::RemoveCredential(name("default"), name("openai-key")),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = Rig::start(listener.local_addr().unwrap()).await;
        let (agent, upstream) = streaming(&rig, &listener).await;
        rig.apply(vec![change]);
        assert_cut(agent, upstream).await;
    }
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_is_refused_when_its_token_is_revoked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::start(listener.local_addr().unwrap()).await;
    let mut agent = rig.connect().await;
    agent.write_all(rig.fill(GET).as_bytes()).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    let mut byte = [0];
    upstream.read_exact(&mut byte).await.unwrap();
    rig.revoke();
    let reply = crate::rig::read_reply(&mut agent, false).await;
    assert_eq!((reply.status, reply.code().as_str()), (401, "token_revoked"), "{reply:?}");
}

#[tokio::test]
async fn a_stop_lets_an_answer_finish_and_takes_no_new_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::start(listener.local_addr().unwrap()).await;
    let (mut agent, mut upstream) = streaming(&rig, &listener).await;
    let address = rig.node.proxy_addr();
    let stopping = tokio::spawn(rig.node.shutdown());
    crate::rig::wait("the listener is closed", || std::net::TcpStream::connect(address).is_err()).await;
    upstream.write_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    agent.read_to_end(&mut rest).await.unwrap();
    let text = String::from_utf8_lossy(&rest);
    assert!(text.contains("data: 2") && text.ends_with("0\r\n\r\n"), "{text}");
    tokio::time::timeout(Duration::from_secs(5), stopping).await.unwrap().unwrap();
}
