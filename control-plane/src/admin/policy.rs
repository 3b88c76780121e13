//! Policies: stored and checked.

use std::sync::Arc;

use seks_policy::{self as policy, Declarations, PolicyError};
use seks_proto::wire::{
    ApplyPoliciesRequest, ApplyPoliciesResponse, ChangeResponse, CheckPoliciesRequest, CheckPoliciesResponse,
    DeleteRequest, ListPoliciesResponse, ListRequest, NameRequest, Policy, PolicySchemaRequest, PolicySchemaResponse,
};

use super::{Admin, Answer, auth::Caller, parse::name, unknown_entities::unknown_entities};
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
    let mut warnings = unknown_entities(admin.registry(), &tenant, &text).await.unwrap_or_default();
    let declared = admin.registry().declarations(&tenant).await.unwrap_or_default();
    warnings.extend(run.run(move || policy::warnings(&text, &declared)).await.unwrap_or_default());
    let policies = policies.into_iter().map(without_digest).collect();
    Ok(ApplyPoliciesResponse { policies, enforcement, warnings: sorted(warnings) })
}

/// The digest of a short query tells the query.
fn without_digest(policy: Policy) -> Policy {
    Policy { request_sha256: Vec::new(), ..policy }
}

fn sorted(mut warnings: Vec<PolicyError>) -> Vec<String> {
    warnings.sort_by_key(|warning| warning.line);
    listed(&warnings)
}

/// The schema that this tenant's policies are checked against.
pub(super) async fn schema(admin: &Admin, _: &Caller, message: PolicySchemaRequest) -> Answer<PolicySchemaResponse> {
    let declared = admin.registry().declarations(&name("tenant", &message.tenant)?).await?;
    Ok(PolicySchemaResponse { text: policy::schema_text(&declared.body_fields) })
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
    let policies = policies.into_iter().map(without_digest).collect();
    Ok(ListPoliciesResponse { policies, next_page_token })
}

pub(super) async fn get(admin: &Admin, _: &Caller, message: NameRequest) -> Answer<Policy> {
    let policy = admin.registry().policy(&name("tenant", &message.tenant)?, &name("name", &message.name)?).await?;
    Ok(without_digest(policy))
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
    let declared = admin.registry().declarations(&tenant).await?;
    let unknown = unknown_entities(admin.registry(), &tenant, &text).await?;
    let run = admin.policy_run(caller, &tenant);
    let checked = run.run(move || check_file(&text, &declared, unknown));
    Ok(checked.await.map_err(RegistryError::from)??)
}

fn check_file(
    text: &str,
    declared: &Declarations,
    mut warnings: Vec<PolicyError>,
) -> Result<CheckPoliciesResponse, RegistryError> {
    match check_policies(text, declared) {
        Ok(policies) => {
            let policy_ids = policies.into_iter().map(|policy| policy.id.to_string()).collect();
            warnings.extend(policy::warnings(text, declared));
            Ok(CheckPoliciesResponse { policy_ids, errors: Vec::new(), warnings: sorted(warnings) })
        }
        Err(RegistryError::Policies(errors)) => {
            Ok(CheckPoliciesResponse { errors: listed(&errors), ..CheckPoliciesResponse::default() })
        }
        Err(error) => Err(error),
    }
}
