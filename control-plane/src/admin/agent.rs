//! Agents.

use seks_proto::wire::{
    Agent, AgentResponse, ChangeResponse, CreateAgentRequest, DeleteRequest, ListAgentsResponse, ListRequest,
    NameRequest, SetAgentDisabledRequest, UpdateAgentRequest,
};

use super::{Admin, Answer, auth::Caller, parse::name};
use crate::registry::AttributeChange;

pub(super) async fn create(admin: &Admin, _: &Caller, message: CreateAgentRequest) -> Answer<Agent> {
    let (tenant, agent) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let (agent, revision) = admin.registry().create_agent(&tenant, &agent, message.attributes).await?;
    admin.0.distribution.await_applied(revision, super::SEEN).await;
    Ok(agent)
}

pub(super) async fn list(admin: &Admin, _: &Caller, message: ListRequest) -> Answer<ListAgentsResponse> {
    let (agents, next_page_token) = super::page(admin, "agent", message).await?;
    Ok(ListAgentsResponse { agents, next_page_token })
}

pub(super) async fn get(admin: &Admin, _: &Caller, message: NameRequest) -> Answer<Agent> {
    Ok(admin.registry().agent(&name("tenant", &message.tenant)?, &name("name", &message.name)?).await?)
}

pub(super) async fn set_disabled(
    admin: &Admin,
    _: &Caller,
    message: SetAgentDisabledRequest,
) -> Answer<ChangeResponse> {
    let (tenant, agent) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let revision = admin.registry().set_agent_disabled(&tenant, &agent, message.disabled).await?;
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}

pub(super) async fn update(admin: &Admin, _: &Caller, message: UpdateAgentRequest) -> Answer<AgentResponse> {
    let (tenant, name) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let change = AttributeChange { set: message.set_attributes, remove: message.remove_attributes };
    let (agent, revision) = admin.registry().update_agent(&tenant, &name, change).await?;
    Ok(AgentResponse { agent: Some(agent), enforcement: admin.enforced(revision, message.wait).await })
}

pub(super) async fn delete(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let (tenant, agent) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let revision = admin.registry().delete_agent(&tenant, &agent).await?;
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}
