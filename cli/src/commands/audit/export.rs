//! `seks audit export` and `seks audit key`.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use seks_audit::export::{MANIFEST, Manifest};
use seks_proto::wire::{AuditKeyRequest, ExportAuditPiece, ExportAuditRequest, SearchAuditRequest};
use serde::Serialize;
use tonic::{Code, Streaming};

use super::replicas::{Replicas, Source};
use crate::{
    client::Client,
    error::{CliError, Exit, Result, plain_io},
    global::Global,
    moment::{Moment, moment, period},
    output::{View, notice},
};

/// The arguments of `seks audit export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// From when on: so long ago, or a date or time in UTC
    #[arg(long, value_name = "AGO|TIME", default_value = "24h", value_parser = moment)]
    since: Moment,
    /// Until when, in the same forms [default: now]
    #[arg(long, value_name = "AGO|TIME", value_parser = moment)]
    until: Option<Moment>,
    /// A directory that is not there yet, or is empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Serialize)]
struct ExportView {
    directory: String,
    replica: String,
    tenant: Option<String>,
    records: u64,
    chains: u64,
    admin_changes: u64,
    files: u64,
    /// Of the key that `seks audit key` prints.
    key: String,
}

impl View for ExportView {
    const COLUMNS: &'static [&'static str] =
        &["directory", "replica", "records", "chains", "admin_changes", "files", "key"];
    fn row(&self) -> Vec<String> {
        let numbers = [self.records, self.chains, self.admin_changes, self.files].map(|number| number.to_string());
        let [records, chains, changes, files] = numbers;
        vec![self.directory.clone(), self.replica.clone(), records, chains, changes, files, self.key.clone()]
    }
}

#[derive(Serialize)]
struct KeyView {
    id: String,
    pem: String,
}

/// Prints the public key.
pub(super) async fn key(global: &Global, client: &Client) -> Result<()> {
    let key = client.call("audit", client.rpc().get_audit_key(AuditKeyRequest {})).await?;
    if global.output().is_table() {
        return global.output().text(&key.pem);
    }
    global.output().data(&KeyView { id: key.id, pem: key.pem })
}

/// Writes the files: of one replica into the directory, of several into one directory each.
pub(super) async fn run(global: &Global, args: &ExportArgs) -> Result<ExitCode> {
    period(args.since, args.until)?; // before anything is made
    let failed = |error: &std::io::Error| CliError::new(Exit::Failed, args.out.display().to_string(), plain_io(error));
    fs::create_dir_all(&args.out).map_err(|error| failed(&error))?;
    if fs::read_dir(&args.out).map_err(|error| failed(&error))?.next().is_some() {
        return Err(CliError::usage("--out", format!("`{}` is not empty: name a new directory", args.out.display())));
    }
    // One record of each replica shows which of the context's endpoints lead to different ones.
    let first = SearchAuditRequest { since_us: Moment::now().unix_us(), page_size: 1, ..SearchAuditRequest::default() };
    let replicas = Replicas::search(global, first).await?;
    let is_alone = global.load_context()?.all_endpoints().count() == 1;
    let mut views = Vec::new();
    for (source, number) in replicas.sources.iter().zip(1..) {
        let out = if is_alone { args.out.clone() } else { args.out.join(directory_name(&source.replica, number)) };
        views.push(export(source, args, &out).await?);
    }
    if is_alone && let Some(view) = views.pop() {
        global.output().one(&view)?;
    } else {
        global.output().list("exports", &views)?;
    }
    Ok(if replicas.is_incomplete { ExitCode::from(Exit::Unreachable as u8) } else { ExitCode::SUCCESS })
}

/// A directory of its own for each replica, even if two have one name.
fn directory_name(replica: &str, number: usize) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let name: String = replica.chars().filter(|c| is_plain(*c)).take(48).collect();
    if name.is_empty() { format!("replica-{number}") } else { format!("{number}-{name}") }
}

/// Exports the trail of one replica.
async fn export(source: &Source, args: &ExportArgs, out: &Path) -> Result<ExportView> {
    let failed = |error: &std::io::Error| CliError::new(Exit::Failed, out.display().to_string(), plain_io(error));
    fs::create_dir_all(out).map_err(|error| failed(&error))?;
    let client = &source.client;
    let (since_us, until_us) = period(args.since, args.until)?;
    let request = ExportAuditRequest { tenant: client.tenant(), since_us, until_us };
    let mut rpc = client.rpc();
    let stream = if source.is_fleet {
        client.call("audit", rpc.export_fleet_audit(request)).await?
    } else {
        client.call("audit", rpc.export_audit(request)).await?
    };
    receive(stream, out).await?;
    let manifest = fs::read(out.join(MANIFEST)).map_err(|error| failed(&error))?;
    let manifest: Manifest = serde_json::from_slice(&manifest)
        .map_err(|_| CliError::new(Exit::Failed, "audit", "the export came without a manifest that can be read"))?;
    if !manifest.unreadable_blocks.is_empty() {
        let count = manifest.unreadable_blocks.len();
        notice(&format!(
            "{count} blocks of the trail cannot be read and are not in the export: see `seks audit verify`"
        ));
    }
    Ok(ExportView {
        directory: out.display().to_string(),
        replica: manifest.replica,
        tenant: manifest.tenant,
        records: manifest.records,
        chains: manifest.chains.len() as u64,
        admin_changes: manifest.changes,
        files: manifest.files.len() as u64,
        key: manifest.key,
    })
}

/// Writes pieces to their files. The manifest comes last: an export without one is not whole.
async fn receive(mut stream: Streaming<ExportAuditPiece>, directory: &Path) -> Result<()> {
    let mut open: Option<(String, File)> = None;
    let status = |status: &tonic::Status| CliError::status("audit", status);
    while let Some(piece) = stream.message().await.map_err(|error| status(&error))? {
        if !is_file_name(&piece.file) {
            return Err(status(&tonic::Status::new(
                Code::Internal,
                "the control plane names a file that is not one of an export",
            )));
        }
        let path = directory.join(&piece.file);
        let failed = |error: std::io::Error| CliError::new(Exit::Failed, path.display().to_string(), plain_io(&error));
        if open.as_ref().is_none_or(|(name, _)| *name != piece.file) {
            let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
            open = Some((piece.file.clone(), file));
        }
        if let Some((_, file)) = &mut open {
            file.write_all(&piece.data).map_err(failed)?;
        }
    }
    Ok(())
}

/// Names of an export's files: no directory, nothing hidden.
fn is_file_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    name.len() <= 64 && !name.starts_with('.') && !name.contains("..") && !name.is_empty() && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_plane_cannot_write_outside_of_the_directory() {
        for good in ["records-000001.jsonl.zst", "manifest.json", "manifest.sig"] {
            assert!(is_file_name(good), "{good}");
        }
        for bad in ["", "../x", "/etc/passwd", ".bashrc", "a/b", "a\\b", "a..b", &"x".repeat(65)] {
            assert!(!is_file_name(bad), "{bad}");
        }
    }
}
