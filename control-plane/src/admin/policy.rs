//! Policies: stored, checked, and tried out with the code that decides at the node.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use http::Method;
use seks_policy::{self as policy, Body, Call, Decision, Policies, PolicyError};
use seks_proto::wire::{
    Agent, ApplyPoliciesRequest, ApplyPoliciesResponse, ChangeResponse, CheckPoliciesRequest, CheckPoliciesResponse,
    DeleteRequest, ListPoliciesResponse, ListRequest, NameRequest, Policy, SimulateRequest, SimulateResponse,
};
use seks_service::{
    Service,
    request::{BodyFacts, Target},
};
use seks_types::id::{AgentName, ServiceName, TenantName, TokenId};

use super::{Admin, Answer, auth::Caller, parse::name, problem::Problem};
use crate::registry::{RegistryError, check_policies, check_policy_length};

/// Most errors, or warnings, that an answer lists, and most bytes of them.
const LISTED: usize = 1000;
const LISTED_BYTES: usize = 256 * 1024;

pub(super) async fn apply(
    admin: &Admin,
    caller: &Caller,
    message: ApplyPoliciesRequest,
) -> Answer<ApplyPoliciesResponse> {
    let tenant = name("tenant", &message.tenant)?;
    let (run, text) = (admin.policy_run(caller, &tenant), Arc::<str>::from(message.text));
    let (policies, revision) = admin.registry().apply_policies(&tenant, text.clone(), &run).await?;
    let enforcement = admin.enforced(revision, message.wait).await;
    // The change is already committed, so a full queue must not turn it into an error.
    let warnings = run.run(move || warnings(&text)).await.unwrap_or_default();
    Ok(ApplyPoliciesResponse { policies, enforcement, warnings })
}

fn warnings(text: &str) -> Vec<String> {
    listed(&policy::warnings(text))
}

/// As text, within what an answer may hold.
fn listed(found: &[PolicyError]) -> Vec<String> {
    let (mut list, mut bytes) = (Vec::new(), 0);
    for error in found.iter().take(LISTED) {
        let line = error.to_string();
        bytes += line.len();
        if bytes > LISTED_BYTES {
            break;
        }
        list.push(line);
    }
    match found.len() - list.len() {
        0 => {}
        more => list.push(format!("and {more} more")),
    }
    list
}

pub(super) async fn list(admin: &Admin, _: &Caller, message: ListRequest) -> Answer<ListPoliciesResponse> {
    let (policies, next_page_token) = super::page(admin, "policy", message).await?;
    Ok(ListPoliciesResponse { policies, next_page_token })
}

pub(super) async fn get(admin: &Admin, _: &Caller, message: NameRequest) -> Answer<Policy> {
    Ok(admin.registry().policy(&name("tenant", &message.tenant)?, &name("name", &message.name)?).await?)
}

pub(super) async fn delete(admin: &Admin, _: &Caller, message: DeleteRequest) -> Answer<ChangeResponse> {
    let (tenant, policy) = (name("tenant", &message.tenant)?, name("name", &message.name)?);
    let revision = admin.registry().delete_policy(&tenant, &policy).await?;
    Ok(ChangeResponse { name: message.name, enforcement: admin.enforced(revision, message.wait).await })
}

/// What `apply` would say of the file. That it is wrong is an answer here, not a failure.
pub(super) async fn check(
    admin: &Admin,
    caller: &Caller,
    message: CheckPoliciesRequest,
) -> Answer<CheckPoliciesResponse> {
    let tenant = name("tenant", &message.tenant)?;
    admin.registry().tenant(&tenant).await?;
    check_policy_length(&message.text)?;
    let text = message.text;
    let methods = admin.registry().listed_methods(&tenant).await?;
    let run = admin.policy_run(caller, &tenant);
    let checked = run.run(move || match check_policies(&text, &methods) {
        Ok(policies) => {
            let policy_ids = policies.into_iter().map(|(id, _)| id.to_string()).collect();
            Ok(CheckPoliciesResponse { policy_ids, errors: Vec::new(), warnings: warnings(&text) })
        }
        Err(RegistryError::Policies(errors)) => {
            Ok(CheckPoliciesResponse { errors: listed(&errors), ..CheckPoliciesResponse::default() })
        }
        Err(error) => Err(error),
    });
    Ok(checked.await.map_err(RegistryError::from)??)
}

