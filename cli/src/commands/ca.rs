//! `seks ca`: the CA with which nodes impersonate the hosts of a tenant's services in HTTPS_PROXY
//! mode.
//!
//! Its key is a credential like any other: sealed in the store, versioned, and sent only to nodes
//! of tokens that grant it.

use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand, ValueEnum};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use seks_proto::wire;
use seks_service::{INTERCEPTION, INTERCEPTION_CERTIFICATE, INTERCEPTION_KEY, client_ca_pem, spec::ServiceSpec};
use seks_types::secret::Secret;
use serde::Serialize;
use zeroize::Zeroizing;

use super::change::{self, WaitArgs};
use crate::{
    duration::duration,
    error::{CliError, Exit, Result},
    global::Global,
    output::View,
    secret_input::for_the_wire,
};

/// Tolerance for slow clocks of agents.
const BACKDATE: Duration = Duration::from_secs(3600);

/// What can be done with the CA.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create the tenant's CA, or a new one that replaces it
    #[command(after_help = "\
Example:
  seks ca create
  seks ca show > seks-ca.pem
  seks token issue --agent ci-bot --service github --service seks-interception

Agents trust the certificate (CURL_CA_BUNDLE, REQUESTS_CA_BUNDLE, NODE_EXTRA_CA_CERTS, GIT_SSL_CAINFO, …) and set
HTTPS_PROXY=http://agent:TOKEN@NODE, with a token that grants `seks-interception`.")]
    Create(CreateArgs),
    /// Print the CA's certificate, in PEM
    #[command(after_help = "Example:\n  seks ca show > seks-ca.pem")]
    Show,
    /// Set what happens to CONNECT requests for hosts of no service of the tenant
    #[command(after_help = "\
Example:
  seks ca other-hosts tunnel

`deny` refuses these connections; it is the default. `tunnel` passes them through, uninspected and without a credential, to public
addresses, for a token that grants `seks-interception`. Each has one audit record and ends with the token. Policies do not apply.")]
    OtherHosts(OtherHostsArgs),
}

/// The handling of hosts of no service.
#[derive(Debug, Args)]
pub struct OtherHostsArgs {
    /// Refuse these connections, or pass them through
    choice: OtherHosts,
    /// Also permit private and loopback addresses (never link-local and metadata addresses)
    #[arg(long)]
    allow_private: bool,
    /// Waiting for enforcement.
    #[command(flatten)]
    wait_args: WaitArgs,
}

/// The handling of hosts of no service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherHosts {
    /// Refuse connections.
    Deny,
    /// Pass connections through.
    Tunnel,
}

impl OtherHosts {
    fn from_service(service: &wire::Service) -> Self {
        if service.tunnel_other_hosts { Self::Tunnel } else { Self::Deny }
    }
}

/// The validity of the CA.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// How long the CA is valid
    #[arg(long, default_value = "30d", value_parser = duration)]
    ttl: Duration,
    /// Waiting for enforcement.
    #[command(flatten)]
    wait_args: WaitArgs,
}

#[derive(Serialize)]
struct CaView {
    id: String,
    tenant: String,
    certificate: String,
    version: u32,
}

impl View for CaView {
    const COLUMNS: &'static [&'static str] = &["ca", "tenant", "version"];
    fn row(&self) -> Vec<String> {
        vec![self.id.clone(), self.tenant.clone(), self.version.to_string()]
    }
    fn detail(&self) -> Vec<(&'static str, String)> {
        Self::COLUMNS.iter().copied().zip(self.row()).collect()
    }
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(args) => create(global, args).await,
        Verb::Show => {
            let client = global.connect().await?;
            let service = client.call("the CA", client.rpc().get_service(client.named(INTERCEPTION))).await;
            let service = service.map_err(|e| e.hint("`seks ca create` makes one"))?;
            let output = global.output();
            if output.is_table() {
                return output.text(client_ca_pem(&service).trim_end());
            }
            let other_hosts = OtherHosts::from_service(&service);
            let certificate = client_ca_pem(&service).to_owned();
            let (id, tenant) = (service.name, service.tenant);
            output.data(&serde_json::json!({
                "id": id, "tenant": tenant, "certificate": certificate, "other_hosts": other_hosts
            }))
        }
        Verb::OtherHosts(args) => other_hosts(global, args).await,
    }
}

