//! A replica on an embedded store, and the records that tests begin with.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rcgen::{CertificateParams, KeyPair};
use seks_control_plane::{
    Config, Distribution, DistributionOptions, StartError, Storage,
    authority::{Authority, Request},
    backup,
    config::ListenerTlsConfig,
    epoch::Epoch,
    node_api::enrolment::Enrolment,
    registry::{Admission, Issue, Joining, Registry},
    seal::{SealConfig, Sealer, rotate::rotate},
    server::{
        Components,
        listener::Listener,
        tls::{ClientCertificate, Source},
    },
    store::{Key, Revision, Store, StoreConfig, StoreKind, Transaction, Write},
};
use seks_data_plane::sync::Identity;
use seks_proto::wire::{self, node_enforcement::State};
use seks_tests::Etcd;
use seks_types::{
    id::{TenantName, TokenId},
    secret::Secret,
    token::Digest,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub const REAL: &str = "sk-REAL-9f3c-DEADBEEF0123456789";
/// The shortest lease: a test that waits for one to end waits for this.
pub const LEASE: Duration = Duration::from_secs(2);

/// Everything of a replica that outlives its process.
pub struct ReplicaHost {
    config: Config,
    _dir: TempDir,
}

pub struct Replica {
    pub foundation: Components,
    pub distribution: Distribution,
    pub address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

/// A token that was issued.
#[derive(Clone, Debug)]
pub struct Issued {
    pub id: TokenId,
    pub digest: Digest,
    pub revision: Revision,
}

pub fn tenant() -> TenantName {
    "default".parse().unwrap()
}

impl ReplicaHost {
    pub fn new() -> Self {
        seks_tests::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        Sealer::create_file(&kek).unwrap();
        let store = StoreConfig::embedded(dir.path().join("data/store"));
        Self { config: Config { store, seal: SealConfig::file(kek), ..Config::default() }, _dir: dir }
    }

    /// A host whose store is an etcd, for any number of replicas.
    pub fn on_etcd(etcd: &Etcd) -> Self {
        let mut host = Self::new();
        host.config.store = StoreConfig {
            kind: StoreKind::Etcd,
            endpoints: vec![etcd.url()],
            allow_plaintext: true,
            ..StoreConfig::default()
        };
        host
    }

    /// Starts a replica; one at a time on an embedded store.
    pub async fn start(&self) -> Replica {
        self.start_as("r1", &[]).await
    }

    /// Starts a replica of this name that reaches the store at `endpoints`; none: as the host says.
    pub async fn start_as(&self, name: &str, endpoints: &[String]) -> Replica {
        let mut config = self.config.clone();
        if !endpoints.is_empty() {
            config.store.endpoints = endpoints.to_vec();
        }
        let options = DistributionOptions { replica: name.into(), lease: LEASE, ..DistributionOptions::default() };
        self.serve(Components::open(&config).await.unwrap(), options, |store| store).await
    }

    /// Starts a replica whose distribution sees the store through `wrap`, and compares its table
    /// with it so often.
    pub async fn start_on(
        &self,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
        verify_every: Duration,
    ) -> Replica {
        let options = DistributionOptions { lease: LEASE, verify_every, ..DistributionOptions::default() };
        self.serve(Components::open(&self.config).await.unwrap(), options, wrap).await
    }

    /// Re-wraps everything under a new key-encryption key, and forgets the old one.
    pub async fn rotate(&mut self) {
        let old = self.config.seal.path.display().to_string();
        let new = self._dir.path().join("kek-2");
        Sealer::create_file(&new).unwrap();
        self.config.seal = SealConfig { older: vec![old], ..SealConfig::file(new) };
        let Storage { store, sealer, .. } = Storage::open(&self.config).await.unwrap();
        assert!(rotate(&sealer, store.as_ref()).await.unwrap().left.is_empty());
        self.config.seal.older.clear();
    }

    /// Replaces the store by a backup.
    pub async fn restore(&self, backup: &Path) {
        let sealer = Sealer::load(&self.config.seal).unwrap();
        backup::restore(&self.config.store, &sealer, backup, true).await.unwrap();
        assert!(matches!(Components::open(&self.config).await.err(), Some(StartError::WentBack(_))));
    }

    /// Accepts that the store went back.
    pub async fn accept(&self, reason: &str) {
        let base = Storage::open(&self.config).await.unwrap();
        let mark = base.mark().unwrap();
        Epoch::accept(base.store.as_ref(), &base.sealer, mark.as_ref(), reason).await.unwrap();
    }

    /// As [`start`](Self::start), by somebody who has taken out the check.
    pub async fn start_anyway(&self) -> Replica {
        let Storage { store, records, sealer, .. } = Storage::open(&self.config).await.unwrap();
        let authority = Authority::load_or_create(store.as_ref(), &sealer, Transaction::default).await.unwrap();
        let registry = Registry::new(store.clone(), sealer.clone());
        let (authority, registry) = (authority.into(), registry.into());
        let options = DistributionOptions { replica: "r1".into(), lease: LEASE, ..DistributionOptions::default() };
        self.serve(Components { store, records, sealer, authority, registry, marks: None }, options, |store| store)
            .await
    }

    async fn serve(
        &self,
        foundation: Components,
        options: DistributionOptions,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
    ) -> Replica {
        let (store, sealer) = (wrap(foundation.store.clone()), foundation.sealer.clone());
        let distribution = Distribution::start(store, sealer, options).await.unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, stop) = (listener.address(), CancellationToken::new());
        let source = Source::new(foundation.authority.clone(), ListenerTlsConfig::default(), Vec::new());
        let (tls, _presented) = source.server_config(ClientCertificate::Optional).unwrap();
        let enrolment = Enrolment::service(foundation.authority.clone(), foundation.registry.clone());
        let nodes = distribution.node_api().with_enrolment(enrolment);
        let serving = tokio::spawn(nodes.serve(listener.accept(tls, stop.clone()), stop.clone()));
        Replica { foundation, distribution, address, stop, serving }
    }
}

impl Replica {
    /// A replica with a service, a credential, and the agent `bot`.
    pub async fn with_fixtures() -> (ReplicaHost, Self) {
        let host = ReplicaHost::new();
        let replica = host.start().await;
        replica.seed_fixtures().await;
        (host, replica)
    }

    /// Makes the service, the credential and the agent in the default tenant.
    pub async fn seed_fixtures(&self) {
        self.seed_fixtures_in(&tenant()).await;
    }

    /// Makes the service, the credential and the agent in `tenant`.
    pub async fn seed_fixtures_in(&self, tenant: &TenantName) {
        let registry = &self.foundation.registry;
        let value = wire::injection::NamedValue { name: "authorization".into(), value: "Bearer {key}".into() };
        let at = Some(wire::injection::site::At::Header(value));
        let service = wire::Service {
            tenant: tenant.to_string(),
            name: "api".into(),
            upstream: "https://api.example.com".into(),
            fields: vec!["key".into()],
            injection: Some(wire::Injection { sites: vec![wire::injection::Site { at }], ..Default::default() }),
            slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("Bearer".into())) }],
            ..Default::default()
        };
        registry.apply_service(service, true).await.unwrap();
        self.put_credential_in(tenant, REAL).await;
        registry.create_agent(tenant, &"bot".parse().unwrap(), Default::default()).await.unwrap();
    }

    pub async fn put_credential(&self, secret: &str) -> Revision {
        self.put_credential_in(&tenant(), secret).await
    }

    async fn put_credential_in(&self, tenant: &TenantName, secret: &str) -> Revision {
        let (name, service, by) = ("main".parse().unwrap(), "api".parse().unwrap(), "root".parse().unwrap());
        let secret = Secret::new(secret.into());
        self.foundation.registry.put_credential(tenant, &name, &service, &secret, &[], &by).await.unwrap().1
    }

    pub async fn issue(&self) -> Issued {
        self.issue_in(&tenant()).await
    }

    pub async fn issue_in(&self, tenant: &TenantName) -> Issued {
        let issue = Issue {
            is_canary: false,
            agent: "bot".parse().unwrap(),
            grants: vec![("api".parse().unwrap(), None)],
            ttl: None,
            cidrs: Vec::new(),
            shape: String::new(),
            request_id: String::new(),
            certificate: None,
            by: "root".parse().unwrap(),
        };
        let issued = self.foundation.registry.issue_token(tenant, issue).await.unwrap();
        let id = issued.token.id.parse().unwrap();
        Issued { id, digest: issued.secret.digest(), revision: issued.revision }
    }

    pub async fn revoke(&self, token: &Issued) -> Revision {
        self.foundation.registry.revoke_token(&tenant(), &token.id).await.unwrap()
    }

    /// Writes `count` tokens, a hundred a transaction; returns their digests.
    pub async fn issue_many(&self, count: u64) -> Vec<Digest> {
        let digests: Vec<Digest> = (0..count).map(|n| Digest::of(&n.to_be_bytes())).collect();
        let grants = vec![wire::Grant { service: "api".into(), credential: "main".into() }];
        for (batch, chunk) in digests.chunks(100).enumerate() {
            let writes = chunk.iter().enumerate().map(|(n, digest)| {
                let id = format!("tok-{batch}-{n}");
                let token = wire::Token {
                    id: id.clone(),
                    tenant: tenant().to_string(),
                    agent: "bot".into(),
                    grants: grants.clone(),
                    expires_at: i64::MAX,
                    digest: digest.0.to_vec(),
                    ..Default::default()
                };
                Write::Put(Key::Token(tenant(), id.parse().unwrap()), prost::Message::encode_to_vec(&token).into())
            });
            let transaction = Transaction { writes: writes.collect(), ..Transaction::default() };
            self.foundation.store.commit(transaction).await.unwrap();
        }
        digests
    }

    pub fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The identity of a node that enrols; one that has enrolled before gets another certificate.
    pub async fn identity(&self, node: &str) -> Identity {
        let (certificate, key, ca) = self.pems(node).await;
        Identity::new(&node.parse().unwrap(), "eu".into(), certificate, Zeroizing::new(key), ca)
    }

    /// Certificate, key and CA of `node`, in PEM.
    pub async fn pems(&self, node: &str) -> (String, String, String) {
        self.pems_for(node, Admission::default()).await
    }

    /// The identity of a node that enrols for these tenants.
    pub async fn identity_within(&self, node: &str, tenants: &[TenantName]) -> Identity {
        self.identity_for(node, Admission { tenants: tenants.to_vec(), ..Admission::default() }).await
    }

    /// The identity of a node that enrols with this.
    pub async fn identity_for(&self, node: &str, admission: Admission) -> Identity {
        let (certificate, key, ca) = self.pems_for(node, admission).await;
        Identity::new(&node.parse().unwrap(), "eu".into(), certificate, Zeroizing::new(key), ca)
    }

    /// The same of a node that enrols with this.
    pub async fn pems_for(&self, node: &str, admission: Admission) -> (String, String, String) {
        let (key, csr) = request();
        let Components { authority, registry, .. } = &self.foundation;
        let (id, csr) = (node.parse().unwrap(), Request::parse(&csr).unwrap());
        let record = match registry.node(&id).await.unwrap() {
            Some(record) => record,
            None => {
                let admission = Admission { region: "eu".into(), ..admission };
                let token = registry.create_join_token(admission, authority.pin()).await.unwrap();
                let joining = Joining { token: &token.text, node: Some(id.clone()), key_sha256: csr.key_sha256() };
                registry.enrol(&joining).await.unwrap()
            }
        };
        (authority.sign_node(&csr, &id, &record.enrolment).unwrap(), key.serialize_pem(), authority.ca_pem())
    }

    /// How `node` stands to `revision` now.
    pub fn state(&self, revision: Revision, node: &str) -> State {
        let enforcement = self.distribution.enforcement(revision);
        enforcement.nodes.iter().find(|n| n.node == node).map_or(State::Unspecified, wire::NodeEnforcement::state)
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.distribution.shutdown().await;
        self.serving.await.unwrap();
    }
}

fn request() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap();
    (key, csr.der().to_vec())
}
