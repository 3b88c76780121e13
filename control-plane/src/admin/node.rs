//! Nodes.

use seks_proto::wire::{
    ChangeResponse, DeleteRequest, EnrollNodeRequest, EnrollNodeResponse, ListNodesRequest, ListNodesResponse,
    NameRequest, Node,
};
use seks_types::id::NodeId;

use super::{
    Admin, Answer,
    auth::Caller,
    parse::{name, names},
    problem::Problem,
};
use crate::registry::Admission;

pub(super) async fn list(admin: &Admin, _: &Caller, _: ListNodesRequest) -> Answer<ListNodesResponse> {
    Ok(ListNodesResponse { nodes: admin.0.distribution.nodes() })
}

pub(super) async fn get(admin: &Admin, _: &Caller, message: NameRequest) -> Answer<Node> {
    let id: NodeId = name("name", &message.name)?;
    let nodes = admin.0.distribution.nodes();
    nodes.into_iter().find(|n| n.id == id.as_str()).ok_or_else(|| Problem::not_found("node", id.as_str()))
}

pub(super) async fn enroll(admin: &Admin, _: &Caller, message: EnrollNodeRequest) -> Answer<EnrollNodeResponse> {
    let tenants = names("tenants", &message.tenants)?;
    let pools = names("pools", &message.pools)?;
    let admission = Admission { region: message.region, tenants, pools, ttl_seconds: message.ttl_seconds };
    if message.spiffe_id.is_empty() && message.node.is_empty() {
        let token = admin.registry().create_join_token(admission, admin.authority().pin()).await?;
        return Ok(EnrollNodeResponse { join_token: token.text.to_string(), expires_at: token.expires_at });
    }
    if !admin.authority().identities().is_workload(&message.spiffe_id) {
        return Err(Problem::invalid("spiffe_id", "not a SPIFFE ID in the trust domain of `[authority.mesh]`"));
    }
    let id: NodeId = name("node", &message.node)?;
    admin.registry().admit_workload(&id, &message.spiffe_id, admission).await?;
    Ok(EnrollNodeResponse::default())
}

pub(super) async fn revoke(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let id: NodeId = name("name", &message.name)?;
    let revision = admin.registry().revoke_node(&id).await?;
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}
