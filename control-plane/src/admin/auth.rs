//! Who calls, and whether it may: the one place that decides.
//!
//! An operator is the `spiffe://seks/operator/NAME` of its certificate and a record of that name;
//! its roles are read from the record for every call, so that taking one away works at once. A role
//! holds in a tenant, or with `*` in all of them and for the fleet. A tenant in which an operator
//! has no role doesn't exist for it: the answer is the one for a missing tenant, byte for byte, and
//! given before anything of that tenant is read.

use seks_proto::wire::{Operator, Role};
use seks_types::id::TenantName;
use tonic::Extensions;

use super::{Admin, problem::Problem};
use crate::{authority::Identity, registry::EVERYWHERE};

/// Records of a version before don't name an enrolment. With those a certificate that was signed
/// this much before the record was made may still be the one that came with it: clocks of two
/// replicas differ. An older one belongs to a deleted operator of the same name.
const CLOCK_SKEW_SECONDS: i64 = 60;

/// An operator whose certificate and record agree.
pub struct Caller {
    operator: Operator,
    /// When its certificate ends, in Unix seconds.
    expires_at: i64,
}

impl Caller {
    /// Its record.
    pub(super) fn operator(&self) -> &Operator {
        &self.operator
    }

    /// When its certificate ends, in Unix seconds.
    pub(super) fn expires_at(&self) -> i64 {
        self.expires_at
    }

    /// Its role in `tenant`, that for all tenants included.
    pub(super) fn role_in(&self, tenant: &str) -> Role {
        let here = |r: &&seks_proto::wire::RoleBinding| r.tenant == tenant || r.tenant == EVERYWHERE;
        self.operator.roles.iter().filter(here).map(|r| r.role()).max().unwrap_or(Role::Unspecified)
    }

    /// Its role for the fleet.
    pub(super) fn fleet_role(&self) -> Role {
        self.role_in(EVERYWHERE)
    }
}

/// What a method is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Nothing that needs a role: to be an operator is enough.
    Anyone,
    /// The tenant that the message names.
    Tenant,
    /// Tenants, nodes and operators.
    Fleet,
}

macro_rules! rules {
    ($($method:ident: $scope:ident $role:ident;)*) => {
        /// A method of the admin API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the methods are documented in admin.proto")]
        pub enum Method {
            $($method,)*
        }

        impl Method {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$method,)*];

            /// Its name in admin.proto, which is also its `verb` in spans and metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$method => stringify!($method),)*
                }
            }

            /// What it takes to call it.
            #[must_use]
            pub fn rule(self) -> (Scope, Role) {
                match self {
                    $(Self::$method => (Scope::$scope, Role::$role),)*
                }
            }
        }
    };
}

