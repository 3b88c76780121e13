//! `seks token`: the fake keys that agents present.

mod revoke;

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use seks_proto::wire;
use seks_types::id::TokenId;
use serde::Serialize;

use super::change::{self, Enforced, WaitArgs};
use crate::{
    client::Client,
    duration::{duration, unix_now},
    error::{CliError, Exit, Result},
    global::Global,
    listing::{ListArgs, Listing},
    output::{Output, View, notice, rfc3339_or_null, since, until},
    secret_input::SecretInput,
};

/// The verbs of `seks token`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Issue a token; it is printed once and never again
    #[command(after_help = "\
Examples:
  seks token issue --agent ci-bot --service openai
  seks token issue --agent ci-bot --service openai=team-key --service github --ttl 8h
  seks token issue --agent ci-bot --service openai --cidr 10.0.0.0/8 -o json | jq -r .token
  seks token issue --canary                    a decoy: it grants nothing, and alarms at its first use")]
    Issue(IssueArgs),
    /// List the tenant's tokens
    #[command(
        alias = "ls",
        after_help = "Examples:\n  seks token list --agent ci-bot\n  seks token list --filter services=openai --sort -issued --limit 20"
    )]
    List {
        /// Show only this agent's tokens
        #[arg(long)]
        agent: Option<String>,
        /// Selection and order.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a token's grants, bindings and expiry, never the token
    #[command(after_help = "Example:\n  seks token show tok-4xk2p0q9w8e7r6t5")]
    Show {
        /// Id of the token
        id: String,
    },
    /// Find the id and the grants of a token that you have; the token itself is not sent
    #[command(after_help = "\
Examples:
  seks token lookup                            asks for the token, without echo
  printf %s \"$LEAKED\" | seks token lookup --from-stdin -o json | jq -r .id")]
    Lookup {
        /// The token.
        #[command(flatten)]
        token: SecretInput,
    },
    /// Let a token expire earlier
    #[command(after_help = "\
Examples:
  seks token update tok-4xk2p0q9w8e7r6t5 --ttl 1h
  seks token update tok-4xk2p0q9w8e7r6t5 --expires-at 2027-01-31T12:00:00Z")]
    Update {
        /// Id of the token
        id: String,
        /// How long it is valid from now on
        #[arg(long, value_parser = duration, required_unless_present = "expires_at")]
        ttl: Option<Duration>,
        /// When it expires
        #[arg(long, value_name = "TIME", value_parser = point_in_time, conflicts_with = "ttl")]
        expires_at: Option<i64>,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Revoke tokens, and wait until no node accepts them
    #[command(after_help = revoke::EXAMPLES)]
    Revoke(revoke::RevokeArgs),
    /// Give a token a new secret and a new life; the old secret is revoked, at once or after a
    /// grace period
    #[command(after_help = "\
Examples:
  seks token rotate tok-4xk2p0q9w8e7r6t5
  seks token rotate tok-4xk2p0q9w8e7r6t5 --grace 10m     the old secret works for 10 more minutes

With --grace the old secret is listed as a token of its own, `replaced by` this one.")]
    Rotate {
        /// Id of the token
        id: String,
        /// How long the old secret works beside the new one; at most 7d
        #[arg(long, value_parser = duration)]
        grace: Option<Duration>,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
}

/// The token to issue.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// The agent that will present it [default with --canary: canary, which is created]
    #[arg(long, required_unless_present = "canary")]
    agent: Option<String>,
    /// A service that it grants, with the credential to use where there are several; repeatable
    #[arg(long, required_unless_present = "canary", conflicts_with = "canary", value_name = "SERVICE[=CREDENTIAL]", value_parser = grant)]
    service: Vec<wire::Grant>,
    /// Grant nothing: a decoy, to be left where nobody should look. Its first use is an alarm:
    /// `seks audit admin --verb Tripwire`
    #[arg(long)]
    canary: bool,
    /// How long it is valid; a canary 366 days, unless this says otherwise
    #[arg(long, default_value = "24h", default_value_if("canary", "true", "366d"), value_parser = duration)]
    ttl: Duration,
    /// A source network that it is bound to; repeatable
    #[arg(long, value_name = "NETWORK")]
    cidr: Vec<String>,
    /// Bind it to a client certificate: a PEM file, or the SHA-256 of the certificate's DER
    #[arg(long, value_name = "FILE|sha256:HEX", value_parser = certificate)]
    bind_certificate: Option<[u8; 32]>,
    /// Add a vendor's prefix, for SDKs that require it (`anthropic`: sk-ant-seks_token_…)
    #[arg(long, value_name = "NAME")]
    shape: Option<String>,
    /// Waiting for enforcement.
    #[command(flatten)]
    wait_args: WaitArgs,
}

