//! The options of every command.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    client::Client,
    context::{Context, ContextSelector},
    duration::duration,
    error::Result,
    output::{Format, Output},
};

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Context to use instead of the file's `current`
    #[arg(long, global = true, value_name = "NAME", env = "SEKS_CONTEXT")]
    pub context: Option<String>,
    /// Context file [default: ~/.config/seks/context.toml, then that of your running `seks dev`]
    #[arg(long, global = true, value_name = "FILE", env = "SEKS_CONTEXT_FILE")]
    pub context_file: Option<PathBuf>,
    /// Tenant [default: the context's, or `default`]
    #[arg(long, global = true, value_name = "NAME", env = "SEKS_TENANT")]
    pub tenant: Option<String>,
    /// Longest wait for the control plane, and for a change to become enforced
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Output format: table (for people), json (stable), yaml or toml
    #[arg(long, short, global = true, value_enum, ignore_case = true, value_name = "FORM", default_value = "table")]
    #[arg(hide_possible_values = true)]
    pub output: Format,
}

impl Global {
    /// The output in the requested format.
    #[must_use]
    pub fn output(&self) -> Output {
        Output::new(self.output)
    }

    /// The requested context.
    ///
    /// # Errors
    /// Exit code 2.
    pub fn load_context(&self) -> Result<Context> {
        self.context_selector().load()
    }

    /// The selection of a context.
    pub(crate) fn context_selector(&self) -> ContextSelector {
        ContextSelector { file: self.context_file.clone(), name: self.context.clone() }
    }

    /// Connects to the context's control plane.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(&self) -> Result<Client> {
        Client::connect(&self.load_context()?, self.tenant.as_deref(), self.timeout).await
    }
}
