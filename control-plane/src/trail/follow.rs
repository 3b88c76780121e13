//! New records of a trail, as they arrive: what `seks dev` prints of each request.

use std::{future::pending, time::Duration};

use seks_audit::{
    spool::unix_micros,
    trail::{Position, Query},
};
use tokio::{sync::watch, time::sleep};

use super::Trail;

/// Records that arrive within this time are read together. A trail that grows all the time is
/// searched this often at most.
const GATHER: Duration = Duration::from_millis(50);
/// When a trail that could not be read is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Most records of one answer.
const BATCH: usize = 500;

/// A reader that stands behind the newest record it has seen. Reading never holds up a node that
/// hands records in.
pub struct Follow {
    trail: Trail,
    /// Changes when records have arrived.
    growth: watch::Receiver<()>,
    /// There may be more records than were read.
    is_behind: bool,
    /// `None`: nothing was seen yet. An empty trail has no position that comes before its first
    /// record.
    after: Option<Position>,
    /// Requests that began before it are not of interest, in Unix microseconds.
    since_us: u64,
}

impl Trail {
    /// Follows the trail from now on.
    #[must_use]
    pub fn follow(&self) -> Follow {
        Follow { trail: self.clone(), growth: self.growth(), is_behind: false, after: None, since_us: unix_micros() }
    }
}

impl Follow {
    /// Waits for new records, as nodes have encoded them; in the order of their arrival.
    pub async fn next(&mut self) -> Vec<Vec<u8>> {
        loop {
            if !self.is_behind {
                if self.growth.changed().await.is_err() {
                    return pending().await; // the trail is closed
                }
                sleep(GATHER).await;
            }
            let (after, since_us) = (self.after, self.since_us);
            let query = Query { after, since_us, newest_first: false, limit: BATCH, ..Query::default() };
            let Ok(page) = self.trail.search(query).await else {
                self.is_behind = true; // what cannot be read now is asked for again
                sleep(RETRY_AFTER).await;
                continue;
            };
            self.is_behind = page.next.is_some();
            let Some(last) = page.entries.last() else {
                // A search that was too long for one page goes on behind what it has seen.
                self.after = page.next.or(self.after);
                continue;
            };
            self.after = Some(last.position);
            return page.entries.into_iter().map(|entry| entry.record).collect();
        }
    }
}
