//! With etcd.

use bytes::Bytes;
use seks_control_plane::{
    backup,
    store::{self, Key, OpenError},
};
use seks_tests::{ControlPlaneHost, Etcd, runtime};

use super::{agents, make_agent};

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_backup_of_etcd_is_restored_below_another_prefix() {
    let etcd = runtime().block_on(Etcd::start());
    let machine = ControlPlaneHost::etcd(&etcd.url(), "/one/");
    machine.bootstrap();
    let running = machine.start();
    make_agent(&mut running.client(&machine.path("root")), "kept");
    let backup = machine.path("backup");
    let backup = backup.to_str().unwrap();
    machine.done(&["backup", "--out", backup]); // while it serves
    machine.refused(&["restore", "--from", backup], 5, &["there is a store"]);
    let other = ControlPlaneHost::etcd(&etcd.url(), "/two/");
    other.done(&["restore", "--from", backup]);
    other.refused(&[], 5, &["restored from a backup"]);
    other.done(&["accept-rollback", "--reason", "a drill"]);
    let restored = other.start();
    assert_eq!(agents(&mut restored.client(&machine.path("root"))), ["kept"]);
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn a_restore_into_etcd_that_was_interrupted_is_no_store_and_can_be_repeated() {
    let etcd = runtime().block_on(Etcd::start());
    let source = ControlPlaneHost::embedded();
    source.bootstrap();
    let backup = source.path("backup");
    source.done(&["backup", "--out", backup.to_str().unwrap()]);
    let machine = ControlPlaneHost::etcd(&etcd.url(), "/seks/");
    // What a restore leaves that is killed before its last transaction.
    runtime().block_on(async {
        let put = |key: Key, value: &'static [u8]| {
            let path = base64(format!("/seks/{key}").as_bytes());
            let stamped = [&[1_u8][..], &[0; 16], value].concat();
            let body = serde_json::json!({"key": path, "value": base64(&stamped)});
            etcd.call("kv/put", body)
        };
        put(Key::StoreId, b"restoring 00").await;
        put(Key::Agent("default".parse().unwrap(), "half".parse().unwrap()), b"").await;
        let opened = store::open(&machine.config).await.err();
        assert!(matches!(opened, Some(OpenError::Unfinished)), "{opened:?}");
        let half = backup::create_from(&machine.config, &machine.sealer(), &machine.path("b")).await;
        assert!(half.is_err());
    });
    machine.refused(&[], 2, &["restore", "not finished"]);
    machine.done(&["restore", "--from", backup.to_str().unwrap()]);
    machine.done(&["accept-rollback", "--reason", "a drill"]);
    let running = machine.start();
    assert!(agents(&mut running.client(&source.path("root"))).is_empty(), "what was half there is gone");
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn etcd_with_an_old_copy_of_its_data_is_noticed_while_running_and_at_start() {
    let mut etcd = runtime().block_on(Etcd::start());
    let machine = ControlPlaneHost::etcd(&etcd.url(), "/seks/");
    machine.bootstrap();
    etcd.kill();
    let copy = etcd.copy_data();
    runtime().block_on(etcd.restart());
    let mut running = machine.start();
    let mut client = running.client(&machine.path("root"));
    for n in 0..20 {
        make_agent(&mut client, &format!("later-{n}"));
    }
    etcd.kill();
    etcd.put_back(&copy);
    runtime().block_on(etcd.restart());
    let status = running.process.ended();
    assert_eq!(status.code(), Some(5), "{}", running.process.stderr());
    assert!(running.process.stderr().contains("accept-rollback"), "{}", running.process.stderr());
    machine.refused(&[], 5, &["revision", "accept-rollback"]);
    machine.done(&["accept-rollback", "--reason", "a drill"]);
    let running = machine.start();
    assert!(agents(&mut running.client(&machine.path("root"))).is_empty());
}

#[test]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn an_old_copy_that_was_put_back_while_no_replica_ran_is_refused_at_start() {
    let mut etcd = runtime().block_on(Etcd::start());
    let machine = ControlPlaneHost::etcd(&etcd.url(), "/seks/");
    machine.bootstrap();
    etcd.kill();
    let copy = etcd.copy_data();
    runtime().block_on(etcd.restart());
    let mut running = machine.start();
    let mut client = running.client(&machine.path("root"));
    make_agent(&mut client, "later");
    assert!(running.process.terminate().success(), "{}", running.process.stderr());
    etcd.kill();
    etcd.put_back(&copy);
    runtime().block_on(etcd.restart());
    machine.refused(&[], 5, &["revision", "accept-rollback"]);
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(Bytes::copy_from_slice(bytes))
}
