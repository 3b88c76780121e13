use prost::Message as _;
use seks_protocol::features;

use super::*;
use crate::changefeed::{change::Payload, recipient::Recipient, scope::NodeScope};

fn t() -> TenantName {
    "acme".parse().unwrap()
}

fn put(key: Key, record: &impl prost::Message) -> Write {
    Write::Put(key, record.encode_to_vec().into())
}

fn tenant(deleting: bool) -> Write {
    put(Key::Tenant(t()), &wire::Tenant { name: "acme".into(), deleting, ..Default::default() })
}

fn agent(disabled: bool, deleting: bool) -> Write {
    let record = wire::Agent { tenant: "acme".into(), name: "bot".into(), disabled, deleting, ..Default::default() };
    put(Key::Agent(t(), "bot".parse().unwrap()), &record)
}

fn token_record(id: &str, digest: u8) -> wire::Token {
    wire::Token {
        id: id.into(),
        tenant: "acme".into(),
        agent: "bot".into(),
        grants: vec![wire::Grant { service: "api".into(), credential: "main".into() }],
        expires_at: 1000,
        digest: vec![digest; 32],
        ..Default::default()
    }
}

fn token(id: &str, digest: u8) -> Write {
    put(Key::Token(t(), id.parse().unwrap()), &token_record(id, digest))
}

fn tombstone(id: &str, digest: u8) -> Write {
    put(Key::Tombstone(t(), id.parse().unwrap()), &token_record(id, digest))
}

fn delete_token(id: &str) -> Write {
    Write::Delete(Key::Token(t(), id.parse().unwrap()))
}

fn credential(version: u32) -> [Write; 2] {
    let name: CredentialName = "main".parse().unwrap();
    let record = wire::Credential { service: "api".into(), version, ..Default::default() };
    let envelope = Write::Put(Key::Envelope(t(), name.clone(), version), Bytes::from(vec![version as u8]));
    [put(Key::Credential(t(), name), &record), envelope]
}

fn assigned(version: u32, pools: &[&str]) -> Write {
    let pools = pools.iter().map(|pool| (*pool).to_owned()).collect();
    let record = wire::Credential { service: "api".into(), version, pools, ..Default::default() };
    put(Key::Credential(t(), "main".parse().unwrap()), &record)
}

fn policy(id: &str) -> Write {
    put(Key::Policy(t(), id.parse().unwrap()), &wire::Policy { id: id.into(), ..Default::default() })
}

/// What nodes are told, in short.
fn told(items: &[TableChange]) -> Vec<String> {
    let show = |item: &TableChange| match &item.payload {
        Payload::Requiring { .. } => "a token that requires something".into(),
        Payload::Credential(c) => format!("credential {} v{} {:?}", c.name, c.version, c.envelope),
        Payload::Shared { change, .. } => match wire::Change::decode(change.clone()).unwrap().change.unwrap() {
            Change::Tenant(t) => format!("tenant {}", t.name),
            Change::Agent(a) => format!("agent {} {}", a.name, if a.disabled { "off" } else { "on" }),
            Change::Service(s) => format!("service {}", s.service.unwrap().name),
            Change::Credential(c) => format!("sealed {}", c.name),
            Change::Policies(p) => format!("policies {}", p.policies.len()),
            Change::Token(t) => format!("token {} {}", String::from_utf8_lossy(&t.id), t.digest[0]),
            Change::Remove(r) => match r.what.unwrap() {
                What::Tenant(name) => format!("-tenant {name}"),
                What::Agent(n) => format!("-agent {}", n.name),
                What::Service(n) => format!("-service {}", n.name),
                What::Credential(n) => format!("-credential {}", n.name),
                What::Policies(tenant) => format!("-policies {tenant}"),
                What::Token(t) => format!("-token {} {} until {}", t.id, t.digest[0], t.until),
            },
        },
    };
    items.iter().map(show).collect()
}

fn table(changes: impl IntoIterator<Item = Write>) -> MaterializedTable {
    let mut table = MaterializedTable::default();
    table.take_changes([tenant(false)].into_iter().chain(changes).collect());
    table
}

