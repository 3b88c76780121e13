//! What was deleted and made again under its name is another: nothing that was given to the first
//! is good for the second.

use seks_proto::wire::{self, Role};
use seks_tests::{Control, control::Pair};
use tonic::Code;

fn delete(tenant: &str, name: &str) -> wire::DeleteRequest {
    let wait = Some(wire::Wait { no_wait: true, timeout_ms: 0 });
    wire::DeleteRequest { tenant: tenant.into(), name: name.into(), wait }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_made_again_at_once_is_not_the_one_that_was_deleted() {
    let control = Control::start().await;
    let old = control.operator("ann", &[("*", Role::Owner)]).await;
    let who = |pair: &Pair| {
        let mut client = control.client(pair);
        async move { client.who_am_i(wire::WhoAmIRequest {}).await.map_err(|status| status.code()).map(drop) }
    };
    assert_eq!(who(&old).await, Ok(()));
    let another = control.operator("ann", &[]).await; // a renewal: both are of the same
    assert_eq!((who(&old).await, who(&another).await), (Ok(()), Ok(())));
    for _ in 0..3 {
        control.root().delete_operator(delete("", "ann")).await.unwrap();
        assert_eq!(who(&old).await, Err(Code::PermissionDenied));
        let new = control.operator("ann", &[("*", Role::Viewer)]).await;
        assert_eq!((who(&new).await, who(&old).await), (Ok(()), Err(Code::PermissionDenied)));
        assert_eq!(who(&another).await, Err(Code::PermissionDenied));
    }
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_made_again_has_none_of_the_operators_of_the_one_that_was_deleted() {
    let control = Control::start().await;
    let mut root = control.root();
    let make = |name: &str| wire::CreateTenantRequest { name: name.into(), strict: false };
    let (acme, other) = (("acme", Role::Owner), ("other", Role::Viewer));
    root.create_tenant(make("acme")).await.unwrap();
    root.create_tenant(make("other")).await.unwrap();
    let (ann, bob) = (control.operator("ann", &[acme]).await, control.operator("bob", &[acme, other]).await);
    let sees = |pair: &Pair, tenant: &str| {
        let (mut client, name) = (control.client(pair), tenant.to_owned());
        async move { client.get_tenant(wire::NameRequest { tenant: String::new(), name }).await.is_ok() }
    };
    assert!(sees(&ann, "acme").await && sees(&bob, "acme").await);
    root.delete_tenant(delete("", "acme")).await.unwrap();
    root.create_tenant(make("acme")).await.unwrap();
    assert!(!sees(&ann, "acme").await && !sees(&bob, "acme").await && sees(&bob, "other").await);
    control.plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_made_again_has_none_of_the_tokens_of_the_one_that_was_deleted() {
    let control = Control::start().await;
    let mut root = control.root();
    super::quotas::furnish(&control, "acme").await;
    super::world::put_tokens(&control, "acme", 250).await;
    root.delete_agent(delete("acme", "bot")).await.unwrap();
    let bot = wire::CreateAgentRequest { tenant: "acme".into(), name: "bot".into(), ..Default::default() };
    root.create_agent(bot).await.unwrap();
    let list = wire::ListRequest { tenant: "acme".into(), page_size: 10, ..Default::default() };
    assert!(root.list_tokens(list).await.unwrap().into_inner().tokens.is_empty());
    let usage = root.get_tenant(wire::NameRequest { tenant: String::new(), name: "acme".into() }).await.unwrap();
    let usage = usage.into_inner().usage.unwrap();
    assert_eq!((usage.tokens, usage.revoked), (0, 250), "nodes say revoked");
    control.plane.shutdown().await;
}
