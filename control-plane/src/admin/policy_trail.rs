//! Policies against what agents have done: `policy simulate -f FILE`, and `policy suggest`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::Method;
use seks_audit::{
    record::{Decision as Decided, FieldsOf, Kind, Value, field},
    trail::{Query, Test},
};
use seks_policy::{Body, Call, Observed, Policies, suggest};
use seks_proto::wire::{
    Agent, Policy, SimulateTrailRequest, SimulateTrailResponse, SuggestPoliciesRequest, SuggestPoliciesResponse,
    TrailDifference,
};
use seks_service::{Service, request::Target};
use seks_types::id::{AgentName, ServiceName, TenantName};

use super::{
    Admin, Answer,
    audit_trail::{others, trail, unavailable, visible_since},
    auth::Caller,
    parse::name,
    problem::Problem,
};
use crate::registry::{RegistryError, check_policies, check_policy_length};

/// Requests that differ in agent, service, method, path or source network. Further ones are left
/// out, and the answer says so.
const MAX_REQUESTS: usize = 20_000;
/// How long the trail is read.
const PATIENCE: Duration = Duration::from_secs(20);
/// Records on a page of the search.
const PAGE: usize = 5000;
/// Requests that a policy worker decides before it takes other work.
const AT_A_TIME: usize = 500;
/// Differences in an answer.
const MAX_DIFFERENCES: usize = 1000;

/// A kind of request that was seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    agent: String,
    service: String,
    method: String,
    /// As the agent wrote it behind `/api/SERVICE`, without the query.
    path: String,
    source: Option<IpAddr>,
    was_allowed: bool,
}

/// What was seen in a time, how often, and what cannot be decided again.
#[derive(Default)]
struct Traffic {
    seen: BTreeMap<Seen, u64>,
    /// Refused before a policy was asked, or their path is not known whole.
    skipped: u64,
    is_truncated: bool,
}

/// Reads one tenant's requests.
async fn traffic(admin: &Admin, tenant: &TenantName, agent: &str, since_us: u64, until_us: u64) -> Answer<Traffic> {
    let mut tests = vec![Test::Text(field::TENANT, tenant.to_string())];
    if !agent.is_empty() {
        tests.push(Test::Text(field::AGENT, agent.to_owned()));
    }
    let until_us = if until_us == 0 { u64::MAX } else { until_us };
    let (mut traffic, mut after, end) = (Traffic::default(), None, Instant::now() + PATIENCE);
    loop {
        let query = Query { tests: tests.clone(), since_us, until_us, after, limit: PAGE, ..Query::default() };
        let page = trail(admin)?.search(query).await.map_err(unavailable)?;
        page.entries.iter().for_each(|entry| traffic.add(&entry.record));
        after = page.next;
        if after.is_none() {
            return Ok(traffic);
        }
        if Instant::now() >= end {
            traffic.is_truncated = true;
            return Ok(traffic);
        }
    }
}

impl Traffic {
    fn add(&mut self, record: &[u8]) {
        let Some(seen) = seen(record) else {
            self.skipped += 1;
            return;
        };
        if let Some(count) = self.seen.get_mut(&seen) {
            *count += 1;
        } else if self.seen.len() < MAX_REQUESTS {
            self.seen.insert(seen, 1);
        } else {
            self.is_truncated = true;
        }
    }
}

/// A request that policies have decided on, whose path is known whole.
fn seen(record: &[u8]) -> Option<Seen> {
    let (mut kind, mut decision, mut is_cut, mut source) = (0, 0, false, None);
    let mut texts: HashMap<u32, &[u8]> = HashMap::new();
    for (number, value) in FieldsOf::new(record).flatten() {
        match (number, value) {
            (field::KIND, Value::Number(number)) => kind = number,
            (field::DECISION, Value::Number(number)) => decision = number,
            (field::PATH_CUT, Value::Number(cut)) => is_cut = cut != 0,
            (field::SOURCE, Value::Bytes(bytes)) => {
                source = <[u8; 4]>::try_from(bytes)
                    .map(IpAddr::from)
                    .ok()
                    .or(<[u8; 16]>::try_from(bytes).map(IpAddr::from).ok());
            }
            (number, Value::Bytes(bytes)) => drop(texts.insert(number, bytes)),
            _ => {}
        }
    }
    let text = |number: u32| texts.get(&number).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
    let was_allowed = decision == Decided::Allow as u64;
    let is_decided = was_allowed || text(field::REASON) == "policy_denied";
    let (agent, service, path) = (text(field::AGENT), text(field::SERVICE), text(field::PATH));
    // A path that held a token is not known.
    if kind == Kind::Intent as u64 || !is_decided || is_cut || service.is_empty() || path.contains("***") {
        return None;
    }
    let prefix = format!("/api/{service}");
    let rest = path.strip_prefix(&prefix).filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(path);
    let (agent, service, method) = (agent.to_owned(), service.to_owned(), text(field::METHOD).to_owned());
    Some(Seen { agent, service, method, path: rest.to_owned(), source, was_allowed })
}

