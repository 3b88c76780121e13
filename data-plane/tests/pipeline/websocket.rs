//! WebSocket through the node: the handshake, frames both ways, and everything that ends a tunnel.

use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_data_plane::{Config, table::Change};
use seks_proto::wire;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::rig::{CREDENTIAL, PATIENCE, Reply, Rig, metrics, name, read_reply};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const BY_HEADER: &str = "Authorization: Bearer {T1}\r\nSec-WebSocket-Protocol: realtime\r\n";
const BY_SUBPROTOCOL: &str =
    "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{T1}, openai-beta.realtime-v1\r\n";

fn allowed(service: &mut wire::Service) {
    service.allow_websocket = true;
    let slot = wire::token_slot::At::Subprotocol("openai-insecure-api-key.".into());
    service.slots.push(wire::TokenSlot { at: Some(slot) });
}

/// Both ends of an open tunnel.
struct Tunnel {
    rig: Rig,
    agent: TcpStream,
    upstream: TcpStream,
    /// What the upstream was asked.
    asked: String,
    /// What the agent was answered.
    answered: String,
}

fn handshake(more: &str) -> String {
    format!(
        "GET /api/openai/realtime?model=m HTTP/1.1\r\nHost: broker\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n{more}\r\n"
    )
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("a head in time").unwrap();
        head.push(byte);
    }
    String::from_utf8(head).unwrap()
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|l| l.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v))
}

fn accept(key: &str) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()))
}

impl Tunnel {
    async fn open() -> Self {
        Self::with(BY_HEADER, |_| {}).await
    }

    async fn with(presented: &str, config: impl Fn(&mut Config)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rig = Rig::with(listener.local_addr().unwrap(), allowed, config).await;
        let mut agent = rig.connect().await;
        agent.write_all(rig.fill(&handshake(presented)).as_bytes()).await.unwrap();
        let (mut upstream, _) = listener.accept().await.unwrap();
        let asked = read_head(&mut upstream).await;
        let answer = format!(
            "HTTP/1.1 101 Whatever\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\
             Sec-WebSocket-Protocol: realtime\r\nX-Echo: {CREDENTIAL}\r\n\r\n",
            accept(field(&asked, "sec-websocket-key").unwrap())
        );
        upstream.write_all(answer.as_bytes()).await.unwrap();
        let answered = read_head(&mut agent).await;
        Self { rig, agent, upstream, asked, answered }
    }

    async fn agent_gets(&mut self) -> Frame {
        read_frame(&mut self.agent).await.expect("a frame")
    }

    async fn upstream_says(&mut self, bytes: &[u8]) {
        self.upstream.write_all(bytes).await.unwrap();
    }

    /// The agent is told this, and both connections end.
    async fn assert_ends(mut self, code: u16, reason: &str) {
        let frame = self.agent_gets().await;
        assert_eq!((frame.opcode, frame.last), (8, true), "{frame:?}");
        assert_eq!(frame.payload[..2], code.to_be_bytes(), "{frame:?}");
        assert_eq!(String::from_utf8_lossy(&frame.payload[2..]), reason);
        let both = async {
            assert_eq!(self.agent.read(&mut [0; 16]).await.unwrap_or(0), 0, "nothing comes behind a Close");
            let _ = self.upstream.read_to_end(&mut Vec::new()).await;
        };
        tokio::time::timeout(PATIENCE, both).await.expect("both ends are closed");
    }
}

#[derive(Debug)]
struct Frame {
    last: bool,
    opcode: u8,
    masked: bool,
    payload: Vec<u8>,
}

fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut out = vec![first];
    match payload.len() {
        n @ 0..126 => out.push(masked | n as u8),
        n @ 126..0x1_0000 => {
            out.push(masked | 126);
            out.extend((n as u16).to_be_bytes());
        }
        n => {
            out.push(masked | 127);
            out.extend((n as u64).to_be_bytes());
        }
    }
    out.extend(mask.unwrap_or_default().iter().take(if mask.is_some() { 4 } else { 0 }));
    let key = mask.unwrap_or_default();
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k));
    out
}

