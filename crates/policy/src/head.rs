//! Policy heads: the agents, services and methods that a policy covers.

use cedar_policy::{ActionConstraint, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};

use super::schema::{Action, METHODS, Vocabulary};

/// The agents that a policy covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Agents {
    Any,
    One(Box<str>),
    Group(Box<str>),
    /// No agent can be it.
    None,
}

/// The services that a policy covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Services {
    Any,
    One(Box<str>),
    /// No service can be it.
    None,
}

/// The head of a policy, as names.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) agents: Agents,
    pub(super) services: Services,
    /// A bit for each of [`METHODS`].
    methods: u8,
    /// The actions that it covers. `None`: all.
    actions: Option<Box<[EntityUid]>>,
}

impl Head {
    pub(super) fn of(policy: &Policy, v: &Vocabulary) -> Self {
        let actions = match policy.action_constraint() {
            ActionConstraint::Any => None,
            ActionConstraint::Eq(uid) => Some(Box::from([uid])),
            ActionConstraint::In(uids) => Some(uids.into()),
        };
        Self { agents: agents(policy, v), services: services(policy, v), methods: methods(policy, v), actions }
    }

    /// The actions that it covers, as Cedar writes them. Empty: all.
    pub(super) fn action_names(&self) -> Vec<String> {
        self.actions.iter().flatten().map(ToString::to_string).collect()
    }

    /// Whether it covers the method at this index of [`METHODS`].
    pub(super) fn has_method(&self, method: usize) -> bool {
        self.methods & 1 << method != 0
    }

    /// Whether it covers a further method.
    pub(super) fn has_action(&self, action: &Action) -> bool {
        let covers = |uid: &EntityUid| *uid == action.method || Some(uid) == action.group.as_ref();
        self.actions.as_ref().is_none_or(|actions| actions.iter().any(covers))
    }
}

fn id(uid: &EntityUid) -> Box<str> {
    uid.id().unescaped().into()
}

fn agents(policy: &Policy, v: &Vocabulary) -> Agents {
    let named = |uid: &EntityUid| if v.is_agent(uid.type_name()) { Agents::One(id(uid)) } else { Agents::None };
    // An agent is in itself and in its groups.
    let within = |uid: &EntityUid| if v.is_group(uid.type_name()) { Agents::Group(id(uid)) } else { named(uid) };
    match policy.principal_constraint() {
        PrincipalConstraint::Any => Agents::Any,
        PrincipalConstraint::Eq(uid) => named(&uid),
        PrincipalConstraint::In(uid) => within(&uid),
        PrincipalConstraint::Is(kind) if v.is_agent(&kind) => Agents::Any,
        PrincipalConstraint::IsIn(kind, uid) if v.is_agent(&kind) => within(&uid),
        PrincipalConstraint::Is(_) | PrincipalConstraint::IsIn(..) => Agents::None,
    }
}

fn services(policy: &Policy, v: &Vocabulary) -> Services {
    let named = |uid: &EntityUid| if v.is_service(uid.type_name()) { Services::One(id(uid)) } else { Services::None };
    match policy.resource_constraint() {
        ResourceConstraint::Any => Services::Any,
        ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) => named(&uid),
        ResourceConstraint::Is(kind) if v.is_service(&kind) => Services::Any,
        ResourceConstraint::IsIn(kind, uid) if v.is_service(&kind) => named(&uid),
        ResourceConstraint::Is(_) | ResourceConstraint::IsIn(..) => Services::None,
    }
}

fn methods(policy: &Policy, v: &Vocabulary) -> u8 {
    let constraint = policy.action_constraint();
    let covers = |method: &usize| match (&constraint, v.action(*method)) {
        (ActionConstraint::Any, _) => true,
        (ActionConstraint::Eq(uid), Some(action)) => *uid == action.method,
        (ActionConstraint::In(uids), Some(action)) => {
            uids.iter().any(|uid| *uid == action.method || Some(uid) == action.group.as_ref())
        }
        (_, None) => false,
    };
    (0..METHODS.len()).filter(covers).fold(0, |bits, method| bits | 1 << method)
}
