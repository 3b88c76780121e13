//! The key-encryption key, wrapped by a real OpenBao and by moto's KMS.

use std::{fs, path::Path};

use seks_tests::{
    ControlPlaneHost, control_plane_host::RunningControlPlane, plane::Serving, process::wait_for, raw, runtime,
};
use serde_json::json;

use crate::{
    aws::Moto,
    bao::{Bao, ROOT},
};

/// A key service, and how a control plane is told to use it.
struct Service {
    /// TOML behind `[seal]`'s `kind`, `path` and `older`.
    config: String,
    kind: &'static str,
    /// Makes the service refuse the key, or permit it again.
    permit: Option<Box<dyn Fn(bool)>>,
}

fn transit(bao: &Bao, host: &ControlPlaneHost) -> (String, &'static str) {
    bao.call("POST", "sys/mounts/transit", &json!({ "type": "transit" }));
    bao.call("POST", "transit/keys/seks", &json!({}));
    host.write("bao-token", ROOT, 0o600);
    let token = host.path("bao-token");
    let config = format!("[seal.transit]\naddress = {:?}\nkey = \"seks\"\ntoken_file = {token:?}\n", bao.origin());
    (config, "vault-transit")
}

fn configure(host: &ControlPlaneHost, (kind, path): (&str, &str), older: &[&str], service: &str) {
    let older: Vec<_> = older.iter().map(|name| host.path(name)).collect();
    let store = host.path("data/store");
    host.configure_with(&format!(
        "[store]\npath = {store:?}\n[seal]\nkind = {kind:?}\npath = {:?}\nolder = {older:?}\ncheck_every = \"1s\"\n\
         refused_grace = \"5s\"\n{service}",
        host.path(path)
    ));
}