/// Decides as a node would for a fresh token that is granted this one service.
pub(super) async fn simulate(admin: &Admin, caller: &Caller, message: SimulateRequest) -> Answer<SimulateResponse> {
    let tenant: TenantName = name("tenant", &message.tenant)?;
    let (agent, service): (AgentName, ServiceName) =
        (name("agent", &message.agent)?, name("service", &message.service)?);
    let method = Method::from_bytes(message.method.as_bytes())
        .map_err(|_| Problem::invalid("method", "not a method of HTTP"))?;
    let source = match message.source.as_str() {
        "" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        text => text.parse().map_err(|_| Problem::invalid("source", "not an address"))?,
    };
    let registry = admin.registry();
    let record = registry.agent(&tenant, &agent).await?;
    let definition = Service::try_from(&registry.service(&tenant, &service).await?)
        .map_err(|error| Problem::invalid("service", error))?;
    let policies = registry.policies(&tenant).await?;
    let simulation = Simulation { agent, service, method, source, record, definition, policies, message };
    admin.policy_run(caller, &tenant).run(move || simulation.run()).await.map_err(RegistryError::from)?
}

/// All that a decision needs.
struct Simulation {
    agent: AgentName,
    service: ServiceName,
    method: Method,
    source: IpAddr,
    record: Agent,
    definition: Service,
    policies: Vec<Policy>,
    message: SimulateRequest,
}

impl Simulation {
    fn run(self) -> Answer<SimulateResponse> {
        let Self { agent, service, method, source, record, definition, policies, message } = self;
        let policies = Policies::compile(&policies).map_err(|error| Problem::invalid("policies", error))?;
        if record.disabled {
            return Ok(denied("agent_disabled", String::new()));
        }
        let Some(method_group) = definition.method_group(&method) else {
            let errors =
                vec![format!("the service does not take the method {method}: its `methods` list further ones")];
            return Ok(SimulateResponse { errors, ..denied("request_invalid", String::new()) });
        };
        let target = match Target::parse(&definition, &message.path) {
            Ok(target) => target,
            Err(error) => {
                return Ok(SimulateResponse {
                    errors: vec![error.to_string()],
                    ..denied("request_invalid", String::new())
                });
            }
        };
        if definition.denied_paths.iter().any(|denied| denied.matches(&method, target.path())) {
            let errors = vec!["the service hands out keys there: refused whatever the policies say".into()];
            return Ok(SimulateResponse { errors, ..denied("policy_denied", target.path().into()) });
        }
        let slice = policies.slice_for(&agent, &record.attributes, &service);
        let token = TokenId::try_from("tok-simulated").map_err(|error| Problem::invalid("token", error))?;
        // Headers of an MCP request are taken to equal the body.
        let read = |body: &[u8]| match definition.mcp {
            None => BodyFacts::from_json(body),
            Some(_) => BodyFacts::from_json(body)?.with_mcp(body),
        };
        let facts = message.has_body.then(|| read(&message.body)).flatten();
        let mut call = Call {
            method: &method,
            method_group,
            path: target.path(),
            query: target.query().unwrap_or_default(),
            token: token.as_str(),
            services: std::slice::from_ref(&service),
            age_seconds: 0,
            source,
            body: Body::NotRead,
            mcp: definition.mcp.is_some(),
        };
        if slice.needs_body(&call) {
            call.body = match (&facts, message.has_body) {
                (Some(facts), _) => Body::Inspected(facts),
                (None, true) => Body::Opaque,
                (None, false) => Body::Absent,
            };
        }
        Ok(answer(&slice.decide(&call), target.path()))
    }
}

fn answer(decision: &Decision, path: &str) -> SimulateResponse {
    SimulateResponse {
        allowed: decision.allowed,
        reason: if decision.allowed { String::new() } else { "policy_denied".into() },
        policy_ids: decision.policy_ids.iter().map(ToString::to_string).collect(),
        upstream_path: path.into(),
        errors: decision.error.iter().map(ToString::to_string).collect(),
    }
}

fn denied(reason: &str, upstream_path: String) -> SimulateResponse {
    SimulateResponse { reason: reason.into(), upstream_path, ..SimulateResponse::default() }
}
