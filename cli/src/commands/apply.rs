//! `seks apply` and `seks export`: a tenant as files.

mod export;
mod file;

use std::path::PathBuf;

use clap::Args;
use seks_proto::wire;
use serde::Serialize;

pub use self::export::export;
use self::file::TenantFile;
use super::change::{Enforced, WaitArgs};
use crate::{
    client::Client,
    confirm::Confirm,
    error::{CliError, Exit, Result},
    global::Global,
    output::notice,
};

/// The examples of `seks apply`.
pub const EXAMPLES: &str = "\
Examples:
  seks export > tenant.yaml
  seks apply -f tenant.yaml --dry-run      what would change, and what agents could newly reach
  seks apply -f tenant.yaml
  seks apply -f tenant/ --prune            every .yaml, .toml, .json and .cedar file in the folder

A file has the keys `services`, `agents`, `policies` and `credentials`, all optional. Credentials are references
without secrets, and `source: {kind: file, path: openai.key}` says where one is read from. An agent
that is disabled stays so without `disabled: false`. With `revision`, as `seks export` writes it, an object that was changed since is a conflict (exit code 5).
What is changed is written at once if it fits into one transaction. Repeating an interrupted apply finishes it.";

/// Where the files are, and what may be done.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// A file, or a folder of files; `-` is standard input
    #[arg(short, long, value_name = "DIR_OR_FILE")]
    file: PathBuf,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Delete objects that the files do not name, of the kinds that they list; never credentials
    #[arg(long)]
    prune: bool,
    /// Confirmation.
    #[command(flatten)]
    confirm: Confirm,
    /// Waiting for enforcement.
    #[command(flatten)]
    wait_args: WaitArgs,
}

#[derive(Serialize)]
struct AppliedView {
    dry_run: bool,
    changes: Vec<ChangeView>,
    /// What agents can newly reach.
    reach: Vec<ReachView>,
    /// The list of what they can reach is not complete.
    reach_cut: bool,
    warnings: Vec<String>,
    #[serde(flatten)]
    enforced: Enforced,
}

#[derive(Serialize)]
struct ChangeView {
    kind: String,
    name: String,
    action: String,
    details: Vec<String>,
}

#[derive(Serialize)]
struct ReachView {
    agent: String,
    service: String,
    methods: Vec<String>,
    /// A policy permits only some requests of these methods.
    conditional: bool,
}

/// Makes the tenant what the files say.
///
/// # Errors
/// See [`crate::error`]. Exit code 5 for objects that were changed after the file's revision.
pub async fn run(global: &Global, args: ApplyArgs) -> Result<()> {
    let wanted = TenantFile::read(&args.file)?;
    if let Some(folder) = wanted.unread.first() {
        if args.prune {
            let why = "folders in the folder are not read, and --prune would delete what is in them";
            return Err(CliError::usage(folder.clone(), why));
        }
        notice(&format!("warning: {folder}: folders in the folder are not read"));
    }
    let client = global.connect().await?;
    let what = args.file.display().to_string();
    let request = wire::ApplyTenantRequest {
        tenant: client.tenant(),
        prune: if args.prune { wanted.kinds() } else { Vec::new() },
        wait: Some(client.wait(args.wait_args.no_wait)),
        ..wanted.into_request()?
    };
    if args.dry_run {
        let answer = client.call(&what, client.rpc().plan_tenant(request)).await?;
        return print(global, &what, answer, true, args.wait_args);
    }
    if args.prune {
        confirm_deletions(&client, &what, &request, args.confirm).await?;
    }
    let answer = client.change(&what, client.rpc().apply_tenant(request)).await?;
    print(global, &what, answer, false, args.wait_args)
}

async fn confirm_deletions(
    client: &Client,
    what: &str,
    request: &wire::ApplyTenantRequest,
    confirm: Confirm,
) -> Result<()> {
    let plan = client.call(what, client.rpc().plan_tenant(request.clone())).await?;
    let deleted = plan.changes.iter().filter(|change| change.action == "delete");
    let deleted: Vec<String> = deleted.map(|change| format!("{} {}", change.kind, change.name)).collect();
    match deleted.as_slice() {
        [] => Ok(()),
        names => confirm.ask_if_possible(&format!("delete {}", names.join(", "))),
    }
}

fn print(
    global: &Global,
    what: &str,
    answer: wire::ApplyTenantResponse,
    is_dry_run: bool,
    wait_args: WaitArgs,
) -> Result<()> {
    let mut enforced = Enforced::from(answer.enforcement);
    enforced.revision = answer.revision;
    let view = AppliedView {
        dry_run: is_dry_run,
        changes: answer.changes.into_iter().map(ChangeView::from).collect(),
        reach: answer.reach.into_iter().map(ReachView::from).collect(),
        reach_cut: answer.reach_cut,
        warnings: answer.warnings,
        enforced,
    };
    let output = global.output();
    if output.is_table() {
        view.warnings.iter().for_each(|warning| notice(&format!("warning: {warning}")));
        output.text(&view.for_people())?;
    } else {
        output.data(&view)?;
    }
    if is_dry_run { Ok(()) } else { view.enforced.check(what, wait_args) }
}

impl AppliedView {
    fn for_people(&self) -> String {
        let mut text = String::new();
        for change in &self.changes {
            let sign = match change.action.as_str() {
                "create" => '+',
                "delete" => '-',
                _ => '~',
            };
            text.push_str(&format!("{sign} {} {}\n", change.kind, change.name));
            change.details.iter().for_each(|line| text.push_str(&format!("    {line}\n")));
        }
        if !self.reach.is_empty() {
            text.push_str("adds reach, for tokens that grant the service:\n");
        }
        for reach in &self.reach {
            let when = if reach.conditional { " (where a policy's conditions hold)" } else { "" };
            text.push_str(&format!("    {} -> {}: {}{when}\n", reach.agent, reach.service, reach.methods.join(" ")));
        }
        if self.reach_cut {
            text.push_str("    and more than is listed\n");
        }
        let count = match self.changes.len() {
            0 => return text + "no changes",
            1 => "1 change".to_owned(),
            more => format!("{more} changes"),
        };
        match self.dry_run {
            true => text.push_str(&format!("{count}, not applied (dry run)")),
            false => text.push_str(&format!("{count}: {}", self.enforced.sentence())),
        }
        text
    }
}

impl From<wire::TenantChange> for ChangeView {
    fn from(change: wire::TenantChange) -> Self {
        Self { kind: change.kind, name: change.name, action: change.action, details: change.details }
    }
}

impl From<wire::Reach> for ReachView {
    fn from(reach: wire::Reach) -> Self {
        Self { agent: reach.agent, service: reach.service, methods: reach.methods, conditional: reach.conditional }
    }
}

/// No file of the folder is one of a tenant.
fn nothing_in(path: &std::path::Path) -> CliError {
    CliError::new(Exit::Usage, path.display().to_string(), "no .yaml, .toml, .json or .cedar file in this folder")
}