/// `openai` or `openai=team-key`.
///
/// # Errors
/// When either half is empty.
pub fn grant(text: &str) -> Result<wire::Grant, String> {
    let (service, credential) = text.split_once('=').map_or((text, None), |(s, c)| (s, Some(c)));
    if service.is_empty() || credential.is_some_and(str::is_empty) {
        return Err("a grant is SERVICE or SERVICE=CREDENTIAL".into());
    }
    Ok(wire::Grant { service: service.into(), credential: credential.unwrap_or_default().into() })
}

/// `2027-01-31T12:00:00Z`, as Unix seconds.
fn point_in_time(text: &str) -> Result<i64, String> {
    let time = humantime::parse_rfc3339(text).map_err(|_| "a time looks like 2027-01-31T12:00:00Z".to_owned())?;
    let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| "a time after 1970".to_owned())?;
    i64::try_from(since.as_secs()).map_err(|_| "a time before the year 10000".to_owned())
}

/// The SHA-256 of a certificate, from a PEM file or as `sha256:HEX` (with or without colons, as
/// openssl prints it).
fn certificate(text: &str) -> Result<[u8; 32], String> {
    if let Some(hex) = text.strip_prefix("sha256:") {
        let hex = hex.replace(':', "").to_ascii_lowercase();
        let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok();
        return bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| "sha256: and 64 hexadecimal digits".into());
    }
    let certificate = CertificateDer::from_pem_file(text).map_err(|error| {
        let text = error.to_string();
        format!("no certificate in PEM: {}", text.split(" (os error ").next().unwrap_or_default())
    })?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &certificate);
    digest.as_ref().try_into().map_err(|_| "no SHA-256".into())
}

#[derive(Serialize)]
struct TokenView {
    id: String,
    agent: String,
    tenant: String,
    services: Vec<String>,
    credentials: BTreeMap<String, String>,
    issued_at: Option<String>,
    expires_at: Option<String>,
    cidrs: Vec<String>,
    shape: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_sha256: Option<String>,
    issued_by: String,
    /// To the minute, as far as the answering replica knows.
    last_used_at: Option<String>,
    #[serde(skip)]
    used_seconds: i64,
    #[serde(skip)]
    issued_seconds: i64,
    #[serde(skip)]
    expires_seconds: i64,
    /// The token that replaces it. It works until it expires.
    replaced_by: Option<String>,
}

impl From<wire::Token> for TokenView {
    fn from(t: wire::Token) -> Self {
        Self {
            id: t.id,
            agent: t.agent,
            tenant: t.tenant,
            services: t.grants.iter().map(|g| g.service.clone()).collect(),
            credentials: t.grants.into_iter().map(|g| (g.service, g.credential)).collect(),
            issued_at: rfc3339_or_null(t.issued_at),
            expires_at: rfc3339_or_null(t.expires_at),
            cidrs: t.cidrs,
            shape: Some(t.shape).filter(|s| !s.is_empty()),
            certificate_sha256: Some(data_encoding::HEXLOWER.encode(&t.certificate_sha256)).filter(|s| !s.is_empty()),
            issued_by: t.issued_by,
            last_used_at: rfc3339_or_null(t.last_used_at),
            used_seconds: t.last_used_at,
            issued_seconds: t.issued_at,
            expires_seconds: t.expires_at,
            replaced_by: Some(t.replaced_by).filter(|id| !id.is_empty()),
        }
    }
}