/// A whole text message of an upstream's.
fn text(payload: &str) -> Vec<u8> {
    frame(0x81, payload.as_bytes(), None)
}

async fn read_frame(stream: &mut TcpStream) -> Option<Frame> {
    let reading = async {
        let first = stream.read_u8().await.ok()?;
        let second = stream.read_u8().await.ok()?;
        let length = match second & 0x7f {
            126 => u64::from(stream.read_u16().await.ok()?),
            127 => stream.read_u64().await.ok()?,
            n => u64::from(n),
        };
        let mut mask = [0; 4];
        if second & 0x80 != 0 {
            stream.read_exact(&mut mask).await.ok()?;
        }
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.ok()?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(b, k)| *b ^= k);
        Some(Frame { last: first & 0x80 != 0, opcode: first & 0x0f, masked: second & 0x80 != 0, payload })
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("a frame in time")
}

async fn read_message(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let first = read_frame(stream).await.expect("a message");
    let (opcode, mut payload, mut last) = (first.opcode, first.payload, first.last);
    while !last {
        let next = read_frame(stream).await.expect("the rest of a message");
        assert_eq!(next.opcode, 0);
        payload.extend(next.payload);
        last = next.last;
    }
    (opcode, payload)
}

#[tokio::test]
async fn a_socket_opens_with_the_token_in_a_header_or_a_subprotocol() {
    for presented in [BY_HEADER, BY_SUBPROTOCOL] {
        let mut tunnel = Tunnel::with(presented, |_| {}).await;
        let asked = &tunnel.asked;
        assert!(asked.starts_with("GET /v1/realtime?model=m HTTP/1.1\r\n"), "{asked}");
        assert_eq!(field(asked, "authorization"), Some(&*format!("Bearer {CREDENTIAL}")));
        assert!(!asked.contains("seks_token_") && !asked.to_lowercase().contains("extensions"), "{asked}");
        assert_ne!(field(asked, "sec-websocket-key"), Some(KEY), "the node's own");
        let offered = if presented == BY_HEADER { "realtime" } else { "realtime, openai-beta.realtime-v1" };
        assert_eq!(field(asked, "sec-websocket-protocol"), Some(offered));
        let answered = &tunnel.answered;
        assert!(answered.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answered}");
        assert_eq!(field(answered, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(field(answered, "sec-websocket-protocol"), Some("realtime"));
        assert!(field(answered, "x-seks-request-id").is_some() && !answered.contains(CREDENTIAL), "{answered}");

        let said = frame(0x81, b"from the agent", Some([0; 4]));
        tunnel.agent.write_all(&said).await.unwrap();
        let got = read_frame(&mut tunnel.upstream).await.unwrap();
        assert_eq!((got.payload.as_slice(), got.masked, got.opcode), (&b"from the agent"[..], true, 1));
        tunnel.upstream_says(&text("from the upstream")).await;
        let got = tunnel.agent_gets().await;
        assert_eq!((got.payload.as_slice(), got.masked, got.last), (&b"from the upstream"[..], false, true));
    }
}

#[tokio::test]
async fn a_credential_in_frames_is_overwritten_however_it_is_split() {
    let mut tunnel = Tunnel::open().await;
    let stars = "*".repeat(CREDENTIAL.len());
    tunnel.upstream_says(&text(&format!("key: {CREDENTIAL}!"))).await;
    assert_eq!(tunnel.agent_gets().await.payload, format!("key: {stars}!").as_bytes());

    let encoded = STANDARD.encode(format!("xy{CREDENTIAL}z"));
    tunnel.upstream_says(&frame(0x82, encoded.as_bytes(), None)).await;
    let got = tunnel.agent_gets().await;
    assert_eq!((got.opcode, got.payload.len()), (2, encoded.len()));
    assert!(String::from_utf8_lossy(&got.payload).contains("**********"), "base64");

    for cut in 1..CREDENTIAL.len() {
        // Two frames of one message, a ping between them.
        let (head, tail) = CREDENTIAL.split_at(cut);
        tunnel.upstream_says(&frame(0x01, head.as_bytes(), None)).await;
        tunnel.upstream_says(&frame(0x89, b"ping", None)).await;
        tunnel.upstream_says(&frame(0x80, format!("{tail} end").as_bytes(), None)).await;
        let (mut message, mut last) = (Vec::new(), false);
        while !last {
            let got = tunnel.agent_gets().await;
            if got.opcode == 9 {
                assert_eq!(got.payload, b"ping");
                continue;
            }
            message.extend(got.payload);
            last = got.last;
        }
        assert_eq!(String::from_utf8_lossy(&message), format!("{stars} end"), "frames cut at {cut}");
    }
    for cut in 1..CREDENTIAL.len() {
        // Two messages: the first isn't held up, so its few bytes may be seen, and no more.
        let (head, tail) = CREDENTIAL.split_at(cut);
        tunnel.upstream_says(&text(head)).await;
        let first = String::from_utf8(tunnel.agent_gets().await.payload).unwrap();
        tunnel.upstream_says(&text(&format!("{tail} end"))).await;
        let second = String::from_utf8(tunnel.agent_gets().await.payload).unwrap();
        assert_eq!(second, format!("{} end", "*".repeat(tail.len())), "messages cut at {cut}");
        assert_eq!(first, if cut < 8 { head.to_owned() } else { "*".repeat(cut) }, "messages cut at {cut}");
    }
    let metrics = metrics(&tunnel.rig).await;
    assert!(!metrics.contains(CREDENTIAL));

    let reason = [&1000_u16.to_be_bytes()[..], CREDENTIAL.as_bytes()].concat();
    tunnel.upstream_says(&frame(0x88, &reason, None)).await;
    assert_eq!(tunnel.agent_gets().await.payload[2..], *stars.as_bytes());
}

#[tokio::test]
async fn messages_of_any_length_cross_whole_both_ways() {
    let mut tunnel = Tunnel::open().await;
    for length in [0, 1, 125, 126, 65_535, 65_536, 65_537, 3_000_000] {
        let payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let Tunnel { agent, upstream, .. } = &mut tunnel;
        let down = frame(0x82, &payload, None);
        let (_, got) = tokio::join!(async { upstream.write_all(&down).await.unwrap() }, read_message(agent));
        assert!(got == (2, payload.clone()), "{length} bytes to the agent");
        let up = frame(0x82, &payload, Some([1, 2, 3, 4]));
        let (_, got) = tokio::join!(async { agent.write_all(&up).await.unwrap() }, read_message(upstream));
        assert!(got == (2, payload), "{length} bytes to the upstream");
    }
}

#[tokio::test]
async fn a_close_goes_both_ways_and_ends_the_tunnel_cleanly() {
    let mut tunnel = Tunnel::open().await;
    tunnel.agent.write_all(&frame(0x88, &1000_u16.to_be_bytes(), Some([7; 4]))).await.unwrap();
    let close = read_frame(&mut tunnel.upstream).await.unwrap();
    assert_eq!((close.opcode, close.payload.as_slice()), (8, &1000_u16.to_be_bytes()[..]));
    tunnel.upstream_says(&frame(0x88, &1000_u16.to_be_bytes(), None)).await;
    assert_eq!(tunnel.agent_gets().await.opcode, 8);
    let ended = tokio::time::timeout(PATIENCE, tunnel.agent.read(&mut [0; 16])).await.expect("the end");
    assert_eq!(ended.unwrap(), 0);
    let counted = r#"seks_proxy_requests_total{service="openai",decision="allow",reason="",status_class="1xx"} 1"#;
    let page = metrics(&tunnel.rig).await;
    assert!(page.contains(counted), "{page}");
    assert!(page.contains("seks_upstream_connections{service=\"openai\",state=\"active\"} 0"), "{page}");
}

#[tokio::test]
async fn a_revoked_token_or_a_disabled_agent_cuts_the_socket() {
    let tunnel = Tunnel::open().await;
    tunnel.rig.revoke();
    tunnel.assert_ends(1008, "token_revoked").await;

    let tunnel = Tunnel::open().await;
    let (tenant, bot) = (name("default"), name("bot"));
    tunnel.rig.apply(vec![Change::Agent { tenant, name: bot, attributes: Default::default(), disabled: true }]);
    tunnel.assert_ends(1008, "agent_disabled").await;

    let tunnel = Tunnel::open().await;
    tunnel.rig.table().lease().end();
    tunnel.rig.table().wake_all();
    tunnel.assert_ends(1013, "node_stale").await;
}

#[tokio::test]
async fn a_cut_in_the_middle_of_a_busy_stream_lets_nothing_more_through() {
    let mut tunnel = Tunnel::open().await;
    let (mut reader, mut writer) = tunnel.upstream.into_split();
    let talking = tokio::spawn(async move { while writer.write_all(&text("more and more")).await.is_ok() {} });
    for _ in 0..100 {
        assert_eq!(read_frame(&mut tunnel.agent).await.unwrap().payload, b"more and more");
    }
    tunnel.rig.revoke();
    let mut last = None;
    while let Some(frame) = read_frame(&mut tunnel.agent).await {
        last = Some(frame); // what was on its way when the right ended
    }
    assert_eq!(last.map(|f| f.opcode), Some(8), "the last thing is a Close");
    let _ = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut Vec::new())).await.expect("the upstream is let go");
    tokio::time::timeout(PATIENCE, talking).await.expect("and can't go on").unwrap();
}

