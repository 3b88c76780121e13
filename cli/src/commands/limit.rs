//! `seks limit`: how much agents may do. A limit is a policy with `@limit`; these commands write
//! and show such policies, and so do `seks policy`, `seks apply` and `seks export`.

use clap::{ArgGroup, Args, Subcommand};
use seks_policy::{AppliedLimit, Declarations, Limit, limits_of};
use seks_proto::wire;
use serde::Serialize;

use super::change::{self, Enforced, WaitArgs};
use crate::{
    client::Client,
    confirm::Confirm,
    error::{CliError, Exit, Result},
    global::Global,
    output::{View, rfc3339_or_null},
};

/// The verbs of `seks limit`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a limit, or replace it
    #[command(after_help = "\
Examples:
  seks limit set ci-rate --agent ci-bot --requests 100/minute
  seks limit set openai-day --service openai --requests 5000/day --shadow
  seks limit set fair --requests 60/minute --each-agent
  seks limit set batch --group batch --concurrent 10
  seks limit set gpt-day --service openai --tokens 500000/day
  seks limit set ci-spend --agent ci-bot --usd 5/day

Windows are those of the clock in UTC: second, minute, hour, day, month. The agents that a limit is for share it,
unless --each-agent is given. A request over a limit is refused with 429 and `Retry-After` before the service sees it.
--concurrent counts at each node. --tokens counts what models use, input and output, for services with `usage` (`seks usage`):
a request reserves an estimate, and what its answer used is charged at its end. A limit is a policy: write conditions with `seks policy apply`, for example
  @id(\"large\") @limit(\"10 requests/hour\")
  forbid (principal, action, resource) when { context has body && context.body has model && context.body.model like \"*-pro\" };")]
    Set(SetArgs),
    /// List the tenant's limits
    #[command(alias = "ls", after_help = "Example:\n  seks limit list -o json")]
    List,
    /// Show a limit
    #[command(after_help = "Example:\n  seks limit show ci-rate")]
    Show {
        /// Name of the limit
        name: String,
    },
    /// Delete a limit
    #[command(alias = "rm", after_help = "Example:\n  seks limit delete ci-rate --yes")]
    Delete {
        /// Name of the limit
        name: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
}

/// The limit to set.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("amount").required(true)))]
pub struct SetArgs {
    /// Name of the limit, and the id of its policy: 1 to 63 of a-z, 0-9 and `-`
    name: String,
    /// The agent that it is for; default: every agent of the tenant
    #[arg(long, value_name = "AGENT", conflicts_with = "group")]
    agent: Option<String>,
    /// The group of agents that it is for
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// The service that it is for; default: every service
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Requests in a window, such as 100/minute
    #[arg(long, value_name = "N/WINDOW", group = "amount")]
    requests: Option<String>,
    /// Tokens that models use in a window, such as 500000/day; of services with `usage`
    #[arg(long, value_name = "N/WINDOW", group = "amount")]
    tokens: Option<String>,
    /// US dollars that models cost in a window, such as 5/day; at the prices of the nodes
    /// (`[usage] prices`)
    #[arg(long, value_name = "N/WINDOW", group = "amount")]
    usd: Option<String>,
    /// Requests at the same time, at each node
    #[arg(long, value_name = "N", group = "amount")]
    concurrent: Option<u64>,
    /// Each agent has the whole amount
    #[arg(long)]
    each_agent: bool,
    /// Count and record what is over the limit, and refuse nothing
    #[arg(long)]
    shadow: bool,
    /// Waiting for enforcement.
    #[command(flatten)]
    wait_args: WaitArgs,
}

impl SetArgs {
    fn limit(&self) -> Result<Limit> {
        let each = if self.each_agent { " each agent" } else { "" };
        let in_window = |option, amount: &str, unit: &str| match amount.split_once('/') {
            Some((amount, window)) => Ok(format!("{amount} {unit}/{window}{each}")),
            None => Err(CliError::usage(option, "write an amount and a window, such as 100/minute")),
        };
        let (option, text) = match (&self.requests, &self.tokens, &self.usd) {
            (Some(amount), ..) => ("--requests", in_window("--requests", amount, "requests")?),
            (None, Some(amount), _) => ("--tokens", in_window("--tokens", amount, "tokens")?),
            (None, None, Some(amount)) => ("--usd", in_window("--usd", amount, "USD")?),
            (None, None, None) => {
                ("--concurrent", format!("{} concurrent requests{each}", self.concurrent.unwrap_or_default()))
            }
        };
        text.parse().map_err(|error: seks_policy::LimitError| CliError::usage(option, error.to_string()))
    }

