//! `seks trust`: issuers of identity tokens, in place of stored secrets.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use seks_proto::wire;
use serde::Serialize;

use super::{
    change::{self, WaitArgs},
    token::grant,
};
use crate::{
    confirm::Confirm,
    duration::duration,
    error::{CliError, Result},
    files::read_text,
    global::Global,
    output::{View, rfc3339_or_null},
};

/// The service that carries the tenant's exchange key.
const EXCHANGE: &str = seks_service::EXCHANGE;

/// The verbs of `seks trust`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Accept an issuer's tokens in place of a stored secret
    #[command(after_help = "\
Examples:
  seks trust create ci --issuer https://token.actions.githubusercontent.com --audience seks-acme \\
    --match 'repository acme/api' --match 'ref refs/heads/main' --agent ci-bot --service openai
  seks trust create prod --issuer https://kubernetes.default.svc.cluster.local --audience seks \\
    --match 'sub system:serviceaccount:prod:*' --agent 'k8s-{/kubernetes.io/serviceaccount/name}' \\
    --service openai --jwks-file jwks.json

A glob's `*` stands for any characters except `/` and `:`, and `**` for any. The agent must exist. A workflow exchanges its
token at a node: POST /token with grant_type=urn:ietf:params:oauth:grant-type:token-exchange, subject_token and
subject_token_type=urn:ietf:params:oauth:token-type:jwt. It may also send its token itself as Authorization: Bearer.")]
    Create(Box<CreateArgs>),
    /// List the tenant's trusts
    #[command(alias = "ls", after_help = "Example:\n  seks trust list -o json")]
    List,
    /// Show a trust, with the ids of its issuer's keys
    #[command(after_help = "Example:\n  seks trust show ci")]
    Show {
        /// Name of the trust
        name: String,
    },
    /// Change a trust; what is not named stays
    #[command(after_help = "\
Examples:
  seks trust update ci --deny-subject repo:acme/api:ref:refs/heads/main   ends every token of this subject
  seks trust update ci --match 'repository acme/api' --match 'environment prod'
  seks trust update ci --refresh-keys                                     after an issuer's key was stolen")]
    Update(Box<UpdateArgs>),
    /// Delete a trust, and wait until no node accepts a token that came from it
    #[command(visible_alias = "revoke", alias = "rm", after_help = "Example:\n  seks trust delete ci --yes")]
    Delete {
        /// Name of the trust
        name: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
}

/// The trust to create.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// 1 to 57 of a-z, 0-9 and `-`
    name: String,
    /// Exactly the `iss` of the tokens; https, or http on a loopback address
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// One of these must be in `aud`; choose one that only this tenant uses; repeatable
    #[arg(long, required = true, value_name = "TEXT")]
    audience: Vec<String>,
    /// A condition; all of them must hold; repeatable. A claim with a leading `/` is a JSON pointer
    #[arg(long = "match", required = true, value_name = "CLAIM GLOB")]
    matches: Vec<String>,
    /// The agent that the tokens stand for, with {CLAIM} where a claim's value goes
    #[arg(long, value_name = "TEMPLATE")]
    agent: String,
    /// A service that the tokens reach, with the credential to use where there are several;
    /// repeatable
    #[arg(long, required = true, value_name = "SERVICE[=CREDENTIAL]", value_parser = grant)]
    service: Vec<wire::Grant>,
    /// Life of exchanged tokens: 1m to 15m, and never longer than the issuer's token
    #[arg(long, default_value = "15m", value_parser = duration)]
    ttl: Duration,
    /// A claim that policies see in `context.trust`; repeatable
    #[arg(long, value_name = "CLAIM")]
    claim: Vec<String>,
    /// A source network that the tokens may be used from; repeatable
    #[arg(long, value_name = "NETWORK")]
    cidr: Vec<String>,
    /// The issuer's keys from a file (JWKS), for issuers that the control plane cannot reach
    #[arg(long, value_name = "FILE", conflicts_with_all = ["jwks_uri", "issuer_ca"])]
    jwks_file: Option<PathBuf>,
    /// Where the issuer's keys are; default: as its discovery document says
    #[arg(long, value_name = "URL")]
    jwks_uri: Option<String>,
    /// PEM roots that replace the system's for the issuer's servers
    #[arg(long, value_name = "FILE")]
    issuer_ca: Option<PathBuf>,
    /// Waiting for enforcement.
    #[command(flatten)]
    wait_args: WaitArgs,
}

