//! `deploy/compose.yaml` without a container engine: its processes, with their users, capabilities,
//! read-only files and volumes that belong to root at first, each in a network namespace of its
//! own.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use seks_tests::{machine::Machine, process::binary};
use serde::Deserialize;
use serde_json::Value;

use crate::deploy_dir;

#[derive(Deserialize)]
struct Compose {
    services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Service {
    image: String,
    #[serde(default)]
    user: String,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    entrypoint: Vec<String>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    depends_on: BTreeMap<String, Value>,
    healthcheck: Option<Value>,
    #[serde(default)]
    profiles: Vec<String>,
}

fn compose() -> Compose {
    serde_saphyr::from_str(&fs::read_to_string(deploy_dir().join("compose.yaml")).unwrap()).unwrap()
}

/// Services whose programs are on this machine; those of the others' images are checked by what
/// they need of their volumes.
const RUN: [&str; 7] = ["etcd-1", "etcd-2", "etcd-3", "control-1", "control-2", "node-1", "node-2"];

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A script that runs a service in a mount namespace with its volumes, as its user, in the network
/// namespace of its name.
fn script(name: &str, service: &Service, more: &[&str]) -> String {
    let mut script = String::from("mount --make-rprivate /\n");
    let mut remounts = String::new();
    for volume in &service.volumes {
        let parts: Vec<&str> = volume.split(':').collect();
        let (from, to) = (parts[0], parts[1]);
        let from = match from.strip_prefix("./") {
            Some(file) => format!("/mnt/deploy/{file}"),
            None => format!("/volumes/{from}"),
        };
        writeln!(script, "if [ -d {from} ]; then mkdir -p {to}; else mkdir -p $(dirname {to}); touch {to}; fi")
            .unwrap();
        writeln!(script, "mount --bind {from} {to}").unwrap();
        if parts.get(2) == Some(&"ro") {
            writeln!(remounts, "mount -o remount,bind,ro {to}").unwrap();
        }
    }
    script += &remounts;
    if service.read_only {
        script += "mount -o remount,bind,ro /\n"; // the root alone: volumes stay as they are
    }
    let user = if service.user.is_empty() { "0:0" } else { service.user.as_str() };
    let (uid, gid) = user.split_once(':').unwrap();
    let words = service
        .entrypoint
        .iter()
        .map(String::as_str)
        .chain(service.command.iter().map(String::as_str))
        .chain(more.iter().copied());
    let words: Vec<String> = words.map(|word| quoted(&word.replace("$$", "$"))).collect();
    let words = if words.is_empty() { vec!["etcd".to_owned()] } else { words };
    let variables: Vec<String> = service.environment.iter().map(|(k, v)| quoted(&format!("{k}={v}"))).collect();
    let unprivileged = if uid == "0" { "" } else { "--no-new-privs --bounding-set=-all --inh-caps=-all" };
    writeln!(
        script,
        "exec env -i HOME=/ PATH=/usr/local/bin:/usr/bin:/bin {} setpriv --reuid {uid} --regid {gid} --clear-groups {unprivileged} -- {}",
        variables.join(" "),
        words.join(" ")
    )
    .unwrap();
    format!("ip netns exec {name} unshare --mount bash -euc {}", quoted(&script))
}

fn machine(compose: &Compose) -> (tempfile::TempDir, Machine) {
    let shared = tempfile::tempdir().unwrap();
    for name in ["seks", "seks-control-plane", "seks-data-plane"] {
        fs::hard_link(binary(name), shared.path().join(name))
            .or_else(|_| fs::copy(binary(name), shared.path().join(name)).map(drop))
            .unwrap();
    }
    super::systemd::copy(&deploy_dir(), &shared.path().join("deploy"));
    let machine = Machine::boot(&["machine.local"], shared.path());
    let mut setup = String::from(
        "install -m 0755 /mnt/seks /mnt/seks-control-plane /mnt/seks-data-plane /usr/local/bin/
         ip link add backbone type bridge && ip link set backbone up\n",
    );
    for (n, name) in RUN.iter().chain(&["tools"]).enumerate() {
        write!(
            setup,
            "ip netns add {name} && ip -n {name} link set lo up && ip link add v{n} type veth peer name eth0 netns {name}
             ip link set v{n} master backbone up && ip -n {name} addr add 10.214.0.{ip}/24 dev eth0 && ip -n {name} link set eth0 up
             echo 10.214.0.{ip} {name} >>/etc/hosts\n",
            ip = n + 1
        )
        .unwrap();
    }
    // As an engine makes them.
    compose.volumes.keys().for_each(|volume| writeln!(setup, "install -d -m 0755 -o root /volumes/{volume}").unwrap());
    machine.output(&setup);
    (shared, machine)
}

fn start(machine: &Machine, compose: &Compose, name: &str) {
    let script = script(name, &compose.services[name], &[]);
    machine.output(&format!(
        "systemd-run --quiet --unit={name} -p Restart=always -p RestartSec=500ms -p StartLimitIntervalSec=0 bash -c {}",
        quoted(&script)
    ));
}

fn tool(machine: &Machine, compose: &Compose, name: &str, more: &[&str], input: &str) -> String {
    let script = script("tools", &compose.services[name], more);
    let done = machine.run(&format!("{input} {script}"));
    assert_eq!(
        done.code,
        Some(0),
        "{name}: {done:?}\n{}",
        machine.run("journalctl --no-pager -n 40 -u 'control-*' -u 'etcd-*'").stdout
    );
    done.stdout
}

/// The health check of a service, in a namespace like the service's.
fn healthy(machine: &Machine, compose: &Compose, name: &str) {
    let service = &compose.services[name];
    let test = service.healthcheck.as_ref().unwrap_or_else(|| panic!("{name} has no health check"))["test"]
        .as_array()
        .unwrap();
    let words = test[1..].iter().map(|word| word.as_str().unwrap().to_owned()).collect();
    let check = Service {
        image: service.image.clone(),
        user: service.user.clone(),
        read_only: service.read_only,
        entrypoint: Vec::new(),
        command: words,
        environment: BTreeMap::from([("ETCDCTL_API".into(), "3".into())]),
        volumes: service.volumes.clone(),
        depends_on: BTreeMap::new(),
        healthcheck: None,
        profiles: Vec::new(),
    };
    machine.until(&script(name, &check, &[]));
}

#[test]
#[cfg_attr(not(has = "systemd"), ignore = "needs systemd")]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn compose_comes_up_on_fresh_volumes_of_root_and_serves() {
    let compose = compose();
    let (_shared, machine) = machine(&compose);
    tool(&machine, &compose, "prepare", &[], "");
    let kek = machine.output("sha256sum /volumes/seks-pki/kek /volumes/seks-pki/client.pem");
    tool(&machine, &compose, "prepare", &[], ""); // as each `up` does
    assert_eq!(machine.output("sha256sum /volumes/seks-pki/kek /volumes/seks-pki/client.pem"), kek);
    RUN.iter().for_each(|name| start(&machine, &compose, name));
    // The image of etcd has etcdctl.
    for name in RUN[..5].iter().filter(|name| name.starts_with("control-") || cfg!(has = "etcdctl")) {
        healthy(&machine, &compose, name);
    }
    tool(&machine, &compose, "bootstrap", &[], "");
    for n in ["1", "2"] {
        let token = tool(&machine, &compose, "seks", &["node", "enroll", "--region", "compose", "--ttl", "1h"], "");
        tool(&machine, &compose, "put-token", &[n], &format!("printf '%s' {} |", quoted(&token)));
    }
    healthy(&machine, &compose, "node-1");
    healthy(&machine, &compose, "node-2");
    let nodes = tool(&machine, &compose, "seks", &["node", "list"], "");
    assert_eq!(nodes.matches("connected").count(), 2, "{nodes}");
    // What the other images write to.
    for (user, volume) in [("10001", "audit"), ("65534", "prometheus"), ("65534", "alertmanager")] {
        machine.output(&format!("setpriv --reuid {user} --regid {user} --clear-groups touch /volumes/{volume}/probe"));
    }
    assert_eq!(machine.output("find /volumes/ca -name ca.key -perm 0600 -user root | wc -l").trim(), "1");
}

