//! What a node may hold: need to know.

use std::{collections::BTreeSet, sync::Arc};

use seks_proto::wire;
use seks_protocol::features;
use seks_types::id::{PoolName, TenantName};

/// What enrolment said of a node. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    /// `None`: every tenant.
    tenants: Option<Arc<BTreeSet<TenantName>>>,
    /// The pools that it belongs to.
    pools: Arc<BTreeSet<PoolName>>,
}

impl Scope {
    /// What a node's record names: no tenant is every tenant, no pool is no pool. A name that is none picks nothing.
    pub(crate) fn of(node: &wire::Node) -> Self {
        let tenants = || node.tenants.iter().filter_map(|t| TenantName::try_from(t.as_str()).ok()).collect();
        Self {
            tenants: (!node.tenants.is_empty()).then(|| Arc::new(tenants())),
            pools: Arc::new(node.pools.iter().filter_map(|p| PoolName::try_from(p.as_str()).ok()).collect()),
        }
    }

    /// Whether records of `tenant` are sent.
    pub(crate) fn holds(&self, tenant: &TenantName) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }

    /// Whether a credential is sent that is assigned to `pools`, of a tenant whose records are. None: to every node.
    pub(crate) fn is_assigned(&self, pools: &[String]) -> bool {
        pools.is_empty() || pools.iter().any(|pool| self.pools.contains(pool.as_str()))
    }
}

/// Whether the node can evaluate and inject everything that this build can ask for. What it can't do, it must not get.
pub(crate) fn is_whole(known: &[String]) -> bool {
    features::ALL.iter().all(|feature| known.iter().any(|k| k == feature))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(tenants: &[&str], pools: &[&str]) -> Scope {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Scope::of(&wire::Node { tenants: owned(tenants), pools: owned(pools), ..Default::default() })
    }

    #[test]
    fn no_tenant_is_every_tenant_and_a_wrong_one_is_none() {
        let t: TenantName = "acme".parse().unwrap();
        let holds = |names: &[&str]| scope(names, &[]).holds(&t);
        assert!(holds(&[]) && holds(&["acme", "b"]) && !holds(&["b"]) && !holds(&["B!"]));
        assert_eq!(scope(&["a", "b"], &[]), scope(&["b", "a"], &[]));
    }

    #[test]
    fn no_pool_is_no_pool() {
        let eu = ["eu".to_owned(), "eu-2".to_owned()];
        assert!(scope(&[], &[]).is_assigned(&[]) && scope(&[], &["us"]).is_assigned(&[]));
        assert!(scope(&[], &["us", "eu-2"]).is_assigned(&eu));
        assert!(!scope(&[], &[]).is_assigned(&eu) && !scope(&[], &["us"]).is_assigned(&eu));
        assert!(!scope(&[], &["", "E U"]).is_assigned(&["".into(), "E U".into()]));
    }
}
