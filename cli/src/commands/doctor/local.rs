//! `seks doctor --config FILE`: a plane's configuration on the machine where it is to run. Nothing
//! is started or changed, and no secret is printed.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{Access, access, statvfs};
use seks_control_plane::{Config as ControlConfig, ControlPlane, config::ListenerTlsConfig};
use seks_data_plane::{Config as NodeConfig, METRICS_LISTEN, Node, sync::Identity};
use seks_proto::wire;
use seks_runtime::{config::Loader, descriptors, private_file, probes};
use serde::de::DeserializeOwned;

use super::checks::{self, Check};
use crate::{
    client,
    duration::unix_now,
    error::{CliError, Result, one_line, plain_io},
    output::rfc3339,
};

/// Longest wait for a connection to a store or a control plane.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Sections that only one of the two files has.
const CONTROL_SECTIONS: [&str; 7] = ["store", "seal", "admin", "distribution", "authority", "quota", "page"];
const NODE_SECTIONS: [&str; 4] = ["node", "control", "proxy", "forward_proxy"];
/// A certificate that ends within this is worth a warning.
const CERTIFICATE_WARNING: i64 = 7 * 24 * 3600;
/// Share of the spool's size above which it is worth a warning.
const SPOOL_WARNING: f64 = 0.8;

/// Checks the file and what it names.
///
/// # Errors
/// When the file cannot be read, or is of no plane. What is wrong in it is a check.
pub(super) async fn examine(path: &Path) -> Result<Vec<Check>> {
    let text = std::fs::read_to_string(path).map_err(|error| CliError::file(path, &error))?;
    let sections: Vec<String> = match text.parse::<toml::Table>() {
        Ok(table) => table.keys().cloned().collect(),
        Err(error) => {
            let at = error.span().map_or(1, |span| text.get(..span.start).unwrap_or_default().lines().count().max(1));
            let detail = format!("{}: line {at}: {}", path.display(), one_line(error.message()));
            return Ok(vec![Check::failed("configuration", detail).advise("correct the file")]);
        }
    };
    let has = |known: &[&str]| sections.iter().any(|section| known.contains(&section.as_str()));
    match (has(&CONTROL_SECTIONS), has(&NODE_SECTIONS)) {
        (true, false) => Ok(control_plane(path).await),
        (false, true) => Ok(node(path).await),
        _ => Err(CliError::usage(path.display().to_string(), "neither a control-plane.toml nor a data-plane.toml")
            .hint("a control plane has [store] and [seal], a node has [control] and [proxy]")),
    }
}

/// The configuration as the plane reads it, or the check that says what is wrong.
fn load<T: DeserializeOwned + Default + 'static>(
    path: &Path,
    check: impl Fn(&T) -> std::result::Result<(), String>,
) -> std::result::Result<T, Check> {
    let failed = |detail: String| Check::failed("configuration", detail).advise("correct the file");
    let config: T = Loader::new().file(Some(path)).process_environment().load().map_err(|error| {
        let at =
            if error.key.is_empty() { error.origin.to_string() } else { format!("{}: {}", error.origin, error.key) };
        failed(format!("{at}: {}", error.reason))
    })?;
    check(&config).map_err(|why| failed(format!("{}: {why}", path.display())))?;
    Ok(config)
}

async fn control_plane(path: &Path) -> Vec<Check> {
    let config = match load(path, |config| ControlPlane::check(config).map_err(|error| chain(&error))) {
        Ok::<ControlConfig, _>(config) => config,
        Err(check) => return vec![check],
    };
    let metrics = config.telemetry.metrics_listen;
    let is_running = metrics.is_some_and(|address| probes::check_ready(address).is_ok());
    let mut found = vec![Check::good("configuration", format!("{}: a control plane", path.display()))];
    let listeners = [
        ("admin.listen", Some(config.admin.listen)),
        ("distribution.listen", Some(config.distribution.listen)),
        ("page.listen", config.page.listen),
        ("telemetry.metrics_listen", metrics),
    ];
    found.extend(listeners.iter().filter_map(|(key, address)| Some(listener(key, (*address)?, is_running))));
    if !config.seal.path.as_os_str().is_empty() {
        found.push(private("seal.path", &config.seal.path));
    }
    for (section, tls) in
        [("admin", &config.admin.tls), ("distribution", &config.distribution.tls), ("page", &config.page.tls)]
    {
        found.extend(listener_certificate(section, tls));
    }
    for endpoint in &config.store.endpoints {
        found.push(reaches("store", endpoint, 2379, "is etcd running there, and is the network open?").await);
    }
    found.extend(config.disks().iter().flat_map(|(usage, dir)| directory(usage, dir)));
    found.push(open_files());
    found
}

