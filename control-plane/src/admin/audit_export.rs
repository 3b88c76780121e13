//! `seks audit export` and `seks audit key`: the trail in files that are verified without the
//! control plane.

use std::{io, ops::Range};

use prost::Message as _;
use seks_audit::{
    admin::archive::{ArchiveError, Forward},
    export::{ExportWriter, Manifest, Piece},
    record::{FieldsOf, Value, field},
    spool::unix_micros,
    trail::{BlockError, Entry, Position, StoredFrame},
};
use seks_proto::wire::{AdminChange, AuditKeyRequest, AuditKeyResponse, ExportAuditPiece, ExportAuditRequest};
use seks_types::id::TenantName;
use serde_json::Map;
use tokio::sync::mpsc;
use tonic::Status;

use super::{
    Admin, Answer,
    answer_stream::AnswerStream,
    audit_trail::{to_wire, trail, visible_since},
    audit_view::{ChangeView, RecordView},
    auth::Caller,
    parse::name,
    problem::Problem,
};
use crate::{registry::AdminHead, store::key::AdminChainName, trail::Trail};

/// Pieces that may wait for a slow reader. Each has some 256 KiB.
const PIECES: usize = 4;

/// The public key of this control plane's exports.
pub(super) async fn key(admin: &Admin, _: &Caller, _: AuditKeyRequest) -> Answer<AuditKeyResponse> {
    let key = trail(admin)?.signing_key().public();
    Ok(AuditKeyResponse { pem: key.to_pem(), id: key.id() })
}

/// One tenant's records and changes.
pub(super) async fn export(
    admin: &Admin,
    caller: &Caller,
    mut message: ExportAuditRequest,
) -> Answer<AnswerStream<ExportAuditPiece>> {
    let tenant: TenantName = name("tenant", &message.tenant)?;
    message.since_us = message.since_us.max(visible_since(admin, caller, &message.tenant).await?);
    open(admin, caller, &message, Some(tenant)).await
}

/// Everybody's records, with their chains.
pub(super) async fn export_fleet(
    admin: &Admin,
    caller: &Caller,
    message: ExportAuditRequest,
) -> Answer<AnswerStream<ExportAuditPiece>> {
    open(admin, caller, &message, None).await
}

/// A chain of admin changes as an export has it: encoded, the oldest first, each with its revision.
struct Changes {
    chain: AdminChainName,
    head: AdminHead,
    /// What the archive has of it is written first.
    archived: Forward,
    changes: Vec<(bytes::Bytes, u64)>,
}

async fn open(
    admin: &Admin,
    caller: &Caller,
    message: &ExportAuditRequest,
    tenant: Option<TenantName>,
) -> Answer<AnswerStream<ExportAuditPiece>> {
    let trail = trail(admin)?.clone();
    let changes = changes(admin, tenant.as_ref(), message.since_us).await?;
    let until_us = Some(message.until_us).filter(|until| *until > 0);
    let manifest = Manifest {
        replica: admin.0.replica.clone(),
        created_us: unix_micros(),
        since_us: message.since_us,
        until_us,
        tenant: tenant.as_ref().map(ToString::to_string),
        ..Manifest::default()
    };
    let (pieces, answer) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut sink = |piece: Piece| {
            let piece = ExportAuditPiece { file: piece.file, data: piece.data };
            pieces.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
        };
        if let Err(error) = write(&trail, manifest, &changes, &mut sink) {
            tracing::warn!(%error, "an export of the audit trail has ended early");
            let _: Result<(), _> = pieces.blocking_send(Err(Status::unavailable("the audit trail cannot be read"))); // or the caller has gone
        }
    });
    Ok(AnswerStream::new(caller, answer))
}

/// Of a tenant its chain, otherwise all. A tenant's chain may begin before the tenant: an owner of
/// the fleet exports that.
async fn changes(admin: &Admin, tenant: Option<&TenantName>, since_us: u64) -> Answer<Vec<Changes>> {
    let mut all = Vec::new();
    let Some(tenant) = tenant else {
        for (chain, head) in admin.registry().admin_heads().await? {
            let (mut changes, mut before) = (Vec::new(), head.sequence + 1);
            let each = |sequence, encoded, revision| {
                before = sequence;
                changes.push((encoded, revision));
                true
            };
            admin.registry().admin_changes(&chain, each).await?;
            changes.reverse();
            all.push(Changes { chain, head, archived: Forward { from: 1, before, since_us }, changes });
        }
        return Ok(all);
    };
    let (chain, mut changes) = (AdminChainName::Tenant(tenant.clone()), Vec::new());
    let (mut before, mut is_whole) = (1, false);
    let each = |sequence, encoded: bytes::Bytes, revision| {
        before = sequence;
        is_whole = is_creation(&encoded);
        changes.push((encoded, revision));
        !is_whole
    };
    admin.registry().admin_changes(&chain, each).await?;
    changes.reverse();
    let from = if is_whole { before } else { creation_in_archive(admin, &chain, before).await? };
    let archived = Forward { from, before, since_us };
    all.push(Changes { chain, head: AdminHead::default(), archived, changes });
    Ok(all)
}

