use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
};

use super::*;

/// A name server on loopback, UDP and TCP on one port. It answers by the first label: `silent…` not
/// at all, `absent…` that there is none, `large…` over UDP with a truncated answer, others with
/// 192.0.2.1.
struct NameServer {
    at: SocketAddr,
    asked: Arc<AtomicUsize>,
    over_tcp: Arc<AtomicUsize>,
}

impl NameServer {
    async fn start(ttl: u32) -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let (asked, over_tcp) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let server = Self { at: tcp.local_addr().unwrap(), asked: asked.clone(), over_tcp: over_tcp.clone() };
        tokio::spawn(async move {
            let mut query = [0; 1500];
            while let Ok((len, from)) = udp.recv_from(&mut query).await {
                asked.fetch_add(1, SeqCst);
                if let Some(answer) = answer(&query[..len], ttl, true) {
                    let _ = udp.send_to(&answer, from).await;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let over_tcp = over_tcp.clone();
                tokio::spawn(async move {
                    while let Ok(len) = stream.read_u16().await {
                        let mut query = vec![0; len.into()];
                        stream.read_exact(&mut query).await.unwrap();
                        over_tcp.fetch_add(1, SeqCst);
                        if let Some(answer) = answer(&query, ttl, false) {
                            stream.write_u16(answer.len() as u16).await.unwrap();
                            stream.write_all(&answer).await.unwrap();
                        }
                    }
                });
            }
        });
        server
    }

    fn resolver(&self, timeout: Duration) -> Arc<Resolver> {
        Arc::new(Resolver::new(ResolverOptions { name_servers: vec![self.at], timeout }))
    }

    /// Queries so far: two a look-up, one for each family.
    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

/// Answers the one question of `query` (RFC 1035 §4).
fn answer(query: &[u8], ttl: u32, udp: bool) -> Option<Vec<u8>> {
    let name_end = 12 + query[12..].iter().position(|b| *b == 0)? + 1;
    let (name, kind) = (&query[12..name_end], query[name_end + 1]);
    let says = |word: &str| name[1..].to_ascii_lowercase().starts_with(word.as_bytes());
    if says("silent") {
        return None;
    }
    let question = &query[12..name_end + 4];
    let has_address = kind == 1 && !says("absent");
    let truncated = udp && says("large");
    let flags = [0x81 | u8::from(truncated) << 1, 0x80 | if says("absent") { 3 } else { 0 }];
    let counts = [0, 1, 0, u8::from(has_address && !truncated), 0, 0, 0, 0];
    let mut answer = [&query[..2], &flags, &counts, question].concat();
    if has_address && !truncated {
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(ttl.to_be_bytes());
        answer.extend([0, 4, 192, 0, 2, 1]);
    }
    Some(answer)
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_name_is_looked_up_once_for_all_who_ask_and_remembered_for_its_ttl() {
    let server = NameServer::start(60).await;
    let resolver = server.resolver(LONG);
    let ask = || {
        let resolver = resolver.clone();
        tokio::spawn(async move { resolver.addresses("a", "api.example.").await })
    };
    for asked in (0..50).map(|_| ask()).collect::<Vec<_>>() {
        assert_eq!(asked.await.unwrap().unwrap().as_ref(), [IpAddr::from([192, 0, 2, 1])]);
    }
    assert!(server.asked() <= 2, "{} queries", server.asked());
    assert!(resolver.addresses("b", "api.example.").await.is_some());
    assert!(server.asked() <= 2, "another owner has the same answer");
}

#[tokio::test]
async fn that_there_is_no_such_name_is_remembered_too() {
    let server = NameServer::start(60).await;
    let resolver = server.resolver(LONG);
    assert!(resolver.addresses("a", "absent.example.").await.is_none());
    let asked = server.asked();
    assert!(resolver.addresses("a", "absent.example.").await.is_none());
    assert_eq!(server.asked(), asked);
}

#[tokio::test]
async fn an_answer_too_large_for_udp_comes_over_tcp() {
    let server = NameServer::start(60).await;
    let found = server.resolver(LONG).addresses("a", "large.example.").await;
    assert!(found.is_some() && server.over_tcp.load(SeqCst) > 0);
}

#[tokio::test]
async fn names_that_nobody_answers_for_delay_no_other_owner_and_end() {
    let server = NameServer::start(60).await;
    let resolver = server.resolver(Duration::from_secs(3));
    let silent: Vec<_> = (0..2000)
        .map(|n| {
            let resolver = resolver.clone();
            tokio::spawn(async move { resolver.addresses("hostile", &format!("silent{n}.example.")).await })
        })
        .collect();
    while server.asked() < OWNER_LOOKUPS {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    assert!(resolver.addresses("other", "api.example.").await.is_some());
    assert!(begun.elapsed() < Duration::from_secs(2), "waited {:?} behind another's look-ups", begun.elapsed());
    for look_up in silent {
        assert!(look_up.await.unwrap().is_none());
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "the deadline is for all that wait");
}

#[tokio::test]
async fn the_systems_hosts_file_counts() {
    let server = NameServer::start(60).await;
    let found = server.resolver(LONG).addresses("a", "localhost").await.unwrap();
    assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
}

#[test]
fn names_are_bounded() {
    let mut names = HashMap::new();
    for n in 0..3 * MAX_NAMES {
        evict_names(&mut names);
        names.insert(n.to_string().into(), Entry::Cached(None, Instant::now() + LONG));
    }
    assert!(names.len() <= MAX_NAMES);
}
