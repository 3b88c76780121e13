//! The one thread that writes: takes what is waiting, commits it as one redb transaction, answers
//! everybody.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use redb::ReadableTable as _;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    LogLimits,
    database::{Database, Fault, META, RECORDS, REVISION, counter},
    log::{self, Entry},
    reserve::Reserve,
};
use crate::store::{OpenError, Revision, StoreError, Transaction, Write, check_size};

/// Callers that share one fsync at most. Bounds what one of them waits and what is dirty in memory.
const BATCH: usize = 128;

struct Job {
    transaction: Transaction,
    done: oneshot::Sender<Result<Revision, StoreError>>,
}

/// Sends transactions to the thread; dropped, it waits for the thread to end, so that the file is
/// free again.
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    reserve: Reserve,
    /// The last put was refused because the disk is full.
    refused: Arc<AtomicBool>,
}

impl Writer {
    pub(super) fn start(
        database: Arc<Database>,
        head: watch::Sender<Revision>,
        limits: LogLimits,
    ) -> Result<Self, OpenError> {
        let (jobs, waiting) = mpsc::channel(BATCH);
        let path = database.path().display().to_string();
        let reserve = Reserve::beside(database.path());
        let refused = Arc::<AtomicBool>::default();
        let work = Work { database, head, limits, reserve: reserve.clone(), refused: refused.clone() };
        let thread = thread::Builder::new().name("seks-store".into()).spawn(move || work.run(waiting));
        let thread = thread.map_err(|source| OpenError::File { path, source })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), reserve, refused })
    }

    /// Whether puts are refused. A quota of the file system shows in refusals alone, and then until
    /// the next put.
    pub(super) fn is_full(&self) -> bool {
        self.reserve.is_full() || self.refused.load(Relaxed)
    }

    pub(super) async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        check_size(&transaction)?;
        let closed = || StoreError::Unavailable("the store is closed".into());
        let (done, outcome) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(closed)?;
        jobs.send(Job { transaction, done }).await.map_err(|_| closed())?;
        outcome.await.map_err(|_| StoreError::Unknown("the store's thread ended".into()))?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join(); // what was sent is committed; takes one fsync at most
        }
    }
}

/// What a write adds to the store; 0 for deletes.
fn put_bytes(write: &Write) -> u64 {
    match write {
        Write::Put(key, value) => (key.to_string().len() + value.len()) as u64,
        Write::Delete(_) => 0,
    }
}

struct Work {
    database: Arc<Database>,
    head: watch::Sender<Revision>,
    limits: LogLimits,
    reserve: Reserve,
    refused: Arc<AtomicBool>,
}

impl Work {
    fn run(self, mut waiting: mpsc::Receiver<Job>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(job) = waiting.try_recv()
            {
                batch.push(job);
            }
            self.serve(batch);
        }
    }

    fn serve(&self, batch: Vec<Job>) {
        let size = |job: &Job| job.transaction.writes.iter().map(put_bytes).sum::<u64>();
        let bytes: u64 = batch.iter().map(size).sum();
        let transactions: Vec<&Transaction> = batch.iter().map(|job| &job.transaction).collect();
        let done = match bytes {
            0 => self.commit(&transactions),
            _ if self.reserve.has_room_for(bytes) => self.commit(&transactions),
            _ => Err(StoreError::Full),
        };
        if bytes > 0 {
            self.refused.store(matches!(done, Err(StoreError::Full)), Relaxed);
        }
        match done {
            Ok(outcomes) => batch.into_iter().zip(outcomes).for_each(|(job, outcome)| {
                let _gone = job.done.send(outcome);
            }),
            // One that can't be written must not take the others with it: each for itself, which
            // tells who it was.
            Err(_) if batch.len() > 1 => batch.into_iter().for_each(|job| self.serve(vec![job])),
            Err(StoreError::Full) if bytes == 0 && self.reserve.give_up() => self.serve(batch),
            Err(error) => batch.into_iter().for_each(|job| {
                let _gone = job.done.send(Err(copy(&error)));
            }),
        }
    }

    /// All of `transactions` in one redb commit. After an error none of them is written.
    fn commit(&self, transactions: &[&Transaction]) -> Result<Vec<Result<Revision, StoreError>>, StoreError> {
        let done = match self.database.write(|db| apply_all(db, transactions, self.limits)) {
            Some(done) => done,
            None => {
                self.database.reopen()?;
                return self.commit(transactions);
            }
        };
        match done {
            Ok((outcomes, revision)) => {
                self.head.send_if_modified(|head| std::mem::replace(head, revision) != revision);
                Ok(outcomes)
            }
            Err(fault) => {
                let error = StoreError::from(fault);
                tracing::error!(%error, "a write to the store failed");
                if let Err(error) = self.database.reopen() {
                    tracing::error!(%error, "the store cannot be opened again");
                }
                Err(error)
            }
        }
    }
}

fn copy(error: &StoreError) -> StoreError {
    match error {
        StoreError::Full => StoreError::Full,
        StoreError::Corrupt(reason) => StoreError::Corrupt(reason.clone()),
        other => StoreError::Unavailable(other.to_string()),
    }
}

type Outcomes = Vec<Result<Revision, StoreError>>;

fn apply_all(db: &redb::Database, batch: &[&Transaction], limits: LogLimits) -> Result<(Outcomes, Revision), Fault> {
    let tx = db.begin_write()?;
    let mut revision = counter(&tx.open_table(META)?, REVISION)?;
    let before = revision;
    let mut outcomes = Vec::with_capacity(batch.len());
    for transaction in batch {
        outcomes.push(apply(&tx, transaction, &mut revision, limits)?);
    }
    if revision == before {
        tx.abort()?; // nothing changed: no fsync
    } else {
        tx.open_table(META)?.insert(REVISION, revision)?;
        tx.commit()?;
    }
    Ok((outcomes, revision))
}

/// One transaction. Without an effect it uses no revision, as in etcd.
fn apply(
    tx: &redb::WriteTransaction,
    transaction: &Transaction,
    revision: &mut Revision,
    limits: LogLimits,
) -> Result<Result<Revision, StoreError>, Fault> {
    let mut records = tx.open_table(RECORDS)?;
    for (key, expected) in &transaction.checks {
        let modified = records.get(key.to_string().as_str())?.map_or(0, |guard| guard.value().0);
        if modified != *expected {
            return Ok(Err(StoreError::Conflict));
        }
    }
    let mut writes: Vec<(String, Option<&[u8]>)> = transaction
        .writes
        .iter()
        .map(|write| match write {
            Write::Put(key, value) => (key.to_string(), Some(&value[..])),
            Write::Delete(key) => (key.to_string(), None),
        })
        .collect();
    writes.sort_unstable();
    let mut entry = Entry::default();
    for (path, value) in &writes {
        let old = match value {
            Some(value) => records.insert(path.as_str(), (*revision + 1, *value))?,
            None => records.remove(path.as_str())?,
        };
        if value.is_some() || old.is_some() {
            entry.add(path, *value, old.as_ref().map(redb::AccessGuard::value));
        }
    }
    if let Some(entry) = entry.finish() {
        *revision += 1;
        log::append(tx, *revision, &entry, limits)?;
    }
    Ok(Ok(*revision))
}
