//! `seks audit verify DIR…`: exports, verified with the public key alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use seks_audit::{
    admin::Fault,
    export::{ExportError, ExportFinding, MANIFEST, verify_export},
    signing::VerifyingKey,
    trail::{Finding, Problem},
};
use seks_proto::wire::AuditKeyRequest;
use serde::Serialize;

use super::verify::FindingView;
use crate::{
    error::{CliError, Exit, Result, plain_io},
    global::Global,
    output::{notice, rfc3339},
};

/// The arguments of `seks audit verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Exports; without any the trail of the control plane is verified
    #[arg(value_name = "DIR")]
    pub(super) directories: Vec<PathBuf>,
    /// The public key that `seks audit key` printed [default: the control plane is asked for it]
    #[arg(long, value_name = "FILE", requires = "directories")]
    key: Option<PathBuf>,
}

#[derive(Serialize)]
struct ExportVerificationView {
    ok: bool,
    key: String,
    replicas: Vec<String>,
    tenant: Option<String>,
    records: u64,
    chains: u64,
    admin_changes: u64,
    findings: Vec<FindingView>,
}

/// Verifies, and says so. Exit code 1 when something is wrong.
pub(super) async fn run(global: &Global, args: &VerifyArgs) -> Result<ExitCode> {
    let key = match &args.key {
        Some(path) => key_file(path)?,
        None => {
            let client = global.connect().await.map_err(|error| error.hint("--key FILE verifies without it"))?;
            let key = client.call("audit", client.rpc().get_audit_key(AuditKeyRequest {})).await?;
            VerifyingKey::from_pem(&key.pem).map_err(|error| CliError::new(Exit::Failed, "audit key", error))?
        }
    };
    let directories: Vec<PathBuf> = args.directories.iter().flat_map(|directory| exports_in(directory)).collect();
    let verified = verify_export(&directories, &key).map_err(|error| match &error {
        ExportError::File { path, source } if path.parent().is_some_and(Path::is_dir) => {
            CliError::new(Exit::Failed, path.display().to_string(), plain_io(source))
                .hint("an export has `manifest.json` and `manifest.sig`; one without them can't be verified")
        }
        ExportError::File { .. } => CliError::new(Exit::NotFound, "export", &error),
        _ => CliError::new(Exit::Failed, "export", &error),
    })?;
    let view = ExportVerificationView {
        ok: verified.findings.is_empty(),
        key: key.id(),
        replicas: verified.manifests.iter().map(|manifest| manifest.replica.clone()).collect(),
        tenant: verified.manifests.iter().find_map(|manifest| manifest.tenant.clone()),
        records: verified.records,
        chains: verified.chains,
        admin_changes: verified.changes,
        findings: verified.findings.into_iter().map(view).collect(),
    };
    if !global.output().is_table() {
        global.output().data(&view)?;
    } else if view.ok {
        let ExportVerificationView { records, chains, admin_changes, .. } = &view;
        let text =
            format!("{records} records of {chains} chains and {admin_changes} admin changes are as they were signed");
        global.output().text(&text)?;
    } else {
        global.output().list("findings", &view.findings)?;
    }
    if let Some(tenant) = &view.tenant {
        notice(&format!("an export of tenant `{tenant}` has no chains: only what was signed is verified"));
    }
    Ok(if view.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn key_file(path: &Path) -> Result<VerifyingKey> {
    let what = format!("--key {}", path.display());
    let text = fs::read_to_string(path).map_err(|error| CliError::usage(&what, plain_io(&error)))?;
    VerifyingKey::from_pem(&text).map_err(|error| CliError::usage(what, error))
}

/// A directory with a manifest, or those directly below it that have one: one for each replica.
fn exports_in(directory: &Path) -> Vec<PathBuf> {
    if directory.join(MANIFEST).exists() {
        return vec![directory.into()];
    }
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut exports: Vec<PathBuf> = entries.filter(|path| path.join(MANIFEST).exists()).collect();
    exports.sort();
    if exports.is_empty() { vec![directory.into()] } else { exports }
}

fn view(finding: ExportFinding) -> FindingView {
    let of_file = |kind: &str, name: String, detail: Option<String>| FindingView {
        kind: kind.into(),
        file: Some(name),
        detail,
        ..FindingView::default()
    };
    match finding {
        ExportFinding::FileUnknown { name } => of_file("file_unknown", name, None),
        ExportFinding::FileIsLink { name } => of_file("file_is_link", name, None),
        ExportFinding::FileMissing { name } => of_file("file_missing", name, None),
        ExportFinding::FileChanged { name, has_contents_of: None } => of_file("file_changed", name, None),
        ExportFinding::FileChanged { name, has_contents_of: Some(other) } => {
            of_file("file_swapped", name, Some(format!("it has the contents of {other}")))
        }
        ExportFinding::UnreadableBlock { block } => {
            FindingView { kind: "block_damaged".into(), block: Some(block), ..FindingView::default() }
        }
        ExportFinding::Admin { chain, fault } => {
            let (kind, from, to) = match fault {
                Fault::Gap { from, to } => ("gap", from, to),
                Fault::Changed { sequence } => ("changed", sequence, sequence),
                Fault::CutTail { from, to } => ("cut_tail", from, to),
            };
            let (chain, from, to) = (Some(format!("admin/{chain}")), Some(from), Some(to));
            FindingView { kind: kind.into(), chain, from, to, ..FindingView::default() }
        }
        ExportFinding::Chain(finding) => of_chain(finding),
    }
}

fn of_chain(finding: Finding) -> FindingView {
    let chain = finding.chain.map(|chain| chain.to_string());
    let found = FindingView { node: Some(finding.node), chain, ..FindingView::default() };
    let range =
        |kind: &str, from, to| FindingView { kind: kind.into(), from: Some(from), to: Some(to), ..found.clone() };
    match finding.problem {
        Problem::Gap { from, to } => range("gap", from, to),
        Problem::Changed { from, to } => range("changed", from, to),
        Problem::CutTail { from, to } => range("cut_tail", from, to),
        Problem::Silent { from, to, since_us } => {
            let since = rfc3339(i64::try_from(since_us / 1_000_000).unwrap_or(0));
            FindingView { since: Some(since), ..range("silent", from, to) }
        }
        Problem::Cloned { other } => {
            FindingView { kind: "cloned".into(), detail: Some(other.to_string()), ..found.clone() }
        }
        Problem::ClockSetBack { sequence, by_us } => {
            let detail = Some(format!("{:.1} s", by_us as f64 / 1e6));
            FindingView { detail, ..range("clock_set_back", sequence, sequence) }
        }
        Problem::BlockMissing { block } => {
            FindingView { kind: "block_missing".into(), block: Some(block), ..found.clone() }
        }
        Problem::BlockDamaged { block, why } => {
            FindingView { kind: "block_damaged".into(), block: Some(block), detail: Some(why), ..found.clone() }
        }
    }
}
