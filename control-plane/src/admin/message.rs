//! The tenant and the object of each admin message, for authorization and for the audit record.

use seks_proto::wire;

/// A request of the admin API.
pub(super) trait Message {
    /// The tenant that the caller needs a role in; `""` for none.
    fn scope(&self) -> &str;
    /// The object's name; `""` for none.
    fn object(&self) -> &str;
}

macro_rules! messages {
    ($($message:ident: $scope:ident, $object:ident;)*) => {
        $(impl Message for wire::$message {
            fn scope(&self) -> &str {
                messages!(@ self $scope)
            }
            fn object(&self) -> &str {
                messages!(@ self $object)
            }
        })*
    };
    (@ $self:ident none) => { "" };
    (@ $self:ident $field:ident) => { &$self.$field };
}

messages! {
    StatusRequest: none, none;
    WhoAmIRequest: none, none;
    CreatePageLinkRequest: none, none;
    ListTenantsRequest: none, none;
    CreateTenantRequest: none, name;
    UpdateTenantRequest: none, name;
    SetTenantQuotaRequest: none, name;
    ListCatalogueRequest: none, none;
    EnableServiceRequest: tenant, catalogue;
    PutCredentialRequest: tenant, name;
    AssignCredentialRequest: tenant, name;
    RollbackCredentialRequest: tenant, name;
    RebindCredentialRequest: tenant, name;
    CreateAgentRequest: tenant, name;
    SetAgentDisabledRequest: tenant, name;
    UpdateAgentRequest: tenant, name;
    LookupTokenRequest: tenant, none;
    IssueTokenRequest: tenant, agent;
    RotateTokenRequest: tenant, name;
    AwsKeyPairRequest: tenant, none;
    UpdateTrustRequest: tenant, name;
    GrantApprovalRequest: tenant, name;
    DenyApprovalRequest: tenant, name;
    SetApprovalRulesRequest: tenant, none;
    ApplyPoliciesRequest: tenant, none;
    CheckPoliciesRequest: tenant, none;
    SimulateRequest: tenant, agent;
    PolicySchemaRequest: tenant, none;
    UpdateTokenRequest: tenant, name;
    ApplyTenantRequest: tenant, none;
    ListRequest: tenant, none;
    DeleteRequest: tenant, name;
    ListNodesRequest: none, none;
    EnrollNodeRequest: none, region;
    CreateOperatorRequest: none, name;
    UpdateOperatorRequest: none, name;
    ListOperatorsRequest: none, none;
    SearchAuditRequest: tenant, agent;
    VerifyAuditRequest: none, none;
    AdminChangesRequest: tenant, none;
    AuditKeyRequest: none, none;
    SimulateTrailRequest: tenant, agent;
    SuggestPoliciesRequest: tenant, agent;
    ExportAuditRequest: tenant, none;
}

/// `GetTenant` and `GetNode` have no tenant: what they name is one, or a node.
impl Message for wire::NameRequest {
    fn scope(&self) -> &str {
        if self.tenant.is_empty() { &self.name } else { &self.tenant }
    }
    fn object(&self) -> &str {
        &self.name
    }
}

impl Message for wire::CreateTrustRequest {
    fn scope(&self) -> &str {
        &self.tenant
    }
    fn object(&self) -> &str {
        self.trust.as_ref().map_or("", |trust| &trust.name)
    }
}

impl Message for wire::ApplyServiceRequest {
    fn scope(&self) -> &str {
        self.service.as_ref().map_or("", |s| &s.tenant)
    }
    fn object(&self) -> &str {
        self.service.as_ref().map_or("", |s| &s.name)
    }
}
