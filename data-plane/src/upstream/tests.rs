use seks_network::address::Networks;

use super::*;

fn service(upstream: &str) -> Service {
    use seks_proto::wire::{self, injection, token_slot};
    let header = injection::NamedValue { name: "authorization".into(), value: "Bearer {key}".into() };
    Service::try_from(&wire::Service {
        tenant: "default".into(),
        name: "api".into(),
        upstream: upstream.into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection {
            sites: vec![injection::Site { at: Some(injection::site::At::Header(header)) }],
            ..Default::default()
        }),
        slots: vec![wire::TokenSlot { at: Some(token_slot::At::Scheme("Bearer".into())) }],
        allow_private: true,
        private_networks: vec!["127.0.0.0/8".into()],
        ..Default::default()
    })
    .unwrap()
}

/// Upstreams on loopback.
fn config() -> UpstreamConfig {
    UpstreamConfig { private_networks: Networks::parse(&["127.0.0.0/8"]).unwrap(), ..UpstreamConfig::default() }
}

async fn listener() -> (tokio::net::TcpListener, Service) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = service(&format!("http://{}", listener.local_addr().unwrap()));
    (listener, service)
}

/// Connections in use, connections put aside.
#[derive(Default)]
struct Counts([std::sync::atomic::AtomicI64; 2]);

impl Gauge for Counts {
    fn connections(&self, active: bool, change: i64) {
        self.0[usize::from(!active)].fetch_add(change, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Counts {
    fn now(&self) -> [i64; 2] {
        self.0.each_ref().map(|c| c.load(std::sync::atomic::Ordering::Relaxed))
    }
}

fn hooks() -> PoolHooks {
    PoolHooks { is_current: Box::new(|| true), gauge: Arc::new(Counts::default()) }
}

const KEY: PoolKey = PoolKey { service: 1, credential: 1 };

#[tokio::test(start_paused = true)]
async fn a_pool_is_closed_once_its_credential_is_not_the_current_one() {
    let (_listener, service) = listener().await;
    let upstreams = Arc::new(Upstreams::new(config(), OwnAddresses::default()).unwrap());
    let current = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = current.clone();
    let counts = Arc::new(Counts::default());
    let is_current = Box::new(move || asked.load(std::sync::atomic::Ordering::Relaxed));
    let hooks = PoolHooks { is_current, gauge: counts.clone() };
    let connection = upstreams.connect(KEY, &service, || hooks).await.unwrap();
    assert_eq!(counts.now(), [1, 0]);
    let kept = connection.per_pool(|| Some("made from the credential".to_owned())).unwrap();
    let watched = Arc::downgrade(&kept);
    drop((connection, kept));
    assert_eq!(counts.now(), [0, 0]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(upstreams.pools.contains_key(&KEY) && watched.strong_count() == 1);
    current.store(false, std::sync::atomic::Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!upstreams.pools.contains_key(&KEY) && watched.strong_count() == 0, "what was kept beside it is gone too");
}

#[tokio::test]
async fn what_is_kept_beside_a_pool_is_made_once_for_each_key() {
    let (_listener, service) = listener().await;
    let upstreams = Arc::new(Upstreams::new(config(), OwnAddresses::default()).unwrap());
    let connect = |key| upstreams.connect(key, &service, hooks);
    let other = PoolKey { credential: 2, ..KEY };
    let (a, b, c) = (connect(KEY).await.unwrap(), connect(KEY).await.unwrap(), connect(other).await.unwrap());
    assert_eq!(*a.per_pool(|| Some(1)).unwrap(), 1);
    assert_eq!(*b.per_pool(|| Some(2)).unwrap(), 1);
    assert_eq!(*c.per_pool(|| Some(3)).unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn connecting_takes_so_long_and_no_longer() {
    // Takes connections and never says a word of TLS.
    let (listener, _) = listener().await;
    let silent = service(&format!("https://{}", listener.local_addr().unwrap()));
    let upstreams = Arc::new(Upstreams::<()>::new(config(), OwnAddresses::default()).unwrap());
    let began = tokio::time::Instant::now();
    let result = upstreams.connect(KEY, &silent, hooks).await;
    assert_eq!((result.err(), began.elapsed().as_secs()), (Some(UpstreamError::TlsTimeout), 10));
}
