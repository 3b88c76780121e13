//! One file a noun; each turns a verb's arguments into one call and the answer into a view.

pub mod agent;
pub mod ca;
pub mod completions;
pub mod credential;
pub mod dev;
pub mod env;
pub mod node;
pub mod operator;
pub mod policy;
pub mod run;
pub mod service;
pub mod status;
pub mod tenant;
pub mod token;

pub mod change;

use std::process::ExitCode;

use crate::{
    args::{Cli, Command},
    error::Result,
};

/// Runs a command.
///
/// # Errors
/// What goes to stderr, with its exit code.
pub async fn run(cli: Cli) -> Result<ExitCode> {
    let global = &cli.global;
    match cli.command {
        Command::Status => status::run(global).await?,
        Command::Tenant(verb) => tenant::run(global, verb).await?,
        Command::Service(verb) => service::run(global, verb).await?,
        Command::Credential(verb) => credential::run(global, verb).await?,
        Command::Ca(verb) => ca::run(global, verb).await?,
        Command::Agent(verb) => agent::run(global, verb).await?,
        Command::Token(verb) => token::run(global, verb).await?,
        Command::Policy(verb) => policy::run(global, verb).await?,
        Command::Node(verb) => node::run(global, verb).await?,
        Command::Operator(verb) => operator::run(global, verb).await?,
        Command::Env(args) => env::run(global, args).await?,
        Command::Run(args) => return run::run(global, args).await,
        Command::Dev(args) => dev::run(args).await?,
        Command::Completions(args) => completions::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}
