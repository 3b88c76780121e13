//! The admin API. Each noun has a file, and each handler has a few lines: parse, call the registry,
//! respond.
//!
//! Every call passes the same steps, which `methods` lists once: identify and authorize the caller
//! ([`auth`]), run the handler, record the outcome ([`audit`]). A handler that is not in the table
//! is never called, and a method without a rule does not compile.

mod admin_changes;
mod agent;
mod answer_stream;
mod apply;
mod approval;
mod audit;
mod audit_export;
mod audit_follow;
mod audit_trail;
pub mod audit_view;
pub mod auth;
mod credential;
mod edge;
mod limits;
mod message;
mod node;
mod operator;
mod page_link;
mod parse;
mod policy;
mod policy_trail;
mod problem;
mod service;
mod simulate;
mod status;
mod tenant;
mod token;
mod trust;
mod unknown_entities;

use std::{path::PathBuf, sync::Arc, time::Duration};

use seks_proto::wire::{self, admin_server};
use seks_runtime::telemetry::Telemetry;
use seks_types::id::TenantName;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

pub(crate) use self::edge::Edge;
use self::{
    admin_changes::RefusalLimits,
    answer_stream::AnswerStream,
    audit::Call,
    auth::{Caller, Method},
    limits::Limits,
    message::Message as _,
    problem::Problem,
};
use crate::{
    authority::Authority,
    distribution::Distribution,
    mint::Reach,
    page_sessions::PageSessions,
    policy_workers::{PolicyRun, PolicyWorkers, Requester},
    registry::{PageRequest, Registry},
    store::Revision,
    telemetry::Metrics,
};

/// Largest message that is decoded, in bytes. [`edge`] lets only those methods near it whose fields
/// can be that long.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// How long a change is waited for by default.
const WAIT: Duration = Duration::from_secs(30);
/// How long a change is waited for until this replica itself has it.
const SEEN: Duration = Duration::from_secs(1);
/// How long a change is waited for at most.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Admin(Arc<Parts>, Arc<Limits>, Arc<RefusalLimits>);

/// The parts that the service uses.
pub struct Parts {
    /// Reads and writes.
    pub registry: Arc<Registry>,
    /// Signs.
    pub authority: Arc<Authority>,
    /// Knows the nodes.
    pub distribution: Distribution,
    /// Exports the spans of the calls.
    pub telemetry: Telemetry,
    /// Counts the calls.
    pub metrics: Metrics,
    /// Parse and validate policies.
    pub policy_workers: PolicyWorkers,
    /// Where agents reach the proxy; may be empty.
    pub proxy_url: String,
    /// This replica's name.
    pub replica: String,
    /// Links to its page and their sessions; `None`: it has no page.
    pub page: Option<Arc<PageSessions>>,
    /// What token endpoints and references may reach.
    pub reach: Reach,
    /// Where this process writes, and what for.
    pub disks: Vec<(&'static str, PathBuf)>,
}

impl Admin {
    /// The service.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts), Arc::default(), Arc::default())
    }

    /// The service behind its message limits, for a tonic server.
    #[must_use]
    pub fn service(self) -> admin_server::AdminServer<Self> {
        admin_server::AdminServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn registry(&self) -> &Registry {
        &self.0.registry
    }

    fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// Waits for a call's turn, or refuses it: [`limits`].
    async fn limit(&self, caller: &Caller, method: Method, scope: &str) -> Result<Option<limits::Turn<'_>>, Problem> {
        let quota = || TenantName::try_from(scope).map(|tenant| self.registry().quota(&tenant)).unwrap_or_default();
        self.1.enter(method, (scope, &caller.operator().name), quota).await
    }

