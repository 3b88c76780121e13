//! `seks agent`: principals that send requests.

use std::collections::BTreeMap;

use clap::Subcommand;
use seks_proto::wire::{self, admin_client::AdminClient};
use serde::Serialize;
use tonic::transport::Channel;

use super::change::{self, WaitArgs};
use crate::{
    confirm::Confirm,
    error::{CliError, Result},
    global::Global,
    listing::{self, ListArgs},
    output::{View, rfc3339_or_null},
};

/// The verbs of `seks agent`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create an agent
    #[command(after_help = "Example:\n  seks agent create ci-bot --attr team=infra --attr env=prod")]
    Create {
        /// 1 to 63 of a-z, 0-9 and `-`
        name: String,
        /// An attribute for policies; repeatable
        #[arg(long, value_name = "KEY=VALUE", value_parser = attribute)]
        attr: Vec<(String, String)>,
    },
    /// List the tenant's agents
    #[command(alias = "ls", after_help = "Example:\n  seks agent list -o json")]
    List {
        /// Selection and order.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show an agent
    #[command(after_help = "Example:\n  seks agent show ci-bot")]
    Show {
        /// Name of the agent
        name: String,
    },
    /// Change an agent's attributes; those that are not named stay
    #[command(after_help = "\
Examples:
  seks agent update ci-bot --attr env=prod
  seks agent update ci-bot --attr group=writers,deployers --remove-attr team")]
    Update {
        /// Name of the agent
        name: String,
        /// An attribute to add or replace; repeatable
        #[arg(long, value_name = "KEY=VALUE", value_parser = attribute, required_unless_present = "remove_attr")]
        attr: Vec<(String, String)>,
        /// An attribute to remove; repeatable
        #[arg(long, value_name = "KEY")]
        remove_attr: Vec<String>,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Revoke all access of an agent at once; its tokens remain, and `enable` restores access
    #[command(after_help = "Example:\n  seks agent disable ci-bot")]
    Disable {
        /// Name of the agent
        name: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Restore the access of a disabled agent
    #[command(after_help = "Example:\n  seks agent enable ci-bot")]
    Enable {
        /// Name of the agent
        name: String,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Delete an agent and its tokens
    #[command(alias = "rm", after_help = "Example:\n  seks agent delete ci-bot --yes")]
    Delete {
        /// Name of the agent
        name: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
}

fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("an attribute is KEY=VALUE".into()),
    }
}

/// The attributes by name.
///
/// # Errors
/// Exit code 2 for a name that is given twice: only one value could be kept.
fn distinct(attributes: Vec<(String, String)>) -> Result<BTreeMap<String, String>> {
    let mut distinct = BTreeMap::new();
    for (name, value) in attributes {
        if distinct.insert(name.clone(), value).is_some() {
            return Err(CliError::usage("--attr", format!("`{name}` is given twice")));
        }
    }
    Ok(distinct)
}

#[derive(Serialize)]
struct AgentView {
    name: String,
    tenant: String,
    attributes: BTreeMap<String, String>,
    disabled: bool,
    created_at: Option<String>,
}

impl From<wire::Agent> for AgentView {
    fn from(a: wire::Agent) -> Self {
        Self {
            name: a.name,
            tenant: a.tenant,
            attributes: a.attributes,
            disabled: a.disabled,
            created_at: rfc3339_or_null(a.created_at),
        }
    }
}

impl View for AgentView {
    const COLUMNS: &'static [&'static str] = &["name", "state", "attributes", "created"];
    fn row(&self) -> Vec<String> {
        let state = if self.disabled { "disabled" } else { "enabled" };
        let attributes = self.attributes.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        vec![self.name.clone(), state.into(), attributes, self.created_at.clone().unwrap_or_default()]
    }
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    let output = global.output();
    match verb {
        Verb::Create { name, attr } => {
            let attributes = distinct(attr)?;
            let client = global.connect().await?;
            let what = format!("agent `{name}`");
            let request = wire::CreateAgentRequest { tenant: client.tenant(), name, attributes };
            output.one(&AgentView::from(client.change(&what, client.rpc().create_agent(request)).await?))
        }
        Verb::List { list } => {
            let client = global.connect().await?;
            let ask = async |mut rpc: AdminClient<Channel>, page| rpc.list_agents(page).await;
            listing::list::<_, AgentView>(&client, output, "agents", list, ask).await
        }
        Verb::Show { name } => {
            let client = global.connect().await?;
            let agent = client.call(&format!("agent `{name}`"), client.rpc().get_agent(client.named(&name))).await?;
            output.one(&AgentView::from(agent))
        }
        Verb::Update { name, attr, remove_attr, wait_args } => {
            let set_attributes = distinct(attr)?;
            let client = global.connect().await?;
            let what = format!("agent `{name}`");
            let request = wire::UpdateAgentRequest {
                tenant: client.tenant(),
                name,
                set_attributes,
                remove_attributes: remove_attr,
                wait: Some(client.wait(wait_args.no_wait)),
            };
            let response = client.change(&what, client.rpc().update_agent(request)).await?;
            let view = AgentView::from(response.agent.unwrap_or_default());
            change::print_changed(output, &what, view, response.enforcement, wait_args)
        }
        Verb::Disable { name, confirm, wait_args } => {
            confirm.ask_if_possible(&format!("disable agent `{name}`"))?;
            set_disabled(global, &name, true, wait_args).await
        }
        Verb::Enable { name, wait_args } => set_disabled(global, &name, false, wait_args).await,
        Verb::Delete { name, confirm, wait_args } => {
            confirm.ask(&format!("delete agent `{name}` and its tokens"))?;
            let client = global.connect().await?;
            let request = client.delete(&name, wait_args.no_wait);
            let response = client.change(&format!("agent `{name}`"), client.rpc().delete_agent(request)).await?;
            change::print_outcome(
                output,
                change::Outcome { noun: "agent", name: &name, done: "deleted" },
                response,
                wait_args,
            )
        }
    }
}

async fn set_disabled(global: &Global, name: &str, disabled: bool, wait_args: WaitArgs) -> Result<()> {
    let client = global.connect().await?;
    let request = wire::SetAgentDisabledRequest {
        tenant: client.tenant(),
        name: name.into(),
        disabled,
        wait: Some(client.wait(wait_args.no_wait)),
    };
    let response = client.change(&format!("agent `{name}`"), client.rpc().set_agent_disabled(request)).await?;
    let done = if disabled { "disabled" } else { "enabled" };
    change::print_outcome(global.output(), change::Outcome { noun: "agent", name, done }, response, wait_args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_key_value() {
        assert_eq!(attribute("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(attribute("a").is_err() && attribute("=b").is_err());
    }
}