#[tokio::test]
async fn an_expired_token_ends_the_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::with(listener.local_addr().unwrap(), allowed, |_| {}).await;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    rig.apply(vec![crate::rig::grant(&rig.token, "tok-1", now + 2)]);
    let mut agent = rig.connect().await;
    agent.write_all(rig.fill(&handshake(BY_HEADER)).as_bytes()).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    let asked = read_head(&mut upstream).await;
    let key = accept(field(&asked, "sec-websocket-key").unwrap());
    let answer =
        format!("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}\r\n\r\n");
    upstream.write_all(answer.as_bytes()).await.unwrap();
    let answered = read_head(&mut agent).await;
    Tunnel { rig, agent, upstream, asked, answered }.assert_ends(1008, "token_expired").await;
}

#[tokio::test]
async fn silence_ends_the_socket_and_talk_keeps_it() {
    let mut tunnel = Tunnel::with(BY_HEADER, |c| c.upstream.idle_timeout = Duration::from_millis(400)).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await; // within the limit, beyond it in sum
        tunnel.upstream_says(&text("still here")).await;
        assert_eq!(tunnel.agent_gets().await.opcode, 1);
    }
    tunnel.assert_ends(1001, "idle").await;
}

#[tokio::test]
async fn what_is_no_frame_ends_the_socket_and_does_not_cross() {
    let mut tunnel = Tunnel::open().await;
    tunnel.agent.write_all(&frame(0x81, b"not masked", None)).await.unwrap();
    tunnel.assert_ends(1002, "request_invalid").await;

    let mut tunnel = Tunnel::open().await;
    tunnel.upstream_says(&frame(0xc1, b"compressed", None)).await;
    tunnel.assert_ends(1014, "upstream_unreachable").await;

    let Tunnel { rig, mut agent, upstream, .. } = Tunnel::open().await;
    drop(upstream);
    let gone = read_frame(&mut agent).await.unwrap();
    assert_eq!((gone.opcode, &gone.payload[..2]), (8, &1014_u16.to_be_bytes()[..]), "it left without a word");
    drop(rig);
}

