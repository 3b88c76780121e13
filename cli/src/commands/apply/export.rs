//! `seks export`: the tenant as a file that `seks apply` takes.

use seks_proto::wire;
use seks_service::{is_internal, spec::ServiceSpec};

use super::file::{AgentSpec, CredentialSpec, SourceSpec, TenantFile};
use crate::{
    error::Result,
    global::Global,
    output::{Format, Output},
};

/// Prints the tenant's services, agents, policies and references to credentials; YAML unless
/// another format is asked for.
///
/// # Errors
/// See [`crate::error`].
pub async fn export(global: &Global) -> Result<()> {
    let client = global.connect().await?;
    // Before the lists: what changes meanwhile is newer than the file.
    let request = wire::ApplyTenantRequest { tenant: client.tenant(), ..wire::ApplyTenantRequest::default() };
    let revision = client.call("export", client.rpc().plan_tenant(request)).await?.revision;
    let services = client.list_all("services", async |mut rpc, page| rpc.list_services(page).await).await?;
    let agents = client.list_all("agents", async |mut rpc, page| rpc.list_agents(page).await).await?;
    let policies = client.list_all("policies", async |mut rpc, page| rpc.list_policies(page).await).await?;
    let credentials = client.list_all("credentials", async |mut rpc, page| rpc.list_credentials(page).await).await?;
    let agent = |agent: wire::Agent| AgentSpec {
        name: agent.name,
        attributes: agent.attributes,
        disabled: agent.disabled.then_some(true),
    };
    // `seks approval approve` makes those, for a while.
    let policies = policies.into_iter().filter(|policy| !policy.approval_grant);
    let credential = |credential: wire::Credential| CredentialSpec {
        name: credential.name,
        service: credential.service,
        pools: credential.pools,
        source: credential.mint.and_then(SourceSpec::of),
    };
    // `seks ca create` and `seks trust create` make these services and their credentials.
    let services = services.iter().filter(|service| !is_internal(&service.name) && !service.deleting);
    let credentials = credentials.into_iter().filter(|c| !is_internal(&c.service) && !c.deleting);
    let file = TenantFile {
        revision: Some(revision),
        services: Some(services.map(ServiceSpec::from).collect()),
        agents: Some(agents.into_iter().filter(|agent| !agent.deleting).map(agent).collect()),
        policies: Some(policies.map(|policy| policy.text).collect()),
        credentials: Some(credentials.map(credential).collect()),
        ..TenantFile::default()
    };
    let output = global.output();
    if output.is_table() { Output::new(Format::Yaml).data(&file) } else { output.data(&file) }
}
