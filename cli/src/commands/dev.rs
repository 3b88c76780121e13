//! `seks dev`: control plane and proxy in one process, for one machine.

use clap::Args;

use crate::error::{CliError, Exit, Result};

/// How to start it.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Also start a stand-in upstream and show one request through the proxy
    #[arg(long)]
    pub demo: bool,
}

/// Runs it.
pub async fn run(_args: DevArgs) -> Result<()> {
    Err(CliError::new(Exit::Failed, "dev", "not built yet"))
}
