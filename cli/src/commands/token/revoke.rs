//! `seks token revoke`: one token, several, the one on standard input, or all that match.

use std::{
    ops::ControlFlow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use seks_proto::wire;
use serde::Serialize;

use super::{lookup, refuse_token};
use crate::{
    client::Client,
    commands::change::{self, Enforced, WaitArgs},
    confirm::Confirm,
    duration::duration,
    error::{CliError, Exit, Result},
    output::{Output, notice},
    secret_input::SecretInput,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  seks token revoke tok-4xk2p0q9w8e7r6t5
  seks token revoke tok-4xk2p0q9w8e7r6t5 tok-0a1b2c3d4e5f6g7h
  printf %s \"$LEAKED\" | seks token revoke --from-stdin
  seks token revoke --agent ci-bot --older-than 7d --yes";

/// Which tokens are revoked.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Ids of tokens
    #[arg(required_unless_present_any = ["from_stdin", "from_file", "agent", "service", "older_than"])]
    id: Vec<String>,
    /// The token itself.
    #[command(flatten)]
    token: SecretInput,
    /// All tokens of this agent
    #[arg(long, conflicts_with_all = ["id", "from_stdin", "from_file"])]
    agent: Option<String>,
    /// All tokens that grant this service
    #[arg(long, conflicts_with_all = ["id", "from_stdin", "from_file"])]
    service: Option<String>,
    /// All tokens that were issued longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with_all = ["id", "from_stdin", "from_file"])]
    older_than: Option<Duration>,
    /// Confirmation.
    #[command(flatten)]
    confirm: Confirm,
    /// Waiting for enforcement.
    #[command(flatten)]
    wait_args: WaitArgs,
}

/// Several revoked tokens. The state is that of the last revocation, which includes all earlier
/// ones.
#[derive(Serialize)]
struct RevokedView<'a> {
    ids: &'a [&'a str],
    #[serde(flatten)]
    enforced: Enforced,
}

/// Revokes the tokens.
///
/// # Errors
/// See [`crate::error`]. Exit code 3 if the agent, the service or one of the tokens does not exist:
/// a mistyped name must not look like a revocation. All tokens that exist are revoked.
pub(super) async fn run(client: &Client, output: Output, args: RevokeArgs) -> Result<()> {
    args.id.iter().try_for_each(|id| refuse_token(id))?;
    if let [id] = args.id.as_slice() {
        args.confirm.ask_if_possible(&format!("revoke token `{id}`"))?;
        return revoke_one(client, output, id, args.wait_args).await;
    }
    if args.token.from_stdin || args.token.from_file.is_some() {
        let id = lookup(client, &args.token).await?.id;
        return revoke_one(client, output, &id, args.wait_args).await;
    }
    let ids = if args.id.is_empty() { matching(client, &args).await? } else { args.id.clone() };
    args.confirm.ask_if_possible(&format!("revoke {} tokens", ids.len()))?;
    revoke_all(client, output, &ids, args.wait_args).await
}

async fn revoke_one(client: &Client, output: Output, id: &str, wait_args: WaitArgs) -> Result<()> {
    let request = client.delete(id, wait_args.no_wait);
    let response = client.change(&format!("token `{id}`"), client.rpc().revoke_token(request)).await?;
    change::print_outcome(output, change::Outcome { noun: "token", name: id, done: "revoked" }, response, wait_args)
}

/// Ids of the tenant's tokens that match every filter.
async fn matching(client: &Client, args: &RevokeArgs) -> Result<Vec<String>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let issued_before = args.older_than.map(|age| now.saturating_sub(age).as_secs());
    let matches = |token: &wire::Token| {
        args.agent.as_ref().is_none_or(|agent| *agent == token.agent)
            && args.service.as_ref().is_none_or(|service| token.grants.iter().any(|grant| grant.service == *service))
            && issued_before.is_none_or(|before| u64::try_from(token.issued_at).is_ok_and(|issued| issued < before))
    };
    let mut ids = Vec::new();
    let pages = client.for_each_page(
        "tokens",
        async |mut rpc, page| rpc.list_tokens(page).await,
        |tokens| {
            ids.extend(tokens.into_iter().filter(|token| matches(token)).map(|token| token.id));
            Ok(ControlFlow::Continue(()))
        },
    );
    pages.await?;
    if ids.is_empty() {
        if let Some(agent) = &args.agent {
            client.call(&format!("agent `{agent}`"), client.rpc().get_agent(client.named(agent))).await?;
        }
        if let Some(service) = &args.service {
            client.call(&format!("service `{service}`"), client.rpc().get_service(client.named(service))).await?;
        }
    }
    Ok(ids)
}

/// Up to so many are waited for one by one.
const WAITED_EACH: usize = 64;

/// Revokes each that exists. Of many it waits for the last revocation only: nodes apply changes in
/// order.
async fn revoke_all(client: &Client, output: Output, ids: &[String], wait_args: WaitArgs) -> Result<()> {
    let (mut last, mut revoked, mut missing) = (None, Vec::new(), Vec::new());
    for (number, id) in ids.iter().enumerate() {
        let is_waited = ids.len() <= WAITED_EACH || number + 1 == ids.len();
        let request = client.delete(id, wait_args.no_wait || !is_waited);
        match client.change(&format!("token `{id}`"), client.rpc().revoke_token(request)).await {
            Ok(response) => {
                last = response.enforcement;
                revoked.push(id.as_str());
            }
            Err(error) if error.exit == Exit::NotFound => missing.push(format!("`{id}`")),
            Err(error) => return Err(error),
        }
    }
    let enforced = match last {
        Some(enforcement) => Enforced::from(Some(enforcement)),
        None => Enforced { enforced: true, ..Enforced::default() },
    };
    let count = if revoked.len() == 1 { "1 token".to_owned() } else { format!("{} tokens", revoked.len()) };
    let checked = enforced.check(&format!("{count} revoked"), wait_args);
    if !output.is_table() {
        output.data(&RevokedView { ids: &revoked, enforced })?;
    } else if ids.is_empty() {
        notice("no token matches");
    } else if checked.is_ok() && !revoked.is_empty() {
        output.text(&format!("{count} revoked: {}", enforced.sentence()))?;
    }
    checked?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(CliError::new(Exit::NotFound, "tokens", format!("{} not found; the others are revoked", missing.join(", "))))
}