    /// The policy that the limit is.
    fn policy(&self) -> Result<String> {
        let principal = match (&self.agent, &self.group) {
            (Some(agent), _) => format!("principal == Seks::Agent::\"{}\"", quoted("--agent", agent)?),
            (None, Some(group)) => format!("principal in Seks::Group::\"{}\"", quoted("--group", group)?),
            (None, None) => "principal".into(),
        };
        let resource = match &self.service {
            Some(service) => format!("resource == Seks::Service::\"{}\"", quoted("--service", service)?),
            None => "resource".into(),
        };
        let (name, limit) = (quoted("name", &self.name)?, self.limit()?);
        let mode = if self.shadow { "\n@mode(\"shadow\")" } else { "" };
        Ok(format!("@id(\"{name}\")\n@limit(\"{limit}\"){mode}\nforbid ({principal}, action, {resource});"))
    }
}

/// A name that is put between quotes.
fn quoted<'a>(option: &str, name: &'a str) -> Result<&'a str> {
    let is_plain = |c: char| !c.is_control() && !matches!(c, '"' | '\\');
    if !name.is_empty() && name.chars().all(is_plain) {
        return Ok(name);
    }
    Err(CliError::usage(option, "a name has no quotes, backslashes or control characters, and is not empty"))
}

#[derive(Serialize)]
struct LimitView {
    name: String,
    tenant: String,
    limit: String,
    mode: &'static str,
    /// The policy's head: for whom, and for which service.
    scope: String,
    policy: String,
    updated_at: Option<String>,
}

impl LimitView {
    /// `None`: the policy is no limit.
    fn of(policy: wire::Policy) -> Option<Self> {
        // Parsing a policy takes a while, and most are no limits.
        let is_candidate = policy.text.contains("@") && policy.text.contains("limit");
        let found = if is_candidate { limits_of(&policy.text, &Declarations::default()) } else { Vec::new() };
        let AppliedLimit { limit, shadow, .. } = found.into_iter().next()?;
        Some(Self {
            limit: limit.to_string(),
            mode: if shadow { "shadow" } else { "enforce" },
            scope: scope(&policy.text),
            name: policy.id,
            tenant: policy.tenant,
            updated_at: rfc3339_or_null(policy.updated_at),
            policy: policy.text,
        })
    }
}

/// What is behind `forbid` in a policy, in one line. Texts and comments may also have the word.
fn scope(text: &str) -> String {
    let mut rest = text;
    loop {
        let Some(at) = rest.find(['"', '/', 'f']) else { return String::new() };
        rest = rest.get(at..).unwrap_or_default();
        if let Some(head) = rest.strip_prefix("forbid") {
            return head.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches(';').into();
        }
        let end = match rest.get(..1) {
            Some("\"") => end_of_text(rest),
            _ if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            _ => 1,
        };
        rest = rest.get(end..).unwrap_or_default();
    }
}

/// Where a text in quotes ends, behind its last quote.
fn end_of_text(text: &str) -> usize {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let is_end = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        is_end
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

impl View for LimitView {
    const COLUMNS: &'static [&'static str] = &["name", "limit", "mode", "scope"];
    fn row(&self) -> Vec<String> {
        vec![self.name.clone(), self.limit.clone(), self.mode.into(), self.scope.clone()]
    }
}

#[derive(Serialize)]
struct SetView {
    #[serde(flatten)]
    limit: LimitView,
    warnings: Vec<String>,
    #[serde(flatten)]
    enforced: Enforced,
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    match verb {
        Verb::Set(args) => set(global, args).await,
        Verb::List => {
            let client = global.connect().await?;
            let policies = client.list_all("policies", async |mut rpc, page| rpc.list_policies(page).await).await?;
            let limits: Vec<LimitView> = policies.into_iter().filter_map(LimitView::of).collect();
            global.output().list("limits", &limits)
        }
        Verb::Show { name } => {
            let client = global.connect().await?;
            global.output().one(&existing(&client, &name).await?)
        }
        Verb::Delete { name, confirm, wait_args } => {
            confirm.ask(&format!("delete limit `{name}`"))?;
            let client = global.connect().await?;
            existing(&client, &name).await?;
            let request = client.delete(&name, wait_args.no_wait);
            let response = client.change(&format!("limit `{name}`"), client.rpc().delete_policy(request)).await?;
            let outcome = change::Outcome { noun: "limit", name: &name, done: "deleted" };
            change::print_outcome(global.output(), outcome, response, wait_args)
        }
    }
}

