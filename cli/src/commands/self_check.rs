//! `seks self-check`: what this program is, and what protects it on this machine. Asks no control
//! plane.

use serde::Serialize;

use crate::{
    error::Result,
    global::Global,
    output::View,
    sandbox::{self, Mode},
};

/// One property.
#[derive(Debug, Serialize)]
pub struct Property {
    name: &'static str,
    /// Whether the protection is in effect; absent for facts.
    on: Option<bool>,
    detail: String,
}

impl View for Property {
    const COLUMNS: &'static [&'static str] = &["check", "state", "detail"];
    fn row(&self) -> Vec<String> {
        let state = self.on.map_or("", |on| if on { "on" } else { "off" });
        vec![self.name.into(), state.into(), self.detail.clone()]
    }
}

fn fact(name: &'static str, detail: impl Into<String>) -> Property {
    Property { name, on: None, detail: detail.into() }
}

fn protection(name: &'static str, on: bool, detail: impl Into<String>) -> Property {
    Property { name, on: Some(on), detail: detail.into() }
}

/// Prints the properties.
///
/// # Errors
/// When standard output is closed.
pub async fn run(global: &Global) -> Result<()> {
    let mut found = vec![
        fact("version", seks_runtime::VERSION),
        fact("build", if cfg!(debug_assertions) { "debug: for development" } else { "optimized" }),
        fact("platform", format!("{}, {}", std::env::consts::OS, std::env::consts::ARCH)),
        fact("kernel", kernel()),
        fact(
            "planes",
            if cfg!(target_os = "linux") { "nodes and replicas run here" } else { "nodes and replicas need Linux" },
        ),
        protection("memory", true, "freed memory is wiped"),
        protection(
            "tls",
            true,
            "rustls with aws-lc-rs; TLS 1.2 and 1.3 towards agents and upstreams, 1.3 between the planes",
        ),
    ];
    found.extend(process());
    for (mode, name) in [(Mode::Default, "sandbox"), (Mode::Strict, "sandbox (strict)")] {
        let missing = sandbox::not_confined(mode).await;
        let detail = if missing.is_empty() {
            "`seks run` confines all of it".into()
        } else {
            format!("not confined: {}", missing.join("; "))
        };
        found.push(protection(name, missing.is_empty(), detail));
    }
    global.output().list("properties", &found)
}

fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {}", std::env::consts::OS, release.trim()).trim_end().to_owned()
}

/// What the planes set for themselves when they start, tried on this process.
#[cfg(target_os = "linux")]
fn process() -> Vec<Property> {
    use seks_runtime::{descriptors, harden};
    let hardened = match harden::harden_process() {
        Ok(()) => protection("process", true, "no core dumps, no ptrace by the same user, no new privileges"),
        Err(error) => protection("process", false, format!("the planes would not start: {error}")),
    };
    descriptors::raise();
    let limit = descriptors::limit();
    let connections = descriptors::affordable(limit, 2);
    vec![
        hardened,
        protection(
            "open files",
            limit >= descriptors::LEAST,
            format!("{limit}: a node serves {connections} connections"),
        ),
    ]
}

#[cfg(not(target_os = "linux"))]
fn process() -> Vec<Property> {
    vec![protection("process", false, "core dumps and debuggers are limited by the planes on Linux alone")]
}