/// The change of a trust.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("change").multiple(true).required(true)))]
pub struct UpdateArgs {
    /// Name of the trust
    name: String,
    /// All conditions, in place of the present ones; repeatable
    #[arg(long = "match", value_name = "CLAIM GLOB", group = "change")]
    matches: Vec<String>,
    /// The agent that the tokens stand for
    #[arg(long, value_name = "TEMPLATE", group = "change")]
    agent: Option<String>,
    /// All services, in place of the present ones; repeatable
    #[arg(long, value_name = "SERVICE[=CREDENTIAL]", value_parser = grant, group = "change")]
    service: Vec<wire::Grant>,
    /// Life of exchanged tokens: 1m to 15m
    #[arg(long, value_parser = duration, group = "change")]
    ttl: Option<Duration>,
    /// All claims that policies see, in place of the present ones; repeatable
    #[arg(long, value_name = "CLAIM", group = "change")]
    claim: Vec<String>,
    /// Revoke a subject: exactly the `sub` of its tokens; repeatable
    #[arg(long, value_name = "SUBJECT", group = "change")]
    deny_subject: Vec<String>,
    /// Accept a subject again; repeatable
    #[arg(long, value_name = "SUBJECT", group = "change")]
    allow_subject: Vec<String>,
    /// The issuer's keys from a file, where they were given by one
    #[arg(long, value_name = "FILE", group = "change")]
    jwks_file: Option<PathBuf>,
    /// Fetch the issuer's keys now
    #[arg(long, group = "change")]
    refresh_keys: bool,
    /// Waiting for enforcement.
    #[command(flatten)]
    wait_args: WaitArgs,
}

#[derive(Serialize)]
struct TrustView {
    name: String,
    id: String,
    tenant: String,
    issuer: String,
    audiences: Vec<String>,
    matches: Vec<String>,
    agent: String,
    services: Vec<String>,
    ttl_seconds: u32,
    claims: Vec<String>,
    cidrs: Vec<String>,
    denied_subjects: Vec<String>,
    keys: Vec<String>,
    keys_fetched: bool,
    keys_changed_at: Option<String>,
    created_at: Option<String>,
    updated_at: Option<String>,
}

impl From<wire::Token> for TrustView {
    fn from(token: wire::Token) -> Self {
        let trust = token.trust.unwrap_or_default();
        Self {
            name: trust.name,
            id: token.id,
            tenant: token.tenant,
            issuer: trust.issuer,
            audiences: trust.audiences,
            matches: trust.matches,
            agent: trust.agent,
            services: token.grants.into_iter().map(|g| g.service).filter(|service| service != EXCHANGE).collect(),
            ttl_seconds: trust.ttl_seconds,
            claims: trust.claims,
            cidrs: token.cidrs,
            denied_subjects: trust.denied_subjects,
            keys: key_ids(&trust.jwks),
            keys_fetched: !trust.static_keys,
            keys_changed_at: rfc3339_or_null(trust.keys_changed_at),
            created_at: rfc3339_or_null(token.issued_at),
            updated_at: rfc3339_or_null(trust.updated_at),
        }
    }
}

fn key_ids(jwks: &str) -> Vec<String> {
    let set: serde_json::Value = serde_json::from_str(jwks).unwrap_or_default();
    let keys = set.get("keys").and_then(serde_json::Value::as_array).map(Vec::as_slice).unwrap_or_default();
    keys.iter().filter_map(|key| key.get("kid")?.as_str().map(str::to_owned)).collect()
}