/// The limit of this name. A policy that is none is not found.
async fn existing(client: &Client, name: &str) -> Result<LimitView> {
    let what = format!("limit `{name}`");
    let policy = client.call(&what, client.rpc().get_policy(client.named(name))).await?;
    LimitView::of(policy).ok_or_else(|| {
        CliError::new(Exit::NotFound, &what, "the policy of this name is no limit")
            .hint("`seks limit list` shows the limits, `seks policy show` the policy")
    })
}

/// A warning, if the limit counts usage and its service has none. A service that was enabled
/// before `usage` was known is one.
async fn without_usage(client: &Client, args: &SetArgs) -> Option<String> {
    let name = args.service.as_deref()?;
    if !args.limit().ok()?.quantity.is_usage() {
        return None;
    }
    let service = client.call("the service", client.rpc().get_service(client.named(name))).await.ok()?;
    let help = "so the limit counts nothing of it: `seks service apply` sets `usage`";
    service.usage.is_empty().then(|| format!("answers of service `{name}` are not read for usage, {help}"))
}

async fn set(global: &Global, args: SetArgs) -> Result<()> {
    let text = args.policy()?;
    let client = global.connect().await?;
    let what = format!("limit `{}`", args.name);
    // A limit in place of a policy would permit what that forbids.
    match client.call(&what, client.rpc().get_policy(client.named(&args.name))).await {
        Ok(policy) if LimitView::of(policy.clone()).is_none() => {
            return Err(CliError::usage(&what, "there is a policy of this name, which is no limit")
                .hint("choose another name: a limit is a policy, and names are unique"));
        }
        Ok(_) => {}
        Err(error) if error.exit == Exit::NotFound => {}
        Err(error) => return Err(error),
    }
    let wait = Some(client.wait(args.wait_args.no_wait));
    let request = wire::ApplyPoliciesRequest { tenant: client.tenant(), text, wait };
    let answer = client.change(&what, client.rpc().apply_policies(request)).await?;
    let enforced = Enforced::from(answer.enforcement);
    let limit = answer.policies.into_iter().find_map(LimitView::of);
    let limit =
        limit.ok_or_else(|| CliError::new(Exit::Failed, &what, "the control plane did not store it as a limit"))?;
    let output = global.output();
    let mut warnings = answer.warnings;
    warnings.extend(without_usage(&client, &args).await);
    let view = SetView { limit, warnings, enforced };
    if output.is_table() {
        view.warnings.iter().for_each(|warning| crate::output::notice(&format!("warning: {warning}")));
        output.text(&format!("{what}: {}, {}", view.limit.limit, view.enforced.sentence()))?;
    } else {
        output.data(&view)?;
    }
    view.enforced.check(&what, args.wait_args)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: SetArgs,
    }

    fn policy(line: &str) -> std::result::Result<String, String> {
        let line = Line::try_parse_from(std::iter::once("set").chain(line.split(' ')));
        line.map_err(|error| error.to_string())?.args.policy().map_err(|error| error.to_string())
    }

    #[test]
    fn options_become_a_policy_that_reads_back() {
        let text = policy("ci --agent bot --service openai --requests 100/minute --shadow").unwrap();
        assert_eq!(
            text,
            "@id(\"ci\")\n@limit(\"100 requests/minute\")\n@mode(\"shadow\")\n\
             forbid (principal == Seks::Agent::\"bot\", action, resource == Seks::Service::\"openai\");"
        );
        let lines = [
            "a --group g --concurrent 5",
            "a --service s --requests 1/day --each-agent",
            "a --requests 10/s",
            "a --tokens 5/day",
            "a --usd 0.5/day",
        ];
        for line in lines {
            let text = policy(line).unwrap();
            assert_eq!(limits_of(&text, &Declarations::default()).len(), 1, "{text}");
        }
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        let wrong = [
            "a --agent b",
            "a --agent b --requests 1/day --concurrent 1",
            "a --agent b --group c --requests 1/day",
            "a --agent b --requests 100",
            "a --agent b --tokens 1/day --requests 1/day",
            "a --agent b --tokens 0/day",
            "a --usd $5/day",
            "a --usd 5",
            "a --agent b --tokens 100",
            "a --agent b --requests 0/day",
            "a --agent b --requests 1/week",
            "a --agent b\" --requests 1/day",
        ];
        for line in wrong {
            assert!(policy(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_scope_is_the_head_in_one_line() {
        let text = "@id(\"a\") @limit(\"1 requests/day\")\nforbid (principal,\n  action, resource);";
        assert_eq!(scope(text), "(principal, action, resource)");
        let text = "// forbid it\n@title(\"\\\"forbid (x)\") forbid (principal, action, resource) when { context.path like \"*forbid*\" };";
        assert_eq!(scope(text), "(principal, action, resource) when { context.path like \"*forbid*\" }");
    }
}
