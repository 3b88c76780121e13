//! `seks tenant`: isolation boundaries.

use clap::Subcommand;
use seks_proto::wire;
use serde::Serialize;

use super::change::{self, Waiting};
use crate::{
    args::Global,
    confirm::Confirm,
    error::Result,
    output::{View, time_or_null},
};

/// What can be done with tenants.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a tenant; it starts with the policy `granted-services`
    #[command(after_help = "Example:\n  seks tenant create acme")]
    Create {
        /// 1 to 63 of a-z, 0-9 and `-`
        name: String,
        /// Start without any policy: nothing is permitted until one is applied
        #[arg(long)]
        strict: bool,
    },
    /// List the tenants that this operator may see
    #[command(alias = "ls", after_help = "Example:\n  seks tenant list -o json")]
    List,
    /// Show a tenant
    #[command(after_help = "Example:\n  seks tenant show acme")]
    Show {
        /// Its name
        name: String,
    },
    /// Say which private networks the tenant's services may reach; takes the role owner in all tenants
    #[command(after_help = "\
Examples:
  seks tenant update acme --private-network 10.20.0.0/16 --private-network fd12::/48
  seks tenant update acme --no-private-networks

Each node must allow the networks in `[upstream] private_networks` as well.")]
    Update {
        /// Its name
        name: String,
        /// A network, ADDRESS/PREFIX; repeatable; the whole list is replaced
        #[arg(long = "private-network", value_name = "CIDR", required_unless_present = "no_private_networks")]
        private_networks: Vec<String>,
        /// None: only upstreams on the Internet
        #[arg(long, conflicts_with = "private_networks")]
        no_private_networks: bool,
        /// Whether to wait for the nodes.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Delete an empty tenant
    #[command(alias = "rm", after_help = "Example:\n  seks tenant delete acme --yes")]
    Delete {
        /// Its name
        name: String,
        /// Whether to ask.
        #[command(flatten)]
        confirm: Confirm,
        /// Whether to wait for the nodes.
        #[command(flatten)]
        waiting: Waiting,
    },
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
        Self { name: t.name, strict: t.strict, private_networks, created_at: time_or_null(t.created_at) }
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
        Verb::List => {
            let client = global.connect().await?;
            let request = wire::ListTenantsRequest {};
            let tenants = client.call("tenants", client.rpc().list_tenants(request)).await?.tenants;
            output.list("tenants", &tenants.into_iter().map(TenantView::from).collect::<Vec<_>>())
        }
        Verb::Show { name } => {
            let client = global.connect().await?;
            let request = wire::NameRequest { tenant: String::new(), name: name.clone() };
            let tenant = client.call(&format!("tenant `{name}`"), client.rpc().get_tenant(request)).await?;
            output.one(&TenantView::from(tenant))
        }
        Verb::Update { name, private_networks, no_private_networks: _, waiting } => {
            let client = global.connect().await?;
            let what = format!("tenant `{name}`");
            let request =
                wire::UpdateTenantRequest { name, private_networks, wait: Some(client.wait(waiting.no_wait)) };
            let answer = client.change(&what, client.rpc().update_tenant(request)).await?;
            let view = TenantView::from(answer.tenant.unwrap_or_default());
            change::print(output, &what, view, answer.enforcement, waiting)
        }
        Verb::Delete { name, confirm, waiting } => {
            confirm.ask(&format!("delete tenant `{name}`"))?;
            let client = global.connect().await?;
            let request = wire::DeleteRequest {
                tenant: String::new(),
                name: name.clone(),
                wait: Some(client.wait(waiting.no_wait)),
            };
            let response = client.change(&format!("tenant `{name}`"), client.rpc().delete_tenant(request)).await?;
            change::print_named(output, ("tenant", &name, "deleted"), response, waiting)
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
