//! Which tenants' records a node may hold: need to know.

use std::{collections::BTreeSet, sync::Arc};

use seks_proto::id::TenantName;

/// What enrolment said of a node. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Scope(Option<Arc<BTreeSet<TenantName>>>);

impl Scope {
    /// The tenants that a node's record names; none: every tenant. A name that is none picks nothing.
    pub(super) fn of(tenants: &[String]) -> Self {
        let names = || tenants.iter().filter_map(|t| TenantName::try_from(t.as_str()).ok()).collect();
        Self((!tenants.is_empty()).then(|| Arc::new(names())))
    }

    /// Whether records of `tenant` are sent.
    pub(super) fn holds(&self, tenant: &TenantName) -> bool {
        self.0.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tenant_is_every_tenant_and_a_wrong_one_is_none() {
        let t: TenantName = "acme".parse().unwrap();
        let of = |names: &[&str]| Scope::of(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert!(of(&[]).holds(&t) && of(&["acme", "b"]).holds(&t) && !of(&["b"]).holds(&t) && !of(&["B!"]).holds(&t));
        assert_eq!(of(&["a", "b"]), of(&["b", "a"]));
    }
}