#[tokio::test]
async fn a_stopping_node_says_so() {
    let Tunnel { rig, mut agent, upstream: _upstream, .. } = Tunnel::open().await;
    let stopping = tokio::spawn(rig.node.shutdown());
    let goodbye = read_frame(&mut agent).await.unwrap();
    assert_eq!((goodbye.opcode, goodbye.payload), (8, [&1001_u16.to_be_bytes()[..], b"the node is stopping"].concat()));
    tokio::time::timeout(PATIENCE, stopping).await.expect("it stops at once").unwrap();
}

async fn refused(service: impl Fn(&mut wire::Service), request: &str, answer: &'static str) -> (Reply, usize) {
    let (upstream, seen) = crate::rig::upstream(move |_| (answer.as_bytes().to_vec(), false)).await;
    let rig = Rig::with(upstream, service, |_| {}).await;
    (rig.send(request).await, seen.requests())
}

#[tokio::test]
async fn a_handshake_is_refused_where_the_service_does_not_allow_it_or_it_is_malformed() {
    let good = handshake(BY_HEADER);
    let (reply, asked) = refused(|_| {}, &good, "").await;
    assert_eq!((reply.status, reply.code().as_str(), asked), (403, "policy_denied", 0), "{reply:?}");
    let (reply, asked) = refused(allowed, &good.replace("Version: 13", "Version: 8"), "").await;
    assert_eq!((reply.status, reply.code().as_str(), asked), (426, "request_invalid", 0), "{reply:?}");
    for broken in [
        good.replace(KEY, "c2hvcnQ="),
        good.replacen("Connection: Upgrade\r\n", "", 1),
        good.replacen("GET", "POST", 1),
    ] {
        let (reply, asked) = refused(allowed, &broken, "").await;
        assert_eq!((reply.status, reply.code().as_str(), asked), (400, "request_invalid", 0), "{broken} {reply:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_declines_is_heard_and_one_that_lies_is_not() {
    let good = handshake(BY_HEADER);
    let declined = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nnope";
    let (reply, _) = refused(allowed, &good, declined).await;
    assert!(reply.status == 401 && reply.text.ends_with("nope") && reply.closed, "{reply:?}");
    let lie = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n";
    let (reply, _) = refused(allowed, &good, lie).await;
    assert_eq!((reply.status, reply.code().as_str()), (502, "upstream_unreachable"), "{reply:?}");
    let plain = "GET /api/openai/models HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n";
    let (reply, _) = refused(allowed, plain, lie).await;
    assert_eq!(reply.status, 502, "nobody asked: {reply:?}");
}

#[tokio::test]
async fn what_an_agent_sends_before_it_is_answered_is_never_another_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::with(listener.local_addr().unwrap(), allowed, |_| {}).await;
    let mut agent = rig.connect().await;
    let eager =
        handshake(BY_HEADER) + "GET /api/openai/stolen HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n";
    agent.write_all(rig.fill(&eager).as_bytes()).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    let asked = read_head(&mut upstream).await;
    let key = accept(field(&asked, "sec-websocket-key").unwrap());
    let answer =
        format!("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}\r\n\r\n");
    upstream.write_all(answer.as_bytes()).await.unwrap();
    let reply = read_reply(&mut agent, true).await;
    assert!(reply.status == 101 && reply.closed, "{reply:?}");
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, upstream.read_to_end(&mut rest)).await.expect("the end").unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains("stolen"), "{}", String::from_utf8_lossy(&rest));
    let one_only = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
    assert!(one_only.is_err(), "no second request");
}

#[tokio::test]
async fn many_sockets_count_for_their_token() {
    let mut tunnel = Tunnel::with(BY_HEADER, |c| c.proxy.limits.max_in_flight = 1).await;
    let reply = tunnel.rig.get("/api/openai/models").await;
    assert_eq!((reply.status, reply.code().as_str()), (429, "limit_exceeded"), "{reply:?}");
    tunnel.agent.write_all(&frame(0x88, &1000_u16.to_be_bytes(), Some([7; 4]))).await.unwrap();
    tunnel.upstream_says(&frame(0x88, &1000_u16.to_be_bytes(), None)).await;
    assert_eq!(tunnel.agent_gets().await.opcode, 8);
    assert_eq!(tunnel.agent.read(&mut [0]).await.unwrap(), 0, "the end");
    let reply =
        tunnel.rig.send("GET /api/openai/../x HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n").await;
    assert_eq!(reply.status, 400, "the token is free again: {reply:?}");
}
