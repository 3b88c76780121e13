//! Requests tried out with the code that decides at the node.

use std::net::{IpAddr, Ipv4Addr};

use http::Method;
use seks_policy::{Body, Call, Decision, Policies, PolicyTrace};
use seks_proto::wire::{
    Agent, ExplainPoliciesResponse, Policy, PolicyTrace as WireTrace, SimulateRequest, SimulateResponse,
};
use seks_service::{
    Service,
    request::{BodyFacts, BodyFormat, Target},
};
use seks_types::id::{AgentName, ServiceName, TenantName, TokenId};

use super::{Admin, Answer, auth::Caller, parse::name, problem::Problem};
use crate::{clock::unix_now, registry::RegistryError};

/// Most policies of an explanation, and most bytes of what they lack.
const EXPLAINED: usize = 100;
const UNMET_BYTES: usize = 64 * 1024;

/// Decides as a node would for a fresh token that is granted this one service.
pub(super) async fn simulate(admin: &Admin, caller: &Caller, message: SimulateRequest) -> Answer<SimulateResponse> {
    let answer = try_out(admin, caller, message, false).await?;
    Ok(answer.decision.unwrap_or_default())
}

/// The same, with what became of each policy.
pub(super) async fn explain(
    admin: &Admin,
    caller: &Caller,
    message: SimulateRequest,
) -> Answer<ExplainPoliciesResponse> {
    try_out(admin, caller, message, true).await
}

async fn try_out(
    admin: &Admin,
    caller: &Caller,
    message: SimulateRequest,
    explains: bool,
) -> Answer<ExplainPoliciesResponse> {
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
    let simulation = Simulation { agent, service, method, source, record, definition, policies, message, explains };
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
    /// Whether the answer says what became of each policy.
    explains: bool,
}

impl Simulation {
    fn run(self) -> Answer<ExplainPoliciesResponse> {
        let Self { agent, service, method, source, record, definition, policies, message, explains } = self;
        let policies = Policies::compile(&policies).map_err(|error| Problem::invalid("policies", error))?;
        if record.disabled {
            return Ok(refused("agent_disabled", String::new(), "the agent is disabled"));
        }
        let Some(method_group) = definition.method_group(&method) else {
            let why = format!("the service does not take the method {method}: its `methods` list further ones");
            return Ok(refused("request_invalid", String::new(), why));
        };
        let target = match Target::parse(&definition, &message.path) {
            Ok(target) => target,
            Err(error) => return Ok(refused("request_invalid", String::new(), error.to_string())),
        };
        if definition.denied_paths.iter().any(|denied| denied.matches(&method, target.path())) {
            let why = "the service hands out keys there: refused whatever the policies say";
            return Ok(refused("policy_denied", target.path().into(), why));
        }
        let slice = policies.slice_for(&agent, &record.attributes, &service);
        let token = TokenId::try_from("tok-simulated").map_err(|error| Problem::invalid("token", error))?;
        let facts = facts(&message, &definition, slice.body_fields())?;
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
            trust: None, // a stored token's
        };
        if explains || slice.needs_body(&call) {
            call.body = match (&facts, message.has_body || message.unknown_body) {
                (Some(facts), _) => Body::Inspected(facts),
                (None, true) => Body::Opaque,
                (None, false) => Body::Absent,
            };
        }
        let traces = if explains { policies.explain(&agent, &record.attributes, &service, &call) } else { Vec::new() };
        Ok(ExplainPoliciesResponse { decision: Some(answer(&slice.decide(&call), &call)), policies: listed(traces) })
    }
}

/// The body's facts. `None`: there is no body, or it cannot be inspected. Headers of an MCP request
/// are taken to equal the body.
fn facts(
    message: &SimulateRequest,
    definition: &Service,
    fields: Option<&std::sync::Arc<seks_service::request::BodyFields>>,
) -> Answer<Option<BodyFacts>> {
    if !message.has_body {
        return Ok(None);
    }
    let format = match message.content_type.as_str() {
        "" => Some(BodyFormat::Json),
        content_type => BodyFormat::of_content_type(content_type),
    };
    let (Some(format), Some(fields)) = (format, fields) else { return Ok(None) };
    let facts = BodyFacts::read(format, &message.body, fields);
    Ok(match definition.mcp {
        None => facts,
        Some(_) => facts.filter(|_| format == BodyFormat::Json).and_then(|facts| facts.with_mcp(&message.body)),
    })
}

/// How often a grant was used is not looked at.
fn answer(decision: &Decision, call: &Call<'_>) -> SimulateResponse {
    let approvals = decision.approvals.as_ref().filter(|approvals| !approvals.are_granted(call, unix_now()));
    let needs_approval = approvals.filter(|_| decision.allowed);
    let reason = match (needs_approval, decision.allowed) {
        (Some(_), _) => "approval_required",
        (None, true) => "",
        (None, false) => "policy_denied",
    };
    let ids = match needs_approval {
        Some(approvals) => approvals.required.iter().map(|required| required.policy.to_string()).collect(),
        None => decision.policy_ids.iter().map(ToString::to_string).collect(),
    };
    SimulateResponse {
        allowed: decision.allowed && needs_approval.is_none(),
        reason: reason.into(),
        policy_ids: ids,
        upstream_path: call.path.into(),
        errors: decision.error.iter().map(ToString::to_string).collect(),
    }
}

/// Refused before policies are asked.
fn refused(reason: &str, upstream_path: String, why: impl Into<String>) -> ExplainPoliciesResponse {
    let decision = SimulateResponse {
        reason: reason.into(),
        upstream_path,
        errors: vec![why.into()],
        ..SimulateResponse::default()
    };
    ExplainPoliciesResponse { decision: Some(decision), policies: Vec::new() }
}

fn listed(traces: Vec<PolicyTrace>) -> Vec<WireTrace> {
    let mut bytes = 0;
    let short = traces.into_iter().take(EXPLAINED).take_while(|trace| {
        bytes += trace.unmet.iter().map(String::len).sum::<usize>();
        bytes <= UNMET_BYTES
    });
    let to_wire = |trace: PolicyTrace| WireTrace {
        id: trace.id.to_string(),
        forbids: trace.forbids,
        audit: trace.audit,
        applies: trace.applies,
        undecided: trace.undecided,
        unmet: trace.unmet,
    };
    short.map(to_wire).collect()
}
