//! `seks service`: upstream APIs and their key injection.

mod catalog;
mod file;
mod test;
mod view;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use seks_proto::wire::{self, admin_client::AdminClient};

use self::view::ServiceView;
use super::change::{self, WaitArgs};
use crate::{
    client::Client,
    confirm::Confirm,
    error::{CliError, Result},
    files::read_text,
    global::Global,
    listing::{self, ListArgs},
    output::{Output, notice},
};

/// The verbs of `seks service`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the built-in catalogue
    #[command(
        alias = "catalogue",
        after_help = "Examples:\n  seks service catalog mail\n  seks service catalog llm -o json"
    )]
    Catalog {
        /// Show only entries whose name, title, group or host contains this
        search: Option<String>,
    },
    /// Copy a catalogue entry into the tenant
    #[command(after_help = "\
Examples:
  seks service enable openai
  seks service enable openai --as vllm --upstream http://127.0.0.1:8000 --allow-private")]
    Enable(EnableArgs),
    /// Create or replace a service from a file
    #[command(after_help = "Example:\n  seks service apply -f service.toml")]
    Apply {
        /// TOML, YAML or JSON by its extension; `-` is standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
    /// List the tenant's services
    #[command(alias = "ls", after_help = "Example:\n  seks service list -o json")]
    List {
        /// Selection and order.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show a service
    #[command(after_help = "\
Examples:
  seks service show openai
  seks service show openai -o toml > openai.toml    # for `seks service apply -f`")]
    Show {
        /// Name of the service
        name: String,
    },
    /// Make one call without side effects with the stored credential, and report whether the key
    /// works
    #[command(after_help = test::EXAMPLES)]
    Test(test::TestArgs),
    /// Delete a service
    #[command(alias = "rm", after_help = "Example:\n  seks service delete openai --yes")]
    Delete {
        /// Name of the service
        name: String,
        /// Confirmation.
        #[command(flatten)]
        confirm: Confirm,
        /// Waiting for enforcement.
        #[command(flatten)]
        wait_args: WaitArgs,
    },
}

/// The entry to copy, and changes to the copy.
#[derive(Debug, Args)]
pub struct EnableArgs {
    /// The catalogue entry
    entry: String,
    /// Its name in this tenant [default: the entry's]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Send requests to this origin instead, such as a gateway, a self-hosted server or a test
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// PEM roots for the upstream, instead of the system's
    #[arg(long, value_name = "FILE")]
    upstream_ca: Option<PathBuf>,
    /// Allow private, loopback and plain-http upstreams (never link-local and metadata addresses)
    #[arg(long)]
    allow_private: bool,
    /// Waiting for enforcement.
    #[command(flatten)]
    wait_args: WaitArgs,
}

/// Runs a verb.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, verb: Verb) -> Result<()> {
    let output = global.output();
    match verb {
        Verb::Catalog { search } => catalog::run(global, search.unwrap_or_default()).await,
        Verb::Test(args) => test::run(global, args).await,
        Verb::Enable(args) => enable(global, args).await,
        Verb::Apply { file, wait_args } => {
            let service = file::read(&file)?;
            apply(&global.connect().await?, output, service, wait_args).await
        }
        Verb::List { list } => {
            let client = global.connect().await?;
            let ask = async |mut rpc: AdminClient<tonic::transport::Channel>, page| rpc.list_services(page).await;
            listing::list::<_, ServiceView>(&client, output, "services", list, ask).await
        }
        Verb::Show { name } => {
            let client = global.connect().await?;
            let what = format!("service `{name}`");
            let service = client.call(&what, client.rpc().get_service(client.named(&name))).await?;
            output.one(&ServiceView::from(service))
        }
        Verb::Delete { name, confirm, wait_args } => {
            confirm.ask(&format!("delete service `{name}`"))?;
            let client = global.connect().await?;
            let request = client.delete(&name, wait_args.no_wait);
            let response = client.change(&format!("service `{name}`"), client.rpc().delete_service(request)).await?;
            change::print_outcome(
                output,
                change::Outcome { noun: "service", name: &name, done: "deleted" },
                response,
                wait_args,
            )
        }
    }
}

async fn enable(global: &Global, args: EnableArgs) -> Result<()> {
    let upstream_ca_pem = args.upstream_ca.as_deref().map(read_text).transpose()?.unwrap_or_default();
    let client = global.connect().await?;
    let what = format!("service `{}`", args.name.as_ref().unwrap_or(&args.entry));
    let request = wire::EnableServiceRequest {
        tenant: client.tenant(),
        catalogue: args.entry,
        name: args.name.unwrap_or_default(),
        upstream: args.upstream.unwrap_or_default(),
        upstream_ca_pem,
        allow_private: args.allow_private,
        wait: Some(client.wait(args.wait_args.no_wait)),
    };
    let answer = client.change(&what, client.rpc().enable_service(request)).await.map_err(by_option)?;
    warn_about_unbound(&answer.unbound);
    let view = ServiceView::from(answer.service.unwrap_or_default());
    change::print_changed(global.output(), &what, view, answer.enforcement, args.wait_args)
}

/// An error of `service enable`, with the option in place of the field.
fn by_option(error: CliError) -> CliError {
    let renamed = |text: String| text.replace("allow_private", "--allow-private");
    CliError { why: renamed(error.why), hint: error.hint.map(renamed), ..error }
}

/// Names the credentials that nodes stop using.
fn warn_about_unbound(credentials: &[String]) {
    for name in credentials {
        notice(&format!(
            "credential `{name}` was stored for another destination and is not used: put it again, or `seks credential rebind {name}`"
        ));
    }
}

async fn apply(client: &Client, output: Output, service: wire::Service, wait_args: WaitArgs) -> Result<()> {
    let what = format!("service `{}`", service.name);
    let service = wire::Service { tenant: client.tenant(), ..service };
    let request = wire::ApplyServiceRequest { service: Some(service), wait: Some(client.wait(wait_args.no_wait)) };
    let answer = client.change(&what, client.rpc().apply_service(request)).await?;
    warn_about_unbound(&answer.unbound);
    let view = ServiceView::from(answer.service.unwrap_or_default());
    change::print_changed(output, &what, view, answer.enforcement, wait_args)
}
