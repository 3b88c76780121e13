//! What is counted of one agent.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use dashmap::DashMap;
use seks_types::id::{AgentName, TenantName};

use super::UNLABELLED;

/// Most agents of one tenant that have a label of their own, and most of all tenants.
const OF_TENANT: usize = 100;
const OF_NODE: u64 = 2000;

/// Counters of one agent, resolved once a request.
#[derive(Debug, Default)]
pub(crate) struct AgentMetrics {
    allowed: AtomicU64,
    denied: AtomicU64,
}

impl AgentMetrics {
    /// Counts a request that has ended.
    pub(crate) fn count(&self, allowed: bool) {
        if allowed { &self.allowed } else { &self.denied }.fetch_add(1, Relaxed);
    }
}

/// Counters of the agents that have been seen. Further ones of a tenant share one, so that nobody
/// fills a monitoring system by creating agents.
#[derive(Default)]
pub(super) struct Agents {
    tenants: DashMap<TenantName, Arc<TenantAgents>, foldhash::quality::RandomState>,
    labels: AtomicU64,
}

#[derive(Default)]
struct TenantAgents {
    agents: DashMap<AgentName, Arc<AgentMetrics>, foldhash::quality::RandomState>,
    others: Arc<AgentMetrics>,
}

impl Agents {
    pub(super) fn of(&self, tenant: &TenantName, agent: &AgentName) -> Arc<AgentMetrics> {
        let found = self.tenants.get(tenant).map(|agents| agents.clone());
        let agents = found.unwrap_or_else(|| self.tenants.entry(tenant.clone()).or_default().clone());
        if let Some(metrics) = agents.agents.get(agent) {
            return metrics.clone();
        }
        if agents.agents.len() >= OF_TENANT || self.labels.load(Relaxed) >= OF_NODE {
            return agents.others.clone();
        }
        let entry = agents.agents.entry(agent.clone()).or_insert_with(|| {
            self.labels.fetch_add(1, Relaxed);
            Arc::default()
        });
        entry.clone()
    }

    pub(super) fn render(&self, out: &mut String) {
        let name = "seks_agent_requests_total";
        let _ = write!(out, "# HELP {name} Requests of known agents.\n# TYPE {name} counter\n");
        let mut lines = Vec::new();
        for tenant in &self.tenants {
            let mut line = |agent: &str, metrics: &AgentMetrics| {
                for (decision, count) in [("allow", &metrics.allowed), ("deny", &metrics.denied)] {
                    let (tenant, count) = (tenant.key(), count.load(Relaxed));
                    if count > 0 {
                        lines.push(format!(
                            "{name}{{tenant=\"{tenant}\",agent=\"{agent}\",decision=\"{decision}\"}} {count}\n"
                        ));
                    }
                }
            };
            tenant.agents.iter().for_each(|agent| line(agent.key().as_str(), agent.value()));
            line(UNLABELLED, &tenant.others);
        }
        lines.sort_unstable();
        out.extend(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_beyond_the_bound_share_a_label() {
        let agents = Agents::default();
        let tenant = |name: &str| TenantName::try_from(name).unwrap();
        for n in 0..OF_TENANT + 7 {
            agents.of(&tenant("a"), &format!("bot-{n}").parse().unwrap()).count(n % 2 == 0);
        }
        agents.of(&tenant("a"), &"bot-0".parse().unwrap()).count(true);
        agents.of(&tenant("b"), &"bot-0".parse().unwrap()).count(false);
        let mut page = String::new();
        agents.render(&mut page);
        for line in [
            r#"seks_agent_requests_total{tenant="a",agent="bot-0",decision="allow"} 2"#,
            r#"seks_agent_requests_total{tenant="a",agent="_other",decision="allow"} 4"#,
            r#"seks_agent_requests_total{tenant="a",agent="_other",decision="deny"} 3"#,
            r#"seks_agent_requests_total{tenant="b",agent="bot-0",decision="deny"} 1"#,
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
        assert_eq!(page.lines().filter(|l| l.contains("tenant=\"a\"")).count(), OF_TENANT + 2);
    }
}
