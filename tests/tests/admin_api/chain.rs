//! The chain of admin changes against somebody who can write to the store.

use seks_control_plane::store::{Key, Transaction, Write, key::AdminChainName};
use seks_proto::wire::{self, AuditFinding};
use seks_tests::Control;

fn chain() -> AdminChainName {
    AdminChainName::Tenant("default".parse().unwrap())
}

async fn findings(control: &Control) -> Vec<(String, String, u64, u64)> {
    let verified = control.root().verify_audit(wire::VerifyAuditRequest {}).await.unwrap().into_inner();
    let brief = |found: AuditFinding| (found.chain, found.kind, found.from, found.to);
    verified.findings.into_iter().map(brief).collect()
}

async fn agent(control: &Control, name: String) {
    let request = wire::CreateAgentRequest { tenant: "default".into(), name, attributes: Default::default() };
    control.root().create_agent(request).await.unwrap();
}

async fn write(control: &Control, write: Write) {
    let transaction = Transaction { checks: Vec::new(), writes: vec![write] };
    control.plane.registry().store().commit(transaction).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_at_the_same_time_are_one_whole_chain_and_what_is_removed_or_changed_is_found() {
    let control = Control::start().await;
    let agents = (0..8).map(|n| agent(&control, format!("bot-{n}")));
    futures_util::future::join_all(agents).await;
    assert_eq!(findings(&control).await, []);
    let store = control.plane.registry().store();
    let third = store.get(&Key::AdminChange(chain(), 3)).await.unwrap().unwrap();
    let found = |kind: &str, at| ("admin/default".to_owned(), kind.to_owned(), at, at);

    write(&control, Write::Delete(Key::AdminChange(chain(), 3))).await;
    assert_eq!(findings(&control).await, [found("gap", 3)]);
    write(&control, Write::Put(Key::AdminChange(chain(), 3), third.value.clone())).await;
    assert_eq!(findings(&control).await, []);

    let mut changed: wire::AdminChange = prost::Message::decode(third.value.clone()).unwrap();
    changed.operator = "somebody-else".into();
    let changed = prost::Message::encode_to_vec(&changed).into();
    write(&control, Write::Put(Key::AdminChange(chain(), 3), changed)).await;
    assert_eq!(findings(&control).await, [found("changed", 3)]);
    write(&control, Write::Put(Key::AdminChange(chain(), 3), third.value)).await;

    let head = store.get(&Key::AdminHead(chain())).await.unwrap().unwrap();
    let newest =
        store.list(&seks_control_plane::store::key::prefix::admin_changes(&chain())).await.unwrap().0.remove(0);
    write(&control, Write::Delete(newest.key.clone())).await;
    let Key::AdminChange(_, last) = newest.key else { panic!("{:?}", newest.key) };
    assert_eq!(findings(&control).await, [found("cut_tail", last)]);
    assert!(head.modified > 0);
}
