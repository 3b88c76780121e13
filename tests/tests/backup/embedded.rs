//! With an embedded store.

use std::fs;

use seks_control_plane::{
    seal::RecordId,
    store::{self, Key},
};
use seks_proto::wire::{self, admin_client::AdminClient};
use seks_tests::{ControlPlaneHost, runtime};
use tonic::transport::Channel;

use super::{agents, make_agent};

/// A machine whose store has the agent `kept`, and its backup, made before the agent `later` was.
fn backed_up() -> ControlPlaneHost {
    let machine = ControlPlaneHost::embedded();
    machine.bootstrap();
    let mut running = machine.start();
    let mut client = running.client(&machine.path("root"));
    make_agent(&mut client, "kept");
    assert!(running.process.terminate().success());
    let said = machine.done(&["backup", "--out", machine.path("backup").to_str().unwrap()]);
    assert!(said.contains("records") && said.contains("revision"), "{said}");
    let mut running = machine.start();
    make_agent(&mut running.client(&machine.path("root")), "later");
    assert!(running.process.terminate().success());
    machine
}

#[test]
fn a_restored_backup_serves_once_somebody_has_said_that_it_may() {
    let machine = backed_up();
    let backup = machine.path("backup");
    let backup = backup.to_str().unwrap();
    machine.refused(&["backup", "--out", backup], 2, &["--out", "exists"]);
    machine.refused(&["restore", "--from", backup], 5, &["there is a store", "--replace"]);
    machine.done(&["restore", "--from", backup, "--replace"]);
    machine.refused(&[], 5, &["restored from a backup", "accept-rollback"]);
    machine.refused(&["accept-rollback", "--reason", " "], 2, &["--reason"]);
    machine.done(&["accept-rollback", "--reason", "the disk was lost"]);
    let mut running = machine.start();
    let mut client = running.client(&machine.path("root"));
    assert_eq!(agents(&mut client), ["kept"]);
    make_agent(&mut client, "new");
    assert!(running.process.terminate().success());
    machine.start(); // and again, without being asked

    // A machine that never saw the old store is no less careful, and the one CA goes with the
    // store.
    let other = ControlPlaneHost::embedded();
    other.done(&["restore", "--from", backup]);
    other.refused(&[], 5, &["restored from a backup"]);
    other.done(&["accept-rollback", "--reason", "moved"]);
    let running = other.start();
    assert_eq!(agents(&mut running.client(&machine.path("root"))), ["kept"]);
}

#[test]
fn a_restored_store_has_an_epoch_of_its_own_and_its_secrets_open() {
    let machine = backed_up();
    let (backup, other) = (machine.path("backup"), ControlPlaneHost::embedded());
    other.done(&["restore", "--from", backup.to_str().unwrap()]);
    runtime().block_on(async {
        let (old, new) = (store::open(&machine.config).await.unwrap(), store::open(&other.config).await.unwrap());
        assert_ne!(old.store_id(), new.store_id());
        let sealer = other.sealer();
        let moved = new.get(&Key::Authority).await.unwrap().unwrap().value;
        sealer.open_now(&RecordId::authority(new.store_id()), &moved).unwrap();
        assert!(sealer.open_now(&RecordId::authority(old.store_id()), &moved).is_err(), "bound to the old store still");
    });
}

/// A service whose key goes to `upstream`.
fn service(upstream: &str) -> wire::ApplyServiceRequest {
    let value = wire::injection::NamedValue { name: "authorization".into(), value: "Bearer {key}".into() };
    let at = Some(wire::injection::site::At::Header(value));
    let service = wire::Service {
        tenant: "default".into(),
        name: "upstream".into(),
        upstream: upstream.into(),
        fields: vec!["key".into()],
        injection: Some(wire::Injection { sites: vec![wire::injection::Site { at }], ..Default::default() }),
        slots: vec![wire::TokenSlot { at: Some(wire::token_slot::At::Scheme("Bearer".into())) }],
        ..Default::default()
    };
    wire::ApplyServiceRequest { service: Some(service), wait: no_wait() }
}

fn no_wait() -> Option<wire::Wait> {
    Some(wire::Wait { no_wait: true, timeout_ms: 0 })
}