/// Everything that a snapshot would send, sorted.
fn exported(table: &MaterializedTable) -> Vec<String> {
    let mut items = Vec::new();
    let credentials =
        table.export(|_| true, |_| true, |change| items.push(TableChange::plain(&t(), change.clone(), false)));
    items.extend(credentials.into_iter().map(TableChange::credential));
    let mut told = told(&items);
    told.sort_unstable();
    told
}

#[test]
fn a_change_to_an_agent_is_one_record_however_many_tokens_it_has() {
    let mut table = table((0..50).map(|n| token(&format!("tok-{n}"), n)).chain([agent(false, false)]));
    assert_eq!(table.tokens(), 50);
    assert_eq!(told(&table.take_changes(vec![agent(true, false)])), ["agent bot off"]);
    assert_eq!(
        told(&table.take_changes(vec![agent(false, true)])),
        ["agent bot off"],
        "one that is being deleted is off"
    );
    assert_eq!(told(&table.take_changes(vec![agent(false, false)])), ["agent bot on"]);
}

#[test]
fn revoking_is_said_once_whether_or_not_there_was_room_for_a_tombstone() {
    let mut full = table([token("tok-1", 1)]);
    assert_eq!(told(&full.take_changes(vec![delete_token("tok-1")])), ["-token tok-1 1 until 1000"]);
    let mut roomy = table([token("tok-1", 1)]);
    let both = roomy.take_changes(vec![delete_token("tok-1"), tombstone("tok-1", 1)]);
    assert_eq!(told(&both), ["-token tok-1 1 until 1000"]);
    assert_eq!(roomy.tokens(), 0);
    assert!(exported(&roomy).contains(&"-token tok-1 1 until 1000".into()), "a snapshot tells who missed it");
    assert!(roomy.take_changes(vec![Write::Delete(Key::Tombstone(t(), "tok-1".parse().unwrap()))]).is_empty());
    assert!(!exported(&roomy).iter().any(|line| line.contains("tok-1")));
}

#[test]
fn a_rotated_token_loses_its_old_digest_in_the_same_delta_and_first() {
    let mut table = table([token("tok-1", 1)]);
    let told = told(&table.take_changes(vec![token("tok-1", 2), tombstone("tok-buried", 1)]));
    assert_eq!(told[0], "-token tok-1 1 until 1000");
    assert!(told.contains(&"token tok-1 2".into()) && table.tokens() == 1);
}

#[test]
fn the_old_secret_of_a_rotation_with_a_grace_is_not_revoked() {
    for kept_first in [true, false] {
        let mut table = table([token("tok-1", 1)]);
        let kept = wire::Token { replaced_by: "tok-1".into(), ..token_record("tok-old", 1) };
        let kept = put(Key::Token(t(), "tok-old".parse().unwrap()), &kept);
        let both = if kept_first { vec![kept, token("tok-1", 2)] } else { vec![token("tok-1", 2), kept] };
        let told = told(&table.take_changes(both));
        assert!(told.iter().all(|item| !item.starts_with('-')), "{told:?}");
        assert!(told.contains(&"token tok-old 1".into()) && told.contains(&"token tok-1 2".into()), "{told:?}");
        assert_eq!(table.tokens(), 2);
    }
}

#[test]
fn an_old_secret_that_ends_in_the_same_events_is_revoked() {
    let mut table = table([token("tok-1", 1)]);
    let kept = wire::Token { replaced_by: "tok-1".into(), ..token_record("tok-old", 1) };
    let kept = put(Key::Token(t(), "tok-old".parse().unwrap()), &kept);
    let told = told(&table.take_changes(vec![kept, token("tok-1", 2), delete_token("tok-old")]));
    assert!(told.contains(&"-token tok-old 1 until 1000".into()), "{told:?}");
    assert_eq!(table.tokens(), 1);
}

#[test]
fn what_takes_rights_away_comes_first() {
    let mut table = table([token("tok-1", 1), agent(false, false)]);
    let items = table.take_changes(vec![agent(true, false), token("tok-2", 2), delete_token("tok-1")]);
    let revokes: Vec<bool> = items.iter().map(TableChange::revokes).collect();
    assert_eq!(revokes, [true, true, false]);
}

