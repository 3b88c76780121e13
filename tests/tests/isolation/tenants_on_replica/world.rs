//! A whole SEKS with a tenant `default` that is served, and operators of a tenant `hostile`.

use std::time::{Duration, Instant};

use prost::Message as _;
use rcgen::{CertificateParams, KeyPair};
use seks_control_plane::store::{Key, Transaction, Write};
use seks_proto::wire::{self, Role, RoleBinding, admin_client::AdminClient};
use seks_tests::{
    Control, Sandbox, Upstream,
    control::{Pair, connect},
    runtime,
    sandbox::{Options, Token},
};
use seks_types::{id::TenantName, token::Digest};
use tonic::transport::Channel;

/// Name of the tenant that attacks.
pub const HOSTILE: &str = "hostile";

/// The real key of `default`.
const KEY: &str = "sk-REAL-tenants-on-replica-0001";

/// A running SEKS, and whoever calls it.
pub struct World {
    pub sandbox: Sandbox,
    pub token: Token,
    _upstream: Upstream,
    admin: String,
    ca: String,
    root: Pair,
}

impl World {
    /// Starts it: `default` has the service `openai` and an agent, `hostile` exists.
    pub fn start(options: Options) -> Self {
        let sandbox = Sandbox::with(options);
        let upstream = Upstream::ok();
        sandbox.service("openai", &upstream, KEY);
        let token = sandbox.token("bot", &["openai"]);
        let (ca, root) = read_context(sandbox.context_file());
        let admin = sandbox.admin().to_string();
        let world = Self { sandbox, token, _upstream: upstream, admin, ca, root };
        let made = wire::CreateTenantRequest { name: HOSTILE.into(), strict: false };
        runtime().block_on(world.root().create_tenant(made)).unwrap();
        world
    }

    /// A client of the first operator.
    pub fn root(&self) -> AdminClient<Channel> {
        self.client(&self.root)
    }

    /// A client that shows `pair`, with a connection of its own.
    pub fn client(&self, pair: &Pair) -> AdminClient<Channel> {
        let _context = runtime().enter();
        AdminClient::new(connect(&self.admin, &self.ca, pair)).max_encoding_message_size(8 * 1024 * 1024)
    }

    /// Makes an operator of the tenant `hostile`.
    pub fn operator(&self, name: &str, role: Role) -> Pair {
        let key = KeyPair::generate().unwrap();
        let csr_der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let roles = vec![RoleBinding { tenant: HOSTILE.into(), role: role.into() }];
        let request = wire::CreateOperatorRequest { name: name.into(), roles, csr_der, ttl_seconds: 0 };
        let made = runtime().block_on(self.root().create_operator(request)).unwrap().into_inner();
        Pair { certificate: made.certificate_pem, key: key.serialize_pem() }
    }

    /// Gives the tenant `hostile` what an attack needs: a service, a credential and an agent.
    pub fn furnish_hostile(&self) {
        let wait = Some(wire::Wait { no_wait: true, timeout_ms: 0 });
        let (tenant, mut root) = (|| HOSTILE.to_owned(), self.root());
        runtime().block_on(async {
            let catalogue = "openai".into();
            let enable = wire::EnableServiceRequest { tenant: tenant(), catalogue, wait, ..Default::default() };
            root.enable_service(enable).await.unwrap();
            let put = wire::PutCredentialRequest {
                tenant: tenant(),
                name: "openai".into(),
                service: "openai".into(),
                secret: KEY.into(),
                wait,
                ..Default::default()
            };
            root.put_credential(put).await.unwrap();
            let bot = wire::CreateAgentRequest { tenant: tenant(), name: "bot".into(), ..Default::default() };
            root.create_agent(bot).await.unwrap();
        });
    }

    /// Resident memory of the control plane, in bytes.
    pub fn control_rss(&mut self) -> u64 {
        resident_bytes(self.sandbox.control().id())
    }

    /// Resident memory of the node, in bytes.
    pub fn node_rss(&mut self) -> u64 {
        resident_bytes(self.sandbox.process().id())
    }

    /// One request of an agent of `default`: its status, and how long it took.
    pub fn request(&self) -> (u16, Duration) {
        let began = Instant::now();
        let status = self.sandbox.get("/api/openai/v1/models", &self.token.secret).status;
        (status, began.elapsed())
    }

    /// Issues a token of `default` and revokes it: whether that was enforced, and how long the
    /// revocation took.
    pub async fn revoke(root: &mut AdminClient<Channel>) -> (bool, Duration) {
        let tenant = || "default".to_owned();
        let grants = vec![wire::Grant { service: "openai".into(), credential: String::new() }];
        let issue = wire::IssueTokenRequest { tenant: tenant(), agent: "bot".into(), grants, ..Default::default() };
        let issued = root.issue_token(issue).await.unwrap().into_inner();
        let name = issued.token.unwrap_or_default().id;
        let began = Instant::now();
        let revoke = wire::DeleteRequest { tenant: tenant(), name, wait: None };
        let revoked = root.revoke_token(revoke).await.unwrap().into_inner();
        (revoked.enforcement.unwrap_or_default().enforced, began.elapsed())
    }
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A file of `bytes` bytes of policies that are all right.
pub fn policies(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes);
    for n in 0.. {
        let policy = format!(
            "@id(\"p{n}\")\npermit (principal, action in [Seks::Action::\"GET\", Seks::Action::\"POST\"], resource)\n\
             when {{ context.path like \"/v1/{n}/*\" && context.query_keys.contains(\"k{n}\") || context.path == \"/{n}\" }};\n"
        );
        if text.len() + policy.len() > bytes {
            return text;
        }
        text.push_str(&policy);
    }
    text
}

/// Writes `count` tokens of the agent `bot` straight to the store, a hundred a transaction.
pub async fn put_tokens(control: &Control, tenant: &str, count: usize) {
    let tenant: TenantName = tenant.parse().unwrap();
    let store = control.plane.registry().store();
    let numbers: Vec<usize> = (0..count).collect();
    for batch in numbers.chunks(100) {
        let writes = batch.iter().map(|n| {
            let token = wire::Token {
                id: format!("tok-{n:07}"),
                tenant: tenant.to_string(),
                agent: "bot".into(),
                grants: vec![wire::Grant { service: "upstream".into(), credential: "key".into() }],
                expires_at: i64::MAX,
                digest: Digest::of(&n.to_be_bytes()).0.to_vec(),
                ..Default::default()
            };
            Write::Put(Key::Token(tenant.clone(), token.id.parse().unwrap()), token.encode_to_vec().into())
        });
        store.commit(Transaction { writes: writes.collect(), ..Transaction::default() }).await.unwrap();
    }
}

/// The CA and the operator's certificate and key of the only context.
fn read_context(path: &std::path::Path) -> (String, Pair) {
    let text = std::fs::read_to_string(path).unwrap();
    let file: toml::Table = text.parse().unwrap();
    let contexts = file["contexts"].as_table().unwrap();
    let context = contexts.values().next().unwrap();
    let pem = |key: &str| {
        let value = context[key].as_str().unwrap();
        match value.starts_with("-----") {
            true => value.to_owned(),
            false => std::fs::read_to_string(path.parent().unwrap().join(value)).unwrap(),
        }
    };
    (pem("ca"), Pair { certificate: pem("certificate"), key: pem("key") })
}