impl View for TokenView {
    const COLUMNS: &'static [&'static str] = &["id", "agent", "services", "issued", "by", "last used", "expires"];
    fn row(&self) -> Vec<String> {
        let grant = |(s, c): (&String, &String)| if c.is_empty() { s.clone() } else { format!("{s}={c}") };
        let grants: Vec<_> = self.credentials.iter().map(grant).collect();
        let mut expires = until(self.expires_seconds);
        if self.replaced_by.is_some() {
            expires.push_str(" (rotated)");
        }
        let (issued, used) = (since(self.issued_seconds), since(self.used_seconds));
        let (id, agent, by) = (self.id.clone(), self.agent.clone(), self.issued_by.clone());
        vec![id, agent, grants.join(","), issued, by, used, expires]
    }
    fn detail(&self) -> Vec<(&'static str, String)> {
        let mut detail: Vec<_> = Self::COLUMNS.iter().copied().zip(self.row()).collect();
        for (name, value) in &mut detail {
            match *name {
                "issued" => *value = self.issued_at.clone().unwrap_or_default(),
                "last used" => *value = self.last_used_at.clone().unwrap_or_default(),
                "expires" => *value = self.expires_at.clone().unwrap_or("never".into()),
                _ => {}
            }
        }
        detail.push(("replaced by", self.replaced_by.clone().unwrap_or_default()));
        detail.push(("networks", self.cidrs.join(",")));
        if let Some(certificate) = &self.certificate_sha256 {
            detail.push(("certificate", certificate.clone()));
        }
        detail.push(("shape", self.shape.clone().unwrap_or_default()));
        detail
    }
}

/// A new token. No other view contains one.
#[derive(Serialize)]
struct IssuedView {
    token: String,
    #[serde(flatten)]
    view: TokenView,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aws: Option<AwsKeys>,
    #[serde(flatten)]
    enforced: Enforced,
}

/// The token as an AWS key pair.
#[derive(Serialize)]
struct AwsKeys {
    access_key_id: String,
    secret_access_key: String,
}

impl From<wire::AwsKeys> for AwsKeys {
    fn from(keys: wire::AwsKeys) -> Self {
        Self { access_key_id: keys.access_key_id, secret_access_key: keys.secret_access_key }
    }
}

/// Refuses the token itself where its id is expected. The token is not sent anywhere and not
/// printed.
fn refuse_token(id: &str) -> Result<()> {
    if id.contains(seks_types::token::PREFIX) {
        let error = CliError::usage("token", "this is the token itself, not its id");
        return Err(error.hint("`seks token list` shows the ids; revoke a token that was typed in a command line"));
    }
    Ok(())
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    if let Verb::Show { id } | Verb::Rotate { id, .. } | Verb::Update { id, .. } = &verb {
        refuse_token(id)?;
    }
    let output = global.output();
    let client = global.connect().await?;
    match verb {
        Verb::Issue(args) => {
            let wait_args = args.wait_args;
            let what = format!("token for agent `{}`", args.agent.as_deref().unwrap_or(CANARY_AGENT));
            if args.canary && args.agent.is_none() {
                ensure_canary_agent(&client).await?;
            }
            let issued = issue(&client, args.into_request(&client)?).await?;
            print_issued(&client, output, &what, issued, wait_args)
        }
        Verb::List { agent, list } => {
            let mut listing = Listing::new(list, output, "tokens");
            let wanted = |t: &wire::Token| agent.as_ref().is_none_or(|a| *a == t.agent);
            let pages = client.for_each_page(
                "tokens",
                async |mut rpc, page| rpc.list_tokens(page).await,
                |tokens| listing.page(tokens.into_iter().filter(wanted).map(TokenView::from).collect()),
            );
            pages.await?;
            listing.end()
        }
        Verb::Show { id } => {
            let token = client.call(&format!("token `{id}`"), client.rpc().get_token(client.named(&id))).await?;
            output.one(&TokenView::from(token))
        }
        Verb::Revoke(args) => revoke::run(&client, output, args).await,
        Verb::Lookup { token } => output.one(&TokenView::from(lookup(&client, &token).await?)),
        Verb::Update { id, ttl, expires_at, wait_args } => {
            let what = format!("token `{id}`");
            let end = ttl.map(|ttl| unix_now().saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)));
            let request = wire::UpdateTokenRequest {
                tenant: client.tenant(),
                name: id,
                expires_at: expires_at.or(end).unwrap_or_default(),
                wait: Some(client.wait(wait_args.no_wait)),
            };
            let answer = client.change(&what, client.rpc().update_token(request)).await?;
            let view = TokenView::from(answer.token.unwrap_or_default());
            change::print_changed(output, &what, view, answer.enforcement, wait_args)
        }
        Verb::Rotate { id, grace, wait_args } => {
            let wait = Some(client.wait(wait_args.no_wait));
            let what = format!("token `{id}`");
            let grace_seconds = grace.unwrap_or_default().as_secs();
            let request = wire::RotateTokenRequest { tenant: client.tenant(), name: id, wait, grace_seconds };
            let issued = client.change(&what, client.rpc().rotate_token(request)).await?;
            print_issued(&client, output, &what, issued, wait_args)
        }
    }
}