#[test]
fn a_credential_is_sent_while_a_token_reaches_it_and_in_its_current_version() {
    let mut table = table([]);
    assert_eq!(told(&table.take_changes(credential(1).into())), ["-credential main"], "nobody may use it");
    assert_eq!(told(&table.take_changes(vec![token("tok-1", 1)])), ["token tok-1 1", "credential main v1 b\"\\x01\""]);
    assert_eq!(told(&table.take_changes(vec![token("tok-2", 2)])), ["token tok-2 2"]);
    assert_eq!(told(&table.take_changes(credential(2).into())), ["credential main v2 b\"\\x02\""]);
    let name: CredentialName = "main".parse().unwrap();
    let rewrapped = Write::Put(Key::Envelope(t(), name.clone(), 2), Bytes::from_static(b"w"));
    assert!(table.take_changes(vec![rewrapped]).is_empty(), "another wrapping is the same secret");
    assert!(exported(&table).contains(&"credential main v2 b\"w\"".into()));
    assert_eq!(told(&table.take_changes(vec![delete_token("tok-1")])).len(), 1);
    let last = told(&table.take_changes(vec![delete_token("tok-2")]));
    assert!(last.contains(&"-credential main".into()), "{last:?}");
    let deleted = table.take_changes(vec![
        Write::Delete(Key::Credential(t(), name.clone())),
        Write::Delete(Key::Envelope(t(), name, 2)),
    ]);
    assert_eq!(told(&deleted), ["-credential main"]);
}

#[test]
fn a_tenant_that_is_being_deleted_is_gone_at_once_and_comes_back_whole() {
    let mut table = table([agent(false, false), token("tok-1", 1), policy("p")]);
    let before = exported(&table);
    assert_eq!(told(&table.take_changes(vec![tenant(true)])), ["-tenant acme"]);
    assert!(exported(&table).is_empty());
    assert!(table.take_changes(vec![agent(true, false)]).is_empty(), "nothing in it matters to nodes");
    table.take_changes(vec![agent(false, false)]);
    let mut back = told(&table.take_changes(vec![tenant(false)]));
    back.sort_unstable();
    assert_eq!(back, before);
}

#[test]
fn all_policies_of_a_tenant_are_one_record_and_none_takes_rights_away() {
    let mut table = table([policy("a")]);
    assert_eq!(told(&table.take_changes(vec![policy("b")])), ["policies 2"]);
    let gone = table.take_changes(vec![
        Write::Delete(Key::Policy(t(), "a".parse().unwrap())),
        Write::Delete(Key::Policy(t(), "b".parse().unwrap())),
    ]);
    assert!(told(&gone) == ["policies 0"] && gone[0].revokes());
}

#[test]
fn a_damaged_record_counts_as_absent_and_takes_nothing_else_with_it() {
    let mut table = table([agent(false, false), token("tok-1", 1)]);
    let damaged = Write::Put(Key::Agent(t(), "bot".parse().unwrap()), Bytes::from_static(&[0xff; 9]));
    assert_eq!(told(&table.take_changes(vec![damaged])), ["-agent bot"]);
    assert_eq!(table.tokens(), 1);
}

#[test]
fn records_that_are_none_of_the_nodes_business_mean_nothing_to_them() {
    let mut table = table([]);
    let node = put(Key::Node("n-1".parse().unwrap()), &wire::Node::default());
    let operator = put(Key::Operator("root".parse().unwrap()), &wire::Operator::default());
    assert!(table.take_changes(vec![node, operator, put(Key::Join("x".into()), &wire::Node::default())]).is_empty());
}

