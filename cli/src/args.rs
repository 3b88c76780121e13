//! The command tree: noun, then verb.

use std::ffi::OsString;

use clap::{CommandFactory as _, Parser, error::ContextKind, error::ContextValue, error::ErrorKind};

use crate::{
    commands::Command,
    error::{CliError, Result, one_line},
    global::Global,
};

/// Credential broker for AI agents: agents hold fake tokens, the proxy injects the real key.
#[derive(Debug, Parser)]
#[command(name = "seks", version = seks_runtime::VERSION, max_term_width = 110, help_template = ROOT_HELP)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The noun.
    #[command(subcommand)]
    pub command: Command,
}

/// Every command has one line here; a test compares them with the tree.
const ROOT_HELP: &str = "\
{about}

{usage-heading} {usage}

Start:
  dev          Control plane and proxy in one process, for one machine
  run          Run a command with its own token and the variables of common SDKs
  env          Print these variables as `export` lines

What agents may use:
  service      Upstream APIs and their key injection
  credential   Real secrets: stored once, never shown again
  agent        Principals that send requests
  token        Fake keys that agents present
  trust        Issuers of identity tokens that agents may use
  limit        How much agents may do in a minute, a day or at once
  policy       Cedar policies: which agent may do what
  approval     Requests that wait for an operator's approval
  ca           The CA of HTTPS_PROXY mode

As files:
  apply        Make the tenant what files say: services, agents, policies, references to credentials
  export       Print the tenant as a file for `seks apply`, without secrets

What happens:
  status       Show the state of control plane, store and nodes
  doctor       Check clocks, certificates, store, nodes, audit, disks and limits, and say what to do
  page         Print a link to the page of the control plane, for a browser
  top          Watch nodes, services, rates, latencies and refusals
  audit        What agents have done, and whether the record of it is whole
  usage        What models have used: tokens by agent, service and model

The fleet:
  node         Proxy nodes
  tenant       Isolation boundaries
  operator     Administrators

Tools:
  self-check   Show version, build and platform, and what protects the program on this machine
  completions  Print a shell completion script
  help         Print this message or the help of the given commands

Options:
{options}

Examples:
  seks dev --demo                                   both planes in one process, with a demonstration
  seks service enable openai
  seks credential put openai-key --service openai   prompts for the key, without echo
  seks agent create ci-bot --attr team=infra
  seks token issue --agent ci-bot --service openai --ttl 24h
  seks run --agent ci-bot -- python agent.py

Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 not found, 4 not permitted, 5 conflict,
6 control plane unreachable";

/// Printed for `seks` alone, below the help: what to do first.
const NEXT_STEPS: &str = "
Next:
  seks dev --demo          see it work: no key, no network
  seks dev                 start the broker on this machine
  seks service catalog     find your API
";

/// The result of parsing a command line.
pub enum Parsed {
    /// A command to run.
    Run(Box<Cli>),
    /// Help or the version, for stdout.
    Print(String),
}

/// Parses the command line.
///
/// # Errors
/// Exit code 2, in one line. A typed value is not repeated where it could be a secret.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed> {
    let args: Vec<OsString> = args.into_iter().collect();
    let error = match Cli::try_parse_from(&args) {
        Ok(cli) => return Ok(Parsed::Run(Box::new(cli))),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Parsed::Print(error.to_string())),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand if args.len() <= 1 => {
            Ok(Parsed::Print(format!("{}{NEXT_STEPS}", Cli::command().render_help())))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Err(CliError::usage(noun(&args), "a verb is missing").hint(see_help(&args)))
        }
        _ => Err(usage_error(&args, &error)),
    }
}

fn usage_error(args: &[OsString], error: &clap::Error) -> CliError {
    let why = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(typed)) => unexpected_argument(args, &typed.to_string()),
        (ErrorKind::TooManyValues, Some(flag)) => format!("{flag} takes no value"),
        (ErrorKind::InvalidSubcommand, _) if !looks_like_a_verb(error) => "no such command".into(),
        _ => {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            one_line(text.split("\n\n").next().unwrap_or_default())
        }
    };
    let tip = error.get(ContextKind::SuggestedArg).or_else(|| error.get(ContextKind::SuggestedSubcommand));
    let hint = match tip {
        Some(ContextValue::Strings(tips)) => format!("did you mean `{}`?", tips.join("` or `")),
        Some(tip) => format!("did you mean `{tip}`?"),
        None if is_command_without_dashes(args, error) => "`--` goes before the command: seks run -- CMD …".into(),
        None => see_help(args),
    };
    CliError::usage(noun(args), why).hint(hint)
}

/// A typed value is repeated where no secret belongs. Anywhere else it may be a mistyped key.
fn unexpected_argument(args: &[OsString], typed: &str) -> String {
    let command = noun(args);
    if typed.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
        return "a value is not negative, and does not begin with `-`".into();
    }
    if let Some(flag) = typed.split('=').next().filter(|a| a.starts_with('-') && a.len() < 32) {
        return format!("unexpected argument '{flag}'");
    }
    if command.starts_with("seks credential") || typed.len() > LONGEST_REPEATED || !is_plain_word(typed) {
        return "unexpected argument (a secret is never an argument)".into();
    }
    match command.as_str() {
        "seks run" => format!("unexpected argument '{typed}'"),
        _ => format!("unexpected argument '{typed}': it takes no more than its usage shows"),
    }
}