async fn create(global: &Global, args: CreateArgs) -> Result<()> {
    let client = global.connect().await?;
    let made = generate_ca(&client.tenant(), args.ttl).map_err(|e| CliError::new(Exit::Failed, "the CA", e))?;
    let mut service = service(&client.tenant(), &made.certificate)?;
    // A new CA keeps the other settings.
    let all = client.list_all("services", async |mut rpc, page| rpc.list_services(page).await).await?;
    if let Some(before) = all.into_iter().find(|service| service.name == INTERCEPTION) {
        (service.tunnel_other_hosts, service.allow_private) = (before.tunnel_other_hosts, before.allow_private);
    }
    let apply = wire::ApplyServiceRequest { service: Some(service), wait: None };
    client.change("the CA", client.rpc().apply_service(apply)).await?;
    let put = wire::PutCredentialRequest {
        tenant: client.tenant(),
        name: INTERCEPTION.into(),
        service: INTERCEPTION.into(),
        secret: for_the_wire(&made.secret),
        mint: String::new(),
        pools: Vec::new(),
        wait: Some(client.wait(args.wait_args.no_wait)),
    };
    let answer = client.change("the CA", client.rpc().put_credential(put)).await?;
    let credential = answer.credential.unwrap_or_default();
    // With the hosts of the tenant's services as its constraints.
    let service = client.call("the CA", client.rpc().get_service(client.named(INTERCEPTION))).await?;
    let view = CaView {
        id: INTERCEPTION.into(),
        tenant: client.tenant(),
        certificate: client_ca_pem(&service).to_owned(),
        version: credential.version,
    };
    change::print_changed(global.output(), "the CA", view, answer.enforcement, args.wait_args)
}

#[derive(Serialize)]
struct OtherHostsView {
    id: String,
    tenant: String,
    other_hosts: OtherHosts,
    allow_private: bool,
}

impl View for OtherHostsView {
    const COLUMNS: &'static [&'static str] = &["ca", "tenant", "other hosts"];
    fn row(&self) -> Vec<String> {
        let choice = match (self.other_hosts, self.allow_private) {
            (OtherHosts::Deny, _) => "deny",
            (OtherHosts::Tunnel, false) => "tunnel",
            (OtherHosts::Tunnel, true) => "tunnel, private ones too",
        };
        vec![self.id.clone(), self.tenant.clone(), choice.into()]
    }
    fn detail(&self) -> Vec<(&'static str, String)> {
        Self::COLUMNS.iter().copied().zip(self.row()).collect()
    }
}

async fn other_hosts(global: &Global, args: OtherHostsArgs) -> Result<()> {
    let client = global.connect().await?;
    let service = client.call("the CA", client.rpc().get_service(client.named(INTERCEPTION))).await;
    let mut service = service.map_err(|e| e.hint("`seks ca create` makes one"))?;
    service.tunnel_other_hosts = args.choice == OtherHosts::Tunnel;
    service.allow_private = args.allow_private && service.tunnel_other_hosts;
    let wait = Some(client.wait(args.wait_args.no_wait));
    let apply = wire::ApplyServiceRequest { service: Some(service), wait };
    let answer = client.change("the CA", client.rpc().apply_service(apply)).await?;
    let service = answer.service.unwrap_or_default();
    let view = OtherHostsView {
        id: INTERCEPTION.into(),
        tenant: client.tenant(),
        other_hosts: OtherHosts::from_service(&service),
        allow_private: service.allow_private,
    };
    change::print_changed(global.output(), "the CA", view, answer.enforcement, args.wait_args)
}

/// A new CA.
struct NewCa {
    certificate: String,
    /// The credential: a JSON object of its fields.
    secret: Secret,
}

fn generate_ca(tenant: &str, ttl: Duration) -> std::result::Result<NewCa, Box<dyn std::error::Error>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "SEKS");
    params.distinguished_name.push(DnType::CommonName, format!("SEKS interception CA of tenant {tenant}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)); // it signs hosts, never another CA
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ttl).into();
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?;
    // One line each: a credential's fields are values of headers elsewhere.
    let key = Zeroizing::new(STANDARD.encode(Zeroizing::new(ca.key().serialize_der())));
    let fields = Zeroizing::new(format!(
        r#"{{"{INTERCEPTION_CERTIFICATE}":"{}","{INTERCEPTION_KEY}":"{}"}}"#,
        STANDARD.encode(ca.der()),
        *key
    ));
    Ok(NewCa { certificate: ca.pem(), secret: Secret::new(fields.as_bytes().to_vec()) })
}

/// The service of the CA's credential. It has an upstream because every service needs one. Nodes
/// send nothing to it.
fn service(tenant: &str, certificate: &str) -> Result<wire::Service> {
    let spec = serde_json::json!({
        "name": INTERCEPTION,
        "title": "Interception CA of HTTPS_PROXY mode",
        "upstream": "https://interception.invalid",
        "inject": { "headers": {
            "x-certificate": format!("{{{INTERCEPTION_CERTIFICATE}}}"),
            "x-key": format!("{{{INTERCEPTION_KEY}}}"),
        } },
        "upstream_ca_pem": certificate,
    });
    let spec: ServiceSpec = serde_json::from_value(spec).map_err(|e| CliError::new(Exit::Failed, "the CA", e))?;
    spec.to_wire(tenant).map_err(|e| CliError::new(Exit::Failed, "the CA", e))
}
