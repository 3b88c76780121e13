use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::FileDescriptorSet;
use seks_proto::wire::{DESCRIPTORS, Role, RoleBinding};

use super::*;

/// Who may call what, written down by hand: a new method or a changed rule must be changed here as
/// well. Columns: anyone, viewer, editor, owner of the tenant; viewer, editor, owner of everything.
const MATRIX: &str = "
    Status              y y y y  y y y
    WhoAmI              y y y y  y y y
    ListTenants         y y y y  y y y
    ListCatalogue       y y y y  y y y
    ListOperators       y y y y  y y y
    CreateOperator      y y y y  y y y
    UpdateOperator      y y y y  y y y
    DeleteOperator      y y y y  y y y
    GetAuditKey         y y y y  y y y
    CreatePageLink      y y y y  y y y
    GetTenant           . y y y  y y y
    ListServices        . y y y  y y y
    GetService          . y y y  y y y
    ListCredentials     . y y y  y y y
    GetCredential       . y y y  y y y
    WhereCredential     . y y y  y y y
    ListAgents          . y y y  y y y
    GetAgent            . y y y  y y y
    ListTokens          . y y y  y y y
    GetToken            . y y y  y y y
    ListTrusts          . y y y  y y y
    GetTrust            . y y y  y y y
    LookupToken         . y y y  y y y
    ListPolicies        . y y y  y y y
    ListApprovals       . y y y  y y y
    GetApproval         . y y y  y y y
    GetPolicy           . y y y  y y y
    CheckPolicies       . y y y  y y y
    Simulate            . y y y  y y y
    PolicySchema        . y y y  y y y
    ExplainPolicies     . y y y  y y y
    PlanTenant          . y y y  y y y
    SearchAudit         . y y y  y y y
    ListAdminChanges    . y y y  y y y
    ExportAudit         . y y y  y y y
    SimulateTrail       . y y y  y y y
    SuggestPolicies     . y y y  y y y
    FollowAudit         . y y y  y y y
    EnableService       . . y y  . y y
    ApplyService        . . y y  . y y
    DeleteService       . . y y  . y y
    PutCredential       . . y y  . y y
    AssignCredential    . . y y  . y y
    RollbackCredential  . . y y  . y y
    RebindCredential    . . . y  . . y
    DeleteCredential    . . y y  . y y
    CreateAgent         . . y y  . y y
    SetAgentDisabled    . . y y  . y y
    UpdateAgent         . . y y  . y y
    DeleteAgent         . . y y  . y y
    IssueToken          . . y y  . y y
    AwsKeyPair          . . y y  . y y
    CreateTrust         . . y y  . y y
    UpdateTrust         . . y y  . y y
    DeleteTrust         . . y y  . y y
    RevokeToken         . . y y  . y y
    RotateToken         . . y y  . y y
    UpdateToken         . . y y  . y y
    ApplyTenant         . . y y  . y y
    ApplyPolicies       . . y y  . y y
    GrantApproval       . . y y  . y y
    DenyApproval        . . y y  . y y
    RevokeApproval      . . y y  . y y
    SetApprovalRules    . . . y  . . y
    DeletePolicy        . . y y  . y y
    ListNodes           . . . .  y y y
    GetNode             . . . .  y y y
    SearchFleetAudit    . . . .  y y y
    VerifyAudit         . . . .  y y y
    ListFleetAdminChanges . . . .  y y y
    ExportFleetAudit      . . . .  y y y
    FollowFleetAudit      . . . .  y y y
    CreateTenant        . . . .  . . y
    UpdateTenant        . . . .  . . y
    SetTenantQuota      . . . .  . . y
    DeleteTenant        . . . .  . . y
    EnrollNode          . . . .  . . y
    RevokeNode          . . . .  . . y
";

fn matrix() -> BTreeMap<&'static str, Vec<bool>> {
    let rows = MATRIX.lines().filter(|l| !l.trim().is_empty());
    let row = |line: &'static str| {
        let mut cells = line.split_whitespace();
        (cells.next().unwrap(), cells.map(|c| c == "y").collect())
    };
    rows.map(row).collect()
}

fn caller(tenant: &str, role: Role) -> Caller {
    let roles = match role {
        Role::Unspecified => vec![RoleBinding { tenant: "other".into(), role: Role::Owner.into() }],
        role => vec![RoleBinding { tenant: tenant.into(), role: role.into() }],
    };
    Caller { operator: Operator { name: "op".into(), roles, ..Operator::default() }, expires_at: i64::MAX }
}

#[test]
fn every_method_of_the_contract_has_a_row_and_a_rule() {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let services = set.file.iter().flat_map(|f| &f.service);
    let admin = services.filter(|s| s.name() == "Admin").flat_map(|s| &s.method);
    let mut described: Vec<&str> = admin.map(|m| m.name()).collect();
    let mut ruled: Vec<&str> = Method::ALL.iter().map(|m| m.name()).collect();
    described.sort_unstable();
    ruled.sort_unstable();
    assert_eq!(described, ruled);
    assert_eq!(matrix().keys().copied().collect::<Vec<_>>(), described);
}

#[test]
fn every_role_may_exactly_what_the_matrix_says() {
    let callers = [
        caller("acme", Role::Unspecified),
        caller("acme", Role::Viewer),
        caller("acme", Role::Editor),
        caller("acme", Role::Owner),
        caller("*", Role::Viewer),
        caller("*", Role::Editor),
        caller("*", Role::Owner),
    ];
    let matrix = matrix();
    for method in Method::ALL {
        let row = &matrix[method.name()];
        assert_eq!(row.len(), callers.len(), "{}", method.name());
        for (column, (caller, allowed)) in callers.iter().zip(row).enumerate() {
            let decision = authorize(caller, *method, "acme");
            assert_eq!(decision.is_ok(), *allowed, "{} column {column}", method.name());
        }
    }
}

#[test]
fn a_tenant_out_of_sight_reads_like_one_that_is_not_there() {
    let caller = caller("acme", Role::Owner);
    for method in Method::ALL.iter().filter(|m| m.rule().0 == Scope::Tenant) {
        let refusal = authorize(&caller, *method, "globex").unwrap_err().into_status();
        let missing = Problem::not_found("tenant", "globex").into_status();
        assert_eq!(
            (refusal.code(), refusal.message(), refusal.details()),
            (missing.code(), missing.message(), missing.details())
        );
    }
}

#[test]
fn names_that_no_tenant_can_have_are_invalid_for_everyone() {
    let caller = caller("*", Role::Owner);
    for bad in ["a/b", "a/../b", "", ".", "..", "a\0", "a%2fb", &"x".repeat(300), "Acme", "\u{e9}", "e\u{301}", "*"] {
        let refusal = authorize(&caller, Method::ListAgents, bad).unwrap_err().into_status();
        assert_eq!(refusal.code(), tonic::Code::InvalidArgument, "{bad:?}");
    }
}

#[test]
fn the_highest_of_several_roles_counts() {
    let roles = [("*", Role::Viewer), ("acme", Role::Editor)];
    let roles = roles.map(|(t, r)| RoleBinding { tenant: t.into(), role: r.into() }).to_vec();
    let caller =
        Caller { operator: Operator { name: "op".into(), roles, ..Operator::default() }, expires_at: i64::MAX };
    assert!(authorize(&caller, Method::IssueToken, "acme").is_ok());
    assert!(authorize(&caller, Method::IssueToken, "globex").is_err());
    assert!(authorize(&caller, Method::ListTokens, "globex").is_ok());
    assert!(authorize(&caller, Method::CreateTenant, "").is_err());
}
