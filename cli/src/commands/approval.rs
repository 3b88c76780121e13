//! `seks approval`: requests that a policy with `@approval` refused, and operators' decisions.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use seks_proto::wire::{self, approval::State};
use serde::Serialize;

use super::change::{self, WaitArgs};
use crate::{
    confirm::Confirm,
    duration::duration,
    error::Result,
    global::Global,
    output::{View, rfc3339_or_null},
};

/// The verbs of `seks approval`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List requests that wait for approval, and those decided, until a day after their end
    #[command(
        alias = "ls",
        after_help = "\
Examples:
  seks approval list --waiting
  seks approval list -o json

A policy asks for approval with an annotation, and refuses what was not approved:
  @id(\"refunds\") @approval(\"payments\")
  forbid (principal, action == Seks::Action::\"POST\", resource == Seks::Service::\"stripe\")
  when { context.path like \"/v1/refunds*\" };"
    )]
    List {
        /// Only those that wait
        #[arg(long)]
        waiting: bool,
    },
    /// Show an approval
    #[command(after_help = "Example:\n  seks approval show apr-x1y2z3x1y2z3x1y2")]
    Show {
        /// Id of the approval
        id: String,
    },
    /// Approve a request, and wait until the nodes have the approval
    #[command(after_help = "\
Examples:
  seks approval approve apr-x1y2z3x1y2z3x1y2 --for 30m
  seks approval approve apr-x1y2z3x1y2z3x1y2 --for 1h --limit 1 --reason 'ticket 4711'

The agent may then send this request: the same service, method, path and query. Of its body,
the fields that policies use are the same, and the rest may be another. It needs the permission of the other policies as
always. --limit counts over all nodes; a use is taken before the request is sent.")]
    Approve(ApproveArgs),
    /// Deny a request; the same request is not put before operators again for the given time
    #[command(after_help = "Example:\n  seks approval deny apr-x1y2z3x1y2z3x1y2 --reason 'not on a Friday'")]
    Deny {
        /// Id of the approval
        id: String,
        /// How long the same request is refused without asking again: 1s to 7d
        #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = duration)]
        duration: Duration,
        /// Why, for the record; at most 500 bytes
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// End an approval, and wait until no node permits anything by it
    #[command(after_help = "Example:\n  seks approval revoke apr-x1y2z3x1y2z3x1y2 --yes")]
    Revoke {
        /// Id of the approval
        id: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Show or set who may approve in the tenant; to set it takes the role owner
    #[command(after_help = "\
Examples:
  seks approval settings
  seks approval settings --by-another yes

--by-another yes: an operator approves nothing that was asked with a token that this operator has issued, and nothing of
an agent whose attribute `owner` is this operator. The approval is then for that token alone.")]
    Settings {
        /// Whether it takes another operator than the one who issued the token or owns the agent
        #[arg(long, value_name = "YES_OR_NO")]
        by_another: Option<YesOrNo>,
    },
}

/// A switch that a tenant has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum YesOrNo {
    /// On.
    Yes,
    /// Off.
    No,
}

/// What is approved.
#[derive(Debug, Args)]
pub struct ApproveArgs {
    /// Id of the approval
    id: String,
    /// How long the approval holds: 1s to 7d
    #[arg(long = "for", value_name = "TIME", default_value = "30m", value_parser = duration)]
    duration: Duration,
    /// Most uses, over all nodes; default: any number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Why, for the record; at most 500 bytes
    #[arg(long, default_value = "")]
    reason: String,
    /// Approve every query and every body, and not only those of the request
    #[arg(long)]
    any_values: bool,
    /// Waiting for enforcement.
    #[command(flatten)]
    wait_args: WaitArgs,
}

#[derive(Serialize)]
struct ApprovalView {
    id: String,
    tenant: String,
    state: &'static str,
    agent: String,
    service: String,
    method: String,
    path: String,
    query_names: Vec<String>,
    mcp_method: String,
    mcp_name: String,
    policy: String,
    scope: String,
    token: String,
    issued_by: String,
    node: String,
    requested_at: Option<String>,
    expires_at: Option<String>,
    decided_by: String,
    decided_at: Option<String>,
    reason: String,
    /// 0: any number of uses, which are not counted.
    limit: u32,
    used: u32,
    /// Approved for every query and every body.
    any_values: bool,
}

impl From<wire::Approval> for ApprovalView {
    fn from(approval: wire::Approval) -> Self {
        Self {
            state: match approval.state() {
                State::Unspecified => "unknown",
                State::Waiting => "waiting",
                State::Approved => "approved",
                State::Denied => "denied",
                State::Revoked => "revoked",
                State::Expired => "expired",
                State::UsedUp => "used_up",
            },
            id: approval.id,
            tenant: approval.tenant,
            agent: approval.agent,
            service: approval.service,
            method: approval.method,
            path: approval.path,
            query_names: approval.query_names,
            mcp_method: approval.mcp_method,
            mcp_name: approval.mcp_name,
            policy: approval.policy,
            scope: approval.scope,
            token: approval.token,
            issued_by: approval.issued_by,
            node: approval.node,
            requested_at: rfc3339_or_null(approval.requested_at),
            expires_at: rfc3339_or_null(approval.expires_at),
            decided_by: approval.decided_by,
            decided_at: rfc3339_or_null(approval.decided_at),
            reason: approval.reason,
            limit: approval.limit,
            used: approval.used,
            any_values: approval.any_values,
        }
    }
}

impl ApprovalView {
    /// What the request would do. Values of the query are not known.
    fn request(&self) -> String {
        let names: Vec<String> = self.query_names.iter().map(|name| format!("{name}=…")).collect();
        let query = if names.is_empty() { String::new() } else { format!("?{}", names.join("&")) };
        let request = format!("{} {}{query} {} {}", self.method, self.path, self.mcp_method, self.mcp_name);
        request.trim_end().to_owned()
    }

    fn uses(&self) -> String {
        if self.limit == 0 { String::new() } else { format!("{} of {}", self.used, self.limit) }
    }
}

impl View for ApprovalView {
    const COLUMNS: &'static [&'static str] = &["id", "state", "agent", "service", "request", "scope", "expires_at"];
    fn row(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.state.into(),
            self.agent.clone(),
            self.service.clone(),
            self.request(),
            self.scope.clone(),
            self.expires_at.clone().unwrap_or_default(),
        ]
    }
    fn detail(&self) -> Vec<(&'static str, String)> {
        let mut lines: Vec<_> = Self::COLUMNS.iter().copied().zip(self.row()).collect();
        lines.extend([
            ("policy", self.policy.clone()),
            ("token", self.token.clone()),
            ("issued_by", self.issued_by.clone()),
            ("node", self.node.clone()),
            ("requested_at", self.requested_at.clone().unwrap_or_default()),
            ("decided_by", self.decided_by.clone()),
            ("decided_at", self.decided_at.clone().unwrap_or_default()),
            ("reason", self.reason.clone()),
            ("uses", self.uses()),
        ]);
        lines
    }
}

