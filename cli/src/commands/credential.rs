//! `seks credential`: real secrets. They are stored and never shown again.

mod source;

use clap::Subcommand;
use seks_proto::wire::{self, admin_client::AdminClient};
use serde::Serialize;
use tonic::transport::Channel;

use self::source::Source;
use super::change::{self, WaitArgs};
use crate::{
    client::Client,
    confirm::Confirm,
    error::{CliError, Result},
    global::Global,
    listing::{self, ListArgs},
    output::{Output, View, notice, rfc3339_or_null},
    secret_input::{SecretInput, for_the_wire},
};

/// The verbs of `seks credential`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Store a credential, or a new version of it that replaces the current one
    #[command(after_help = "\
Examples:
  seks credential put openai-key --service openai                       prompts, without echo
  pass show openai | seks credential put openai-key --service openai --from-stdin
  seks credential put twilio-key --service twilio --from-file fields.json

  seks credential put gmail-key --service gmail --mint service-account --from-file key.json

A service with several fields takes a JSON object of strings with those fields.

With --mint the secret never leaves the control plane. It mints short-lived tokens from the secret and renews them before they expire:
  oauth2-refresh   {\"token_url\",\"client_id\",\"refresh_token\"} and \"client_secret\", \"scope\", \"auth\":\"basic\"
  oauth2-client    {\"token_url\",\"client_id\",\"client_secret\"} and \"scope\", \"audience\", \"auth\":\"basic\"
  service-account  Google's key file with a \"scope\" added, and \"subject\"
  github-app       {\"app_id\",\"installation_id\",\"private_key\"} and \"repositories\", \"permissions\", \"api_url\"

With --source the secret stays where it is, and only a reference is stored. It is read every 5 minutes (\"refresh_seconds\"), and when an
upstream rejects it. What is unchanged makes no new version. \"field\" names a key of a JSON object:
  seks credential put openai-key --service openai --source file:openai.key
  seks credential put openai-key --service openai --source command:op-read:op://team/openai/key
  seks credential put openai-key --service openai --source vault-kv --from-file reference.json

  file                 PATH below `[sources] file_dir`/TENANT of the control plane
  command              NAME[:ARGUMENT] of a `[[sources.command]]` of the control plane
  vault-kv             Vault or OpenBao, KV version 2: {\"address\",\"path\"}, \"token\", \"role_id\" with \"secret_id\", or
                       \"login\":\"kubernetes\", and \"mount\", \"field\", \"auth_mount\", \"namespace\"
  aws-secrets-manager  {\"region\",\"secret_name\",\"access_key_id\",\"secret_access_key\"} and \"session_token\", \"field\",
                       \"version_stage\", \"endpoint\"
  gcp-secret-manager   {\"name\":\"projects/P/secrets/S\",\"service_account\":KEY_FILE} and \"field\", \"api_url\"
  1password-connect    {\"address\",\"token\",\"vault\",\"item\"} and \"field\"")]
    Put {
        /// 1 to 63 of a-z, 0-9 and `-`
        name: String,
        /// The service that uses it
        #[arg(long)]
        service: String,
        /// Mint tokens from the secret by this method
        #[arg(long, value_name = "KIND", value_parser = ["oauth2-refresh", "oauth2-client", "service-account", "github-app", "vault-kv"])]
        mint: Option<String>,
        /// Read the secret from this source, and read it again on a schedule
        #[arg(long, value_name = "KIND[:WHERE]", conflicts_with = "mint")]
        source: Option<String>,
        /// Assign it to this pool: only nodes of the pool may hold it (repeatable) [default: as it
        /// was; when it is new, every node]
        #[arg(id = "pool", long = "pool", value_name = "NAME")]
        pools: Vec<String>,
        /// Where the secret comes from.
        #[command(flatten)]
        input: SecretInput,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// List the tenant's credentials: names and versions, no secrets
    #[command(alias = "ls", after_help = "Example:\n  seks credential list -o json")]
    List {
        /// Selection and order.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a credential's metadata, never the secret
    #[command(after_help = "Example:\n  seks credential show openai-key")]
    Show {
        /// Name of the credential
        name: String,
    },
    /// List the nodes that hold a credential and may use it now
    #[command(after_help = "\
Example:
  seks credential where openai-key

A node holds a credential while a token uses it there, in the tenants that the node was enrolled for. Only nodes of the assigned pools
hold a credential that is assigned to pools.")]
    Where {
        /// Name of the credential
        name: String,
    },
    /// Set which nodes may hold a credential: those of some pools, or all
    #[command(after_help = "\
Examples:
  seks credential assign stripe-key --pool payments
  seks credential assign stripe-key --every-node

Nodes belong to the pools of their enrolment (`seks node enroll --pool NAME`). A node that may not hold a credential answers requests
that need it with `service_not_granted`.")]
    Assign {
        /// Name of the credential
        name: String,
        /// A pool whose nodes may hold it (repeatable)
        #[arg(id = "pool", long = "pool", value_name = "NAME", required_unless_present = "every_node")]
        pools: Vec<String>,
        /// Let every node of the tenant hold it
        #[arg(long, conflicts_with = "pool")]
        every_node: bool,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Use an earlier version again
    #[command(after_help = "Example:\n  seks credential rollback openai-key --version 3")]
    Rollback {
        /// Name of the credential
        name: String,
        /// The version to use again [default: the one before the current]
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        version: u32,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Bind a credential to the current destination of its service, without storing the secret
    /// again
    #[command(after_help = "\
Example:
  seks credential rebind openai-key

A credential is bound to the destination of its service at the time when it was stored: origin, roots, base path and injection. When the
service gets another destination, nodes answer requests that need the credential with `credential_unbound`. Store it again (`credential put`),
or let an owner bind it to the new destination (`credential rebind`).")]
    Rebind {
        /// Name of the credential
        name: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Delete a credential with all its versions
    #[command(alias = "rm", after_help = "Example:\n  seks credential delete openai-key --yes")]
    Delete {
        /// Name of the credential
        name: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
}

#[derive(Serialize)]
struct CredentialView {
    id: String,
    name: String,
    tenant: String,
    service: String,
    version: u32,
    created_at: Option<String>,
    updated_at: Option<String>,
    versions: Vec<VersionView>,
    pools: Vec<String>,
    /// The origin that the current version is bound to.
    origin: Option<String>,
    /// The credential is bound to a former destination of its service, and nodes do not use it.
    unbound: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mint: Option<MintView>,
}

/// The minting state of a credential.
#[derive(Serialize)]
struct MintView {
    kind: String,
    /// Of a reference: where the secret is.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<serde_json::Value>,
    expires_at: Option<String>,
    refresh_at: Option<String>,
    refreshed_at: Option<String>,
    failing_since: Option<String>,
    error: Option<String>,
    failures: u32,
}

impl From<wire::Mint> for MintView {
    fn from(m: wire::Mint) -> Self {
        Self {
            kind: m.kind,
            source: serde_json::from_str(&m.reference).ok(),
            expires_at: rfc3339_or_null(m.expires_at),
            refresh_at: rfc3339_or_null(m.refresh_at),
            refreshed_at: rfc3339_or_null(m.refreshed_at),
            failing_since: rfc3339_or_null(m.failing_since),
            error: Some(m.error).filter(|e| !e.is_empty()),
            failures: m.failures,
        }
    }
}

impl MintView {
    fn state(&self) -> String {
        let expires = self.expires_at.as_deref().unwrap_or("?");
        match (&self.failing_since, &self.error) {
            (Some(since), Some(error)) if self.source.is_some() => format!("FAILING since {since}: {error}"),
            (Some(since), Some(error)) => format!("FAILING since {since}: {error}; expires {expires}"),
            _ if self.source.is_some() => format!("from {}", self.kind),
            _ => format!("{}, expires {expires}", self.kind),
        }
    }
}

#[derive(Serialize)]
struct VersionView {
    version: u32,
    created_at: Option<String>,
    created_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    restored_from: Option<u32>,
    origin: Option<String>,
}

impl From<wire::Credential> for CredentialView {
    fn from(c: wire::Credential) -> Self {
        let version = |v: wire::CredentialVersion| VersionView {
            version: v.version,
            created_at: rfc3339_or_null(v.created_at),
            created_by: v.created_by,
            restored_from: Some(v.restored_from).filter(|v| *v > 0),
            origin: Some(v.origin).filter(|origin| !origin.is_empty()),
        };
        let current = c.versions.iter().find(|v| v.version == c.version);
        let origin = current.map(|v| v.origin.clone()).filter(|origin| !origin.is_empty());
        Self {
            id: c.name.clone(),
            name: c.name,
            tenant: c.tenant,
            service: c.service,
            version: c.version,
            created_at: rfc3339_or_null(c.created_at),
            updated_at: rfc3339_or_null(c.updated_at),
            versions: c.versions.into_iter().map(version).collect(),
            pools: c.pools,
            origin,
            unbound: c.unbound,
            mint: c.mint.map(MintView::from),
        }
    }
}

impl View for CredentialView {
    const COLUMNS: &'static [&'static str] = &["name", "service", "version", "updated", "pools", "minted"];
    fn row(&self) -> Vec<String> {
        let updated = self.updated_at.clone().unwrap_or_default();
        let pools = if self.pools.is_empty() { "all".into() } else { self.pools.join(",") };
        let minted = self.mint.as_ref().map(MintView::state).unwrap_or_default();
        vec![self.name.clone(), self.service.clone(), self.version.to_string(), updated, pools, minted]
    }
    fn detail(&self) -> Vec<(&'static str, String)> {
        let mut detail: Vec<_> = Self::COLUMNS.iter().copied().zip(self.row()).collect();
        let line = |v: &VersionView| {
            let from = v.restored_from.map_or_else(String::new, |f| format!(", version {f} again"));
            format!("{}: {} by {}{from}", v.version, v.created_at.as_deref().unwrap_or("?"), v.created_by)
        };
        let bound_to = self.origin.clone().unwrap_or_default();
        let note = if self.unbound { " (NOT USED: the service has another destination)" } else { "" };
        detail.push(("bound to", format!("{bound_to}{note}")));
        detail.push(("versions", self.versions.iter().map(line).collect::<Vec<_>>().join("\n")));
        detail
    }
}

/// A node that holds the credential.
#[derive(Serialize)]
struct HolderView {
    node: String,
    region: String,
    connected: bool,
    applied_revision: u64,
    lag: u64,
    lease_remaining_ms: u64,
}

impl From<wire::Node> for HolderView {
    fn from(n: wire::Node) -> Self {
        let wire::Node { id, region, connected, applied_revision, lag, lease_remaining_ms, .. } = n;
        Self { node: id, region, connected, applied_revision, lag, lease_remaining_ms }
    }
}

impl View for HolderView {
    const COLUMNS: &'static [&'static str] = &["node", "region", "state", "lag"];
    fn row(&self) -> Vec<String> {
        let state = if self.connected { "connected" } else { "cut off, within its lease" };
        vec![self.node.clone(), self.region.clone(), state.into(), self.lag.to_string()]
    }
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    let output = global.output();
    match verb {
        Verb::Put { name, service, mint, source, pools, input, wait_args } => {
            let source = source_of(source.as_deref(), &input)?;
            let client = global.connect().await?; // before the prompt: an unreachable control plane fails first
            let request = wire::PutCredentialRequest {
                tenant: client.tenant(),
                name,
                service,
                mint: mint.or(source.as_ref().map(|source| source.kind.clone())).unwrap_or_default(),
                secret: source.and_then(|source| source.reference).unwrap_or_default().into_bytes(),
                pools,
                wait: Some(client.wait(wait_args.no_wait)),
            };
            put(&client, output, request, &input, wait_args).await
        }
        Verb::List { list } => {
            let client = global.connect().await?;
            let ask = async |mut rpc: AdminClient<Channel>, page| rpc.list_credentials(page).await;
            listing::list::<_, CredentialView>(&client, output, "credentials", list, ask).await
        }
        Verb::Show { name } => {
            let client = global.connect().await?;
            let what = format!("credential `{name}`");
            let credential = client.call(&what, client.rpc().get_credential(client.named(&name))).await?;
            output.one(&CredentialView::from(credential))
        }
        Verb::Where { name } => {
            let client = global.connect().await?;
            let what = format!("credential `{name}`");
            let nodes = client.call(&what, client.rpc().where_credential(client.named(&name))).await?.nodes;
            output.list("nodes", &nodes.into_iter().map(HolderView::from).collect::<Vec<_>>())
        }
        Verb::Assign { name, pools, wait_args, .. } => {
            let client = global.connect().await?;
            let what = format!("credential `{name}`");
            let wait = Some(client.wait(wait_args.no_wait));
            let request = wire::AssignCredentialRequest { tenant: client.tenant(), name, pools, wait };
            let response = client.change(&what, client.rpc().assign_credential(request)).await?;
            let view = CredentialView::from(response.credential.unwrap_or_default());
            warn_without_holders(&client, &what, &view).await;
            change::print_changed(output, &what, view, response.enforcement, wait_args)
        }
        Verb::Rollback { name, version, wait_args } => {
            let client = global.connect().await?;
            let what = format!("credential `{name}`");
            let wait = Some(client.wait(wait_args.no_wait));
            let request = wire::RollbackCredentialRequest { tenant: client.tenant(), name, version, wait };
            let response = client.change(&what, client.rpc().rollback_credential(request)).await?;
            let view = CredentialView::from(response.credential.unwrap_or_default());
            change::print_changed(output, &what, view, response.enforcement, wait_args)
        }
        Verb::Rebind { name, confirm, wait_args } => rebind(global, &name, confirm, wait_args).await,
        Verb::Delete { name, confirm, wait_args } => {
            confirm.ask(&format!("delete credential `{name}` with all its versions"))?;
            let client = global.connect().await?;
            let request = client.delete(&name, wait_args.no_wait);
            let what = format!("credential `{name}`");
            let response = client.change(&what, client.rpc().delete_credential(request)).await?;
            change::print_outcome(
                output,
                change::Outcome { noun: "credential", name: &name, done: "deleted" },
                response,
                wait_args,
            )
        }
    }
}

/// `--source`, which leaves nothing to read where it says all.
fn source_of(text: Option<&str>, input: &SecretInput) -> Result<Option<Source>> {
    let source = text.map(Source::parse).transpose()?;
    let is_whole = source.as_ref().is_some_and(|source| source.reference.is_some());
    if is_whole && (input.from_stdin || input.from_file.is_some()) {
        let why = "says where the secret is already: leave out --from-stdin and --from-file";
        return Err(CliError::usage("--source", why));
    }
    Ok(source)
}

/// The request includes the origin that the question names, so that exactly the confirmed change is
/// made.
async fn rebind(global: &Global, name: &str, confirm: Confirm, wait_args: WaitArgs) -> Result<()> {
    let client = global.connect().await?;
    let what = format!("credential `{name}`");
    let credential = client.call(&what, client.rpc().get_credential(client.named(name))).await?;
    let service_name = format!("service `{}`", credential.service);
    let service = client.call(&service_name, client.rpc().get_service(client.named(&credential.service))).await?;
    let view = CredentialView::from(credential);
    let from = view.origin.as_deref().unwrap_or("an unknown origin");
    confirm.ask(&format!("send {what}, which was stored for {from}, to {}", service.upstream))?;
    let request = wire::RebindCredentialRequest {
        tenant: client.tenant(),
        name: name.to_owned(),
        origin: service.upstream,
        wait: Some(client.wait(wait_args.no_wait)),
    };
    let response = client.change(&what, client.rpc().rebind_credential(request)).await?;
    let view = CredentialView::from(response.credential.unwrap_or_default());
    change::print_changed(global.output(), &what, view, response.enforcement, wait_args)
}

async fn put(
    client: &Client,
    output: Output,
    request: wire::PutCredentialRequest,
    input: &SecretInput,
    wait_args: WaitArgs,
) -> Result<()> {
    let what = format!("credential `{}`", request.name);
    let secret = match request.secret.as_slice() {
        [] => {
            let (secret, warning) =
                input.read_credential(&format!("Secret for `{}` (not shown): ", request.service))?;
            if let Some(warning) = warning {
                notice(&format!("warning: {warning}"));
            }
            for_the_wire(&secret)
        }
        _ => Vec::new(), // a reference that is an argument
    };
    let request = if secret.is_empty() { request } else { wire::PutCredentialRequest { secret, ..request } };
    let response = client.change(&what, client.rpc().put_credential(request)).await?;
    let view = CredentialView::from(response.credential.unwrap_or_default());
    warn_without_holders(client, &what, &view).await;
    change::print_changed(output, &what, view, response.enforcement, wait_args)
}

/// Warns when no node holds a credential of pools, because a pool's name may be mistyped. The
/// command succeeds anyway.
async fn warn_without_holders(client: &Client, what: &str, credential: &CredentialView) {
    if credential.pools.is_empty() {
        return;
    }
    let holders = client.call(what, client.rpc().where_credential(client.named(&credential.name))).await;
    if holders.is_ok_and(|holders| holders.nodes.is_empty()) {
        notice(&format!("{what} is on no node: none is of its pools, or no token reaches it"));
    }
}
