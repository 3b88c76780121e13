//! New records of a trail, as they arrive: what `seks dev` prints of each request.

use std::time::Duration;

use seks_audit::{
    spool::unix_micros,
    trail::{Position, Query},
};

use super::Trail;

/// How often the trail is asked.
const EVERY: Duration = Duration::from_millis(200);
/// Most records of one answer.
const BATCH: usize = 500;

/// A reader that stands behind the newest record it has seen. Reading never holds up a node that
/// hands records in.
pub struct Follow {
    trail: Trail,
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
        Follow { trail: self.clone(), after: None, since_us: unix_micros() }
    }
}

impl Follow {
    /// Waits for new records, as nodes have encoded them; in the order of their arrival.
    pub async fn next(&mut self) -> Vec<Vec<u8>> {
        loop {
            tokio::time::sleep(EVERY).await;
            if self.after.is_some_and(|after| self.trail.blocks().end() <= after) {
                continue;
            }
            let (after, since_us) = (self.after, self.since_us);
            let query = Query { after, since_us, newest_first: false, limit: BATCH, ..Query::default() };
            // What cannot be read now is asked for again.
            let Ok(page) = self.trail.search(query).await else { continue };
            let Some(last) = page.entries.last() else { continue };
            self.after = Some(last.position);
            return page.entries.into_iter().map(|entry| entry.record).collect();
        }
    }
}