/// The records that decisions need.
struct Records {
    services: HashMap<String, Service>,
    agents: HashMap<String, Agent>,
}

impl Records {
    async fn read(admin: &Admin, tenant: &TenantName, seen: &BTreeMap<Seen, u64>) -> Answer<Self> {
        let registry = admin.registry();
        let services = registry.services(tenant).await?;
        let services =
            services.iter().filter_map(|record| Some((record.name.clone(), Service::try_from(record).ok()?))).collect();
        let mut agents = HashMap::new();
        for wanted in seen.keys().map(|seen| seen.agent.as_str()).collect::<BTreeSet<_>>() {
            let Ok(name) = AgentName::try_from(wanted) else { continue };
            match registry.agent(tenant, &name).await {
                Ok(agent) => drop(agents.insert(wanted.to_owned(), agent)),
                Err(RegistryError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { services, agents })
    }

    /// The service, and the path as policies see it.
    fn target(&self, seen: &Seen) -> Option<(&Service, String)> {
        let service = self.services.get(&seen.service)?;
        let path = if seen.path.is_empty() { "/" } else { &seen.path };
        Some((service, Target::parse(service, path).ok()?.path().to_owned()))
    }
}

/// What new policies say of a request.
enum Verdict {
    Decided(bool, Vec<String>),
    /// They look at the body or the query, which are not recorded; or agent or service are gone.
    Unknown,
}

fn decide(policies: &Policies, records: &Records, seen: &Seen) -> Verdict {
    let Some((service, path)) = records.target(seen) else { return Verdict::Unknown };
    let (Some(agent), Ok(agent_name), Ok(method)) = (
        records.agents.get(&seen.agent),
        AgentName::try_from(seen.agent.as_str()),
        Method::from_bytes(seen.method.as_bytes()),
    ) else {
        return Verdict::Unknown;
    };
    let Some(method_group) = service.method_group(&method) else { return Verdict::Unknown };
    let attributes = agent.attributes.clone().into_iter().collect();
    let slice = policies.slice_for(&agent_name, &attributes, &service.name);
    let call = Call {
        method: &method,
        method_group,
        path: &path,
        query: "",
        token: "tok-simulated",
        services: std::slice::from_ref(&service.name),
        age_seconds: 0,
        source: seen.source.unwrap_or(IpAddr::from([127, 0, 0, 1])),
        body: Body::NotRead,
        mcp: service.mcp.is_some(),
        trust: None, // records do not have it
    };
    if slice.needs_body(&call) || slice.asks_for_query(&call) {
        return Verdict::Unknown;
    }
    let decision = slice.decide(&call);
    Verdict::Decided(decision.allowed, decision.policy_ids.iter().map(ToString::to_string).collect())
}

/// Requests by agent, service, method, path and new decision, with their number and the policies
/// that decide.
type Differences = BTreeMap<(String, String, String, String, bool), (u64, Vec<String>)>;

/// What would be decided otherwise with these policies.
pub(super) async fn simulate(
    admin: &Admin,
    caller: &Caller,
    message: SimulateTrailRequest,
) -> Answer<SimulateTrailResponse> {
    let tenant: TenantName = name("tenant", &message.tenant)?;
    let policies = Arc::new(candidate(admin, caller, &tenant, &message).await?);
    let since_us = message.since_us.max(visible_since(admin, caller, &message.tenant).await?);
    let traffic = traffic(admin, &tenant, &message.agent, since_us, message.until_us).await?;
    let records = Arc::new(Records::read(admin, &tenant, &traffic.seen).await?);
    let mut answer = SimulateTrailResponse {
        skipped: traffic.skipped,
        truncated: traffic.is_truncated,
        replica: admin.0.replica.clone(),
        other_replicas: others(admin),
        ..SimulateTrailResponse::default()
    };
    let run = admin.policy_run(caller, &tenant);
    let mut differences = Differences::new();
    let mut left: Vec<(Seen, u64)> = traffic.seen.into_iter().collect();
    while !left.is_empty() {
        let some = left.split_off(left.len().saturating_sub(AT_A_TIME));
        let (policies, records) = (policies.clone(), records.clone());
        let decided = run.run(move || {
            let verdicts = some.into_iter().map(|(seen, count)| (decide(&policies, &records, &seen), seen, count));
            verdicts.collect::<Vec<_>>()
        });
        for (verdict, seen, count) in decided.await.map_err(RegistryError::from)? {
            answer.requests += count;
            match verdict {
                Verdict::Unknown => answer.unknown += count,
                Verdict::Decided(allowed, _) if allowed == seen.was_allowed => answer.unchanged += count,
                Verdict::Decided(allowed, ids) => {
                    let place =
                        differences.entry((seen.agent, seen.service, seen.method, seen.path, allowed)).or_default();
                    *place = (place.0 + count, ids);
                }
            }
        }
    }
    answer.truncated |= differences.len() > MAX_DIFFERENCES;
    let view = |((agent, service, method, path, now_allowed), (requests, policies))| TrailDifference {
        agent,
        service,
        method,
        path,
        now_allowed,
        requests,
        policies,
    };
    answer.differences = differences.into_iter().take(MAX_DIFFERENCES).map(view).collect();
    Ok(answer)
}

/// The policies as they would be: those of the file, and the tenant's others unless the file stands
/// alone.
async fn candidate(
    admin: &Admin,
    caller: &Caller,
    tenant: &TenantName,
    message: &SimulateTrailRequest,
) -> Answer<Policies> {
    check_policy_length(&message.text)?;
    let registry = admin.registry();
    let (stored, declared) = (registry.policies(tenant).await?, registry.declarations(tenant).await?);
    let (text, alone, tenant_name) = (message.text.clone(), message.alone, tenant.to_string());
    let run = admin.policy_run(caller, tenant);
    let compiled = run.run(move || {
        let file = check_policies(&text, &declared)?;
        let is_replaced = |policy: &Policy| alone || file.iter().any(|new| new.id.as_str() == policy.id);
        let mut all: Vec<Policy> = stored.into_iter().filter(|policy| !is_replaced(policy)).collect();
        all.extend(file.into_iter().map(|new| {
            let (tenant, id) = (tenant_name.clone(), new.id.to_string());
            Policy { tenant, id, text: new.text, ..Policy::default() }
        }));
        let policies = Policies::compile(&all).map_err(|error| RegistryError::Policies(vec![error]))?;
        policies.check_budget().map_err(|error| RegistryError::Policies(vec![error]))?;
        Ok::<_, RegistryError>(policies)
    });
    Ok(compiled.await.map_err(RegistryError::from)??)
}

/// The narrowest policies that permit what an agent was permitted.
pub(super) async fn suggest_policies(
    admin: &Admin,
    caller: &Caller,
    message: SuggestPoliciesRequest,
) -> Answer<SuggestPoliciesResponse> {
    let tenant: TenantName = name("tenant", &message.tenant)?;
    let agent: AgentName = name("agent", &message.agent)?;
    admin.registry().agent(&tenant, &agent).await?;
    let since_us = message.since_us.max(visible_since(admin, caller, &message.tenant).await?);
    let traffic = traffic(admin, &tenant, agent.as_str(), since_us, 0).await?;
    let records = Records::read(admin, &tenant, &traffic.seen).await?;
    let (mut observed, mut requests, mut skipped) = (BTreeSet::new(), 0, traffic.skipped);
    for (seen, count) in traffic.seen.iter().filter(|(seen, _)| seen.was_allowed) {
        match (records.target(seen), ServiceName::try_from(seen.service.as_str())) {
            (Some((_, path)), Ok(service)) => {
                requests += count;
                observed.insert(Observed { service, method: seen.method.clone(), path });
            }
            _ => skipped += count,
        }
    }
    if observed.is_empty() {
        let reason = format!("agent `{agent}` was permitted nothing in that time");
        return Err(Problem::precondition("NO_REQUESTS", reason).hint("look further back with --since"));
    }
    Ok(SuggestPoliciesResponse {
        text: suggest(&agent, &observed),
        requests,
        skipped,
        truncated: traffic.is_truncated,
        replica: admin.0.replica.clone(),
        other_replicas: others(admin),
    })
}
