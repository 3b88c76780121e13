//! The chain of admin changes against somebody who can write to the store.

use std::future::Future;

use seks_audit::admin::{KEPT, digest};
use seks_control_plane::{
    registry::AdminHead,
    store::{Key, Transaction, Write, key::AdminChainName},
};
use seks_proto::wire::{self, AuditFinding};
use seks_tests::Control;

fn chain() -> AdminChainName {
    AdminChainName::Tenant("default".parse().unwrap())
}

async fn findings(control: &Control) -> Vec<(String, String, u64, u64)> {
    let verified = control.root().verify_audit(wire::VerifyAuditRequest::default()).await.unwrap().into_inner();
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

/// A hostile editor makes so many changes that the store gives up the oldest: those are in the
/// trail by then, listed and verified.
#[tokio::test(flavor = "multi_thread")]
async fn an_editor_cannot_push_changes_out_of_the_chain() {
    let control = Control::start().await;
    agent(&control, "victim".into()).await;
    let store = control.plane.registry().store();
    let head = || async {
        let head = store.get(&Key::AdminHead(chain())).await.unwrap().unwrap();
        <AdminHead as prost::Message>::decode(head.value).unwrap()
    };
    // Most of what the editor does is written at once; the last hundreds come as calls.
    let mut end = head().await;
    let own = end.sequence;
    let filled = KEPT + 300;
    while end.sequence < filled {
        let mut writes = Vec::new();
        for sequence in end.sequence + 1..=filled.min(end.sequence + 100) {
            let (operator, at_us) = ("eve".to_owned(), end.at_us + 1);
            let change =
                wire::AdminChange { sequence, operator, at_us, previous: end.digest.clone(), ..Default::default() };
            let encoded = prost::Message::encode_to_vec(&change);
            end = AdminHead { sequence, digest: digest(&encoded).0.to_vec(), at_us };
            writes.push(Write::Put(Key::AdminChange(chain(), sequence), encoded.into()));
        }
        writes.push(Write::Put(Key::AdminHead(chain()), prost::Message::encode_to_vec(&end).into()));
        store.commit(Transaction { checks: Vec::new(), writes }).await.unwrap();
    }
    let flood = (0..64).map(|n| agent(&control, format!("flood-{n}")));
    futures_util::future::join_all(flood).await;
    let total = head().await.sequence;
    assert!(total > filled);
    // The store gives up the oldest change in the end, which is in the trail.
    wait_until("the store to give up the first change", || async {
        store.get(&Key::AdminChange(chain(), 1)).await.unwrap().is_none()
    })
    .await;
    let verified = control.root().verify_audit(wire::VerifyAuditRequest::default()).await.unwrap().into_inner();
    assert_eq!(verified.findings, []);
    let request = wire::AdminChangesRequest { tenant: "default".into(), object: "victim".into(), ..Default::default() };
    let listed = control.root().list_admin_changes(request).await.unwrap().into_inner();
    assert_eq!(listed.entries.len(), 1, "the first change is found behind {total} others");
    assert!(verified.admin_changes >= total && own > 0);

    // Whoever removes the archive's files is found.
    let archive = control.dir().join("data/store.audit/admin");
    for file in std::fs::read_dir(&archive).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "adm") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let found = findings(&control).await;
    let first = ("admin/default".to_owned(), "gap".to_owned(), 1);
    assert!(found.iter().any(|(chain, kind, from, _)| (chain.clone(), kind.clone(), *from) == first), "{found:?}");
}

async fn wait_until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !is_so().await {
        assert!(std::time::Instant::now() < until, "waited for {what}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
