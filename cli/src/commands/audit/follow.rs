//! `seks audit tail --follow`: one stream after the other, each from where the one before it ended.

use std::time::Duration;

use seks_proto::wire::SearchAuditRequest;
use tonic::Code;

use super::{
    PAGE, Search,
    record::{LinePrinter, RecordView},
};
use crate::{
    error::{CliError, Result},
    output::notice,
};

/// Between two attempts to reach a control plane that is away.
const PAUSE: Duration = Duration::from_secs(1);

/// Prints what arrives behind `after`, until it is interrupted.
pub(super) async fn run(
    search: &Search,
    mut after: String,
    request: SearchAuditRequest,
    printer: &mut LinePrinter,
) -> Result<()> {
    let mut is_away = false;
    loop {
        let request = SearchAuditRequest {
            tenant: search.client.tenant(),
            page_token: after.clone(),
            page_size: PAGE,
            ..request.clone()
        };
        let mut rpc = search.client.rpc();
        let opened =
            if search.is_fleet { rpc.follow_fleet_audit(request).await } else { rpc.follow_audit(request).await };
        let ended = match opened {
            Ok(stream) => {
                is_away = false;
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(page)) => {
                            let views: Vec<RecordView> = page.entries.into_iter().map(RecordView::from).collect();
                            printer.print(&views)?;
                            after = page.end_token;
                        }
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                }
            }
            Err(status) => Some(status),
        };
        match ended {
            None => {}
            Some(status)
                if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal) =>
            {
                if !std::mem::replace(&mut is_away, true) {
                    notice("the control plane is away: going on when it is back");
                }
                tokio::time::sleep(PAUSE).await;
            }
            Some(status) => return Err(CliError::status("audit", &status)),
        }
    }
}
