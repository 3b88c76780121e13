//! `seks audit tail --follow`: records as they arrive, without polling.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use seks_audit::trail::Test;
use seks_proto::wire::{SearchAuditRequest, SearchAuditResponse};
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;

use super::{
    Admin, Answer,
    answer_stream::AnswerStream,
    audit_trail::{find, of_tenant, trail, visible_since},
    auth::Caller,
    problem::Problem,
};

/// How long a stream lasts. The caller opens the next one, so a role that was taken away ends here.
const LIFETIME: Duration = Duration::from_secs(60);
/// Records that arrive within this time are sent together.
const GATHER: Duration = Duration::from_millis(50);
/// Streams of one replica at a time. Each searches again when records arrive.
const MAX_STREAMS: usize = 64;
/// Pages that may wait for a slow reader.
const PAGES: usize = 2;

static STREAMS: AtomicUsize = AtomicUsize::new(0);

/// One of [`MAX_STREAMS`].
struct Slot;

impl Slot {
    fn try_acquire() -> Option<Self> {
        let taken = STREAMS.fetch_update(Relaxed, Relaxed, |count| (count < MAX_STREAMS).then_some(count + 1));
        taken.is_ok().then_some(Self)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        STREAMS.fetch_sub(1, Relaxed);
    }
}

/// One tenant's records.
pub(super) async fn follow(
    admin: &Admin,
    caller: &Caller,
    mut message: SearchAuditRequest,
) -> Answer<AnswerStream<SearchAuditResponse>> {
    let scope = of_tenant(&message.tenant)?;
    message.since_us = message.since_us.max(visible_since(admin, caller, &message.tenant).await?);
    open(admin, caller, message, Some(scope)).await
}

/// Everybody's records.
pub(super) async fn follow_fleet(
    admin: &Admin,
    caller: &Caller,
    message: SearchAuditRequest,
) -> Answer<AnswerStream<SearchAuditResponse>> {
    open(admin, caller, message, None).await
}

async fn open(
    admin: &Admin,
    caller: &Caller,
    message: SearchAuditRequest,
    scope: Option<Test>,
) -> Answer<AnswerStream<SearchAuditResponse>> {
    let busy = || Problem::exhausted("FOLLOWERS", format!("{MAX_STREAMS} others follow the trail of this replica"));
    let slot = Slot::try_acquire().ok_or_else(busy)?;
    let mut growth = trail(admin)?.growth();
    let mut request = SearchAuditRequest { oldest_first: true, ..message };
    // The first page is read here, so that a wrong filter is an answer and no broken stream.
    let first = find(admin, request.clone(), scope.clone()).await?;
    let (pages, answer) = mpsc::channel(PAGES);
    let admin = admin.clone();
    tokio::spawn(async move {
        let (_slot, end, mut page) = (slot, Instant::now() + LIFETIME, first);
        loop {
            let is_last = page.next_page_token.is_empty();
            request.page_token = if is_last { page.end_token.clone() } else { page.next_page_token.clone() };
            // What the reader goes on from, also when nothing matched.
            page.end_token.clone_from(&request.page_token);
            if pages.send(Ok(page)).await.is_err() {
                return; // the caller has gone
            }
            if Instant::now() >= end {
                return;
            }
            if is_last {
                let grown = tokio::select! {
                    grown = growth.changed() => grown.is_ok(),
                    () = tokio::time::sleep_until(end) => false,
                    () = pages.closed() => false,
                };
                if !grown {
                    return;
                }
                tokio::time::sleep(GATHER).await;
            }
            page = match find(&admin, request.clone(), scope.clone()).await {
                Ok(page) => page,
                Err(problem) => {
                    let _: Result<(), mpsc::error::SendError<Result<_, Status>>> =
                        pages.send(Err(problem.into_status())).await; // the caller may have gone
                    return;
                }
            };
        }
    });
    Ok(AnswerStream::new(caller, answer))
}