#[derive(Serialize)]
struct SettingsView {
    tenant: String,
    by_another: bool,
}

impl View for SettingsView {
    const COLUMNS: &'static [&'static str] = &["tenant", "by_another"];
    fn row(&self) -> Vec<String> {
        vec![self.tenant.clone(), self.by_another.to_string()]
    }
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    let what = |id: &str| format!("approval `{id}`");
    match verb {
        Verb::List { waiting } => {
            let client = global.connect().await?;
            let all = client.list_all("approvals", async |mut rpc, page| rpc.list_approvals(page).await).await?;
            let views: Vec<ApprovalView> = all.into_iter().map(ApprovalView::from).collect();
            let views: Vec<_> = views.into_iter().filter(|view| !waiting || view.state == "waiting").collect();
            global.output().list("approvals", &views)
        }
        Verb::Show { id } => {
            let client = global.connect().await?;
            let approval = client.call(&what(&id), client.rpc().get_approval(client.named(&id))).await?;
            global.output().one(&ApprovalView::from(approval))
        }
        Verb::Approve(args) => approve(global, args).await,
        Verb::Deny { id, duration, reason } => {
            let client = global.connect().await?;
            let (tenant, name, for_seconds) = (client.tenant(), id.clone(), duration.as_secs());
            let request = wire::DenyApprovalRequest { tenant, name, for_seconds, reason };
            let approval = client.call(&what(&id), client.rpc().deny_approval(request)).await?;
            global.output().one(&ApprovalView::from(approval))
        }
        Verb::Revoke { id, confirm, wait_args } => {
            confirm.ask_if_possible(&format!("revoke approval `{id}`"))?;
            let client = global.connect().await?;
            let request = client.delete(&id, wait_args.no_wait);
            let response = client.change(&what(&id), client.rpc().revoke_approval(request)).await?;
            let outcome = change::Outcome { noun: "approval", name: &id, done: "revoked" };
            change::print_outcome(global.output(), outcome, response, wait_args)
        }
        Verb::Settings { by_another } => settings(global, by_another).await,
    }
}

async fn approve(global: &Global, args: ApproveArgs) -> Result<()> {
    let client = global.connect().await?;
    let what = format!("approval `{}`", args.id);
    let request = wire::GrantApprovalRequest {
        tenant: client.tenant(),
        name: args.id,
        for_seconds: args.duration.as_secs(),
        limit: args.limit.unwrap_or_default(),
        reason: args.reason,
        any_values: args.any_values,
        wait: Some(client.wait(args.wait_args.no_wait)),
    };
    let response = client.change(&what, client.rpc().grant_approval(request)).await?;
    let view = ApprovalView::from(response.approval.unwrap_or_default());
    change::print_changed(global.output(), &what, view, response.enforcement, args.wait_args)
}

async fn settings(global: &Global, by_another: Option<YesOrNo>) -> Result<()> {
    let client = global.connect().await?;
    let (tenant, what) = (client.tenant(), format!("tenant `{}`", client.tenant()));
    let record = match by_another {
        None => {
            client
                .call(&what, client.rpc().get_tenant(wire::NameRequest { tenant: String::new(), name: tenant }))
                .await?
        }
        Some(wanted) => {
            let request = wire::SetApprovalRulesRequest { tenant, approval_by_another: wanted == YesOrNo::Yes };
            client.call(&what, client.rpc().set_approval_rules(request)).await?
        }
    };
    global.output().one(&SettingsView { tenant: record.name, by_another: record.approval_by_another })
}
