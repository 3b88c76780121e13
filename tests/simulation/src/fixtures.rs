//! What every simulation begins with: a tenant with a service, a credential, agents and tokens,
//! written by the real registry.

use std::sync::{Arc, OnceLock};

use prost::Message as _;
use seks_control_plane::{
    registry::{Issue, Registry},
    seal::{SealConfig, Sealer},
    store::{Key, Transaction, Write},
};
use seks_proto::wire;
use seks_types::{
    id::{AgentName, ServiceName, TenantName, TokenId},
    secret::Secret,
    token::Digest,
};
use tokio::runtime::Builder;

use crate::{
    network::Network,
    plane::{ENROLMENT, node_id},
    random::Random,
    store::{Client, Cluster, Contents},
};

/// Tokens at the beginning: two thirds belong to an agent that stays, the others to one that is
/// disabled.
pub(crate) const TOKENS: usize = 9;

/// The pool of every other node.
pub(crate) const EVEN: &str = "even";

/// Hosts of the largest world.
const HOSTS: usize = 10;

/// A token that was issued.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) id: TokenId,
    pub(crate) digest: Digest,
    pub(crate) agent: AgentName,
}

/// See the module. The same for every seed.
pub(crate) struct Fixtures {
    pub(crate) sealer: Arc<Sealer>,
    pub(crate) contents: Contents,
    pub(crate) tokens: Vec<Token>,
}

pub(crate) fn tenant() -> TenantName {
    "default".parse().unwrap()
}

pub(crate) fn service() -> ServiceName {
    "api".parse().unwrap()
}

impl Fixtures {
    pub(crate) fn get() -> &'static Self {
        static SITE: OnceLock<Fixtures> = OnceLock::new();
        SITE.get_or_init(Self::make)
    }

    fn make() -> Self {
        seks_runtime::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let kek = dir.path().join("kek");
        Sealer::create_file(&kek).unwrap();
        let sealer = Arc::new(Sealer::load(&SealConfig::file(kek)).unwrap());
        let cluster = Cluster::new(0, Contents::default(), None);
        let client = Client { host: 0, network: Network::new(Random::new(0)), cluster: cluster.clone() };
        let registry = Registry::new(Arc::new(client), sealer.clone());
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let tokens = runtime.block_on(seed_fixtures(&registry));
        enrol(&cluster);
        Self { sealer, contents: cluster.read(Clone::clone), tokens }
    }
}

/// Whether a host, as a node, belongs to the pool [`EVEN`].
pub(crate) fn is_even(host: usize) -> bool {
    host.is_multiple_of(2)
}

/// Every host that may come to be a node has enrolled.
fn enrol(cluster: &Cluster) {
    let writes = (0..HOSTS).map(|host| {
        let id = node_id(host);
        let pools = if is_even(host) { vec![EVEN.into()] } else { Vec::new() };
        let node = wire::Node { id: id.to_string(), enrolment: ENROLMENT.into(), pools, ..Default::default() };
        Write::Put(Key::Node(id), node.encode_to_vec().into())
    });
    cluster.commit(Transaction { checks: Vec::new(), writes: writes.collect() }).unwrap();
}

async fn seed_fixtures(registry: &Registry) -> Vec<Token> {
    let tenant = tenant();
    registry.create_tenant(&tenant, false).await.unwrap();
    let value = wire::injection::NamedValue { name: "authorization".into(), value: "Bearer {key}".into() };
    let definition = wire::Service {
        tenant: tenant.to_string(),
        name: service().to_string(),
        upstream: "https://api.example.com".into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection {
            sites: vec![wire::injection::Site { at: Some(wire::injection::site::At::Header(value)) }],
            ..Default::default()
        }),
        slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("Bearer".into())) }],
        ..Default::default()
    };
    registry.apply_service(definition, true).await.unwrap();
    let secret = Secret::new("not-a-real-key".into());
    let (name, by) = ("main".parse().unwrap(), "root".parse().unwrap());
    registry.put_credential(&tenant, &name, &service(), &secret, &[], &by).await.unwrap();
    let agents: [AgentName; 2] = ["bot".parse().unwrap(), "doomed".parse().unwrap()];
    for agent in &agents {
        registry.create_agent(&tenant, agent, Default::default()).await.unwrap();
    }
    let mut tokens = Vec::new();
    for n in 0..TOKENS {
        let agent = agents[usize::from(n % 3 == 2)].clone();
        let issue = Issue {
            is_canary: false,
            agent: agent.clone(),
            grants: vec![(service(), None)],
            ttl: None,
            cidrs: Vec::new(),
            shape: String::new(),
            request_id: String::new(),
            certificate: None,
            by: "root".parse().unwrap(),
        };
        let issued = registry.issue_token(&tenant, issue).await.unwrap();
        tokens.push(Token { id: issued.token.id.parse().unwrap(), digest: issued.secret.digest(), agent });
    }
    tokens
}
