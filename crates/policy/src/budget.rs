//! The budget: how much a tenant's policies may cost one request.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    cost::{Cost, PLAN_NS, count, from_picos},
    head::{Agents, Services},
    parse::{CheckedPolicy, PolicyError},
    schema::METHODS,
};

/// Most time that the policies which apply to one request may take. `policy apply` refuses more.
pub const BUDGET: Duration = Duration::from_millis(2);

/// The cost of the costliest request under a tenant's policies.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CostBound {
    /// Deciding.
    pub(super) decide: Duration,
    /// Building the plan, once for an agent, a service and a method.
    pub(super) plan: Duration,
}

/// The highest sum over the policies that may apply to one request, with its method, service and
/// agent.
struct CostliestRequest {
    picos: u64,
    method: usize,
    service: Option<Box<str>>,
    agent: Option<Box<str>>,
}

impl CostBound {
    pub(super) fn of_policies(policies: &[Arc<CheckedPolicy>]) -> Self {
        let decide = costliest(policies, |p: &CheckedPolicy| p.cost().worst_case()).picos;
        let plan = costliest(policies, |p: &CheckedPolicy| p.plan_cost().worst_case()).picos;
        let uses_cedar = policies.iter().any(|p| p.uses_cedar());
        let request = if uses_cedar { Cost::request(true).times(2).worst_case() } else { 0 };
        // Every policy head is checked.
        let heads = count(policies.len()).saturating_mul(20_000);
        let plan = plan.saturating_add(heads).saturating_add(PLAN_NS * 1000);
        Self { decide: from_picos(decide.saturating_add(request)), plan: from_picos(plan) }
    }
}

/// Refuses policies that may cost one request more than [`BUDGET`]. Building Cedar's request is not
/// counted.
pub(super) fn check_budget<'p>(policies: impl IntoIterator<Item = &'p CheckedPolicy>) -> Result<(), PolicyError> {
    let policies: Vec<&CheckedPolicy> = policies.into_iter().collect();
    let costliest = costliest(&policies, |p| p.cost().worst_case());
    if from_picos(costliest.picos) <= BUDGET {
        return Ok(());
    }
    let applies = |p: &&&CheckedPolicy| {
        p.head.has_method(costliest.method)
            && head_covers(&p.head.services, &costliest.service, &p.head.agents, &costliest.agent)
    };
    let policy = policies.iter().filter(applies).max_by_key(|p| p.cost().worst_case());
    let (id, own) = policy.map_or(("", 0), |p| (p.id.as_str(), p.cost().worst_case()));
    let all = micros(costliest.picos);
    let reason = format!(
        "policy `{id}` costs a request up to {} µs, and all policies that can apply to one request together {all} µs: the budget is {} µs. \
         Name services, agents or methods in the policies' heads, or shorten their sets and patterns",
        micros(own),
        BUDGET.as_micros(),
    );
    Err(PolicyError { line: policy.map_or(1, |p| p.line), reason })
}

fn micros(picos: u64) -> u64 {
    picos.div_ceil(1_000_000)
}

fn head_covers(services: &Services, service: &Option<Box<str>>, agents: &Agents, agent: &Option<Box<str>>) -> bool {
    let service = match services {
        Services::Any => true,
        Services::One(name) => service.as_ref() == Some(name),
        Services::None => false,
    };
    let agent = match agents {
        Agents::Any | Agents::Group(_) => true, // an agent may be in every group
        Agents::One(name) => agent.as_ref() == Some(name),
        Agents::None => false,
    };
    service && agent
}

/// Sums of one method's policies: for all requests, for a service, for an agent, and for both.
#[derive(Default)]
struct MethodSums<'p> {
    all: u64,
    service: HashMap<&'p str, u64>,
    agent: HashMap<&'p str, u64>,
    both: HashMap<(&'p str, &'p str), u64>,
}

fn costliest(policies: &[impl AsRef<CheckedPolicy>], cost: impl Fn(&CheckedPolicy) -> u64) -> CostliestRequest {
    let mut costliest = CostliestRequest { picos: 0, method: 0, service: None, agent: None };
    for method in 0..METHODS.len() {
        let mut sums = MethodSums::default();
        for policy in policies.iter().map(AsRef::as_ref).filter(|p| p.head.has_method(method)) {
            let sum = match (&policy.head.services, &policy.head.agents) {
                (Services::None, _) | (_, Agents::None) => continue,
                (Services::Any, Agents::Any | Agents::Group(_)) => &mut sums.all,
                (Services::One(s), Agents::Any | Agents::Group(_)) => sums.service.entry(s).or_default(),
                (Services::Any, Agents::One(a)) => sums.agent.entry(a).or_default(),
                (Services::One(s), Agents::One(a)) => sums.both.entry((s, a)).or_default(),
            };
            *sum = sum.saturating_add(cost(policy));
        }
        let found = sums.costliest(method);
        if found.picos > costliest.picos {
            costliest = found;
        }
    }
    costliest
}

impl MethodSums<'_> {
    /// The maximum over named service-agent pairs and over the costliest service with the costliest
    /// agent.
    fn costliest(&self, method: usize) -> CostliestRequest {
        fn most(of: &HashMap<&str, u64>) -> Option<(Box<str>, u64)> {
            of.iter().max_by_key(|(_, sum)| **sum).map(|(name, sum)| ((*name).into(), *sum))
        }
        let (service, agent) = (most(&self.service), most(&self.agent));
        let apart = [&service, &agent].into_iter().flatten().fold(self.all, |sum, (_, own)| sum.saturating_add(*own));
        let named = |map: &HashMap<&str, u64>, name: &str| map.get(name).copied().unwrap_or_default();
        let together = self.both.iter().map(|((s, a), sum)| {
            let others = named(&self.service, s).saturating_add(named(&self.agent, a));
            (self.all.saturating_add(*sum).saturating_add(others), *s, *a)
        });
        match together.max() {
            Some((picos, s, a)) if picos > apart => {
                CostliestRequest { picos, method, service: Some(s.into()), agent: Some(a.into()) }
            }
            _ => CostliestRequest { picos: apart, method, service: service.map(|s| s.0), agent: agent.map(|a| a.0) },
        }
    }
}