async fn node(path: &Path) -> Vec<Check> {
    let config = match load(path, |config| Node::check(config).map_err(|error| chain(&error))) {
        Ok::<NodeConfig, _>(config) => config,
        Err(check) => return vec![check],
    };
    let metrics = config.telemetry.metrics_listen.unwrap_or(METRICS_LISTEN);
    let is_running = probes::check_ready(metrics).is_ok();
    let mut found = vec![Check::good("configuration", format!("{}: a node", path.display()))];
    let forward = config.forward_proxy.as_ref().map(|forward| forward.listen);
    let listeners = [
        ("proxy.listen", Some(config.proxy.listen)),
        ("forward_proxy.listen", forward),
        ("telemetry.metrics_listen", Some(metrics)),
    ];
    found.extend(listeners.iter().filter_map(|(key, address)| Some(listener(key, (*address)?, is_running))));
    if let Some(tls) = &config.proxy.tls {
        found.push(certificate("proxy.tls.cert_file", &tls.cert_file));
        found.push(private("proxy.tls.key_file", &tls.key_file));
    }
    found.push(identity(&config));
    for endpoint in &config.control.endpoints {
        found.push(
            reaches("control plane", endpoint, 8303, "is a replica running there, and is the network open?").await,
        );
    }
    found.extend(directory("node", &config.node.data_dir));
    found.extend(spool(&config));
    found.push(open_files());
    found
}