impl View for TrustView {
    const COLUMNS: &'static [&'static str] = &["name", "issuer", "agent", "services", "keys"];
    fn row(&self) -> Vec<String> {
        let keys = self.keys.len().to_string();
        vec![self.name.clone(), self.issuer.clone(), self.agent.clone(), self.services.join(","), keys]
    }
    fn detail(&self) -> Vec<(&'static str, String)> {
        let mut detail: Vec<_> = Self::COLUMNS.iter().copied().zip(self.row()).collect();
        detail.retain(|(name, _)| *name != "keys");
        detail.push(("audiences", self.audiences.join(", ")));
        detail.push(("matches", self.matches.join("; ")));
        detail.push(("life", format!("{} s", self.ttl_seconds)));
        detail.push(("claims", self.claims.join(", ")));
        detail.push(("networks", self.cidrs.join(", ")));
        detail.push(("denied subjects", self.denied_subjects.join("; ")));
        detail.push(("keys", self.keys.join(", ")));
        detail.push(("keys changed", self.keys_changed_at.clone().unwrap_or_default()));
        detail.push(("created", self.created_at.clone().unwrap_or_default()));
        detail
    }
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    let output = global.output();
    match verb {
        Verb::Create(args) => create(global, *args).await,
        Verb::List => {
            let client = global.connect().await?;
            let trusts = client.list_all("trusts", async |mut rpc, page| rpc.list_trusts(page).await).await?;
            output.list("trusts", &trusts.into_iter().map(TrustView::from).collect::<Vec<_>>())
        }
        Verb::Show { name } => {
            let client = global.connect().await?;
            let trust = client.call(&format!("trust `{name}`"), client.rpc().get_trust(client.named(&name))).await?;
            output.one(&TrustView::from(trust))
        }
        Verb::Update(args) => update(global, *args).await,
        Verb::Delete { name, confirm, wait_args } => {
            confirm.ask_if_possible(&format!("delete trust `{name}`, and end every token that came from it"))?;
            let client = global.connect().await?;
            let request = client.delete(&name, wait_args.no_wait);
            let response = client.change(&format!("trust `{name}`"), client.rpc().delete_trust(request)).await?;
            let outcome = change::Outcome { noun: "trust", name: &name, done: "deleted" };
            change::print_outcome(output, outcome, response, wait_args)
        }
    }
}

async fn create(global: &Global, args: CreateArgs) -> Result<()> {
    let jwks = args.jwks_file.as_deref().map(read_jwks).transpose()?.unwrap_or_default();
    let issuer_ca_pem = args.issuer_ca.as_deref().map(read).transpose()?.unwrap_or_default();
    let client = global.connect().await?;
    let what = format!("trust `{}`", args.name);
    let request = wire::CreateTrustRequest {
        tenant: client.tenant(),
        trust: Some(wire::Trust {
            name: args.name,
            issuer: args.issuer,
            audiences: args.audience,
            matches: args.matches,
            agent: args.agent,
            ttl_seconds: u32::try_from(args.ttl.as_secs()).unwrap_or(u32::MAX),
            claims: args.claim,
            jwks,
            jwks_uri: args.jwks_uri.unwrap_or_default(),
            issuer_ca_pem,
            ..Default::default()
        }),
        grants: args.service,
        cidrs: args.cidr,
        wait: Some(client.wait(args.wait_args.no_wait)),
    };
    let answer = client.change(&what, client.rpc().create_trust(request)).await?;
    let view = TrustView::from(answer.trust.unwrap_or_default());
    change::print_changed(global.output(), &what, view, answer.enforcement, args.wait_args)
}

async fn update(global: &Global, args: UpdateArgs) -> Result<()> {
    let jwks = args.jwks_file.as_deref().map(read_jwks).transpose()?.unwrap_or_default();
    let client = global.connect().await?;
    let what = format!("trust `{}`", args.name);
    let request = wire::UpdateTrustRequest {
        tenant: client.tenant(),
        name: args.name,
        matches: args.matches,
        agent: args.agent.unwrap_or_default(),
        ttl_seconds: args.ttl.map_or(0, |ttl| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX)),
        claims: args.claim,
        deny_subjects: args.deny_subject,
        allow_subjects: args.allow_subject,
        jwks,
        refresh_keys: args.refresh_keys,
        grants: args.service,
        wait: Some(client.wait(args.wait_args.no_wait)),
    };
    let answer = client.change(&what, client.rpc().update_trust(request)).await?;
    let view = TrustView::from(answer.trust.unwrap_or_default());
    change::print_changed(global.output(), &what, view, answer.enforcement, args.wait_args)
}

fn read(file: &Path) -> Result<String> {
    read_text(file)
}

/// Keys of an issuer, which verify and don't sign.
fn read_jwks(file: &Path) -> Result<String> {
    let text = read(file)?;
    let set: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let is_private =
        |key: &serde_json::Value| ["d", "p", "q", "k", "priv"].iter().any(|member| key.get(member).is_some());
    if set.get("keys").and_then(serde_json::Value::as_array).into_iter().flatten().any(is_private) || is_private(&set) {
        let why = "it holds a private key; nothing was sent";
        return Err(CliError::usage(file.display().to_string(), why).hint("give the issuer's public keys"));
    }
    Ok(text)
}
