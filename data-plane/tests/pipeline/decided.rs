//! A change that is enforced holds for requests that began before it: what is still to be sent is
//! decided by the latest table, and what is being sent ends when the right to it does.

use seks_data_plane::table::Change;
use seks_proto::wire;
use seks_service::Service;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::rig::{
    CREDENTIAL, NO_ADMIN, PATIENCE, POLICY, Rig, Seen, credential, definition, name, ok, read_reply, tenant_policies,
    upstream,
};

/// Reads bodies, so that a request waits for the whole of its own before it is decided.
const INSPECTS: &str = r#"permit (principal, action, resource) when { context has body && context.body has model && context.body.model == "m" };"#;
const FORBID: &str = "forbid (principal, action, resource);";
const NEW_CREDENTIAL: &str = "sk-REAL-the-second-version-0123456789abcdef";
const BODY: &str = r#"{"model":"m"}"#;

fn forbidden() -> Vec<Change> {
    vec![tenant_policies(&[("inspects", INSPECTS), ("reads-and-posts", POLICY), ("off", FORBID)])]
}

fn redirected(to: std::net::SocketAddr) -> Vec<Change> {
    vec![Change::Service(Box::new(Service::try_from(&definition("openai", to)).unwrap()))]
}

fn agent(attributes: &[(&str, &str)], disabled: bool) -> Change {
    let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Change::Agent { tenant: name("default"), name: name("bot"), attributes, disabled }
}

/// A node whose policies read bodies, and a request of which half the body is there.
async fn half_sent(address: std::net::SocketAddr) -> (Rig, TcpStream) {
    let rig = Rig::start(address).await;
    rig.apply(vec![tenant_policies(&[("inspects", INSPECTS), ("no-admin", NO_ADMIN)])]);
    let agent = half_sent_to(&rig).await;
    (rig, agent)
}

async fn half_sent_to(rig: &Rig) -> TcpStream {
    let mut agent = rig.connect().await;
    // An invitation to go on is sent when somebody waits for the body: the request has been looked
    // up by then.
    let head = format!(
        "POST /api/openai/chat HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {{T1}}\r\nContent-Type: application/json\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        BODY.len()
    );
    agent.write_all(rig.fill(&head).as_bytes()).await.unwrap();
    let mut invited = [0; 25];
    agent.read_exact(&mut invited).await.unwrap();
    assert_eq!(&invited, b"HTTP/1.1 100 Continue\r\n\r\n");
    agent.write_all(&BODY.as_bytes()[..4]).await.unwrap();
    agent
}

async fn finish(mut agent: TcpStream) -> crate::rig::Reply {
    agent.write_all(&BODY.as_bytes()[4..]).await.unwrap();
    read_reply(&mut agent, false).await
}

async fn refused_after(changes: Vec<Change>, status: u16, code: &str) {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let (rig, agent) = half_sent(address).await;
    rig.apply(changes);
    let reply = finish(agent).await;
    assert_eq!((reply.status, reply.code().as_str()), (status, code), "{reply:?}");
    assert_eq!(seen.text(), "", "nothing was sent");
}

#[tokio::test]
async fn what_takes_the_right_away_while_a_body_is_read_is_heeded() {
    refused_after(forbidden(), 403, "policy_denied").await;
    refused_after(vec![Change::RemovePolicies(name("default"))], 403, "policy_denied").await;
    refused_after(vec![Change::RemoveService(name("default"), name("openai"))], 404, "service_unknown").await;
    refused_after(vec![Change::RemoveCredential(name("default"), name("openai-key"))], 403, "service_not_granted")
        .await;
    refused_after(vec![agent(&[], true)], 403, "agent_disabled").await;
}

#[tokio::test]
async fn attributes_that_change_while_a_body_is_read_are_those_that_count() {
    const TAGGED: &str = r#"permit (principal, action, resource)
        when { principal.hasTag("team") && principal.getTag("team") == "a" && context has body && context.body has model };"#;
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let rig = Rig::start(address).await;
    rig.apply(vec![tenant_policies(&[("tagged", TAGGED)]), agent(&[("team", "a")], false)]);
    let waiting = half_sent_to(&rig).await;
    rig.apply(vec![agent(&[("team", "b")], false)]);
    let reply = finish(waiting).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "policy_denied"), "{reply:?}");
    assert_eq!(seen.text(), "");
}