fn is_creation(encoded: &bytes::Bytes) -> bool {
    let change = AdminChange::decode(encoded.clone()).unwrap_or_default();
    change.objects.iter().any(|object| object.kind == "tenant" && object.before.is_empty())
}

/// The sequence of the change that created the tenant, which is older than what the store has.
async fn creation_in_archive(admin: &Admin, chain: &AdminChainName, before: u64) -> Answer<u64> {
    let (archive, name) = (trail(admin)?.archive().clone(), chain.to_string());
    let search = tokio::task::spawn_blocking(move || {
        let mut oldest = before;
        archive.read(&name, before, &mut |change| {
            oldest = change.sequence;
            !is_creation(&change.encoded.into())
        })?;
        Ok::<_, ArchiveError>(oldest)
    });
    let found = search.await.map_err(|_| Problem::internal("the archive of admin changes cannot be read"))?;
    found.map_err(|error| {
        tracing::error!(%error, "the archive of admin changes cannot be read");
        Problem::unavailable("TRAIL", "the archive of admin changes cannot be read")
    })
}

type Sink<'a> = &'a mut (dyn FnMut(Piece) -> io::Result<()> + Send);

fn write(trail: &Trail, manifest: Manifest, changes: &[Changes], sink: Sink<'_>) -> Result<(), BlockError> {
    let (tenant, until_us) = (manifest.tenant.clone(), manifest.until_us);
    let written: Range<u64> = manifest.since_us..until_us.unwrap_or(u64::MAX);
    let mut export = ExportWriter::new(manifest, sink)?;
    let each = &mut |frame: StoredFrame| write_frame(&mut export, &frame, tenant.as_deref());
    let unreadable = trail.blocks().export_frames(written, each)?;
    if tenant.is_none() && until_us.is_none() {
        export.reported(&trail.known_heads());
    }
    for Changes { chain, head, archived, changes } in changes {
        let (name, mut first) = (chain.to_string(), archived.before);
        let read = trail.archive().read_forward(&name, *archived, &mut |change| {
            first = first.min(change.sequence);
            write_change(&mut export, chain, &change.encoded, change.revision)
        });
        read.map_err(|error| io::Error::other(error.to_string()))?;
        for (encoded, revision) in changes {
            write_change(&mut export, chain, encoded, *revision)?;
        }
        if head.sequence > 0 {
            export.admin_chain(&name, (first, head.sequence), &head.digest);
        }
    }
    export.finish(unreadable, trail.signing_key())?;
    Ok(())
}

fn write_frame(export: &mut ExportWriter<'_>, frame: &StoredFrame, tenant: Option<&str>) -> io::Result<()> {
    if tenant.is_none() {
        export.frame(frame)?;
    }
    for (record, sequence) in frame.records.iter().zip(frame.first..) {
        if tenant.is_some_and(|tenant| !is_of(record, tenant)) {
            continue;
        }
        let (node, chain, position) = (frame.node.clone(), frame.chain, Position { block: 0, row: 0 });
        let entry = to_wire(Entry { position, node, chain, sequence, record: record.clone() });
        let view = entry.map(|entry| object(&RecordView::from(entry)));
        export.record(view.unwrap_or_default(), record)?; // the bytes are there, whatever they mean
    }
    Ok(())
}

fn write_change(
    export: &mut ExportWriter<'_>,
    chain: &AdminChainName,
    encoded: &[u8],
    revision: u64,
) -> io::Result<()> {
    let previous = AdminChange::decode(encoded).unwrap_or_default().previous;
    let view = ChangeView::new(chain.to_string(), revision, encoded);
    export.change(view.map(|view| object(&view)).unwrap_or_default(), &previous, encoded)
}

fn object(view: &impl serde::Serialize) -> Map<String, serde_json::Value> {
    match serde_json::to_value(view) {
        Ok(serde_json::Value::Object(object)) => object,
        _ => Map::new(),
    }
}

fn is_of(record: &[u8], tenant: &str) -> bool {
    let is_tenant = |(number, value)| number == field::TENANT && value == Value::Bytes(tenant.as_bytes());
    FieldsOf::new(record).flatten().any(is_tenant)
}