/// Longest argument that an error repeats, in bytes. Keys are longer, and so are tokens.
const LONGEST_REPEATED: usize = 15;

/// Names, ids, numbers and addresses; no key looks like one of so few characters.
fn is_plain_word(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'/' | b':'))
}

/// `seks run ls` in place of `seks run -- ls`.
fn is_command_without_dashes(args: &[OsString], error: &clap::Error) -> bool {
    error.kind() == ErrorKind::UnknownArgument && noun(args) == "seks run" && !args.iter().any(|arg| arg == "--")
}

fn looks_like_a_verb(error: &clap::Error) -> bool {
    let typed = error.get(ContextKind::InvalidSubcommand).map(ToString::to_string).unwrap_or_default();
    typed.len() <= 16 && typed.bytes().all(|b| b.is_ascii_lowercase())
}

/// The known part of the command: `seks token issue`.
fn noun(args: &[OsString]) -> String {
    let mut command = Cli::command();
    let mut name = String::from("seks");
    for arg in args.iter().skip(1).filter_map(|a| a.to_str()) {
        let Some(next) = command.find_subcommand(arg).cloned() else { continue };
        name = format!("{name} {arg}");
        command = next;
    }
    name
}

fn see_help(args: &[OsString]) -> String {
    format!("see `{} --help`", noun(args))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> CliError {
        match parse(line.split(' ').map(OsString::from)) {
            Err(error) => error,
            Ok(_) => panic!("`{line}` was accepted"),
        }
    }

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_are_one_line_with_exit_code_2() {
        let cases = [
            ("seks token", "a verb is missing"),
            ("seks tokn list", "unrecognized subcommand 'tokn'"),
            ("seks token issue", "required arguments were not provided: --agent <AGENT> --service"),
            ("seks token issue --agent a --service s --ttl soon", "a duration looks like 30s"),
            ("seks status --timeout 0s", "longer than 0"),
            ("seks status -o xml", "invalid value 'xml'"),
            ("seks status --colour", "unexpected argument '--colour'"),
            ("seks token show a b", "unexpected argument 'b'"),
            ("seks run ls -l", "unexpected argument 'ls'"),
            ("seks token issue --agent a --service s --ttl -1h", "not negative"),
            ("seks token list --limit -1", "not negative"),
            ("seks token issue --agent a --service s --ttl 24", "a unit is missing: 24s"),
            ("seks credential put a --service s --from-stdin --from-file f", "cannot be used with"),
        ];
        for (line, expect) in cases {
            let error = error(line);
            assert_eq!(error.exit as u8, 2, "{line}");
            assert!(error.why.contains(expect), "{line}: {error}");
            assert_eq!(error.lines().lines().count(), 2, "{line}: {}", error.lines());
        }
    }

    #[test]
    fn a_secret_typed_as_an_argument_is_refused_and_not_repeated() {
        for line in [
            "seks credential put a --service s sk-live-SECRET",
            "seks credential put a --service s --secret=sk-live-SECRET",
            "seks credential put a --service s --from-stdin=sk-live-SECRET",
            "seks credential put a --service s --key sk-live-SECRET",
            "seks credential sk-live-SECRET",
            "seks sk-live-SECRET",
            "seks token show a SECRET",
            "seks run SECRET-0123456789abcdef",
        ] {
            let error = error(line);
            assert_eq!(error.exit as u8, 2);
            assert!(!error.lines().contains("SECRET"), "{line}: {}", error.lines());
        }
    }

    fn printed(line: &str) -> String {
        match parse(line.split(' ').map(OsString::from)) {
            Ok(Parsed::Print(text)) => text,
            _ => panic!("`{line}` prints nothing"),
        }
    }

    #[test]
    fn the_help_groups_every_command() {
        let help = printed("seks --help");
        for command in Cli::command().get_subcommands() {
            let (name, about) = (command.get_name(), command.get_about().unwrap().to_string());
            let line =
                help.lines().find(|line| line.starts_with(&format!("  {name} "))).unwrap_or_else(|| panic!("{name}"));
            let same = line.trim_start().strip_prefix(name).unwrap().trim() == about;
            assert!(same || matches!(name, "run" | "env"), "{line} is not {about}");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        assert!(
            printed("seks").contains("seks dev --demo") && printed("seks").starts_with(help.lines().next().unwrap())
        );
    }

    #[test]
    fn a_typo_is_answered_with_what_was_meant() {
        assert!(error("seks run ls").hint.unwrap().contains("seks run -- CMD"));
        assert_eq!(error("seks token isue").hint.unwrap(), "did you mean `issue`?");
        assert_eq!(error("seks token issue").hint.unwrap(), "see `seks token issue --help`");
    }
}