rules! {
    Status: Anyone Unspecified;
    WhoAmI: Anyone Unspecified;
    ListTenants: Anyone Unspecified; // those that it may see
    ListCatalogue: Anyone Unspecified;
    ListOperators: Anyone Unspecified; // those that it may look after, and itself
    CreateOperator: Anyone Unspecified; // an owner of every tenant concerned, see `operator`
    UpdateOperator: Anyone Unspecified;
    DeleteOperator: Anyone Unspecified;
    GetAuditKey: Anyone Unspecified;
    CreatePageLink: Anyone Unspecified; // the page shows what the caller may see

    GetTenant: Tenant Viewer;
    ListServices: Tenant Viewer;
    GetService: Tenant Viewer;
    ListCredentials: Tenant Viewer;
    GetCredential: Tenant Viewer;
    WhereCredential: Tenant Viewer;
    ListAgents: Tenant Viewer;
    GetAgent: Tenant Viewer;
    ListTokens: Tenant Viewer;
    GetToken: Tenant Viewer;
    ListTrusts: Tenant Viewer;
    GetTrust: Tenant Viewer;
    ListApprovals: Tenant Viewer;
    GetApproval: Tenant Viewer;
    ListPolicies: Tenant Viewer;
    GetPolicy: Tenant Viewer;
    CheckPolicies: Tenant Viewer;
    Simulate: Tenant Viewer;
    PolicySchema: Tenant Viewer;
    ExplainPolicies: Tenant Viewer;
    PlanTenant: Tenant Viewer;
    SearchAudit: Tenant Viewer;
    ListAdminChanges: Tenant Viewer;
    ExportAudit: Tenant Viewer;
    SimulateTrail: Tenant Viewer;
    SuggestPolicies: Tenant Viewer;
    FollowAudit: Tenant Viewer;

    EnableService: Tenant Editor;
    ApplyService: Tenant Editor; // to redirect credentials: owner, see the registry
    DeleteService: Tenant Editor;
    PutCredential: Tenant Editor;
    AssignCredential: Tenant Editor;
    RollbackCredential: Tenant Editor;
    RebindCredential: Tenant Owner; // sends the secret to another destination
    DeleteCredential: Tenant Editor;
    CreateAgent: Tenant Editor;
    SetAgentDisabled: Tenant Editor;
    UpdateAgent: Tenant Editor;
    DeleteAgent: Tenant Editor;
    IssueToken: Tenant Editor;
    LookupToken: Tenant Viewer;
    RevokeToken: Tenant Editor;
    RotateToken: Tenant Editor;
    UpdateToken: Tenant Editor;
    ApplyTenant: Tenant Editor; // to redirect credentials: owner, see the registry
    AwsKeyPair: Tenant Editor;
    CreateTrust: Tenant Editor;
    UpdateTrust: Tenant Editor;
    DeleteTrust: Tenant Editor;
    GrantApproval: Tenant Editor; // where the tenant says so, another than the token's issuer
    DenyApproval: Tenant Editor;
    RevokeApproval: Tenant Editor;
    SetApprovalRules: Tenant Owner; // an editor is whom the rule is about
    ApplyPolicies: Tenant Editor;
    DeletePolicy: Tenant Editor;

    ListNodes: Fleet Viewer;
    GetNode: Fleet Viewer;
    SearchFleetAudit: Fleet Viewer; // every tenant's requests
    VerifyAudit: Fleet Viewer;
    ListFleetAdminChanges: Fleet Viewer;
    ExportFleetAudit: Fleet Viewer;
    FollowFleetAudit: Fleet Viewer;
    CreateTenant: Fleet Owner;
    UpdateTenant: Fleet Owner; // private networks: what an agent of the tenant may reach beside the Internet
    SetTenantQuota: Fleet Owner;
    DeleteTenant: Fleet Owner;
    EnrollNode: Fleet Owner; // a node is given credentials
    RevokeNode: Fleet Owner;
}

/// The name in a request's certificate, whether or not there is such an operator. `""`: it is no
/// operator's.
pub(super) fn operator_of(admin: &Admin, extensions: &Extensions) -> String {
    match admin.authority().identities().of(extensions).map(|peer| peer.identity) {
        Some(Identity::Operator(name)) => name.to_string(),
        _ => String::new(),
    }
}

/// The operator behind a request's certificate.
///
/// # Errors
/// Permission denied, in the same words whatever is wrong.
pub(super) async fn identify(admin: &Admin, extensions: &Extensions) -> Result<Caller, Problem> {
    let refused = || Problem::denied("the certificate is not that of an operator");
    let peer = admin.authority().identities().of(extensions).ok_or_else(refused)?;
    if peer.is_expired() {
        return Err(Problem::certificate_expired());
    }
    let Identity::Operator(name) = peer.identity else { return Err(refused()) };
    let operator = admin.registry().operator(&name).await?.ok_or_else(refused)?;
    if peer.enrolment != operator.enrolment {
        return Err(refused()); // of one of this name that was deleted
    }
    if operator.enrolment.is_empty() && peer.signed_at + CLOCK_SKEW_SECONDS < operator.created_at {
        return Err(refused());
    }
    Ok(Caller { operator, expires_at: peer.expires_at })
}

/// Decides whether `caller` may use `method` on the tenant that its message names.
///
/// # Errors
/// Permission denied; not found for a tenant that the caller can't see; an invalid argument for
/// what can't be a tenant.
pub(super) fn authorize(caller: &Caller, method: Method, tenant: &str) -> Result<(), Problem> {
    let (scope, needed) = method.rule();
    let has = match scope {
        Scope::Anyone => return Ok(()),
        Scope::Fleet => caller.fleet_role(),
        Scope::Tenant => {
            let name: TenantName = super::parse::name("tenant", tenant)?;
            match caller.role_in(name.as_str()) {
                Role::Unspecified => return Err(Problem::not_found("tenant", name.as_str())),
                role => role,
            }
        }
    };
    if has >= needed {
        return Ok(());
    }
    let place = if scope == Scope::Fleet { "in all tenants (`*`)".into() } else { format!("in tenant `{tenant}`") };
    Err(Problem::denied(format!("{} takes the role {} {place}", method.name(), role_name(needed))))
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "none",
        Role::Viewer => "viewer",
        Role::Editor => "editor",
        Role::Owner => "owner",
    }
}

#[cfg(test)]
mod tests;
