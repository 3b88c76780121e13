//! `seks apply`: a tenant becomes what a file says.

mod reach;
mod sources;

use seks_proto::wire::{ApplyTenantRequest, ApplyTenantResponse, Role, TenantChange};
use seks_service::{is_internal, is_reserved_name};
use seks_types::id::{OperatorName, TenantName};

use self::sources::ChangedSource;
use super::{Admin, Answer, auth::Caller, parse::name, problem::Problem, unknown_entities::unknown_entities};
use crate::registry::{Action, Desired, ObjectChange, ObjectKind, Outcome, RegistryError};

/// Most objects of a request. Above it a file has to be split.
const MAX_OBJECTS: usize = 20_000;

/// What [`apply`] would change.
pub(super) async fn plan(admin: &Admin, caller: &Caller, message: ApplyTenantRequest) -> Answer<ApplyTenantResponse> {
    apply(admin, caller, ApplyTenantRequest { dry_run: true, ..message }).await
}

pub(super) async fn apply(admin: &Admin, caller: &Caller, message: ApplyTenantRequest) -> Answer<ApplyTenantResponse> {
    let tenant: TenantName = name("tenant", &message.tenant)?;
    let (wait, is_dry_run) = (message.wait, message.dry_run);
    let desired = desired(&tenant, caller.role_in(tenant.as_str()) >= Role::Owner, message)?;
    let run = admin.policy_run(caller, &tenant);
    if let Some(internal) = desired.services.iter().find(|service| is_internal(&service.name)) {
        return Err(Problem::invalid("services", format!("`{}` is made by SEKS itself", internal.name)));
    }
    for service in desired.services.iter().filter(|service| is_reserved_name(&service.name)) {
        super::service::check_name(admin, service).await?;
    }
    let sources = sources::changed(admin, &tenant, &desired.credentials).await?;
    let mut outcome = admin.registry().apply_desired(&tenant, &desired, &run).await?;
    let mut warnings = std::mem::take(&mut outcome.warnings);
    for (source, text) in &desired.policies {
        let unknown = unknown_entities(admin.registry(), &tenant, text).await?;
        let is_planned =
            |reason: &str| is_dry_run && names_of(&outcome).any(|name| reason.contains(&format!("`{name}`")));
        let unknown = unknown.iter().filter(|warning| !is_planned(&warning.reason));
        warnings.extend(unknown.map(|warning| format!("{source}: {warning}")));
    }
    let mut revision = outcome.revision;
    let mut changes: Vec<TenantChange> = outcome.changes.drain(..).map(to_wire).collect();
    changes.extend(sources.iter().map(ChangedSource::to_wire));
    let has_services = changes.iter().any(|change| change.kind == "service");
    if has_services
        && !is_dry_run
        && let Some(later) = admin.refresh_tenant_ca(tenant.as_str()).await
    {
        revision = revision.max(later);
    }
    if !is_dry_run {
        let by: OperatorName = name("operator", &caller.operator().name)?;
        for source in &sources {
            revision = revision.max(source.put(admin, &by).await?);
        }
    }
    let (before, after) = (outcome.before, outcome.after);
    let reach = run.run(move || reach::added(&before, &after)).await.map_err(RegistryError::from)?;
    let enforcement = if is_dry_run { None } else { admin.enforced(revision, wait).await };
    let (reach, reach_cut) = (reach.added, reach.is_cut);
    Ok(ApplyTenantResponse { changes, reach, reach_cut, warnings, enforcement, revision })
}

fn desired(tenant: &TenantName, may_redirect: bool, message: ApplyTenantRequest) -> Result<Desired, Problem> {
    let objects = message.services.len() + message.agents.len() + message.policies.len() + message.credentials.len();
    if objects > MAX_OBJECTS {
        return Err(Problem::invalid("services", format!("at most {MAX_OBJECTS} objects at once")));
    }
    let prune = message.prune.iter().map(|noun| {
        ObjectKind::parse(noun).ok_or_else(|| Problem::invalid("prune", "service, agent, policy or credential"))
    });
    let mut services = message.services;
    services.iter_mut().for_each(|service| service.tenant = tenant.to_string());
    Ok(Desired {
        services,
        agents: message.agents,
        enabled_agents: message.enabled_agents,
        policies: message.policies.into_iter().map(|policy| (policy.id, policy.text)).collect(),
        credentials: message.credentials,
        prune: prune.collect::<Result<_, _>>()?,
        revision: message.revision,
        may_redirect,
        is_dry_run: message.dry_run,
    })
}

/// Names of what is new.
fn names_of(outcome: &Outcome) -> impl Iterator<Item = &str> {
    outcome.changes.iter().filter(|change| change.action == Action::Create).map(|change| change.name.as_str())
}

fn to_wire(change: ObjectChange) -> TenantChange {
    TenantChange {
        kind: change.kind.noun().into(),
        name: change.name,
        action: change.action.verb().into(),
        details: change.details,
    }
}