    /// Where work on policies of `tenant` is done for `caller`.
    fn policy_run(&self, caller: &Caller, tenant: &TenantName) -> PolicyRun<'_> {
        let requester = Requester { tenant: tenant.to_string(), operator: caller.operator().name.clone() };
        PolicyRun::On(&self.0.policy_workers, requester)
    }

    /// Brings the certificate that clients of HTTPS_PROXY mode trust up to date behind a change of
    /// services or of the CA; the revision that this has written. The change itself is done: what
    /// fails here is made good by the janitor.
    async fn refresh_tenant_ca(&self, tenant: &str) -> Option<Revision> {
        let name = TenantName::try_from(tenant).ok()?;
        let refreshed = self.registry().refresh_tenant_ca(&name).await;
        refreshed
            .inspect_err(
                |error| tracing::warn!(tenant, %error, "cannot make the tenant's CA certificate again; trying later"),
            )
            .ok()?
    }

    /// Waits until `revision` is enforced wherever a node may serve, as far as the caller wants to
    /// know.
    async fn enforced(&self, revision: Revision, wait: Option<wire::Wait>) -> Option<wire::Enforcement> {
        let wait = wait.unwrap_or_default();
        if wait.no_wait {
            // So that what the same caller does next is held to a quota with this in it.
            self.0.distribution.await_applied(revision, SEEN).await;
            return Some(wire::Enforcement { revision, ..wire::Enforcement::default() });
        }
        let timeout = if wait.timeout_ms == 0 { WAIT } else { Duration::from_millis(wait.timeout_ms).min(MAX_WAIT) };
        Some(self.0.distribution.await_enforced(revision, timeout).await)
    }
}

/// The table of methods: what the generated trait calls, the rule's name, the message, the answer,
/// the handler. Behind `@` are those that answer with a stream, and its type in the trait.
macro_rules! methods {
    (
        $($name:ident $method:ident($message:ident) -> $answer:ident = $handler:path;)*
        $(@ $stream:ident $stream_method:ident($stream_message:ident) -> $piece:ident as $type:ident = $open:path;)*
    ) => {
        #[tonic::async_trait]
        impl admin_server::Admin for Admin {
            $(async fn $name(&self, request: Request<wire::$message>) -> Result<Response<wire::$answer>, Status> {
                methods!(@@ self request $method $handler)
            })*
            $(
            type $type = AnswerStream<wire::$piece>;
            async fn $stream(&self, request: Request<wire::$stream_message>) -> Result<Response<Self::$type>, Status> {
                methods!(@@ self request $stream_method $open)
            })*
        }
    };
    (@@ $self:ident $request:ident $method:ident $handler:path) => {{
                let mut call = Call::begin($self, Method::$method, $request.get_ref());
                let span = call.span();
                let outcome = async {
                    call.operator(auth::operator_of($self, $request.extensions()));
                    let caller = auth::identify($self, $request.extensions()).await?;
                    let message = $request.into_inner();
                    auth::authorize(&caller, Method::$method, message.scope())?;
                    let _turn = $self.limit(&caller, Method::$method, message.scope()).await?;
                    call.actor($self).run($handler($self, &caller, message)).await
                }
                .instrument(span)
                .await;
                if let Err(problem) = &outcome {
                    admin_changes::record_refusal($self, &call, problem).await;
                }
                call.end(outcome)
    }};
}

