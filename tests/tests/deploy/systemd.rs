//! `deploy/README.md` as a stranger follows it: its commands, in their order, on a machine with a
//! booted systemd.

use std::{
    fs,
    path::{Path, PathBuf},
};

use seks_tests::{machine::Machine, process::binary};
use tempfile::TempDir;

use crate::deploy_dir;

/// Commands of the page in fences of `sh`, with the heading above them.
fn steps() -> Vec<(String, String)> {
    let page = fs::read_to_string(deploy_dir().join("README.md")).unwrap();
    let mut steps = Vec::new();
    let (mut heading, mut block) = (String::new(), None::<String>);
    for line in page.lines() {
        match (&mut block, line) {
            (None, "```sh") => block = Some(String::new()),
            (Some(_), "```") => steps.push((heading.clone(), block.take().unwrap())),
            (Some(block), line) => *block += &format!("{line}\n"),
            (None, line) if line.starts_with("##") => heading = line.trim_start_matches(['#', ' ']).to_owned(),
            (None, _) => {}
        }
    }
    steps
}

/// A folder laid out as the release archive is.
fn archive() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["seks", "seks-control-plane", "seks-data-plane"] {
        fs::hard_link(binary(name), directory.path().join(name))
            .or_else(|_| fs::copy(binary(name), directory.path().join(name)).map(drop))
            .unwrap();
    }
    copy(&deploy_dir(), &directory.path().join("deploy"));
    directory
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let target: PathBuf = to.join(entry.file_name().unwrap());
        if entry.is_dir() { copy(&entry, &target) } else { fs::copy(&entry, &target).map(drop).unwrap() }
    }
}

