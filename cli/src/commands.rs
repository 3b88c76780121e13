//! One file for each noun. Each turns a verb's arguments into one call, and the response into a
//! view.

pub mod agent;
pub mod apply;
pub mod approval;
pub mod audit;
pub mod ca;
pub mod completions;
pub mod credential;
pub mod dev;
pub mod doctor;
pub mod env;
pub mod limit;
pub mod node;
pub mod operator;
pub mod page;
pub mod policy;
pub mod run;
pub mod self_check;
pub mod service;
pub mod status;
pub mod tenant;
pub mod token;
pub mod top;
pub mod trust;

pub mod change;

use std::process::ExitCode;

use clap::Subcommand;

use crate::{error::Result, global::Global};

/// The nouns, and the few commands that have none.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the state of control plane, store and nodes
    #[command(after_help = "Example:\n  seks status -o json")]
    Status,
    /// Isolation boundaries
    #[command(subcommand)]
    Tenant(tenant::Verb),
    /// Upstream APIs and their key injection
    #[command(subcommand)]
    Service(service::Verb),
    /// Real secrets: stored once, never shown again
    #[command(subcommand)]
    Credential(credential::Verb),
    /// The CA of HTTPS_PROXY mode
    #[command(subcommand)]
    Ca(ca::Verb),
    /// Principals that send requests
    #[command(subcommand)]
    Agent(agent::Verb),
    /// Fake keys that agents present
    #[command(subcommand)]
    Token(token::Verb),
    /// Issuers of identity tokens that agents may use
    #[command(subcommand)]
    Trust(trust::Verb),
    /// How much agents may do in a minute, a day or at once
    #[command(subcommand)]
    Limit(limit::Verb),
    /// Requests that wait for an operator's approval
    #[command(subcommand)]
    Approval(approval::Verb),
    /// Cedar policies: which agent may do what
    #[command(subcommand)]
    Policy(policy::Verb),
    /// Make the tenant what files say: services, agents, policies, references to credentials
    #[command(after_help = apply::EXAMPLES)]
    Apply(apply::ApplyArgs),
    /// Print the tenant as a file for `seks apply`, without secrets
    #[command(after_help = "Examples:\n  seks export > tenant.yaml\n  seks export -o toml --tenant staging")]
    Export,
    /// What agents have done, and whether the record of it is whole
    #[command(subcommand)]
    Audit(audit::Verb),
    /// What models have used: tokens by agent, service and model
    #[command(
        after_help = "Examples:\n  seks usage\n  seks usage --by service,model --since 7d -o json\n\nOf services with `usage`, from the audit trail. Output of answers that broke off or have no count is not included: \
unknown_requests and unknown_output_tokens (an upper bound) show it."
    )]
    Usage(audit::usage::UsageArgs),
    /// Check clocks, certificates, store, nodes, audit, disks and limits, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Print a link to the page of the control plane, for a browser
    #[command(after_help = page::EXAMPLES)]
    Page,
    /// Watch nodes, services, rates, latencies and refusals
    Top(top::TopArgs),
    /// Proxy nodes
    #[command(subcommand)]
    Node(node::Verb),
    /// Administrators
    #[command(subcommand)]
    Operator(operator::Verb),
    /// Print `export` lines that point common SDKs at the proxy
    Env(env::EnvArgs),
    /// Run a command with these variables and its own token
    Run(run::RunArgs),
    /// Control plane and proxy in one process, for one machine
    Dev(dev::DevArgs),
    /// Show version, build and platform, and what protects the program on this machine
    #[command(after_help = "Example:\n  seks self-check -o json")]
    SelfCheck,
    /// Print a shell completion script
    Completions(completions::CompletionsArgs),
}

/// Runs `command`. `tree` is the definition of the whole command line.
///
/// # Errors
/// The text for stderr, with its exit code.
pub async fn run(global: &Global, command: Command, tree: clap::Command) -> Result<ExitCode> {
    match command {
        Command::Status => status::run(global).await?,
        Command::Tenant(verb) => tenant::run(global, verb).await?,
        Command::Service(verb) => service::run(global, verb).await?,
        Command::Credential(verb) => credential::run(global, verb).await?,
        Command::Ca(verb) => ca::run(global, verb).await?,
        Command::Agent(verb) => agent::run(global, verb).await?,
        Command::Token(verb) => token::run(global, verb).await?,
        Command::Trust(verb) => trust::run(global, verb).await?,
        Command::Limit(verb) => limit::run(global, verb).await?,
        Command::Approval(verb) => approval::run(global, verb).await?,
        Command::Policy(verb) => policy::run(global, verb).await?,
        Command::Apply(args) => apply::run(global, args).await?,
        Command::Export => apply::export(global).await?,
        Command::Audit(verb) => return audit::run(global, verb).await,
        Command::Doctor(args) => return doctor::run(global, &args).await,
        Command::Page => page::run(global).await?,
        Command::Usage(args) => return audit::usage::run(global, args).await,
        Command::Top(args) => top::run(global, args).await?,
        Command::Node(verb) => node::run(global, verb).await?,
        Command::Operator(verb) => operator::run(global, verb).await?,
        Command::Env(args) => env::run(global, args).await?,
        Command::Run(args) => return run::run(global, args).await,
        Command::Dev(args) => dev::run(args).await?,
        Command::SelfCheck => self_check::run(global).await?,
        Command::Completions(args) => completions::run(args, tree)?,
    }
    Ok(ExitCode::SUCCESS)
}
