//! What a change lets agents reach that they could not reach before.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use seks_policy::{EntityKind, Policies, Reach, named_entities};
use seks_proto::wire::{self, Policy};
use seks_service::{is_internal, methods::STANDARD};
use seks_types::id::{AgentName, ServiceName};

use crate::registry::TenantState;

/// Most pairs of a group of like agents and a service that are compared. Each takes some 100 µs.
const MAX_PAIRS: usize = 20_000;
/// Most lines of an answer.
const MAX_LINES: usize = 500;

/// The reach that is added.
#[derive(Default)]
pub(super) struct Added {
    pub(super) added: Vec<wire::Reach>,
    /// There is more.
    pub(super) is_cut: bool,
}

/// Compares what policies permit before and after, for every agent and every service, to a token
/// that grants the service.
pub(super) fn added(before: &TenantState, after: &TenantState) -> Added {
    let (Some(old), Some(new)) = (compile(before), compile(after)) else {
        return Added { is_cut: true, ..Added::default() };
    };
    let same_policies = before.policies.values().map(|p| &p.text).eq(after.policies.values().map(|p| &p.text));
    let named = named_agents([before, after]);
    let (mut result, mut pairs) = (Added::default(), 0);
    for agents in groups(before, after, &named) {
        let Some(first) = agents.first().and_then(|name| after.agents.get(*name)) else { continue };
        let was = before.agents.get(&first.name).filter(|agent| !agent.disabled);
        for service in after.services.keys().filter(|service| !is_internal(service)) {
            let is_unchanged = was.is_some_and(|was| was.attributes == first.attributes);
            if same_policies && is_unchanged && before.services.contains_key(service) {
                continue;
            }
            pairs += 1;
            if pairs > MAX_PAIRS {
                result.is_cut = true;
                return result;
            }
            let had = was.filter(|_| before.services.contains_key(service));
            let methods = gained(had.map(|agent| (&old, agent)), (&new, first), service);
            for name in &agents {
                for (conditional, methods) in [(false, &methods.always), (true, &methods.sometimes)] {
                    if methods.is_empty() {
                        continue;
                    }
                    if result.added.len() >= MAX_LINES {
                        result.is_cut = true;
                        return result;
                    }
                    let (agent, service, methods) = ((*name).clone(), service.clone(), methods.clone());
                    result.added.push(wire::Reach { agent, service, methods, conditional });
                }
            }
        }
    }
    result
}

#[derive(Default)]
struct Gained {
    always: Vec<String>,
    sometimes: Vec<String>,
}

fn gained(
    before: Option<(&Policies, &wire::Agent)>,
    (policies, agent): (&Policies, &wire::Agent),
    service: &str,
) -> Gained {
    let mut gained = Gained::default();
    for method in &STANDARD {
        let had = before.map_or(Reach::Never, |(policies, agent)| reach(policies, agent, service, method));
        match reach(policies, agent, service, method) {
            Reach::Always if had < Reach::Always => gained.always.push(method.to_string()),
            Reach::Sometimes if had < Reach::Sometimes => gained.sometimes.push(method.to_string()),
            _ => {}
        }
    }
    gained
}

fn reach(policies: &Policies, agent: &wire::Agent, service: &str, method: &Method) -> Reach {
    match (AgentName::try_from(agent.name.as_str()), ServiceName::try_from(service)) {
        (Ok(name), Ok(service)) => policies.reach(&name, &agent.attributes, &service, method),
        _ => Reach::Never,
    }
}

fn compile(state: &TenantState) -> Option<Policies> {
    Policies::compile(&state.policies.values().cloned().collect::<Vec<Policy>>()).ok()
}

/// Agents that some policy names.
fn named_agents(states: [&TenantState; 2]) -> BTreeSet<String> {
    let texts = states.into_iter().flat_map(|state| state.policies.values()).map(|policy| policy.text.as_str());
    let entities = texts.flat_map(named_entities).filter(|entity| entity.kind == EntityKind::Agent);
    entities.map(|entity| entity.name).collect()
}

/// Agents that no policy can tell apart, before or after, in groups. Agents that are disabled reach
/// nothing.
fn groups<'a>(before: &TenantState, after: &'a TenantState, named: &BTreeSet<String>) -> Vec<Vec<&'a String>> {
    let mut groups: BTreeMap<_, Vec<&String>> = BTreeMap::new();
    for (name, agent) in after.agents.iter().filter(|(_, agent)| !agent.disabled && !agent.deleting) {
        let own = Some(name).filter(|name| named.contains(*name));
        let was = before.agents.get(name).filter(|was| !was.disabled).map(|was| &was.attributes);
        groups.entry((own, was, &agent.attributes)).or_default().push(name);
    }
    groups.into_values().collect()
}