#[tokio::test]
async fn a_credential_that_is_replaced_while_a_body_is_read_is_not_used() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let (rig, agent) = half_sent(address).await;
    rig.apply(vec![credential("openai-key", "openai", NEW_CREDENTIAL, 2)]);
    assert_eq!(finish(agent).await.status, 200);
    assert!(seen.text().contains(NEW_CREDENTIAL) && !seen.text().contains(CREDENTIAL), "{}", seen.text());
    assert!(seen.text().ends_with(BODY), "{}", seen.text());
}

#[tokio::test]
async fn a_service_that_is_led_elsewhere_while_a_body_is_read_is_called_there() {
    let (address, before) = upstream(|_| (ok("{}"), false)).await;
    let (elsewhere, after) = upstream(|_| (ok("{}"), false)).await;
    let (rig, agent) = half_sent(address).await;
    rig.apply(redirected(elsewhere));
    assert_eq!(finish(agent).await.status, 200);
    assert_eq!((before.text().as_str(), after.requests()), ("", 1));
    assert!(after.text().ends_with(BODY), "{}", after.text());
}

#[tokio::test]
async fn a_new_snapshot_while_a_body_is_read_decides_as_a_change_does() {
    let (address, seen) = upstream(|_| (ok("{}"), false)).await;
    let (rig, agent_) = half_sent(address).await;
    let mut changes = forbidden();
    changes.extend(redirected(address));
    changes.extend([agent(&[], false), credential("openai-key", "openai", NEW_CREDENTIAL, 2)]);
    changes.push(crate::rig::grant(&rig.token, "tok-1", 0));
    rig.table().load("epoch", rig.table().revision() + 1, changes).unwrap();
    let reply = finish(agent_).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "policy_denied"), "{reply:?}");
    assert_eq!(seen.text(), "");
}

/// A service over TLS whose handshake waits until `changes` are applied; what came of the request,
/// and what the upstream saw.
async fn changed_during_the_handshake(changes: Vec<Change>) -> (crate::rig::Reply, Seen) {
    seks_runtime::install_crypto_provider();
    let pki = crate::tls::Pki::new();
    let (listener, seen) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Seen::default());
    let (address, ca, acceptor) = (listener.local_addr().unwrap(), pki.ca.pem(), pki.acceptor(|_| {}, &[b"http/1.1"]));
    let https = move |s: &mut wire::Service| {
        (s.upstream, s.upstream_ca_pem) = (format!("https://{address}"), ca.clone());
    };
    let rig = Rig::with(address, https, |_| {}).await;
    let mut agent = rig.connect().await;
    agent
        .write_all(
            rig.fill("GET /api/openai/x HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n").as_bytes(),
        )
        .await
        .unwrap();
    let mut tcp = Some(listener.accept().await.unwrap().0);
    rig.apply(changes);
    let recorder = seen.clone();
    tokio::spawn(async move {
        loop {
            let tcp = match tcp.take() {
                Some(tcp) => tcp,
                None => listener.accept().await.unwrap().0,
            };
            let (acceptor, recorder) = (acceptor.clone(), recorder.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let (index, mut chunk) = (recorder.open(), [0; 4096]);
                while let Ok(n @ 1..) = tls.read(&mut chunk).await {
                    recorder.record(index, &chunk[..n]);
                    let _ = tls.write_all(&ok("{}")).await;
                }
            });
        }
    });
    (read_reply(&mut agent, false).await, seen)
}

#[tokio::test]
async fn what_changes_while_a_request_waits_for_a_connection_is_heeded() {
    let (reply, seen) = changed_during_the_handshake(forbidden()).await;
    assert_eq!((reply.code().as_str(), seen.text().as_str()), ("policy_denied", ""), "{reply:?}");
    let (reply, seen) =
        changed_during_the_handshake(vec![Change::RemoveService(name("default"), name("openai"))]).await;
    assert_eq!((reply.code().as_str(), seen.text().as_str()), ("service_unknown", ""), "{reply:?}");
    let replaced = vec![credential("openai-key", "openai", NEW_CREDENTIAL, 2)];
    let (reply, seen) = changed_during_the_handshake(replaced).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(seen.text().contains(NEW_CREDENTIAL) && !seen.text().contains(CREDENTIAL), "{}", seen.text());
}