#[test]
fn services_wait_for_what_they_need_and_say_when_they_are_healthy() {
    let compose = compose();
    for (name, service) in &compose.services {
        assert!(!service.image.ends_with(":latest"), "{name}: {}", service.image);
        for needed in service.depends_on.keys() {
            assert!(compose.services.contains_key(needed), "{name} waits for {needed}");
        }
        for volume in service.volumes.iter().filter_map(|volume| volume.split(':').next()) {
            let there = match volume.strip_prefix("./") {
                Some(file) => deploy_dir().join(file).exists(),
                None => compose.volumes.contains_key(volume),
            };
            assert!(there, "{name}: {volume}");
        }
        let watched = !service.profiles.is_empty() || ["prepare", "collector", "jaeger"].contains(&name.as_str());
        assert!(watched || service.healthcheck.is_some(), "{name} has no health check");
    }
}

#[test]
fn the_collector_acknowledges_only_what_is_written() {
    let text = fs::read_to_string(deploy_dir().join("otel/collector.yaml")).unwrap();
    let collector: Value = serde_saphyr::from_str(&text).unwrap();
    let pipeline = &collector["service"]["pipelines"]["traces"];
    let processors: Vec<&str> = pipeline["processors"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(!processors.contains(&"batch"), "a batch acknowledges what it may lose: {processors:?}");
    for exporter in pipeline["exporters"].as_array().unwrap().iter().filter_map(Value::as_str) {
        let queue = &collector["exporters"][exporter]["sending_queue"];
        let durable = exporter.starts_with("file/") && queue.is_null() || queue["storage"] == "file_storage";
        assert!(durable, "{exporter}: {queue}");
    }
    assert!(collector["service"]["extensions"].as_array().unwrap().contains(&"file_storage".into()));
}
