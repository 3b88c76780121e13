//! `seks tenant`: isolation boundaries.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use seks_proto::wire;
use serde::Serialize;

use super::change::{self, WaitArgs};
use crate::{
    confirm::Confirm,
    error::Result,
    global::Global,
    listing::{self, ListArgs},
    output::{View, notice, rfc3339_or_null},
};

/// The verbs of `seks tenant`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a tenant; it starts with the policy `granted-services`
    #[command(after_help = "Example:\n  seks tenant create acme")]
    Create {
        /// 1 to 63 of a-z, 0-9 and `-`
        name: String,
        /// Start without any policy; nothing is permitted until one is applied
        #[arg(long)]
        strict: bool,
    },
    /// List the tenants that this operator may see
    #[command(alias = "ls", after_help = "Example:\n  seks tenant list -o json")]
    List {
        /// Selection and order.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a tenant
    #[command(after_help = "Example:\n  seks tenant show acme")]
    Show {
        /// Name of the tenant
        name: String,
    },
    /// Set the private networks that the tenant's services may reach; needs the role owner in all
    /// tenants
    #[command(after_help = "\
Examples:
  seks tenant update acme --private-network 10.20.0.0/16 --private-network fd12::/48
  seks tenant update acme --no-private-networks

Each node must allow the networks in `[upstream] private_networks` as well.")]
    Update {
        /// Name of the tenant
        name: String,
        /// A network, ADDRESS/PREFIX; repeatable; replaces the whole list
        #[arg(long = "private-network", value_name = "CIDR", required_unless_present = "no_private_networks")]
        private_networks: Vec<String>,
        /// Remove all private networks
        #[arg(long, conflicts_with = "private_networks")]
        no_private_networks: bool,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// Show or set a tenant's quotas; quotas that are not given stay unchanged
    #[command(after_help = "\
Examples:
  seks tenant quota acme
  seks tenant quota acme --tokens 250000 --writes-per-second 200
  seks tenant quota acme --reset")]
    Quota(QuotaArgs),
    /// Delete a tenant with all of its objects; its tokens stop working
    #[command(alias = "rm", after_help = "Example:\n  seks tenant delete acme --yes")]
    Delete {
        /// Name of the tenant
        name: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
}

/// Quotas of a tenant.
#[derive(Debug, Args)]
pub struct QuotaArgs {
    /// Name of the tenant
    name: String,
    /// Tokens, expired ones included, which are kept for a week
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tokens: Option<u64>,
    /// Agents
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    agents: Option<u64>,
    /// Services
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    services: Option<u64>,
    /// Credentials
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    credentials: Option<u64>,
    /// Policies
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    policies: Option<u64>,
    /// Operators with a role in it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    operators: Option<u64>,
    /// Writes each second in the long run, at each replica
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    writes_per_second: Option<u32>,
    /// Writes at once, after a pause
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    write_burst: Option<u32>,
    /// Restore the control plane's configured quotas
    #[arg(long, conflicts_with_all = ["tokens", "agents", "services", "credentials", "policies", "operators", "writes_per_second", "write_burst"])]
    reset: bool,
}

impl QuotaArgs {
    /// The quotas to set. `None` when none is given.
    fn request(&self) -> Option<wire::SetTenantQuotaRequest> {
        let quota = wire::Quota {
            tokens: self.tokens.unwrap_or_default(),
            agents: self.agents.unwrap_or_default(),
            services: self.services.unwrap_or_default(),
            credentials: self.credentials.unwrap_or_default(),
            policies: self.policies.unwrap_or_default(),
            operators: self.operators.unwrap_or_default(),
            writes_per_second: self.writes_per_second.unwrap_or_default(),
            write_burst: self.write_burst.unwrap_or_default(),
        };
        let said = self.reset || quota != wire::Quota::default();
        said.then(|| wire::SetTenantQuotaRequest { name: self.name.clone(), quota: Some(quota), reset: self.reset })
    }
}

#[derive(Serialize)]
struct QuotaView {
    tenant: String,
    #[serde(flatten)]
    rows: BTreeMap<&'static str, QuotaRow>,
    writes_per_second: u32,
    write_burst: u32,
}

#[derive(Serialize)]
struct QuotaRow {
    limit: u64,
    used: u64,
}

impl From<wire::Tenant> for QuotaView {
    fn from(t: wire::Tenant) -> Self {
        let (q, u) = (t.quota.unwrap_or_default(), t.usage.unwrap_or_default());
        let rows = [
            ("tokens", q.tokens, u.tokens),
            ("agents", q.agents, u.agents),
            ("services", q.services, u.services),
            ("credentials", q.credentials, u.credentials),
            ("policies", q.policies, u.policies),
            ("operators", q.operators, u.operators),
        ];
        let rows = rows.into_iter().map(|(noun, limit, used)| (noun, QuotaRow { limit, used })).collect();
        Self { tenant: t.name, rows, writes_per_second: q.writes_per_second, write_burst: q.write_burst }
    }
}

impl View for QuotaView {
    const COLUMNS: &'static [&'static str] = &[
        "tenant",
        "agents",
        "credentials",
        "operators",
        "policies",
        "services",
        "tokens",
        "writes a second",
        "write burst",
    ];
    fn row(&self) -> Vec<String> {
        let rows = self.rows.values().map(|row| format!("{} of {}", row.used, row.limit));
        let rates = [self.writes_per_second.to_string(), self.write_burst.to_string()];
        std::iter::once(self.tenant.clone()).chain(rows).chain(rates).collect()
    }
}

/// The objects that are deleted with a tenant.
fn contents(usage: &wire::Usage) -> String {
    let parts = [
        (usage.tokens, "token", "tokens"),
        (usage.agents, "agent", "agents"),
        (usage.services, "service", "services"),
        (usage.credentials, "credential", "credentials"),
        (usage.policies, "policy", "policies"),
    ];
    let parts = parts.into_iter().filter(|(count, ..)| *count > 0);
    let parts: Vec<_> =
        parts.map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many })).collect();
    match parts.as_slice() {
        [] => "nothing".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[derive(Serialize)]
struct TenantView {
    name: String,
    strict: bool,
    private_networks: Vec<String>,
    created_at: Option<String>,
}

impl From<wire::Tenant> for TenantView {
    fn from(t: wire::Tenant) -> Self {
        let private_networks = t.private_networks;
        Self { name: t.name, strict: t.strict, private_networks, created_at: rfc3339_or_null(t.created_at) }
    }
}

impl View for TenantView {
    const COLUMNS: &'static [&'static str] = &["name", "strict", "created"];
    fn row(&self) -> Vec<String> {
        let strict = if self.strict { "yes" } else { "no" };
        vec![self.name.clone(), strict.into(), self.created_at.clone().unwrap_or_default()]
    }
    fn detail(&self) -> Vec<(&'static str, String)> {
        let mut detail: Vec<_> = Self::COLUMNS.iter().copied().zip(self.row()).collect();
        detail.push(("private networks", self.private_networks.join("\n")));
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
        Verb::Create { name, strict } => {
            let client = global.connect().await?;
            let what = format!("tenant `{name}`");
            let request = wire::CreateTenantRequest { name, strict };
            output.one(&TenantView::from(client.change(&what, client.rpc().create_tenant(request)).await?))
        }
        Verb::List { list } => {
            let client = global.connect().await?;
            let request = wire::ListTenantsRequest {};
            let tenants = client.call("tenants", client.rpc().list_tenants(request)).await?.tenants;
            listing::list_at_once(output, "tenants", list, tenants.into_iter().map(TenantView::from).collect())
        }
        Verb::Show { name } => {
            let client = global.connect().await?;
            let request = wire::NameRequest { tenant: String::new(), name: name.clone() };
            let tenant = client.call(&format!("tenant `{name}`"), client.rpc().get_tenant(request)).await?;
            output.one(&TenantView::from(tenant))
        }
        Verb::Update { name, private_networks, no_private_networks: _, wait_args } => {
            let client = global.connect().await?;
            let what = format!("tenant `{name}`");
            let current = wire::NameRequest { tenant: String::new(), name: name.clone() };
            let before = client.call(&what, client.rpc().get_tenant(current)).await?.private_networks;
            let request =
                wire::UpdateTenantRequest { name, private_networks, wait: Some(client.wait(wait_args.no_wait)) };
            let answer = client.change(&what, client.rpc().update_tenant(request)).await?;
            let view = TenantView::from(answer.tenant.unwrap_or_default());
            let removed: Vec<String> = before.into_iter().filter(|old| !view.private_networks.contains(old)).collect();
            if !removed.is_empty() {
                let removed = removed.join(", ");
                notice(&format!("removed: {removed}; services with addresses there answer 502 now"));
            }
            change::print_changed(output, &what, view, answer.enforcement, wait_args)
        }
        Verb::Quota(args) => {
            let client = global.connect().await?;
            let (name, what) = (args.name.clone(), format!("tenant `{}`", args.name));
            let get = || wire::NameRequest { tenant: String::new(), name: name.clone() };
            if let Some(request) = args.request() {
                client.change(&what, client.rpc().set_tenant_quota(request)).await?;
            }
            let tenant = client.call(&what, client.rpc().get_tenant(get())).await?;
            output.one(&QuotaView::from(tenant))
        }
        Verb::Delete { name, confirm, wait_args } => {
            let client = global.connect().await?;
            if !confirm.yes {
                let request = wire::NameRequest { tenant: String::new(), name: name.clone() };
                let tenant = client.call(&format!("tenant `{name}`"), client.rpc().get_tenant(request)).await?;
                let contents = contents(&tenant.usage.unwrap_or_default());
                confirm.ask(&format!("delete tenant `{name}` and {contents} in it"))?;
            }
            let request = wire::DeleteRequest {
                tenant: String::new(),
                name: name.clone(),
                wait: Some(client.wait(wait_args.no_wait)),
            };
            let response = client.change(&format!("tenant `{name}`"), client.rpc().delete_tenant(request)).await?;
            change::print_outcome(
                output,
                change::Outcome { noun: "tenant", name: &name, done: "deleted" },
                response,
                wait_args,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creation_times_are_text_in_both_forms() {
        let view =
            TenantView::from(wire::Tenant { name: "a".into(), created_at: 1, strict: true, ..Default::default() });
        assert_eq!(view.row(), ["a", "yes", "1970-01-01T00:00:01Z"]);
    }
}
