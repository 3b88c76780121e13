//! The options of `seks dev`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

/// How to start it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  seks dev --demo
  seks dev --data-dir /var/lib/seks --proxy-listen 127.0.0.1:9000
  seks dev --proxy-listen 127.0.0.1:0 --ready-file ready.json

While it runs, your other `seks` commands talk to it, unless you have a context of your own. SIGTERM and Ctrl-C drain and end it.")]
pub struct DevArgs {
    /// Also start a stand-in upstream, and show one request on its way through the proxy
    #[arg(long)]
    pub demo: bool,
    /// Where everything is kept, mode 0700; best outside of the folders that agents work in [default: $XDG_STATE_HOME/seks/dev,
    /// which is ~/.local/state/seks/dev]
    #[arg(long, value_name = "DIR", env = "SEKS_DEV_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where agents connect; port 0 picks a free one [default: 127.0.0.1:8300]
    #[arg(long, value_name = "ADDRESS")]
    pub proxy_listen: Option<SocketAddr>,
    /// Where agents' HTTPS_PROXY points [default: not offered]
    #[arg(long, value_name = "ADDRESS")]
    pub forward_proxy_listen: Option<SocketAddr>,
    /// Where operators connect
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8301")]
    pub admin_listen: SocketAddr,
    /// Where /metrics, /healthz and /readyz are [default: 127.0.0.1:8302]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// Write the addresses to this file, as JSON, once all listeners serve
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// TOML with the sections proxy, upstream, audit and telemetry of data-plane.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A Host name that agents may use, beside localhost and the address; repeatable
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
}
