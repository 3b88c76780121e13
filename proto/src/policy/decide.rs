//! Evaluation of what a slice left over.

use std::sync::Arc;

use cedar_policy::{
    Authorizer, Context, Decision as Verdict, PolicyId as CedarId, Request, Response, RestrictedExpression as Value,
};

use super::{
    Body, Call, Decision, EvaluateError,
    schema::{action_index, vocabulary},
    slice::Cedar,
};
use crate::{id::PolicyId, request};

pub(super) fn denied() -> Decision {
    Decision { allowed: false, policy_ids: Arc::default(), audited: Arc::default(), error: None }
}

pub(super) fn evaluate(cedar: &Cedar, call: &Call<'_>, needs_body: bool) -> Option<Decision> {
    let v = vocabulary()?;
    if needs_body && matches!(call.body, Body::Opaque | Body::NotRead) {
        return None;
    }
    let action = v.actions.get(action_index(call.method)?)?.clone();
    let services = call.services.iter().map(|s| Value::new_entity_uid(v.service(s.as_str())));
    let token = Value::new_record([
        ("id".to_owned(), Value::new_string(call.token.as_str().into())),
        ("services".to_owned(), Value::new_set(services)),
        ("age_seconds".to_owned(), Value::new_long(call.age_seconds)),
    ])
    .ok()?;
    let names = request::names(call.query).map(|n| Value::new_string(n.into_owned()));
    let mut pairs = vec![
        ("path".to_owned(), Value::new_string(call.path.into())),
        ("query_keys".to_owned(), Value::new_set(names)),
        ("token".to_owned(), token),
        ("source".to_owned(), Value::new_ip(call.source.to_string())),
        ("body_inspected".to_owned(), Value::new_bool(!matches!(call.body, Body::Opaque | Body::NotRead))),
    ];
    if let Body::Inspected(facts) = call.body {
        let fields = [
            facts.model.clone().map(|m| ("model".to_owned(), Value::new_string(m))),
            facts.stream.map(|s| ("stream".to_owned(), Value::new_bool(s))),
            facts.max_tokens.map(|n| ("max_tokens".to_owned(), Value::new_long(n))),
        ];
        pairs.push(("body".to_owned(), Value::new_record(fields.into_iter().flatten()).ok()?));
    }
    let context = Context::from_pairs(pairs).ok()?;
    let request = Request::new(cedar.agent.clone(), action, cedar.service.clone(), context, Some(&v.schema)).ok()?;
    let authorizer = Authorizer::new();
    let response = authorizer.is_authorized(&request, &cedar.enforced, &cedar.entities);
    let audited = authorizer.is_authorized(&request, &cedar.audited, &cedar.entities);
    let error = error(&response);
    Some(Decision {
        allowed: response.decision() == Verdict::Allow && error.is_none(),
        policy_ids: ids(response.diagnostics().reason()),
        audited: ids(audited.diagnostics().reason()),
        error,
    })
}

fn error(response: &Response) -> Option<EvaluateError> {
    response.diagnostics().errors().next().map(|e| match e {
        cedar_policy::AuthorizationError::PolicyEvaluationError(e) => EvaluateError(id(e.policy_id())?).into(),
    })?
}

fn ids<'a>(ids: impl Iterator<Item = &'a CedarId>) -> Arc<[PolicyId]> {
    ids.filter_map(id).collect()
}

fn id(id: &CedarId) -> Option<PolicyId> {
    PolicyId::try_from(AsRef::<str>::as_ref(id)).ok()
}
