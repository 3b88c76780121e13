//! Words for arguments that name objects: asked of the control plane, quickly or not at all.

use std::{ffi::OsStr, path::PathBuf, time::Duration};

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use seks_proto::wire;
use seks_service::catalogue;
use tonic::Code;

use crate::{client::Client, context::ContextSelector};

/// Longest wait for the control plane.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most names that are offered.
const MOST: u32 = 1000;

/// What an argument names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noun {
    Agent,
    Service,
    Credential,
    Token,
    Policy,
    Approval,
    Node,
    Tenant,
    Operator,
    Catalogue,
}

/// The argument `id` of the command at `path`, such as `token revoke`.
fn noun_of(path: &[&str], id: &str) -> Option<Noun> {
    match (path, id) {
        (_, "tenant") => Some(Noun::Tenant),
        (_, "agent") => Some(Noun::Agent),
        (["service", "enable"], "entry") => Some(Noun::Catalogue),
        (["service", "enable"], _) => None,
        (["service", ..], "name" | "service") | (_, "service") => Some(Noun::Service),
        (["credential", "put", ..], "name") => Some(Noun::Credential),
        (["credential", ..], "name") | (_, "credential") => Some(Noun::Credential),
        (["agent", "create"], _) | (["tenant" | "operator", "create"], _) => None,
        (["agent", ..], "name") => Some(Noun::Agent),
        (["token", ..], "id") | (["audit", ..], "token") => Some(Noun::Token),
        (["approval", ..], "id") => Some(Noun::Approval),
        (["policy", ..], "id") | (["audit", ..], "policy") => Some(Noun::Policy),
        (["node", ..], "id") | (["audit", ..], "node") => Some(Noun::Node),
        (["tenant", ..], "name") => Some(Noun::Tenant),
        (["operator", ..], "name") => Some(Noun::Operator),
        _ => None,
    }
}

/// The tree with a completer for each argument that names an object.
pub(super) fn with_completers(tree: clap::Command) -> clap::Command {
    extend(tree, &[])
}

fn extend(mut command: clap::Command, path: &[&str]) -> clap::Command {
    let ids: Vec<String> = command.get_arguments().map(|arg| arg.get_id().to_string()).collect();
    for id in ids {
        if let Some(noun) = noun_of(path, &id) {
            command = command
                .mut_arg(id, |arg| arg.add(ArgValueCompleter::new(move |current: &OsStr| candidates(noun, current))));
        }
    }
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        let below: Vec<&str> = path.iter().copied().chain([name.as_str()]).collect();
        command = command.mut_subcommand(&name, |sub| extend(sub, &below));
    }
    command
}

fn candidates(noun: Noun, current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let names = match noun {
        Noun::Catalogue => catalogue::entries().iter().map(|entry| entry.service.name.clone()).collect(),
        noun => ask(noun).unwrap_or_default(),
    };
    names.into_iter().filter(|name| name.starts_with(current)).map(CompletionCandidate::new).collect()
}

/// Nothing is printed: the shell shows the line that is being typed.
fn ask(noun: Noun) -> Option<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, names(noun)).await.ok()? })
}

async fn names(noun: Noun) -> Option<Vec<String>> {
    let selector = ContextSelector {
        file: typed("--context-file").or(std::env::var("SEKS_CONTEXT_FILE").ok()).map(PathBuf::from),
        name: typed("--context"),
    };
    let tenant = typed("--tenant").or(std::env::var("SEKS_TENANT").ok());
    let client = Client::connect(&selector.load_quietly().ok()?, tenant.as_deref(), PATIENCE).await.ok()?;
    let mut rpc = client.rpc();
    let list = wire::ListRequest { page_size: MOST, ..client.list() };
    let listed = async {
        Ok::<Vec<String>, tonic::Status>(match noun {
            Noun::Agent => each(rpc.list_agents(list).await?.into_inner().agents, |a| a.name),
            Noun::Service => each(rpc.list_services(list).await?.into_inner().services, |s| s.name),
            Noun::Credential => each(rpc.list_credentials(list).await?.into_inner().credentials, |c| c.name),
            Noun::Token => each(rpc.list_tokens(list).await?.into_inner().tokens, |t| t.id),
            Noun::Policy => each(rpc.list_policies(list).await?.into_inner().policies, |p| p.id),
            Noun::Approval => each(rpc.list_approvals(list).await?.into_inner().approvals, |a| a.id),
            Noun::Node => each(rpc.list_nodes(wire::ListNodesRequest {}).await?.into_inner().nodes, |n| n.id),
            Noun::Tenant => each(rpc.list_tenants(wire::ListTenantsRequest {}).await?.into_inner().tenants, |t| t.name),
            Noun::Operator => {
                each(rpc.list_operators(wire::ListOperatorsRequest {}).await?.into_inner().operators, |o| o.name)
            }
            Noun::Catalogue => return Err(tonic::Status::new(Code::Unimplemented, "the catalogue is built in")),
        })
    };
    listed.await.ok()
}

fn each<T>(objects: Vec<T>, name: impl Fn(T) -> String) -> Vec<String> {
    objects.into_iter().map(name).collect()
}

/// The value of an option on the line that is being completed.
fn typed(option: &str) -> Option<String> {
    let words: Vec<String> = std::env::args().collect();
    let value = words.windows(2).find_map(|pair| match pair {
        [name, value] if name == option => Some(value.clone()),
        _ => None,
    });
    value.or_else(|| words.iter().find_map(|word| word.strip_prefix(option)?.strip_prefix('=').map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_that_name_objects_are_known() {
        for (path, id, noun) in [
            (&["token", "issue"][..], "agent", Some(Noun::Agent)),
            (&["token", "revoke"], "id", Some(Noun::Token)),
            (&["service", "enable"], "entry", Some(Noun::Catalogue)),
            (&["service", "show"], "name", Some(Noun::Service)),
            (&["policy", "simulate"], "service", Some(Noun::Service)),
            (&["approval", "approve"], "id", Some(Noun::Approval)),
            (&["policy", "show"], "id", Some(Noun::Policy)),
            (&["agent", "create"], "name", None),
            (&["agent", "update"], "name", Some(Noun::Agent)),
            (&["token", "issue"], "ttl", None),
        ] {
            assert_eq!(noun_of(path, id), noun, "{path:?} {id}");
        }
        let tree = with_completers(crate::args::Cli::command());
        tree.debug_assert();
    }

    #[test]
    fn the_catalogue_needs_no_control_plane() {
        let found = candidates(Noun::Catalogue, OsStr::new("opena"));
        assert!(found.iter().any(|candidate| candidate.get_value() == "openai"), "{found:?}");
    }
}