/// The vendor's API, which the page's commands would reach on the internet.
const UPSTREAM: &str = r#"
import http.server
class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers.get("authorization") == "Bearer REAL-KEY" and self.path == "/v1/models"
        body = b'{"data":["a-model"]}' if known else b'no'
        self.send_response(200 if known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", 9000), Api).serve_forever()
"#;

fn prepare(machine: &Machine) {
    machine.output(&format!(
        "cat >/root/upstream.py <<'END'\n{UPSTREAM}\nEND\nsystemd-run --unit=upstream python3 /root/upstream.py
         echo REAL-KEY >/root/openai-key && chmod 0600 /root/openai-key
         for unit in seks-control-plane seks-data-plane; do
             mkdir -p /etc/systemd/system/$unit.service.d
             printf '[Service]\\nEnvironment=SEKS_UPSTREAM_PRIVATE_NETWORKS=127.0.0.0/8\\n' >/etc/systemd/system/$unit.service.d/test.conf
         done"
    ));
}

const REQUEST: &str = "curl --fail --silent --show-error --cacert /root/agents-pki/ca.pem \
     -H \"Authorization: Bearer $(cat /root/agent-token)\" https://seks.example.net:8300/api/openai/v1/models";

#[test]
#[cfg_attr(not(has = "systemd"), ignore = "needs systemd")]
#[cfg_attr(not(has = "etcd"), ignore = "needs etcd")]
fn every_step_of_the_page_works_on_a_booted_systemd() {
    let archive = archive();
    let machine =
        Machine::boot(&["etcd-1", "etcd-2", "etcd-3", "control-1", "control-2", "seks.example.net"], archive.path());
    prepare(&machine);
    let steps = steps();
    let headings: Vec<&str> = steps.iter().map(|(heading, _)| heading.as_str()).collect();
    for wanted in
        ["Install", "etcd", "Control plane", "Node", "A first request", "Reload", "Evict a node", "Back up", "Restore"]
    {
        assert!(headings.contains(&wanted), "{headings:?} lacks {wanted}");
    }
    for (n, (heading, block)) in steps.iter().enumerate() {
        // The vendor is not reachable from here, and a stand-in for it is on loopback, which
        // tenants must be given.
        let commands = block.replace(
            "seks service enable openai\n",
            "seks tenant update default  --private-network 127.0.0.0/8\n\
             seks service enable openai --upstream http://127.0.0.1:9000 --allow-private\n",
        );
        let done = machine.run(&format!("cd /mnt\n{commands}"));
        let journal = || machine.run("journalctl --no-pager --lines 60 --unit 'seks-*' --unit etcd").stdout;
        assert_eq!(done.code, Some(0), "{heading}:\n{block}\n{}\n{}\n{}", done.stdout, done.stderr, journal());
        if steps.get(n + 1).is_none_or(|(next, _)| next != heading) {
            check(&machine, heading, &done.stdout);
        }
    }
    // A unit without a join token starts again, as after a boot.
    machine.output("systemctl restart seks-data-plane etcd seks-control-plane");
    machine.until(REQUEST);
    assert_eq!(machine.output("systemctl show --property=NRestarts --value seks-control-plane").trim(), "0");
}

/// What must hold after the commands of a heading.
fn check(machine: &Machine, heading: &str, printed: &str) {
    match heading {
        "Install" => {
            for unit in ["seks-control-plane", "seks-data-plane"] {
                let rating = machine.output(&format!(
                    "systemd-analyze verify {unit}.service; systemd-analyze security {unit} | tail -n 1"
                ));
                let level = rating.split(": ").nth(1).and_then(|level| level.split(' ').next()?.parse::<f64>().ok());
                assert!(level.is_some_and(|level| level <= 2.0), "{unit}: {rating}");
            }
        }
        "A first request" => {
            assert_eq!(printed.lines().last(), Some("{\"data\":[\"a-model\"]}"), "{printed}");
            // Nobody but root and the service reads what is private.
            let readable = machine.output("runuser -u nobody -- find /etc/seks /var/lib/seks-* /root -readable -type f 2>/dev/null | grep -E 'kek|key|token|mark|identity' || true");
            assert_eq!(readable, "");
            let status = machine.output("systemctl show --property=Type,ActiveState,StatusText seks-data-plane");
            assert!(status.contains("Type=notify") && status.contains("agents connect to"), "{status}");
        }
        "Reload" => {
            machine.until("journalctl --unit seks-data-plane | grep -q '\"filter\":\"debug\"'");
            // A certificate is replaced by file, without a restart and without a signal.
            let pid = machine.output("systemctl show --property=MainPID --value seks-data-plane");
            machine.output(
                "rm /root/agents-pki/seks.example.net.pem && etcd-pki /root/agents-pki server seks.example.net
                 install -m 0644 /root/agents-pki/seks.example.net.pem /etc/seks/tls/node.pem
                 install -m 0640 -g seks-data-plane /root/agents-pki/seks.example.net.key /etc/seks/tls/node.key",
            );
            machine.until(
                "test \"$(openssl s_client -connect seks.example.net:8300 </dev/null 2>/dev/null | openssl x509 -noout -serial)\" = \
                 \"$(openssl x509 -noout -serial -in /etc/seks/tls/node.pem)\"",
            );
            assert_eq!(machine.output("systemctl show --property=MainPID --value seks-data-plane"), pid);
        }
        "Evict a node" | "Restore" | "Rotate the key-encryption key" | "Upgrade" => machine.until(REQUEST),
        _ => {}
    }
}

#[test]
#[cfg_attr(not(has = "systemd"), ignore = "needs systemd")]
fn a_node_that_waits_to_enrol_says_so_and_stops_at_once() {
    let archive = archive();
    let machine = Machine::boot(&["control-1", "control-2"], archive.path());
    let (_, install) = steps().into_iter().find(|(heading, _)| heading == "Install").unwrap();
    machine.output(&format!("cd /mnt\n{install}"));
    let token = format!("seks_join_id.secret.{}", "ab".repeat(32));
    machine.output(&format!(
        "install -m 0640 -g seks-data-plane /dev/null /etc/seks/join-token; echo {token} >/etc/seks/join-token
         sed -i '/^tls = /d' /etc/seks/data-plane.toml
         systemctl start --no-block seks-data-plane"
    ));
    let state = "systemctl show --property=ActiveState,StatusText seks-data-plane";
    machine.until(&format!("{state} | grep -q 'waiting for an identity'"));
    machine.output("systemctl stop seks-data-plane");
    assert!(
        machine.output(state).contains("ActiveState=inactive"),
        "{}",
        machine.output("journalctl --unit seks-data-plane")
    );
}

#[test]
fn the_page_names_files_that_are_shipped() {
    let archive = archive();
    for (heading, block) in steps() {
        let words = block.split_whitespace().filter(|word| word.starts_with("deploy/") && !word.contains('*'));
        for word in words {
            assert!(archive.path().join(word).exists(), "{heading}: {word}");
        }
    }
}
