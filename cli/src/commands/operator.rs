//! `seks operator`: administrators. A new operator's key is generated here and never leaves this
//! machine.

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;
use seks_proto::wire;
use serde::Serialize;

use super::change::{self, WaitArgs};
use crate::{
    client::Client,
    confirm::Confirm,
    context::{Context, ContextFile},
    duration::duration,
    error::{CliError, Exit, Result},
    files::write_private,
    global::Global,
    known,
    listing::{self, ListArgs},
    output::{View, rfc3339_or_null},
    user,
};

/// The verbs of `seks operator`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create an operator, or renew its certificate, and write its context file
    #[command(after_help = "\
Examples:
  seks operator create ann --role owner --out ann.toml       every tenant, and the fleet
  seks operator create ci --role editor:acme --out ci.toml   one tenant
  seks operator create ann --out ann-2027.toml               a new certificate for ann")]
    Create {
        /// 1 to 63 of a-z, 0-9 and `-`
        name: String,
        /// owner, editor or viewer, in one tenant or in all; repeatable; none to renew
        #[arg(long, value_name = "ROLE[:TENANT]", value_parser = role)]
        role: Vec<wire::RoleBinding>,
        /// Validity of the certificate
        #[arg(long, default_value = "90d", value_parser = duration)]
        ttl: Duration,
        /// Output file for the context; it contains the private key
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Renew an operator's certificate and write its context file; anyone may renew its own
    #[command(after_help = "\
Examples:
  seks operator renew --out ann-2027.toml           the operator of this context
  seks operator renew ci --out ci-2027.toml         another one")]
    Renew {
        /// Name of the operator [default: the context's]
        name: Option<String>,
        /// Validity of the certificate
        #[arg(long, default_value = "90d", value_parser = duration)]
        ttl: Duration,
        /// Output file for the context; it contains the private key
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// List the operators that you look after
    #[command(alias = "ls", after_help = "Example:\n  seks operator list -o json")]
    List {
        /// Selection and order.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show the operator of this context
    #[command(after_help = "Example:\n  seks operator whoami")]
    Whoami,
    /// Replace an operator's roles; its certificate stays valid
    #[command(after_help = "Example:\n  seks operator update ann --role editor:acme --role viewer:other")]
    Update {
        /// Name of the operator
        name: String,
        /// owner, editor or viewer, in one tenant or in all; repeatable
        #[arg(long, value_name = "ROLE[:TENANT]", value_parser = role, required = true)]
        role: Vec<wire::RoleBinding>,
    },
    /// Delete an operator; its certificate is refused from then on
    #[command(alias = "rm", after_help = "Example:\n  seks operator delete ann --yes")]
    Delete {
        /// Name of the operator
        name: String,
        /// Also when it is the operator of this context
        #[arg(long)]
        yes_delete_myself: bool,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// `owner` or `editor:acme`.
fn role(text: &str) -> Result<wire::RoleBinding, String> {
    let (role, tenant) = text.split_once(':').unwrap_or((text, "*"));
    let role = match role {
        "owner" => wire::Role::Owner,
        "editor" => wire::Role::Editor,
        "viewer" => wire::Role::Viewer,
        _ => return Err("a role is owner, editor or viewer, with `:TENANT` for one tenant".into()),
    };
    Ok(wire::RoleBinding { tenant: tenant.into(), role: role.into() })
}

#[derive(Serialize)]
struct OperatorView {
    name: String,
    roles: Vec<RoleView>,
    created_at: Option<String>,
}

#[derive(Serialize)]
struct RoleView {
    tenant: String,
    role: &'static str,
}

impl From<wire::Operator> for OperatorView {
    fn from(o: wire::Operator) -> Self {
        let role = |r: wire::RoleBinding| RoleView {
            role: match wire::Role::try_from(r.role) {
                Ok(wire::Role::Owner) => "owner",
                Ok(wire::Role::Editor) => "editor",
                Ok(wire::Role::Viewer) => "viewer",
                _ => "unknown",
            },
            tenant: r.tenant,
        };
        Self { name: o.name, roles: o.roles.into_iter().map(role).collect(), created_at: rfc3339_or_null(o.created_at) }
    }
}

impl View for OperatorView {
    const COLUMNS: &'static [&'static str] = &["name", "roles", "created"];
    fn row(&self) -> Vec<String> {
        let roles = self.roles.iter().map(|r| format!("{}:{}", r.role, r.tenant)).collect::<Vec<_>>().join(",");
        vec![self.name.clone(), roles, self.created_at.clone().unwrap_or_default()]
    }
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    let output = global.output();
    match verb {
        Verb::Create { name, role, ttl, out } => create(global, name, role, ttl, out).await,
        Verb::Renew { name, ttl, out } => {
            let name = match name {
                Some(name) => name,
                None => who_am_i(&global.connect().await?).await?.name,
            };
            create(global, name, Vec::new(), ttl, out).await
        }
        Verb::List { list } => {
            let client = global.connect().await?;
            let request = wire::ListOperatorsRequest {};
            let operators = client.call("operators", client.rpc().list_operators(request)).await?.operators;
            listing::list_at_once(output, "operators", list, operators.into_iter().map(OperatorView::from).collect())
        }
        Verb::Whoami => output.one(&OperatorView::from(who_am_i(&global.connect().await?).await?)),
        Verb::Update { name, role } => {
            let client = global.connect().await?;
            let what = format!("operator `{name}`");
            let request = wire::UpdateOperatorRequest { name, roles: role };
            output.one(&OperatorView::from(client.change(&what, client.rpc().update_operator(request)).await?))
        }
        Verb::Delete { name, yes_delete_myself, confirm } => {
            confirm.ask(&format!("delete operator `{name}`"))?;
            let client = global.connect().await?;
            if who_am_i(&client).await?.name == name && !yes_delete_myself {
                confirm_own(&name)?;
            }
            let wait = Some(client.wait(true));
            let request = wire::DeleteRequest { tenant: String::new(), name: name.clone(), wait };
            let what = format!("operator `{name}`");
            let response = client.change(&what, client.rpc().delete_operator(request)).await?;
            // The control plane itself refuses the operator, so there is no node to wait for.
            change::print_outcome(
                output,
                change::Outcome { noun: "operator", name: &name, done: "deleted" },
                response,
                WaitArgs { no_wait: true },
            )
        }
    }
}

/// The tenant of an operator that has roles in one tenant alone: its context uses that one.
fn only_tenant(roles: &[wire::RoleBinding]) -> Option<String> {
    match roles {
        [only] if only.tenant != "*" => Some(only.tenant.clone()),
        _ => None,
    }
}

async fn who_am_i(client: &Client) -> Result<wire::Operator> {
    client.call("whoami", client.rpc().who_am_i(wire::WhoAmIRequest {})).await
}

/// `--yes` means another operator. This one takes a second answer, or a flag that says so.
fn confirm_own(name: &str) -> Result<()> {
    let question = format!("`{name}` is you: this context is refused from then on. Delete yourself");
    Confirm::default().ask(&question).map_err(|error| match error.exit {
        Exit::Usage => CliError::usage(format!("operator `{name}`"), "is the operator of this context")
            .hint("to delete yourself, add --yes-delete-myself"),
        _ => error,
    })
}

async fn create(
    global: &Global,
    name: String,
    roles: Vec<wire::RoleBinding>,
    ttl: Duration,
    out: PathBuf,
) -> Result<()> {
    if out.exists() {
        return Err(
            CliError::usage(out.display().to_string(), "exists already").hint("a context file is not overwritten")
        );
    }
    let own = global.load_context()?;
    let client = global.connect().await?;
    let what = format!("operator `{name}`");
    let (csr_der, key) = signing_request().map_err(|e| CliError::new(Exit::Failed, &what, e))?;
    let request = wire::CreateOperatorRequest { name: name.clone(), roles, csr_der, ttl_seconds: ttl.as_secs() };
    write_private(&out, b"")?; // before the operator exists: nobody could get its certificate a second time
    let answer = client.change(&what, client.rpc().create_operator(request)).await.inspect_err(|_| {
        let _ = std::fs::remove_file(&out);
    })?;
    let operator = answer.operator.unwrap_or_default();
    let context = Context {
        endpoint: own.endpoint,
        endpoints: own.endpoints,
        proxy: own.proxy,
        forward_proxy: own.forward_proxy,
        tenant: only_tenant(&operator.roles).or(own.tenant),
        ca: answer.ca_pem,
        certificate: answer.certificate_pem,
        key,
    };
    ContextFile { current: name.clone(), contexts: [(name, context)].into() }.write(&out)?;
    global.output().one(&OperatorView::from(operator))?;
    if let Some(Err(error)) = user::state_dir().map(|state| known::remember(&state, &out)) {
        crate::output::notice(&format!("`seks run` will not hide {}: {error}", out.display()));
    }
    crate::output::notice(&format!("{} holds its key: transfer it over a secure channel", out.display()));
    Ok(())
}

/// A new key and its certificate signing request. The control plane uses only the public key of the
/// request.
fn signing_request() -> std::result::Result<(Vec<u8>, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
    Ok((csr.der().to_vec(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_of_everything_or_of_one_tenant() {
        assert_eq!(role("owner").unwrap(), wire::RoleBinding { tenant: "*".into(), role: wire::Role::Owner.into() });
        assert_eq!(role("viewer:a").unwrap().tenant, "a");
        assert!(role("root").is_err());
        assert_eq!(only_tenant(&[role("viewer:a").unwrap()]).as_deref(), Some("a"));
        assert_eq!(only_tenant(&[role("owner").unwrap()]), None);
    }

    #[test]
    fn a_signing_request_carries_a_key_that_stays_here() {
        let (csr, key) = signing_request().unwrap();
        assert!(!csr.is_empty() && key.contains("PRIVATE KEY"));
    }
}
