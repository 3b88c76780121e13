//! What a node may hold: need to know.

use std::{collections::BTreeSet, sync::Arc};

use seks_proto::wire;
use seks_types::id::{PoolName, TenantName};

/// What enrolment said of a node. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct NodeScope {
    /// `None`: every tenant.
    tenants: Option<Arc<BTreeSet<TenantName>>>,
    /// The pools that it belongs to.
    pools: Arc<BTreeSet<PoolName>>,
}

impl NodeScope {
    /// What a node's record names: no tenant is every tenant, no pool is no pool. A name that is
    /// none picks nothing.
    pub(crate) fn of_record(node: &wire::Node) -> Self {
        let tenants = || node.tenants.iter().filter_map(|t| TenantName::try_from(t.as_str()).ok()).collect();
        Self {
            tenants: (!node.tenants.is_empty()).then(|| Arc::new(tenants())),
            pools: Arc::new(node.pools.iter().filter_map(|p| PoolName::try_from(p.as_str()).ok()).collect()),
        }
    }

    /// Whether records of `tenant` are sent.
    pub(crate) fn includes_tenant(&self, tenant: &TenantName) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }

    /// Whether a credential is sent that is assigned to `pools`, of a tenant whose records are.
    /// None: to every node.
    pub(crate) fn includes_pools(&self, pools: &[String]) -> bool {
        pools.is_empty() || pools.iter().any(|pool| self.pools.contains(pool.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(tenants: &[&str], pools: &[&str]) -> NodeScope {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        NodeScope::of_record(&wire::Node { tenants: owned(tenants), pools: owned(pools), ..Default::default() })
    }

    #[test]
    fn no_tenant_is_every_tenant_and_a_wrong_one_is_none() {
        let t: TenantName = "acme".parse().unwrap();
        let holds = |names: &[&str]| scope(names, &[]).includes_tenant(&t);
        assert!(holds(&[]) && holds(&["acme", "b"]) && !holds(&["b"]) && !holds(&["B!"]));
        assert_eq!(scope(&["a", "b"], &[]), scope(&["b", "a"], &[]));
    }

    #[test]
    fn no_pool_is_no_pool() {
        let eu = ["eu".to_owned(), "eu-2".to_owned()];
        assert!(scope(&[], &[]).includes_pools(&[]) && scope(&[], &["us"]).includes_pools(&[]));
        assert!(scope(&[], &["us", "eu-2"]).includes_pools(&eu));
        assert!(!scope(&[], &[]).includes_pools(&eu) && !scope(&[], &["us"]).includes_pools(&eu));
        assert!(!scope(&[], &["", "E U"]).includes_pools(&["".into(), "E U".into()]));
    }
}