/// The agent of canary tokens that have no other.
const CANARY_AGENT: &str = "canary";

/// Creates that agent if it is not there.
async fn ensure_canary_agent(client: &Client) -> Result<()> {
    let request =
        wire::CreateAgentRequest { tenant: client.tenant(), name: CANARY_AGENT.into(), attributes: Default::default() };
    match client.call("agent `canary`", client.rpc().create_agent(request)).await {
        Err(error) if error.exit != Exit::Conflict => Err(error),
        _ => Ok(()),
    }
}

/// The record of the token that `input` holds. Only the token's digest is sent.
///
/// # Errors
/// Exit code 2 when it is not a token of ours, 3 when the tenant has none of this value.
async fn lookup(client: &Client, input: &SecretInput) -> Result<wire::Token> {
    let digest = input.read_token_digest()?;
    let request = wire::LookupTokenRequest { tenant: client.tenant(), digest: digest.0.to_vec() };
    client.call("token", client.rpc().lookup_token(request)).await.map_err(|error| match error.exit {
        Exit::NotFound if error.why.starts_with("token") => {
            CliError::new(Exit::NotFound, "token", "this tenant has no token of this value")
                .hint("it was revoked or has expired, or it is another tenant's: --tenant NAME")
        }
        _ => error,
    })
}

impl IssueArgs {
    fn into_request(self, client: &Client) -> Result<wire::IssueTokenRequest> {
        Ok(wire::IssueTokenRequest {
            canary: self.canary,
            cidrs: self.cidr,
            shape: self.shape.unwrap_or_default(),
            certificate_sha256: self.bind_certificate.map(|sha256| sha256.to_vec()).unwrap_or_default(),
            ..request(
                client,
                self.agent.unwrap_or_else(|| CANARY_AGENT.into()),
                self.service,
                self.ttl,
                self.wait_args,
            )?
        })
    }
}

/// A request for a token. Its id makes a retry idempotent.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn request(
    client: &Client,
    agent: String,
    grants: Vec<wire::Grant>,
    ttl: Duration,
    wait_args: WaitArgs,
) -> Result<wire::IssueTokenRequest> {
    let id = TokenId::generate().map_err(|e| CliError::new(Exit::Failed, "token", e))?;
    Ok(wire::IssueTokenRequest {
        tenant: client.tenant(),
        agent,
        grants,
        ttl_seconds: ttl.as_secs(),
        request_id: id.as_str().into(),
        wait: Some(client.wait(wait_args.no_wait)),
        ..Default::default()
    })
}

