//! `seks policy`: Cedar policies, which decide which agent may do what.

mod explain;
mod trail;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use seks_proto::wire::{self, admin_client::AdminClient};
use serde::Serialize;
use tonic::transport::Channel;

use super::change::{self, Enforced, WaitArgs};
use crate::{
    client::Client,
    confirm::Confirm,
    error::{CliError, Result},
    files::read_text,
    global::Global,
    listing::{self, ListArgs},
    output::{Output, View, notice, rfc3339_or_null},
};

/// The verbs of `seks policy`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Validate a file of policies, and store all of them or none
    #[command(after_help = "Example:\n  seks policy apply -f policies.cedar")]
    Apply {
        /// A file with any number of policies, each with an @id; `-` is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// List the tenant's policies
    #[command(alias = "ls", after_help = "Example:\n  seks policy list -o json")]
    List {
        /// Selection and order.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a policy's text
    #[command(after_help = "Example:\n  seks policy show granted-services")]
    Show {
        /// The policy's @id
        id: String,
    },
    /// Delete a policy
    #[command(alias = "rm", after_help = "Example:\n  seks policy delete no-deletes --yes")]
    Delete {
        /// The policy's @id
        id: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Validate a file against the schema without storing it
    #[command(after_help = "Example:\n  seks policy check -f policies.cedar")]
    Check {
        /// The file; `-` is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Show what a node would decide about a request; or with -f what would change of what agents
    /// have done
    #[command(after_help = "\
Examples:
  seks policy simulate --agent ci-bot --service openai --method GET --path /v1/models
  seks policy simulate --since 24h -f new.cedar            as if the file were applied
  seks policy simulate --since 7d -f new.cedar --alone --agent ci-bot -o json")]
    Simulate(SimulateArgs),
    /// Write the narrowest policies that permit what an agent did
    #[command(after_help = "\
Example:
  seks policy suggest --agent ci-bot --since 7d > ci-bot.cedar
  seks policy simulate --since 7d --agent ci-bot --alone -f ci-bot.cedar

A segment of a path that looks like an id stands for any one segment. Read the result before you apply it.")]
    Suggest(trail::SuggestArgs),
    /// Show why a request was or would be denied: which permit came closest, and what of it failed
    #[command(after_help = "\
Examples:
  seks policy explain 0190f2c4e7b24c6f8a1d3e5f7a9b1c3d     x-seks-request-id of the refused request
  seks policy explain --agent ci-bot --service openai --method POST --path /v1/files
  seks policy explain --agent ci-bot --service stripe --method POST --path /v1/refunds \\
      --body refund.txt --content-type application/x-www-form-urlencoded")]
    Explain(explain::ExplainArgs),
    /// Print the Cedar schema that policies are checked against
    #[command(after_help = "\
Example:
  seks policy schema > seks.cedarschema

It has the fields of request bodies that the tenant's services declare (`body_fields`).")]
    Schema,
}

/// The request to simulate.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// The agent that sends the request; with -f only this agent's requests
    #[arg(long, required_unless_present = "file")]
    agent: Option<String>,
    /// The service
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    service: Option<String>,
    /// HTTP method
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    method: Option<String>,
    /// Path and query as the agent writes them after /api/SERVICE
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    path: Option<String>,
    /// A file with the request's body; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    body: Option<PathBuf>,
    /// The body's Content-Type [default: application/json]
    #[arg(long, value_name = "TYPE", requires = "body")]
    content_type: Option<String>,
    /// The source address [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "file")]
    source: Option<std::net::IpAddr>,
    /// What would change of the recorded requests.
    #[command(flatten)]
    trail: trail::TrailArgs,
}

impl SimulateArgs {
    /// The request, without its body.
    fn request(self, client: &Client) -> wire::SimulateRequest {
        wire::SimulateRequest {
            tenant: client.tenant(),
            agent: self.agent.unwrap_or_default(),
            service: self.service.unwrap_or_default(),
            method: self.method.unwrap_or_default().to_uppercase(),
            path: self.path.unwrap_or_default(),
            content_type: self.content_type.unwrap_or_default(),
            source: self.source.map(|a| a.to_string()).unwrap_or_default(),
            ..wire::SimulateRequest::default()
        }
    }
}

#[derive(Serialize)]
struct PolicyView {
    id: String,
    tenant: String,
    text: String,
    updated_at: Option<String>,
}

impl From<wire::Policy> for PolicyView {
    fn from(p: wire::Policy) -> Self {
        Self { id: p.id, tenant: p.tenant, text: p.text, updated_at: rfc3339_or_null(p.updated_at) }
    }
}

impl View for PolicyView {
    const COLUMNS: &'static [&'static str] = &["id", "updated"];
    fn row(&self) -> Vec<String> {
        vec![self.id.clone(), self.updated_at.clone().unwrap_or_default()]
    }
}

#[derive(Serialize)]
struct AppliedView {
    policies: Vec<String>,
    warnings: Vec<String>,
    #[serde(flatten)]
    enforced: Enforced,
}

#[derive(Serialize)]
struct CheckView {
    valid: bool,
    policies: Vec<String>,
    errors: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct SimulateView {
    decision: &'static str,
    reason: Option<String>,
    policies: Vec<String>,
    path: String,
    errors: Vec<String>,
}

impl View for SimulateView {
    const COLUMNS: &'static [&'static str] = &["decision", "reason", "policies", "path", "errors"];
    fn row(&self) -> Vec<String> {
        vec![
            self.decision.into(),
            self.reason.clone().unwrap_or_default(),
            self.policies.join(","),
            self.path.clone(),
            self.errors.join("\n"),
        ]
    }
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    let output = global.output();
    match verb {
        Verb::Apply { file, wait_args } => {
            let text = read_text(&file)?;
            let file = PolicyFile { name: file.display().to_string(), text };
            apply(&global.connect().await?, output, file, wait_args).await
        }
        Verb::List { list } => {
            let client = global.connect().await?;
            let ask = async |mut rpc: AdminClient<Channel>, page| rpc.list_policies(page).await;
            listing::list::<_, PolicyView>(&client, output, "policies", list, ask).await
        }
        Verb::Show { id } => {
            let client = global.connect().await?;
            let policy = client.call(&format!("policy `{id}`"), client.rpc().get_policy(client.named(&id))).await?;
            if output.is_table() { output.text(&policy.text) } else { output.one(&PolicyView::from(policy)) }
        }
        Verb::Delete { id, confirm, wait_args } => {
            confirm.ask(&format!("delete policy `{id}`"))?;
            let client = global.connect().await?;
            let request = client.delete(&id, wait_args.no_wait);
            let response = client.change(&format!("policy `{id}`"), client.rpc().delete_policy(request)).await?;
            change::print_outcome(
                output,
                change::Outcome { noun: "policy", name: &id, done: "deleted" },
                response,
                wait_args,
            )
        }
        Verb::Check { file } => {
            let text = read_text(&file)?;
            check(&global.connect().await?, output, &file.display().to_string(), text).await
        }
        Verb::Simulate(args) if args.trail.is_asked() => trail::simulate(global, args.agent, args.trail).await,
        Verb::Simulate(args) => simulate(global, args).await,
        Verb::Explain(args) => explain::run(global, args).await,
        Verb::Schema => {
            let client = global.connect().await?;
            let request = wire::PolicySchemaRequest { tenant: client.tenant() };
            let schema = client.call("policy schema", client.rpc().policy_schema(request)).await?.text;
            if output.is_table() { output.text(&schema) } else { output.data(&serde_json::json!({ "schema": schema })) }
        }
        Verb::Suggest(args) => trail::suggest(global, args).await,
    }
}

/// A file of policies as it was read.
struct PolicyFile {
    name: String,
    text: String,
}

async fn apply(client: &Client, output: Output, file: PolicyFile, wait_args: WaitArgs) -> Result<()> {
    let wait = Some(client.wait(wait_args.no_wait));
    let request = wire::ApplyPoliciesRequest { tenant: client.tenant(), text: file.text, wait };
    let answer = client.change(&file.name, client.rpc().apply_policies(request)).await?;
    let view = AppliedView {
        policies: answer.policies.into_iter().map(|p| p.id).collect(),
        warnings: answer.warnings,
        enforced: answer.enforcement.into(),
    };
    if output.is_table() {
        view.warnings.iter().for_each(|w| notice(&format!("warning: {w}")));
        output.text(&format!("applied {}: {}", view.policies.join(", "), view.enforced.sentence()))?;
    } else {
        output.data(&view)?;
    }
    view.enforced.check(&file.name, wait_args)
}

async fn check(client: &Client, output: Output, file: &str, text: String) -> Result<()> {
    let request = wire::CheckPoliciesRequest { tenant: client.tenant(), text };
    let answer = client.call(file, client.rpc().check_policies(request)).await?;
    let view = CheckView {
        valid: answer.errors.is_empty(),
        policies: answer.policy_ids,
        errors: answer.errors,
        warnings: answer.warnings,
    };
    if !output.is_table() {
        output.data(&view)?;
    } else {
        view.warnings.iter().for_each(|w| notice(&format!("warning: {w}")));
        if view.valid {
            output.text(&format!("valid: {}", view.policies.join(", ")))?;
        }
    }
    match view.errors.split_first() {
        None => Ok(()),
        Some((first, [])) => Err(CliError::usage(file, first)),
        Some((first, more)) => {
            Err(CliError::usage(file, first).hint(format!("and {} more: {}", more.len(), more.join("; "))))
        }
    }
}

async fn simulate(global: &Global, args: SimulateArgs) -> Result<()> {
    let body = args.body.as_deref().map(crate::files::read_bytes).transpose()?;
    let client = global.connect().await?;
    let has_body = body.is_some();
    let request = wire::SimulateRequest { has_body, body: body.unwrap_or_default(), ..args.request(&client) };
    let answer = client.call("policy simulate", client.rpc().simulate(request)).await?;
    global.output().one(&SimulateView {
        decision: if answer.allowed { "allow" } else { "deny" },
        reason: Some(answer.reason).filter(|r| !r.is_empty()),
        policies: answer.policy_ids,
        path: answer.upstream_path,
        errors: answer.errors,
    })
}
