//! Warnings about policies that name agents, groups and services which do not exist: often a typing
//! error, and always a policy that never applies.

use std::collections::{BTreeMap, BTreeSet};

use seks_policy::{EntityKind, NamedEntity, PolicyError, named_entities};
use seks_types::{
    id::{AgentName, ServiceName, TenantName},
    similar::closest,
};

use crate::registry::{PageRequest, Registry, RegistryError, record::Agent};

/// Most entities of a file that are looked up.
const LOOKED_UP: usize = 256;
/// Agents on a page.
const PAGE: u32 = 1000;

/// A warning for each place in `text` that names an entity which the tenant doesn't have.
///
/// # Errors
/// The store's.
pub(super) async fn unknown_entities(
    registry: &Registry,
    tenant: &TenantName,
    text: &str,
) -> Result<Vec<PolicyError>, RegistryError> {
    let named = named_entities(text);
    let names: BTreeSet<(EntityKind, &str)> = named.iter().map(|e| (e.kind, e.name.as_str())).take(LOOKED_UP).collect();
    let groups = match names.iter().any(|(kind, _)| *kind == EntityKind::Group) {
        true => groups(registry, tenant).await?,
        false => BTreeSet::new(),
    };
    let mut unknown = BTreeMap::new();
    for (kind, name) in names {
        let similar = match kind {
            EntityKind::Group if groups.contains(name) => None,
            EntityKind::Group => Some(closest(name, groups.iter().map(String::as_str)).unwrap_or_default().to_owned()),
            EntityKind::Service => missing(match ServiceName::try_from(name) {
                Ok(service) => registry.service(tenant, &service).await.map(drop),
                Err(_) => Err(not_a_name(kind, name)),
            })?,
            EntityKind::Agent => missing(match AgentName::try_from(name) {
                Ok(agent) => registry.agent(tenant, &agent).await.map(drop),
                Err(_) => Err(not_a_name(kind, name)),
            })?,
        };
        unknown.extend(similar.map(|similar| ((kind, name), similar)));
    }
    let warning = |entity: &NamedEntity| {
        let similar = unknown.get(&(entity.kind, entity.name.as_str()))?;
        let name: String = entity.name.chars().take(64).collect();
        let owner = if entity.kind == EntityKind::Group { "no agent is in" } else { "there is no" };
        let mut reason = format!("{owner} {} `{name}`", entity.kind.noun());
        if !similar.is_empty() {
            reason.push_str(&format!("; did you mean `{similar}`?"));
        }
        Some(PolicyError { line: entity.line, reason })
    };
    Ok(named.iter().filter_map(warning).collect())
}

/// The name that was probably meant, or `""`, for what isn't there.
fn missing(found: Result<(), RegistryError>) -> Result<Option<String>, RegistryError> {
    match found {
        Ok(()) => Ok(None),
        Err(RegistryError::NotFound { similar, kind, .. }) if kind != "tenant" => Ok(Some(similar)),
        Err(other) => Err(other),
    }
}

fn not_a_name(kind: EntityKind, name: &str) -> RegistryError {
    RegistryError::NotFound { kind: kind.noun(), name: name.into(), similar: String::new() }
}

/// The groups that agents of the tenant are in.
async fn groups(registry: &Registry, tenant: &TenantName) -> Result<BTreeSet<String>, RegistryError> {
    let (mut groups, mut token) = (BTreeSet::new(), String::new());
    loop {
        let (agents, next) = registry.page::<Agent>(tenant, "agent", &PageRequest { size: PAGE, token }).await?;
        let listed = agents.iter().filter_map(|agent| agent.attributes.get("group"));
        groups.extend(listed.flat_map(|list| list.split(',')).map(|group| group.trim().to_owned()));
        if next.is_empty() {
            return Ok(groups);
        }
        token = next;
    }
}