fn metric(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn page(running: &mut RunningControlPlane) -> String {
    let address = Serving::wait(&mut running.process).at("metrics").parse().unwrap();
    raw::exchange(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").text()
}

fn serves(host: &ControlPlaneHost, running: &RunningControlPlane) {
    let mut client = host.client(running);
    let asked = runtime().block_on(client.status(seks_proto::wire::StatusRequest::default()));
    assert!(asked.is_ok(), "{asked:?}");
}

/// What every service must do: wrap, open again, rotate, be away, refuse.
fn exercise(host: &ControlPlaneHost, service: &Service, stop_service: impl FnOnce()) {
    let create = |name: &str| host.done(&["create-kek", "--wrapped", "--out", host.path(name).to_str().unwrap()]);
    configure(host, (service.kind, "kek.1"), &[], &service.config);
    host.refused(&[], 2, &["kek.1"]);
    create("kek.1");
    let wrapped = fs::read_to_string(host.path("kek.1")).unwrap();
    assert!(wrapped.starts_with(&format!("seks-kek-v1 {} ", service.kind)), "{wrapped}");
    host.refused(&["create-kek", "--wrapped", "--out", host.path("kek.1").to_str().unwrap()], 2, &["exists"]);
    host.bootstrap();
    drop(host.start());
    // Rotation, as with any key.
    create("kek.2");
    configure(host, (service.kind, "kek.2"), &["kek.1"], &service.config);
    assert!(host.done(&["rotate-kek"]).contains("is the only one needed now"));
    configure(host, (service.kind, "kek.2"), &[], &service.config);
    let mut running = host.start();
    serves(host, &running);
    if let Some(permit) = &service.permit {
        refuse(host, running, permit);
        running = host.start();
    }
    // Away: nothing stops.
    stop_service();
    let unreachable = "seks_kek_checks_total{outcome=\"unreachable\"}";
    wait_for("more checks than the grace has", || (metric(&page(&mut running), unreachable) >= 7.0).then_some(()));
    serves(host, &running);
    assert!(!running.process.output().contains(ROOT), "a login came out");
    drop(running);
    host.refused(&[], 1, &["the key service is not available"]);
}

/// A refusal that ends before the grace has passed, and one that does not.
fn refuse(host: &ControlPlaneHost, mut running: RunningControlPlane, permit: &dyn Fn(bool)) {
    permit(false);
    wait_for("the refusal", || (metric(&page(&mut running), "seks_kek_refused_seconds") > 0.0).then_some(()));
    permit(true);
    wait_for("the permission", || (metric(&page(&mut running), "seks_kek_refused_seconds") == 0.0).then_some(()));
    serves(host, &running);
    permit(false);
    let status = running.process.ended();
    assert_eq!(status.code(), Some(1), "{}", running.process.output());
    host.refused(&[], 1, &["refuses the key-encryption key"]);
    permit(true);
}

#[test]
#[cfg_attr(not(has = "openbao"), ignore = "needs openbao")]
fn a_key_that_a_real_openbao_wraps() {
    let (mut bao, host) = (Bao::start(), ControlPlaneHost::embedded());
    let (config, kind) = transit(&bao, &host);
    let path = host.path("bao-token");
    // A token without rights is what a removed policy looks like.
    let permit = move |permitted| fs::write(&path, if permitted { ROOT } else { "no-such-token" }).unwrap();
    let service = Service { config, kind, permit: Some(Box::new(permit)) };
    exercise(&host, &service, || bao.stop());
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn a_key_that_kms_wraps() {
    let (moto, host) = (Moto::start(), ControlPlaneHost::embedded());
    let id = moto.create_key("seks");
    host.write("aws.json", &moto.key.to_string(), 0o600);
    let file = host.path("aws.json");
    let config = format!(
        "[seal.aws_kms]\nregion = \"us-east-1\"\nkey_id = {id:?}\nendpoint = {:?}\ncredentials_file = {file:?}\n",
        moto.url
    );
    // moto decrypts with a disabled key, which KMS does not.
    let service = Service { config, kind: "aws-kms", permit: None };
    exercise(&host, &service, || drop(moto));
}

#[test]
#[cfg_attr(not(has = "openbao"), ignore = "needs openbao")]
fn a_store_moves_from_a_file_to_a_key_service() {
    let (bao, host) = (Bao::start(), ControlPlaneHost::embedded());
    let (service, kind) = transit(&bao, &host);
    host.bootstrap();
    configure(&host, (kind, "kek.wrapped"), &["kek"], &service);
    host.done(&["create-kek", "--wrapped", "--out", host.path("kek.wrapped").to_str().unwrap()]);
    host.done(&["rotate-kek"]);
    configure(&host, (kind, "kek.wrapped"), &[], &service);
    serves(&host, &host.start());
    configure(&host, ("file", "kek.wrapped"), &[], "");
    host.refused(&[], 2, &["kek.wrapped"]);
    let backup = host.path("backup");
    configure(&host, (kind, "kek.wrapped"), &[], &service);
    assert!(host.done(&["backup", "--out", backup.to_str().unwrap()]).contains("sealed with key"));
    assert!(Path::new(&backup).exists());
}

#[test]
fn a_configuration_that_cannot_reach_a_key_service_is_named() {
    let host = ControlPlaneHost::embedded();
    for (kind, service, wanted) in [
        ("vault-transit", "", "seal.transit: is missing"),
        ("aws-kms", "", "seal.aws_kms: is missing"),
        ("file", "[seal.aws_kms]\nregion = \"a\"\n", "seal.aws_kms: is not of this kind"),
        ("vault-transit", "[seal.transit]\naddress = \"http://vault.test\"\nkey = \"k\"\n", "seal.transit.address"),
        ("vault-transit", "[seal.transit]\naddress = \"https://vault.test\"\nkey = \"k\"\n", "seal.transit.token_file"),
        (
            "vault-transit",
            "[seal.transit]\naddress = \"https://v.test\"\nkey = \"../k\"\ntoken_file = \"t\"\n",
            "seal.transit.key",
        ),
        ("aws-kms", "[seal.aws_kms]\nregion = \"a b\"\nkey_id = \"k\"\n", "seal.aws_kms.region"),
        ("aws-kms", "[seal.aws_kms]\nregion = \"eu-central-1\"\n", "seal.aws_kms.key_id"),
    ] {
        configure(&host, (kind, "kek"), &[], service);
        host.refused(&["--check-config"], 2, &[wanted]);
    }
}
