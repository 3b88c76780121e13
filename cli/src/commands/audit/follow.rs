//! `seks audit tail --follow`: of each replica one stream after the other, each from where the one
//! before it ended.

use std::time::Duration;

use seks_proto::wire::{AuditEntry, SearchAuditRequest};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::{
    PAGE,
    record::{LinePrinter, RecordView},
    replicas::Source,
};
use crate::{
    error::{CliError, Result},
    output::{is_closed, notice},
};

/// Between two attempts to reach a control plane that is away.
const PAUSE: Duration = Duration::from_secs(1);
/// Pages that wait to be printed.
const PAGES: usize = 16;

type Pages = mpsc::Sender<std::result::Result<Vec<AuditEntry>, Status>>;

/// Prints what arrives at the replicas from now on, until it is interrupted.
pub(super) async fn run(sources: Vec<Source>, request: SearchAuditRequest, printer: &mut LinePrinter) -> Result<()> {
    let (pages, mut received) = mpsc::channel(PAGES);
    for source in sources {
        tokio::spawn(follow(source, request.clone(), pages.clone()));
    }
    drop(pages);
    while let Some(page) = received.recv().await {
        let entries = page.map_err(|status| CliError::status("audit", &status))?;
        let views: Vec<RecordView> = entries.into_iter().map(RecordView::from).collect();
        printer.print(&views)?;
        if is_closed() {
            break;
        }
    }
    Ok(())
}

/// Follows one replica until it refuses.
async fn follow(mut source: Source, request: SearchAuditRequest, pages: Pages) {
    let mut is_away = false;
    loop {
        let is_lasting = |status: &Status| {
            !matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
        };
        match stream(&mut source, &request, &pages).await {
            Ok(()) => is_away = false,
            Err(status) if is_lasting(&status) => {
                let _: Result<(), _> = pages.send(Err(status)).await; // the printer may have ended
                return;
            }
            Err(_) => {
                if !std::mem::replace(&mut is_away, true) {
                    notice("a control plane is away: going on when it is back");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One stream, until the replica ends it.
async fn stream(source: &mut Source, request: &SearchAuditRequest, pages: &Pages) -> std::result::Result<(), Status> {
    let (tenant, page_token) = (source.client.tenant(), source.end.clone());
    let request = SearchAuditRequest { tenant, page_token, page_size: PAGE, ..request.clone() };
    let mut rpc = source.client.rpc();
    let opened = if source.is_fleet { rpc.follow_fleet_audit(request).await } else { rpc.follow_audit(request).await };
    let mut stream = opened?.into_inner();
    while let Some(page) = stream.message().await? {
        source.end = page.end_token;
        if !page.entries.is_empty() && pages.send(Ok(page.entries)).await.is_err() {
            return Err(Status::failed_precondition("nobody prints"));
        }
    }
    Ok(())
}
