//! `Status`: version, the store's health, and the nodes.

use std::{path::Path, time::UNIX_EPOCH};

use seks_proto::wire::{Disk, Role, StatusRequest, StatusResponse};
use seks_runtime::descriptors;

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
        status.disks = admin.0.disks.iter().filter_map(|(usage, path)| disk(usage, path)).collect();
        status.open_files = descriptors::open();
        status.open_files_limit = descriptors::limit() as u64;
    }
    status.now_ms = i64::try_from(UNIX_EPOCH.elapsed().unwrap_or_default().as_millis()).unwrap_or_default();
    Ok(status)
}

/// The room on the disk that `path` is on. `None`: it cannot be told.
fn disk(usage: &str, path: &Path) -> Option<Disk> {
    let disk = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Some(Disk { r#use: usage.into(), free_bytes: bytes(disk.f_bavail), total_bytes: bytes(disk.f_blocks) })
}
