//! `seks doctor --config`: each fault on this machine, made for real.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use seks_tests::{
    Sandbox,
    process::{Finished, binary, run},
    sandbox::{Options, clean_environment},
};
use serde_json::Value;

fn doctor(folder: &Path, arguments: &[&str]) -> Finished {
    let mut command = Command::new(binary("seks"));
    clean_environment(&mut command);
    command.current_dir(folder).env("HOME", folder).args(["doctor", "-o", "json", "--config"]).args(arguments);
    run(&mut command, b"")
}

fn write_private(path: &Path, text: impl AsRef<[u8]>) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A port that is free now.
fn free() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A control plane's file, with these parts changed.
fn control(folder: &Path, changes: &[(&str, &str)]) {
    let mut text = format!(
        "[store]\nkind = \"embedded\"\npath = \"store/seks.redb\"\n[seal]\npath = \"kek\"\n[admin]\nlisten = \"{}\"\n\
         [distribution]\nlisten = \"{}\"\n[telemetry]\nmetrics_listen = \"{}\"\n",
        free(),
        free(),
        free()
    );
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    fs::write(folder.join("c.toml"), text).unwrap();
}

/// The one check that failed, after every other one was well.
#[track_caller]
fn fault(finished: &Finished, name: &str) -> Value {
    let found: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"));
    assert_eq!((finished.code, &found["healthy"]), (Some(1), &Value::Bool(false)), "{found}");
    let failed: Vec<&Value> = found["checks"].as_array().unwrap().iter().filter(|c| c["state"] == "failed").collect();
    assert_eq!(failed.len(), 1, "{found}");
    assert_eq!(failed[0]["name"], name, "{found}");
    assert!(!failed[0]["advice"].as_str().unwrap().is_empty(), "{found}");
    failed[0].clone()
}

#[test]
fn the_doctor_of_a_control_planes_file_names_each_fault() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_private(&folder.join("kek"), "x");
    control(folder, &[]);
    let well = doctor(folder, &["c.toml"]);
    assert_eq!(well.code, Some(0), "{well:?}");
    for name in ["configuration", "admin.listen", "distribution.listen", "seal.path", "disk of the store", "open files"]
    {
        assert!(well.stdout.contains(&format!("\"{name}\"")), "{name}: {}", well.stdout);
    }
    assert!(!folder.join("store").exists(), "nothing is made");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    control(
        folder,
        &[("[distribution]\nlisten = \"127.0.0.1:", &format!("[distribution]\nlisten = \"{address}\" # "))],
    );
    let in_use = fault(&doctor(folder, &["c.toml"]), "distribution.listen");
    assert!(in_use["detail"].as_str().unwrap().contains(&address), "{in_use}");
    control(folder, &[("[admin]\nlisten = \"127.0.0.1:", "[admin]\nlisten = \"192.0.2.7:")]);
    fault(&doctor(folder, &["c.toml"]), "admin.listen");

    control(folder, &[("path = \"kek\"", "path = \"gone\"")]);
    fault(&doctor(folder, &["c.toml"]), "seal.path");
    fs::set_permissions(folder.join("kek"), fs::Permissions::from_mode(0o644)).unwrap();
    control(folder, &[]);
    fault(&doctor(folder, &["c.toml"]), "seal.path");
    write_private(&folder.join("kek"), "x");

    let endpoint = format!("kind = \"etcd\"\nendpoints = [\"http://{}\"]\nallow_plaintext = true", free());
    control(folder, &[("kind = \"embedded\"\npath = \"store/seks.redb\"", &endpoint)]);
    let found: Value = serde_json::from_str(&doctor(folder, &["c.toml"]).stdout).unwrap();
    let failed: Vec<&Value> = found["checks"].as_array().unwrap().iter().filter(|c| c["state"] == "failed").collect();
    assert!(failed.len() == 1 && failed[0]["name"].as_str().unwrap().starts_with("store http://"), "{found}");

    control(folder, &[("[admin]\n", "[page]\nlisten = \"127.0.0.1:0\"\nurl = \"http://a\"\n[admin]\n")]);
    let url = fault(&doctor(folder, &["c.toml"]), "configuration");
    assert!(url["detail"].as_str().unwrap().contains("page.url"), "{url}");
    control(folder, &[("[admin]\n", "[admin]\nnope = 1\n")]);
    assert!(fault(&doctor(folder, &["c.toml"]), "configuration")["detail"].as_str().unwrap().contains("admin.nope"));
    fs::write(folder.join("c.toml"), "[store]\nkind =\n").unwrap();
    assert!(fault(&doctor(folder, &["c.toml"]), "configuration")["detail"].as_str().unwrap().contains("line 2"));

    fs::write(folder.join("file"), "").unwrap();
    control(folder, &[("store/seks.redb", "file/seks.redb")]);
    let found: Value = serde_json::from_str(&doctor(folder, &["c.toml"]).stdout).unwrap();
    assert_eq!(found["healthy"], false, "{found}");
    assert!(found.to_string().contains("is not a directory"), "{found}");
}