#[test]
fn following_changes_and_listing_afresh_come_to_the_same_table() {
    let history = [
        vec![agent(false, false), token("tok-1", 1), policy("a")],
        credential(1).into(),
        vec![token("tok-2", 2), policy("b")],
        credential(2).into(),
        vec![assigned(2, &["eu", "us"])],
        vec![delete_token("tok-1"), tombstone("tok-1", 1)],
        vec![assigned(2, &[])],
        vec![assigned(2, &["us"])],
        vec![token("tok-2", 3), agent(true, false)],
    ];
    let mut followed = table([]);
    let mut records = std::collections::BTreeMap::from([(Key::Tenant(t()), tenant(false))]);
    for changes in history {
        for change in &changes {
            match change {
                Write::Put(key, _) => drop(records.insert(key.clone(), change.clone())),
                Write::Delete(key) => drop(records.remove(key)),
            }
        }
        let before = followed.checksum(|_| true);
        let compiled = followed.apply(changes);
        let shifted = compiled.checksum_deltas.iter().fold(before, |sums, shift| sums.plus(&shift.delta));
        assert_eq!(shifted, followed.checksum(|_| true), "each change says by how much it moved the sum");
        let list = records.values().map(|write| match write {
            Write::Put(key, value) => Record { key: key.clone(), value: value.clone(), modified: 1 },
            Write::Delete(_) => panic!("removed above"),
        });
        let mut listed = MaterializedTable::load(list.collect(), false);
        assert_eq!(listed.checksum(|_| true), followed.checksum(|_| true));
        assert_eq!(exported(&listed), exported(&followed));
        assert_eq!(listed.tokens(), followed.tokens());
    }
}

#[test]
fn what_a_node_should_add_up_to_is_by_its_pools() {
    let node = |pools: &[&str]| {
        let pools = pools.iter().map(|pool| (*pool).to_owned()).collect();
        NodeScope::of_record(&wire::Node { pools, ..Default::default() })
    };
    let mut table = table([vec![token("tok-1", 1)], credential(1).into()].concat());
    let sum = |table: &mut MaterializedTable, pools: &[&str]| {
        table.checksum(|_| true).for_node(&recipient(node(pools), true))
    };
    let with = sum(&mut table, &[]);
    let without = table.checksum(|_| true).for_node(&recipient(node(&[]), false));
    assert_ne!(with, without);
    table.apply(vec![assigned(1, &["eu", "us"])]);
    let sums = [&[][..], &["asia"], &["us"], &["eu", "us"]].map(|pools| sum(&mut table, pools));
    assert_eq!(sums, [without, without, with, with]);
    table.apply(vec![assigned(1, &[])]);
    assert_eq!(
        (sum(&mut table, &[]), table.checksum(|_| true).for_node(&recipient(node(&[]), false))),
        (with, without)
    );
}

/// A node of `scope`, that takes credentials or doesn't.
fn recipient(scope: NodeScope, takes_credentials: bool) -> Recipient {
    let all = features::ALL.iter().filter(|_| takes_credentials).chain([&features::BINDING_V1]);
    Recipient::new(scope, &all.map(|feature| (*feature).to_owned()).collect::<Vec<_>>())
}

#[test]
fn a_token_that_requires_a_feature_adds_up_and_is_exported_for_nodes_that_have_it() {
    let token = |requires: &[&str]| {
        let requires = requires.iter().map(|feature| (*feature).to_owned()).collect();
        put(Key::Token(t(), "tok-9".parse().unwrap()), &wire::Token { requires, ..token_record("tok-9", 9) })
    };
    let older = recipient(NodeScope::default(), true);
    let mut table = table([]);
    let before = table.checksum(|_| true).for_node(&older);
    let told = table.take_changes(vec![token(&["later-v1"])]);
    let Some(Payload::Requiring { requires, withheld, .. }) = told.first().map(|change| &change.payload) else {
        panic!("sent to every node")
    };
    assert!(!older.can_enforce(requires) && !withheld.is_empty() && table.has_requirements());
    assert_eq!(table.checksum(|_| true).for_node(&older), before, "an older node is told of no token");
    let newer = Recipient::new(NodeScope::default(), &["later-v1".into()]);
    assert_ne!(table.checksum(|_| true).for_node(&newer), before);
    let exported = |table: &MaterializedTable, node: &Recipient| {
        let mut count = 0;
        table.export(|_| true, |requires| node.can_enforce(requires), |_| count += 1);
        count
    };
    assert_eq!(exported(&table, &newer), exported(&table, &older) + 1);
    table.take_changes(vec![token(&[])]);
    assert!(!table.has_requirements() && exported(&table, &newer) == exported(&table, &older));
    assert_ne!(table.checksum(|_| true).for_node(&older), before);
}