/// A request whose body is passed on as it comes: the upstream has the head and the first part.
async fn uploading(listener: &TcpListener) -> (Rig, TcpStream, TcpStream) {
    let rig = Rig::start(listener.local_addr().unwrap()).await;
    let mut agent = rig.connect().await;
    let head = "POST /api/openai/files HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\
                Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    agent.write_all(rig.fill(head).as_bytes()).await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"first\r\n") {
        assert!(upstream.read_buf(&mut seen).await.unwrap() > 0);
    }
    (rig, agent, upstream)
}

async fn upload_is_cut_by(changes: Vec<Change>, status: u16, code: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (rig, mut agent, mut upstream) = uploading(&listener).await;
    rig.apply(changes);
    let reply = read_reply(&mut agent, false).await;
    assert_eq!((reply.status, reply.code().as_str()), (status, code), "{reply:?}");
    let _ = agent.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await;
    let mut rest = Vec::new();
    let _ =
        tokio::time::timeout(PATIENCE, upstream.read_to_end(&mut rest)).await.expect("the upstream's connection ends");
    assert_eq!(String::from_utf8_lossy(&rest), "", "not even its end");
}

#[tokio::test]
async fn an_upload_is_cut_by_what_takes_the_right_to_it_away() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    upload_is_cut_by(forbidden(), 403, "policy_denied").await;
    upload_is_cut_by(vec![Change::RemovePolicies(name("default"))], 403, "policy_denied").await;
    // What can't be decided without the body, of which some has gone, is not permitted.
    upload_is_cut_by(vec![tenant_policies(&[("inspects", INSPECTS)])], 403, "policy_denied").await;
    upload_is_cut_by(redirected(elsewhere), 502, "upstream_unreachable").await;
}

#[tokio::test]
async fn an_upload_goes_on_when_the_right_to_it_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (rig, mut agent_, mut upstream) = uploading(&listener).await;
    rig.apply(vec![tenant_policies(&[("reads-and-posts", POLICY), ("no-admin", NO_ADMIN)])]);
    rig.apply(vec![agent(&[("team", "b")], false), credential("openai-key", "openai", NEW_CREDENTIAL, 2)]);
    agent_.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"0\r\n\r\n") {
        assert!(upstream.read_buf(&mut seen).await.unwrap() > 0);
    }
    upstream.write_all(&ok("{}")).await.unwrap();
    assert_eq!(read_reply(&mut agent_, false).await.status, 200);
}

#[tokio::test]
async fn an_open_answer_is_cut_when_a_policy_forbids_the_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (rig, mut agent, mut upstream) = uploading(&listener).await;
    agent.write_all(b"0\r\n\r\n").await.unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n").await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"hi\r\n") {
        assert!(agent.read_buf(&mut got).await.unwrap() > 0);
    }
    rig.apply(forbidden());
    let both = async {
        let mut rest = Vec::new();
        let _ = agent.read_to_end(&mut rest).await;
        let _ = upstream.read_to_end(&mut Vec::new()).await;
        rest
    };
    let rest = tokio::time::timeout(PATIENCE, both).await.expect("both ends are closed");
    assert_eq!(String::from_utf8_lossy(&rest), "", "it doesn't look whole");
}

/// An agent that speaks HTTP/2 may go on sending after it was answered; the upstream speaks HTTP/2
/// too.
#[tokio::test]
async fn an_upload_from_http2_to_http2_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let rig = Rig::with(address, |s| s.http2 = true, |_| {}).await;
    let (client, connection) = h2::client::handshake(rig.connect().await).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://broker/api/openai/files")
        .version(http::Version::HTTP_2)
        .header("authorization", format!("Bearer {}", rig.token.as_str()))
        .body(())
        .unwrap();
    let (answer, mut body) = client.ready().await.unwrap().send_request(request, false).unwrap();
    body.send_data("first".into(), false).unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let mut upstream = h2::server::handshake(tcp).await.unwrap();
    let (request, _respond) = upstream.accept().await.unwrap().unwrap();
    tokio::spawn(async move { while upstream.accept().await.is_some() {} });
    let mut coming = request.into_body();
    assert_eq!(coming.data().await.unwrap().unwrap(), "first");
    rig.apply(forbidden());
    assert_eq!(answer.await.unwrap().status(), 403);
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            let _ = body.send_data("more".into(), false);
            if let Some(result) = coming.data().await {
                match result {
                    Ok(data) => panic!("{data:?} after the cut"),
                    Err(error) => return error,
                }
            }
        }
    })
    .await
    .expect("the upstream's stream is reset");
    assert!(ended.is_reset(), "{ended}");
}