/// An error with its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Whether the plane can listen there. An address in use is right while the plane runs.
fn listener(key: &str, address: SocketAddr, is_running: bool) -> Check {
    match TcpListener::bind(address) {
        Ok(_) => Check::good(key, format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && is_running => {
            Check::good(key, format!("{address} is in use, and the plane is ready"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Check::failed(key, format!("{address} is in use, and not by a plane that is ready"))
                .advise(format!("find the program with `ss -ltnp`, or change {key}"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Check::failed(key, format!("{address}: {}", plain_io(&error)))
                .advise("use a port above 1023, or AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit")
        }
        Err(error) => Check::failed(key, format!("{address}: {}", plain_io(&error)))
            .advise(format!("change {key} to an address of this machine")),
    }
}

/// A file with a secret: there, ours, and closed to others. It is not read.
fn private(key: &str, path: &Path) -> Check {
    match private_file::open_private(path) {
        Ok(_) => Check::good(key, format!("{} is there, and closed to others", path.display())),
        Err(error) => {
            let detail = format!("{}: {}", path.display(), plain_io(&error));
            let advice = match error.kind() {
                std::io::ErrorKind::NotFound if key == "seal.path" => {
                    "restore the key from its backup; a new store needs a new one: seks-control-plane create-kek"
                }
                std::io::ErrorKind::NotFound => "correct the path",
                _ => "check its owner and its mode, as the user of the plane",
            };
            Check::failed(key, detail).advise(advice)
        }
    }
}

fn listener_certificate(section: &str, tls: &ListenerTlsConfig) -> Vec<Check> {
    if tls.is_empty() {
        return Vec::new(); // of our own CA, renewed while it runs
    }
    let key = |name: &str| format!("{section}.tls.{name}");
    vec![certificate(&key("cert_file"), &tls.cert_file), private(&key("key_file"), &tls.key_file)]
}

fn certificate(key: &str, path: &Path) -> Check {
    let pem = match std::fs::read_to_string(path) {
        Ok(pem) => pem,
        Err(error) => {
            return Check::failed(key, format!("{}: {}", path.display(), plain_io(&error))).advise("correct the path");
        }
    };
    let now = unix_now();
    match client::valid_until(&pem) {
        None => Check::failed(key, format!("{}: not a certificate in PEM", path.display())).advise("correct the file"),
        Some(until) if until <= now => {
            Check::failed(key, format!("expired at {}", rfc3339(until))).advise("renew the certificate")
        }
        Some(until) if until - now < CERTIFICATE_WARNING => {
            Check::warning(key, format!("expires at {}", rfc3339(until))).advise("renew the certificate")
        }
        Some(until) => Check::good(key, format!("valid until {}", rfc3339(until))),
    }
}

/// Whether a TCP connection to an endpoint is accepted.
async fn reaches(what: &str, endpoint: &str, port: u16, advice: &str) -> Check {
    let name = format!("{what} {endpoint}");
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).trim_end_matches('/');
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let target = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
    match tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect(&target)).await {
        Ok(Ok(_)) => Check::good(name, "accepts connections"),
        Ok(Err(error)) => Check::failed(name, plain_io(&error)).advise(advice),
        Err(_) => Check::failed(name, format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())).advise(advice),
    }
}

/// A directory that the plane writes to, and its disk.
fn directory(usage: &str, dir: &Path) -> Vec<Check> {
    let name = format!("directory of the {usage}");
    // The plane makes what is missing.
    let whole = if dir.is_absolute() { dir.to_owned() } else { Path::new(".").join(dir) };
    let Some(there) = whole.ancestors().find(|path| path.exists()).map(Path::to_owned) else {
        return vec![Check::failed(name, format!("{}: no such directory", dir.display())).advise("correct the path")];
    };
    if !there.is_dir() {
        let detail = format!("{} is not a directory", there.display());
        return vec![Check::failed(name, detail).advise("correct the path")];
    }
    let mut found = vec![writable(&name, &there, dir)];
    found.extend(disk(usage, &there));
    found
}

fn writable(name: &str, there: &Path, dir: &Path) -> Check {
    match access(there, Access::WRITE_OK) {
        Ok(()) => Check::good(name, format!("{} can be written", dir.display())),
        Err(error) => {
            let detail = format!("{}: {}", there.display(), plain_io(&error.into()));
            Check::failed(name, detail).advise("check owner and mode, and whether the file system is read-only")
        }
    }
}

fn disk(usage: &str, path: &Path) -> Vec<Check> {
    let Ok(disk) = statvfs(path) else { return Vec::new() };
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    let (free_bytes, total_bytes) = (bytes(disk.f_bavail), bytes(disk.f_blocks));
    checks::disks(&[wire::Disk { r#use: usage.into(), free_bytes, total_bytes }])
}

/// Whether the node has enrolled, or can.
fn identity(config: &NodeConfig) -> Check {
    let name = "node certificate";
    let now = unix_now();
    match Identity::load(&config.node.data_dir) {
        Ok(Some(identity)) => match identity.validity() {
            Some((_, until)) if until <= now => Check::failed(name, format!("expired at {}", rfc3339(until)))
                .advise("enrol the node again: seks node enroll, and remove identity.json from node.data_dir"),
            Some((_, until)) => Check::good(name, format!("`{}`, valid until {}", identity.node(), rfc3339(until))),
            None => Check::failed(name, "cannot be read").advise("enrol the node again: seks node enroll"),
        },
        Ok(None) if config.node.svid.is_some() => Check::good(name, "of the mesh"),
        Ok(None) => match &config.control.join_token_file {
            Some(file) => private("control.join_token_file", file),
            None => Check::failed(name, "the node has not enrolled, and control.join_token_file is missing")
                .advise("seks node enroll --region REGION --out FILE"),
        },
        Err(error) => Check::failed(name, chain(&error)).advise("check owner and mode of node.data_dir"),
    }
}

/// How full the spool of audit records is.
fn spool(config: &NodeConfig) -> Option<Check> {
    let dir: PathBuf = config.node.data_dir.join("spool");
    let files = std::fs::read_dir(dir).ok()?.flatten().filter_map(|entry| entry.metadata().ok());
    let bytes: u64 = files.filter(std::fs::Metadata::is_file).map(|file| file.len()).sum();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let detail = format!("{:.1} of {:.0} MiB wait for a control plane", mib(bytes), mib(config.audit.spool_bytes));
    let is_full = bytes as f64 > config.audit.spool_bytes as f64 * SPOOL_WARNING;
    Some(match is_full {
        true => Check::warning("spool", detail).advise(
            "is a replica with audit.dir reachable? With audit.mode = \"required\" a full spool refuses requests",
        ),
        false => Check::good("spool", detail),
    })
}

fn open_files() -> Check {
    match descriptors::require() {
        Ok(()) => Check::good("open files", format!("{} are allowed in this shell", descriptors::limit())),
        Err(error) => Check::failed("open files", error.to_string()).advise("raise LimitNOFILE= of the unit"),
    }
}
