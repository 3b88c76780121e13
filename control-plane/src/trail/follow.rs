//! New records of a trail, as they arrive: what `seks dev` prints of each request.
//!
//! The thread that stores records hands a few of them over. Nothing is read back from the disk, and
//! a reader never holds up the thread: what it does not take in time is counted.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::Instant,
};

use super::Trail;

/// Most records of a second that are handed over: more than a person reads.
const RECORDS_A_SECOND: usize = 50;
const WINDOW: Duration = Duration::from_secs(1);
/// Groups that may wait for a reader.
const QUEUE: usize = 64;

/// Records that have arrived together.
#[derive(Debug, Default)]
pub struct NewRecords {
    /// As nodes have encoded them, in the order of their arrival.
    pub records: Vec<Box<[u8]>>,
    /// Further records of the group, that are not here.
    pub left_out: u64,
}

/// A reader of new records.
pub struct Follow(broadcast::Receiver<Arc<NewRecords>>);

impl Trail {
    /// Follows the trail from now on.
    #[must_use]
    pub fn follow(&self) -> Follow {
        Follow(self.0.new_records.subscribe())
    }
}

impl Follow {
    /// Waits for new records. `None`: the trail is closed.
    pub async fn next(&mut self) -> Option<Arc<NewRecords>> {
        loop {
            match self.0.recv().await {
                Ok(new) => return Some(new),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// The writing side, of the thread that stores records.
pub(super) struct Followers {
    sender: broadcast::Sender<Arc<NewRecords>>,
    group: NewRecords,
    /// When the present second began, and how many records of it were handed over.
    window: (Instant, usize),
}

impl Followers {
    pub(super) fn new() -> Self {
        let (sender, _) = broadcast::channel(QUEUE);
        Self { sender, group: NewRecords::default(), window: (Instant::now(), 0) }
    }

    pub(super) fn sender(&self) -> broadcast::Sender<Arc<NewRecords>> {
        self.sender.clone()
    }

    /// A group begins. Whether its records are to be given to [`add`](Self::add).
    pub(super) fn begin(&mut self) -> bool {
        let is_followed = self.sender.receiver_count() > 0;
        if is_followed && self.window.0.elapsed() >= WINDOW {
            self.window = (Instant::now(), 0);
        }
        is_followed
    }

    pub(super) fn add(&mut self, record: &[u8]) {
        if self.window.1 < RECORDS_A_SECOND {
            self.window.1 += 1;
            self.group.records.push(record.into());
        } else {
            self.group.left_out += 1;
        }
    }

    /// Hands over what was added.
    pub(super) fn send(&mut self) {
        if !self.group.records.is_empty() || self.group.left_out > 0 {
            let _ = self.sender.send(Arc::new(std::mem::take(&mut self.group))); // the last reader has gone
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_gets_some_records_of_a_second_and_the_number_of_the_others() {
        let mut followers = Followers::new();
        assert!(!followers.begin());
        let mut follow = Follow(followers.sender().subscribe());
        assert!(followers.begin());
        for record in 0..RECORDS_A_SECOND + 7 {
            followers.add(&[record as u8]);
        }
        followers.send();
        let first = follow.next().await.unwrap();
        assert_eq!((first.records.len(), first.left_out), (RECORDS_A_SECOND, 7));
        for (later, expected) in [(WINDOW / 2, (0, 1)), (WINDOW, (1, 0))] {
            tokio::time::advance(later).await;
            assert!(followers.begin());
            followers.add(b"more");
            followers.send();
            let next = follow.next().await.unwrap();
            assert_eq!((next.records.len(), next.left_out), expected);
        }
        drop(followers);
        assert!(follow.next().await.is_none());
    }
}