#[test]
fn the_doctor_of_a_listeners_certificate_and_of_a_node_names_each_fault() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_private(&folder.join("kek"), "x");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["x".into()]).unwrap();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2020, 1, 2));
    fs::write(folder.join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    write_private(&folder.join("key.pem"), key.serialize_pem());
    let tls = "[admin]\ntls = { cert_file = \"cert.pem\", key_file = \"key.pem\" }\n";
    control(folder, &[("[admin]\n", tls)]);
    assert!(fault(&doctor(folder, &["c.toml"]), "admin.tls.cert_file")["detail"].as_str().unwrap().contains("2020"));

    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = |endpoint: &str, more: &str| {
        let text = format!(
            "[node]\nregion = \"r\"\ndata_dir = \"node\"\n[control]\nendpoints = [\"https://{endpoint}\"]\n{more}\n\
             [proxy]\nlisten = \"{}\"\n[telemetry]\nmetrics_listen = \"{}\"\n",
            free(),
            free()
        );
        fs::write(folder.join("d.toml"), text).unwrap();
    };
    let here = listening.local_addr().unwrap().to_string();
    write_private(&folder.join("join"), "x");
    node(&here, "join_token_file = \"join\"");
    let well = doctor(folder, &["d.toml"]);
    assert_eq!(well.code, Some(0), "{well:?}");
    node(&here, "join_token_file = \"gone\"");
    fault(&doctor(folder, &["d.toml"]), "control.join_token_file");
    node(&here, "");
    let finished = doctor(folder, &["d.toml"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let away = free();
    node(&away, "join_token_file = \"join\"");
    fault(&doctor(folder, &["d.toml"]), &format!("control plane https://{away}"));

    // What is no plane's file.
    fs::write(folder.join("e.toml"), "[other]\n").unwrap();
    for (file, why) in [("e.toml", "neither"), ("gone.toml", "no such file"), (".", "directory")] {
        let finished = doctor(folder, &[file]);
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(finished.stderr.starts_with("error: ") && finished.stderr.contains(why), "{finished:?}");
    }
}

#[test]
fn the_doctor_of_running_planes_finds_their_own_addresses_in_use_and_says_so() {
    let sandbox = Sandbox::with(Options::planes(""));
    let folder = sandbox.data_dir();
    let folder = if folder.join("control-plane.toml").exists() { folder } else { folder.parent().unwrap().to_owned() };
    let text = fs::read_to_string(folder.join("control-plane.toml")).unwrap();
    let metrics = sandbox.control_metrics().unwrap().to_string();
    let text = text.replace("metrics_listen = \"127.0.0.1:0\"", &format!("metrics_listen = \"{metrics}\""));
    let text = text.replacen("listen = \"127.0.0.1:0\"", &format!("listen = \"{}\"", sandbox.admin()), 1);
    fs::write(folder.join("running.toml"), text).unwrap();
    let found = doctor(&folder, &["running.toml"]);
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(found.stdout.contains("is in use, and the plane is ready"), "{found:?}");
}