methods! {
    status Status(StatusRequest) -> StatusResponse = status::status;
    create_tenant CreateTenant(CreateTenantRequest) -> Tenant = tenant::create;
    list_tenants ListTenants(ListTenantsRequest) -> ListTenantsResponse = tenant::list;
    get_tenant GetTenant(NameRequest) -> Tenant = tenant::get;
    update_tenant UpdateTenant(UpdateTenantRequest) -> TenantResponse = tenant::update;
    set_tenant_quota SetTenantQuota(SetTenantQuotaRequest) -> Tenant = tenant::set_quota;
    delete_tenant DeleteTenant(DeleteRequest) -> ChangeResponse = tenant::delete;
    list_catalogue ListCatalogue(ListCatalogueRequest) -> ListCatalogueResponse = service::catalogue;
    enable_service EnableService(EnableServiceRequest) -> ServiceResponse = service::enable;
    apply_service ApplyService(ApplyServiceRequest) -> ServiceResponse = service::apply;
    list_services ListServices(ListRequest) -> ListServicesResponse = service::list;
    get_service GetService(NameRequest) -> Service = service::get;
    delete_service DeleteService(DeleteRequest) -> ChangeResponse = service::delete;
    put_credential PutCredential(PutCredentialRequest) -> CredentialResponse = credential::put;
    list_credentials ListCredentials(ListRequest) -> ListCredentialsResponse = credential::list;
    get_credential GetCredential(NameRequest) -> Credential = credential::get;
    where_credential WhereCredential(NameRequest) -> ListNodesResponse = credential::locate;
    assign_credential AssignCredential(AssignCredentialRequest) -> CredentialResponse = credential::assign;
    rollback_credential RollbackCredential(RollbackCredentialRequest) -> CredentialResponse = credential::rollback;
    rebind_credential RebindCredential(RebindCredentialRequest) -> CredentialResponse = credential::rebind;
    delete_credential DeleteCredential(DeleteRequest) -> ChangeResponse = credential::delete;
    create_agent CreateAgent(CreateAgentRequest) -> Agent = agent::create;
    list_agents ListAgents(ListRequest) -> ListAgentsResponse = agent::list;
    get_agent GetAgent(NameRequest) -> Agent = agent::get;
    set_agent_disabled SetAgentDisabled(SetAgentDisabledRequest) -> ChangeResponse = agent::set_disabled;
    update_agent UpdateAgent(UpdateAgentRequest) -> AgentResponse = agent::update;
    delete_agent DeleteAgent(DeleteRequest) -> ChangeResponse = agent::delete;
    issue_token IssueToken(IssueTokenRequest) -> IssuedToken = token::issue;
    list_tokens ListTokens(ListRequest) -> ListTokensResponse = token::list;
    get_token GetToken(NameRequest) -> Token = token::get;
    lookup_token LookupToken(LookupTokenRequest) -> Token = token::lookup;
    revoke_token RevokeToken(DeleteRequest) -> ChangeResponse = token::revoke;
    rotate_token RotateToken(RotateTokenRequest) -> IssuedToken = token::rotate;
    aws_key_pair AwsKeyPair(AwsKeyPairRequest) -> AwsKeys = token::aws_keys;
    create_trust CreateTrust(CreateTrustRequest) -> TrustResponse = trust::create;
    list_trusts ListTrusts(ListRequest) -> ListTrustsResponse = trust::list;
    get_trust GetTrust(NameRequest) -> Token = trust::get;
    update_trust UpdateTrust(UpdateTrustRequest) -> TrustResponse = trust::update;
    delete_trust DeleteTrust(DeleteRequest) -> ChangeResponse = trust::delete;
    list_approvals ListApprovals(ListRequest) -> ListApprovalsResponse = approval::list;
    get_approval GetApproval(NameRequest) -> Approval = approval::get;
    grant_approval GrantApproval(GrantApprovalRequest) -> ApprovalResponse = approval::grant;
    deny_approval DenyApproval(DenyApprovalRequest) -> Approval = approval::deny;
    revoke_approval RevokeApproval(DeleteRequest) -> ChangeResponse = approval::revoke;
    set_approval_rules SetApprovalRules(SetApprovalRulesRequest) -> Tenant = approval::set_rules;
    apply_policies ApplyPolicies(ApplyPoliciesRequest) -> ApplyPoliciesResponse = policy::apply;
    list_policies ListPolicies(ListRequest) -> ListPoliciesResponse = policy::list;
    get_policy GetPolicy(NameRequest) -> Policy = policy::get;
    delete_policy DeletePolicy(DeleteRequest) -> ChangeResponse = policy::delete;
    check_policies CheckPolicies(CheckPoliciesRequest) -> CheckPoliciesResponse = policy::check;
    simulate Simulate(SimulateRequest) -> SimulateResponse = simulate::simulate;
    policy_schema PolicySchema(PolicySchemaRequest) -> PolicySchemaResponse = policy::schema;
    explain_policies ExplainPolicies(SimulateRequest) -> ExplainPoliciesResponse = simulate::explain;
    plan_tenant PlanTenant(ApplyTenantRequest) -> ApplyTenantResponse = apply::plan;
    apply_tenant ApplyTenant(ApplyTenantRequest) -> ApplyTenantResponse = apply::apply;
    update_token UpdateToken(UpdateTokenRequest) -> TokenResponse = token::update;
    list_nodes ListNodes(ListNodesRequest) -> ListNodesResponse = node::list;
    get_node GetNode(NameRequest) -> Node = node::get;
    enroll_node EnrollNode(EnrollNodeRequest) -> EnrollNodeResponse = node::enroll;
    revoke_node RevokeNode(DeleteRequest) -> ChangeResponse = node::revoke;
    create_operator CreateOperator(CreateOperatorRequest) -> CreateOperatorResponse = operator::create;
    list_operators ListOperators(ListOperatorsRequest) -> ListOperatorsResponse = operator::list;
    update_operator UpdateOperator(UpdateOperatorRequest) -> Operator = operator::update;
    delete_operator DeleteOperator(DeleteRequest) -> ChangeResponse = operator::delete;
    create_page_link CreatePageLink(CreatePageLinkRequest) -> PageLink = page_link::create;
    who_am_i WhoAmI(WhoAmIRequest) -> Operator = operator::who_am_i;
    search_audit SearchAudit(SearchAuditRequest) -> SearchAuditResponse = audit_trail::search;
    search_fleet_audit SearchFleetAudit(SearchAuditRequest) -> SearchAuditResponse = audit_trail::search_fleet;
    verify_audit VerifyAudit(VerifyAuditRequest) -> VerifyAuditResponse = audit_trail::verify;
    list_admin_changes ListAdminChanges(AdminChangesRequest) -> AdminChangesResponse = admin_changes::list;
    list_fleet_admin_changes ListFleetAdminChanges(AdminChangesRequest) -> AdminChangesResponse = admin_changes::list_fleet;
    simulate_trail SimulateTrail(SimulateTrailRequest) -> SimulateTrailResponse = policy_trail::simulate;
    suggest_policies SuggestPolicies(SuggestPoliciesRequest) -> SuggestPoliciesResponse = policy_trail::suggest_policies;
    get_audit_key GetAuditKey(AuditKeyRequest) -> AuditKeyResponse = audit_export::key;
    @ export_audit ExportAudit(ExportAuditRequest) -> ExportAuditPiece as ExportAuditStream = audit_export::export;
    @ export_fleet_audit ExportFleetAudit(ExportAuditRequest) -> ExportAuditPiece as ExportFleetAuditStream = audit_export::export_fleet;
    @ follow_audit FollowAudit(SearchAuditRequest) -> SearchAuditResponse as FollowAuditStream = audit_follow::follow;
    @ follow_fleet_audit FollowFleetAudit(SearchAuditRequest) -> SearchAuditResponse as FollowFleetAuditStream = audit_follow::follow_fleet;
}

/// The part of a list that `message` asks for.
async fn page<T: prost::Message + Default>(
    admin: &Admin,
    kind: &'static str,
    message: wire::ListRequest,
) -> Answer<(Vec<T>, String)> {
    let tenant = parse::name("tenant", &message.tenant)?;
    let page = PageRequest { size: message.page_size, token: message.page_token };
    Ok(admin.registry().page(&tenant, kind, &page).await?)
}

/// What every handler returns.
type Answer<T> = Result<T, Problem>;