#[test]
fn a_restored_credential_is_bound_to_its_destination_in_the_new_store_too() {
    let machine = ControlPlaneHost::embedded();
    machine.bootstrap();
    let mut running = machine.start();
    let mut client = running.client(&machine.path("root"));
    let put = |secret: &str| wire::PutCredentialRequest {
        tenant: "default".into(),
        name: "key".into(),
        service: "upstream".into(),
        secret: secret.into(),
        wait: no_wait(),
        ..Default::default()
    };
    runtime().block_on(async {
        client.apply_service(service("https://api.example.com")).await.unwrap();
        client.put_credential(put("sk-real-restored-0001")).await.unwrap();
    });
    assert!(running.process.terminate().success());
    let backup = machine.path("backup");
    machine.done(&["backup", "--out", backup.to_str().unwrap()]);

    let other = ControlPlaneHost::embedded();
    other.done(&["restore", "--from", backup.to_str().unwrap()]);
    other.done(&["accept-rollback", "--reason", "moved"]);
    let running = other.start();
    let mut client = running.client(&machine.path("root"));
    let is_unbound = |mut client: AdminClient<Channel>| async move {
        let key = wire::NameRequest { tenant: "default".into(), name: "key".into() };
        client.get_credential(key).await.unwrap().into_inner().unbound
    };
    runtime().block_on(async {
        assert!(!is_unbound(client.clone()).await);
        client.apply_service(service("https://elsewhere.example.com")).await.unwrap();
        assert!(is_unbound(client.clone()).await, "the binding went with the backup");
        let rollback = wire::RollbackCredentialRequest {
            tenant: "default".into(),
            name: "key".into(),
            wait: no_wait(),
            ..Default::default()
        };
        client.put_credential(put("sk-other-for-elsewhere-01")).await.unwrap();
        assert!(!is_unbound(client.clone()).await);
        let refused = client.rollback_credential(rollback).await.unwrap_err();
        assert!(refused.message().contains("another destination"), "{refused}");
    });
}

#[test]
fn an_old_copy_of_the_store_is_noticed_and_refused_until_it_is_accepted() {
    let machine = ControlPlaneHost::embedded();
    machine.bootstrap();
    let (store, copy) = (machine.config.path.clone(), machine.path("copy"));
    fs::copy(&store, &copy).unwrap();
    let mut running = machine.start();
    make_agent(&mut running.client(&machine.path("root")), "later");
    assert!(running.process.terminate().success());
    fs::copy(&copy, &store).unwrap();
    machine.refused(&[], 5, &["revision", "before", "accept-rollback"]);
    machine.refused(&["rotate-kek"], 5, &["accept-rollback"]);
    machine.done(&["accept-rollback", "--reason", "disk replaced"]);
    let mut running = machine.start();
    assert!(agents(&mut running.client(&machine.path("root"))).is_empty());
    assert!(running.process.terminate().success());
    fs::copy(&copy, &store).unwrap(); // once more: what was accepted was that time
    machine.refused(&[], 5, &["accept-rollback"]);
}

#[test]
fn a_backup_that_is_cut_changed_or_of_another_key_is_one_line_and_writes_nothing() {
    let machine = backed_up();
    let whole = fs::read(machine.path("backup")).unwrap();
    let other = ControlPlaneHost::embedded();
    let bad = other.path("bad");
    let from = ["restore", "--from", bad.to_str().unwrap()];
    for length in [0, 5, 14, 40, 200, whole.len() / 2, whole.len() - 1] {
        fs::write(&bad, &whole[..length]).unwrap();
        other.refused(&from, 2, &["bad", "not a backup"]);
    }
    for at in [0, 20, 60, whole.len() / 3, whole.len() / 2, whole.len() - 200, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&bad, &changed).unwrap();
        other.refused(&from, 2, &["bad"]);
    }
    fs::write(&bad, [&whole[..], b"x"].concat()).unwrap();
    other.refused(&from, 2, &["bad", "added"]);
    fs::write(&bad, &whole).unwrap();
    other.write("other-kek", "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100", 0o600);
    other.configure_kek("other-kek", "");
    other.refused(&from, 2, &["bad", "key-encryption key"]);
    other.refused(&["restore", "--from", other.path("missing").to_str().unwrap()], 2, &["missing"]);
    assert!(!other.path("data").exists(), "a refused restore has written something");
    other.configure("");
    other.done(&from);
}

#[test]
fn a_store_in_use_is_neither_replaced_nor_read() {
    let machine = backed_up();
    let backup = machine.path("backup");
    let _running = machine.start();
    machine.refused(&["restore", "--from", backup.to_str().unwrap(), "--replace"], 2, &["in use"]);
    machine.refused(&["backup", "--out", machine.path("b2").to_str().unwrap()], 2, &["in use"]);
    assert!(!machine.path("b2").exists());
}

#[test]
fn a_backup_of_nothing_is_refused_and_makes_no_store() {
    let machine = ControlPlaneHost::embedded();
    machine.refused(&["backup", "--out", machine.path("b").to_str().unwrap()], 3, &["no store"]);
    assert!(!machine.path("data").exists() && !machine.path("b").exists());
}
