//! The options that every command takes, and what they choose.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::{
    client::Client,
    context::{Context, ContextSelector},
    duration::duration,
    error::Result,
    output::{Format, Output},
};

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Context to use instead of the file's current one
    #[arg(long, global = true, value_name = "NAME", env = "SEKS_CONTEXT")]
    pub context: Option<String>,
    /// Context file [default: ~/.config/seks/context.toml, then that of the `seks dev` you run]
    #[arg(long, global = true, value_name = "FILE", env = "SEKS_CONTEXT_FILE")]
    pub context_file: Option<PathBuf>,
    /// Tenant [default: the context's, or `default`]
    #[arg(long, global = true, value_name = "NAME", env = "SEKS_TENANT")]
    pub tenant: Option<String>,
    /// Longest wait for the control plane, and for a change to be enforced
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Form of the answer: table (for people), json (stable) or yaml
    #[arg(long, short, global = true, value_enum, value_name = "FORM", default_value = "table")]
    #[arg(hide_possible_values = true)]
    pub output: Format,
}

impl Global {
    /// The output in the form that was asked for.
    #[must_use]
    pub fn output(&self) -> Output {
        Output::new(self.output)
    }

    /// The context that was asked for.
    ///
    /// # Errors
    /// Exit code 2.
    pub fn load_context(&self) -> Result<Context> {
        self.context_selector().load()
    }

    /// Which context is meant.
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
