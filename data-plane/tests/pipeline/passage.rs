//! HTTPS_PROXY mode: hosts of no service, which pass through unseen where the tenant says so.

use std::time::Duration;

use seks_data_plane::{Config, table::Change};
use seks_proto::wire;
use seks_service::Service;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    forward::{World, ca_service},
    rig::PATIENCE,
};

/// Says back what it hears, until there is no more. Gives its port, at a host of no service's.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = tcp.split();
                drop(tokio::io::copy(&mut from, &mut to).await);
            });
        }
    });
    port
}

/// What the tenant says about other hosts.
fn say(world: &World, choice: impl Fn(&mut wire::Service)) {
    let mut service = ca_service();
    choice(&mut service);
    world.rig.apply(vec![Change::Service(Box::new(Service::try_from(&service).unwrap()))]);
}

/// Whether the tenant's networks hold loopback.
fn private(service: &mut wire::Service, allowed: bool) {
    service.allow_private = allowed;
    service.private_networks = if allowed { vec!["127.0.0.0/8".into(), "::1/128".into()] } else { Vec::new() };
}

async fn world_that_tunnels(more: impl Fn(&mut Config)) -> World {
    let world = World::with(Some("default"), more).await;
    say(&world, |service| service.tunnel_other_hosts = true);
    world
}

async fn passage(world: &World, port: u16) -> TcpStream {
    let (reply, mut tcp) = world.connect_to(&format!("localhost:{port}"), &world.basic()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let said = b"neither TLS nor HTTP\0\r\n\r\n";
    tcp.write_all(said).await.unwrap();
    let mut heard = vec![0; said.len()];
    timeout(PATIENCE, tcp.read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, said);
    tcp
}

async fn ends(mut tcp: TcpStream) {
    let read = timeout(PATIENCE, tcp.read(&mut [0; 16])).await.expect("it ends");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn bytes_pass_both_ways_until_both_ends_have_said_so() {
    let (world, port) = (world_that_tunnels(|_| {}).await, echo().await);
    let mut tcp = passage(&world, port).await;
    let large = vec![b'x'; 1 << 20];
    let (mut from, mut to) = tcp.split();
    let send = async {
        to.write_all(&large).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (_, read) = tokio::join!(send, timeout(PATIENCE, from.read_to_end(&mut heard)));
    read.unwrap().unwrap();
    assert_eq!(heard.len(), large.len(), "the other half goes on until its own end");
}

#[tokio::test]
async fn a_passage_ends_with_the_token_and_with_the_tenants_leave() {
    let (world, port) = (world_that_tunnels(|_| {}).await, echo().await);
    for withdraw in [|s: &mut wire::Service| s.tunnel_other_hosts = false, |s: &mut wire::Service| private(s, false)] {
        let open = passage(&world, port).await;
        say(&world, withdraw);
        ends(open).await;
        say(&world, |service| service.tunnel_other_hosts = true);
    }
    let open = passage(&world, port).await;
    world.rig.revoke();
    ends(open).await;
    let (reply, _) = world.connect_to(&format!("localhost:{port}"), &world.basic()).await;
    assert_eq!(reply.status, 407, "{reply:?}");
}

#[tokio::test]
async fn an_open_passage_counts_for_its_token() {
    let (world, port) = (world_that_tunnels(|c| c.proxy.limits.max_in_flight = 1).await, echo().await);
    let open = passage(&world, port).await;
    let (reply, _) = world.connect_to(&format!("localhost:{port}"), &world.basic()).await;
    assert_eq!(reply.status, 429, "{reply:?}");
    drop(open);
    timeout(PATIENCE, async {
        while world.connect_to(&format!("localhost:{port}"), &world.basic()).await.0.status != 200 {}
    })
    .await
    .expect("its place is given back");
}

#[tokio::test]
async fn an_idle_passage_ends() {
    let idle = |c: &mut Config| c.upstream.idle_timeout = Duration::from_secs(2);
    let (world, port) = (world_that_tunnels(idle).await, echo().await);
    ends(passage(&world, port).await).await;
}

#[tokio::test]
async fn nothing_passes_without_the_tenants_leave_a_token_and_a_host_outside() {
    let (world, port) = (World::with(Some("default"), |_| {}).await, echo().await);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let local = format!("localhost:{port}");
    let refused = |host: String, shown: String, status: u16| {
        let world = &world;
        async move {
            let (reply, _) = world.connect_to(&host, &shown).await;
            assert_eq!(reply.status, status, "{host} {shown} {reply:?}");
        }
    };
    refused(local.clone(), world.basic(), 403).await; // nobody has said that it may
    say(&world, |service| service.tunnel_other_hosts = true);
    for (host, status) in [
        (format!("127.0.0.1:{port}"), 403), // a service is at that host, if at another port
        (format!("127.1:{port}"), 403),     // the same in disguise
        ("169.254.169.254:80".into(), 403),
        ("metadata.google.internal:80".into(), 403),
        (format!("localhost.:{port}"), 403),
        (format!("localhost:{closed}"), 502),
    ] {
        refused(host, world.basic(), status).await;
    }
    refused(local.clone(), String::new(), 403).await; // a token is asked for in requests, and there are none to be seen
    refused(local.clone(), "Proxy-Authorization: Bearer {T2}\r\n".into(), 403).await; // doesn't grant the mode
    refused(local.clone(), "Proxy-Authorization: Bearer {T_EXPIRED}\r\n".into(), 407).await;
    say(&world, |service| {
        service.tunnel_other_hosts = true;
        private(service, false);
    });
    refused(local, world.basic(), 403).await;
}
