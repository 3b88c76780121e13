//! `Status`: version, the store's health, and the nodes.

use seks_proto::wire::{Role, StatusRequest, StatusResponse};

use super::{Admin, Answer, auth::Caller};

/// The fleet is shown to those who have a role in all tenants.
pub(super) async fn status(admin: &Admin, caller: &Caller, _: StatusRequest) -> Answer<StatusResponse> {
    let mut status = crate::status::of(admin.registry().store().as_ref()).await;
    status.replica.clone_from(&admin.0.replica);
    if caller.fleet_role() >= Role::Viewer {
        status.replicas = admin.0.distribution.replicas();
        status.nodes = admin.0.distribution.nodes();
        status.audit_backlog = admin.0.distribution.audit_backlog();
        status.tokens = admin.0.distribution.tokens();
    }
    Ok(status)
}