/// Issues a token.
///
/// # Errors
/// See [`crate::error`].
pub async fn issue(client: &Client, request: wire::IssueTokenRequest) -> Result<wire::IssuedToken> {
    let what = format!("token for agent `{}`", request.agent);
    client.change(&what, client.rpc().issue_token(request)).await
}

/// Where agents reach the proxy: by the control plane, else by the context.
#[must_use]
pub fn base_url(client: &Client, issued: &str) -> Option<String> {
    let known = Some(issued).filter(|b| !b.is_empty()).or(client.proxy());
    known.map(|b| b.trim_end_matches('/').to_owned())
}

fn print_issued(
    client: &Client,
    output: Output,
    what: &str,
    issued: wire::IssuedToken,
    wait_args: WaitArgs,
) -> Result<()> {
    let issued = IssuedView {
        token: issued.secret,
        view: TokenView::from(issued.token.unwrap_or_default()),
        base_url: base_url(client, &issued.base_url),
        aws: issued.aws.map(AwsKeys::from),
        enforced: issued.enforcement.into(),
    };
    if output.is_table() {
        output.text(&issued.for_people())?;
        notice("the token is not shown again; `seks token rotate` replaces it");
    } else {
        output.data(&issued)?;
    }
    issued.enforced.check(what, wait_args)
}

impl IssuedView {
    fn for_people(&self) -> String {
        let expires = self.view.expires_at.as_deref().unwrap_or("never");
        let mut text = format!("id       {}\ntoken    {}\nexpires  {expires}\n", self.view.id, self.token);
        if let Some(AwsKeys { access_key_id, secret_access_key }) = &self.aws {
            text.push_str(&format!("\nThe token as AWS SDKs sign with it:\n  AWS_ACCESS_KEY_ID={access_key_id}\n"));
            text.push_str(&format!("  AWS_SECRET_ACCESS_KEY={secret_access_key}\n"));
        }
        let base = self.base_url.as_deref().unwrap_or("http://NODE");
        for service in &self.view.services {
            text.push_str(&format!("\n{service}:\n  base_url=\"{base}/api/{service}\"  api_key=\"{}\"\n", self.token));
        }
        if self.view.services.iter().any(|s| s == "openai") {
            let client = format!("OpenAI(api_key=\"{}\", base_url=\"{base}/api/openai\")", self.token);
            text.push_str(&format!("\nThe OpenAI SDK for Python:\n  client = {client}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_may_name_its_credential() {
        let parsed = grant("openai=team").unwrap();
        assert_eq!((parsed.service.as_str(), parsed.credential.as_str()), ("openai", "team"));
        assert_eq!(grant("openai").unwrap().credential, "");
        for bad in ["", "=", "a=", "=b"] {
            assert!(grant(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_issued_token_has_the_contracts_fields() {
        let token = wire::Token {
            id: "tok-1".into(),
            agent: "a".into(),
            grants: vec![grant("s").unwrap()],
            expires_at: 1,
            ..Default::default()
        };
        let issued = IssuedView {
            token: "seks_token_x".into(),
            view: token.into(),
            base_url: None,
            aws: Some(AwsKeys { access_key_id: "AKIAX".into(), secret_access_key: "s".into() }),
            enforced: Enforced::default(),
        };
        let json = serde_json::to_value(&issued).unwrap();
        assert_eq!(json["id"], "tok-1");
        assert_eq!(json["token"], "seks_token_x");
        assert_eq!(json["aws"], serde_json::json!({"access_key_id": "AKIAX", "secret_access_key": "s"}));
        assert_eq!(json["agent"], "a");
        assert_eq!(json["services"], serde_json::json!(["s"]));
        assert_eq!(json["expires_at"], "1970-01-01T00:00:01Z");
    }

    #[test]
    fn a_list_never_holds_the_digest() {
        let token = wire::Token { digest: vec![7; 32], ..Default::default() };
        assert!(!serde_json::to_string(&TokenView::from(token)).unwrap().contains("digest"));
    }
}