/// An upstream that speaks HTTP/2 and takes one stream a connection: the second request doesn't
/// wait behind the first with its credential already in it.
#[tokio::test]
async fn a_request_never_waits_for_a_stream_with_its_credential_in_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::with(listener.local_addr().unwrap(), |s| s.http2 = true, |_| {}).await;
    let mut held = Vec::new();
    for n in 0..3 {
        let mut agent = rig.connect().await;
        let get = "GET /api/openai/x HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n";
        agent.write_all(rig.fill(get).as_bytes()).await.unwrap();
        let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
        let (tcp, _) = accepted.unwrap_or_else(|_| panic!("request {n} waits behind another")).unwrap();
        let mut upstream =
            h2::server::Builder::new().max_concurrent_streams(1).handshake::<_, bytes::Bytes>(tcp).await.unwrap();
        let (_, mut respond) = upstream.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while upstream.accept().await.is_some() {} });
        let mut body = respond.send_response(http::Response::new(()), false).unwrap();
        body.send_data("hi".into(), false).unwrap();
        // Once the answer has begun, the node knows what the upstream allows.
        let mut got = Vec::new();
        while !got.ends_with(b"hi\r\n") {
            assert!(agent.read_buf(&mut got).await.unwrap() > 0);
        }
        held.push((agent, body));
    }
}

/// Policies are compiled beside the stream that brings them; what is under way waits for them.
#[tokio::test]
async fn an_upload_is_cut_by_policies_that_are_compiled_later_and_goes_on_under_others() {
    let policy = |id: &str, text: &str| wire::Policy {
        tenant: "default".into(),
        id: id.into(),
        text: format!("@id(\"{id}\") {text}"),
        ..Default::default()
    };
    let texts = |policies: Vec<wire::Policy>| vec![Change::PolicyTexts(name("default"), policies)];
    upload_is_cut_by(texts(vec![policy("p", POLICY), policy("off", FORBID)]), 403, "policy_denied").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (rig, mut agent, mut upstream) = uploading(&listener).await;
    rig.apply(texts(vec![policy("p", POLICY), policy("no-admin", NO_ADMIN)]));
    agent.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"0\r\n\r\n") {
        assert!(upstream.read_buf(&mut seen).await.unwrap() > 0);
    }
    upstream.write_all(&ok("{}")).await.unwrap();
    assert_eq!(read_reply(&mut agent, false).await.status, 200);
}

/// With a grace, a request whose credential was replaced ends after that; without, it finishes.
#[tokio::test]
async fn a_request_with_a_replaced_credential_ends_after_the_grace() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grace = std::time::Duration::from_millis(300);
    let rig =
        Rig::with(listener.local_addr().unwrap(), |_| {}, |c| c.upstream.replaced_credential_grace = Some(grace)).await;
    let mut agent = rig.connect().await;
    agent
        .write_all(
            rig.fill("GET /api/openai/x HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {T1}\r\n\r\n").as_bytes(),
        )
        .await
        .unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n").await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"hi\r\n") {
        assert!(agent.read_buf(&mut got).await.unwrap() > 0);
    }
    rig.apply(vec![credential("openai-key", "openai", NEW_CREDENTIAL, 2)]);
    let replaced = std::time::Instant::now();
    upstream.write_all(b"2\r\nho\r\n").await.unwrap();
    let mut rest = Vec::new();
    while !rest.ends_with(b"ho\r\n") {
        assert!(agent.read_buf(&mut rest).await.unwrap() > 0, "it may go on for a while");
    }
    rest.clear();
    let _ = tokio::time::timeout(PATIENCE, agent.read_to_end(&mut rest)).await.expect("it ends");
    assert!(replaced.elapsed() >= grace && rest.is_empty(), "{:?} {rest:?}", replaced.elapsed());
}
