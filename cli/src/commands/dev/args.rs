//! The options of `seks dev`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

/// The options of `seks dev`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  seks dev --demo
  seks dev --data-dir /var/lib/seks --proxy-listen 127.0.0.1:9000
  seks dev --proxy-listen 127.0.0.1:0 --ready-file ready.json

While it runs, your other `seks` commands use it, unless you have your own context. SIGTERM and Ctrl-C drain and end it.")]
pub struct DevArgs {
    /// Also start a stub upstream, and show one request through the proxy
    #[arg(long)]
    pub demo: bool,
    /// Print no line for each request
    #[arg(long, short)]
    pub quiet: bool,
    /// Data directory, mode 0700; keep it outside of agents' working folders [default:
    /// $XDG_STATE_HOME/seks/dev, which is ~/.local/state/seks/dev]
    #[arg(long, value_name = "DIR", env = "SEKS_DEV_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of the proxy for agents; port 0 selects a free port [default: 127.0.0.1:8300]
    #[arg(long, value_name = "ADDRESS")]
    pub proxy_listen: Option<SocketAddr>,
    /// Address for agents' HTTPS_PROXY [default: not offered]
    #[arg(long, value_name = "ADDRESS")]
    pub forward_proxy_listen: Option<SocketAddr>,
    /// Address of the admin API
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8301")]
    pub admin_listen: SocketAddr,
    /// Address of /metrics, /healthz and /readyz [default: 127.0.0.1:8302]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// Address of the page for browsers, on loopback [default: 127.0.0.1:8304, or a free port if
    /// that is taken]
    #[arg(long, value_name = "ADDRESS", value_parser = loopback)]
    pub page_listen: Option<SocketAddr>,
    /// Write the addresses to this file, as JSON, when all listeners serve
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// TOML with the sections proxy, upstream, audit and telemetry of data-plane.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A Host name that agents may use, besides localhost and the address; repeatable
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
}

/// The page has no TLS here, so it is for this machine alone.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "an address looks like 127.0.0.1:8304".to_owned())?;
    if address.ip().is_loopback() { Ok(address) } else { Err("the page is served on loopback only".into()) }
}
