//! One transaction in etcd, retried without ever being made twice.
//!
//! The answer to a write can be lost after the write was made. What makes a retry safe is that a
//! transaction which was made refuses to be made again: one of its checks is on a key that it
//! writes. Where the caller has no such check, a *guard* is added: the first key that it puts must
//! not change between our read and our write. A retry that is refused looks whose stamp the key
//! carries: ours means that an earlier attempt was the one.

use std::collections::HashSet;

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

use super::{
    failure::Failure,
    link::{self, Link, Patience},
    revision,
    stamp::Stamp,
};
use crate::store::{Revision, StoreError, Transaction, Write, check_size};

/// Commits, and says at which revision.
pub(super) async fn commit(link: &Link, transaction: Transaction) -> Result<Revision, StoreError> {
    check_size(&transaction)?;
    let plan = Plan::new(link, transaction);
    match plan.run(link).await {
        Err(StoreError::Full) if plan.puts.is_empty() => plan.delete_one_by_one(link).await,
        done => done,
    }
}

/// The transaction in etcd's terms.
struct Plan {
    stamp: Stamp,
    checks: Vec<(String, i64)>,
    puts: Vec<(String, Vec<u8>)>,
    deletes: Vec<String>,
    needs_guard: bool,
}

/// What an attempt came to.
enum Attempt {
    /// Made, now or by an earlier attempt.
    Made(Revision),
    /// A check of the caller failed.
    Refused,
    /// Only the guard failed; the key's revision is now this.
    Guarded(i64),
}

impl Plan {
    fn new(link: &Link, transaction: Transaction) -> Self {
        let stamp = link.stamp();
        let checks: Vec<(String, i64)> = transaction
            .checks
            .iter()
            .map(|(key, at)| (link.path(&key.to_string()), i64::try_from(*at).unwrap_or(i64::MAX)))
            .collect();
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        for write in transaction.writes {
            match write {
                Write::Put(key, value) => puts.push((link.path(&key.to_string()), stamp.put_on(&value))),
                Write::Delete(key) => deletes.push(link.path(&key.to_string())),
            }
        }
        let checked: HashSet<&str> = checks.iter().map(|(path, _)| path.as_str()).collect();
        // A second delete of the same keys does nothing, so transactions that only delete are safe
        // as they are.
        let needs_guard = !puts.is_empty() && !puts.iter().any(|(path, _)| checked.contains(path.as_str()));
        Self { stamp, checks, puts, deletes, needs_guard }
    }

    async fn run(&self, link: &Link) -> Result<Revision, StoreError> {
        let mut patience = Patience::new(link.retry);
        let mut uncertain: Option<String> = None;
        let mut guard = None;
        loop {
            let attempt = async {
                if self.needs_guard && guard.is_none() {
                    guard =
                        Some(link.once(|client| async move { self.read_guard(client).await }).await.map_err(not_sent)?);
                }
                link.once(|client| async move { self.send(client, guard).await }).await
            };
            let failure = match attempt.await {
                Ok(response) => match self.judge(&response, guard) {
                    Attempt::Made(revision) => return Ok(revision),
                    Attempt::Refused => return Err(lost_or(uncertain, StoreError::Conflict)),
                    Attempt::Guarded(now) if uncertain.is_none() => {
                        guard = Some(now);
                        continue;
                    }
                    // An earlier write of this process may be hidden by a later write of another.
                    Attempt::Guarded(_) => return Err(lost_or(uncertain, StoreError::Conflict)),
                },
                Err(failure) => failure,
            };
            let Failure::Retry { sent, reason } = failure else { return Err(lost_or(uncertain, failure.into())) };
            tracing::debug!(reason, sent, "a commit is tried again");
            if sent {
                uncertain = Some(reason.clone());
            }
            if !patience.wait().await {
                return Err(lost_or(uncertain, StoreError::Unavailable(reason)));
            }
        }
    }

    async fn read_guard(&self, client: Client) -> Result<i64, Error> {
        let Some((path, _)) = self.puts.first() else { return Ok(0) };
        let found = link::kv(&client).get(path.as_str(), Some(GetOptions::new().with_keys_only())).await?;
        Ok(found.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision))
    }

    async fn send(&self, client: Client, guard: Option<i64>) -> Result<TxnResponse, Error> {
        let equal = |path: &str, at: i64| Compare::mod_revision(path, CompareOp::Equal, at);
        let mut when: Vec<Compare> = self.checks.iter().map(|(path, at)| equal(path, *at)).collect();
        let first = self.puts.first().map(|(path, _)| path.as_str());
        when.extend(first.zip(guard).map(|(path, at)| equal(path, at)));
        let puts = self.puts.iter().map(|(path, value)| TxnOp::put(path.as_str(), value.clone(), None));
        let deletes = self.deletes.iter().map(|path| TxnOp::delete(path.as_str(), None));
        // When refused: whose stamp is on the first key that we put, and which checks failed.
        let mut look: Vec<TxnOp> = first.map(|path| TxnOp::get(path, None)).into_iter().collect();
        let keys_only = || Some(GetOptions::new().with_keys_only());
        look.extend(self.checks.iter().map(|(path, _)| TxnOp::get(path.as_str(), keys_only())));
        let txn = Txn::new().when(when).and_then(puts.chain(deletes).collect::<Vec<_>>()).or_else(look);
        link::kv(&client).txn(txn).await
    }

    fn judge(&self, response: &TxnResponse, guard: Option<i64>) -> Attempt {
        if response.succeeded() {
            return Attempt::Made(response.header().map_or(0, |header| revision(header.revision())));
        }
        let looks = response.op_responses();
        let found = |look: Option<&TxnOpResponse>| match look {
            Some(TxnOpResponse::Get(found)) => found.kvs().first().cloned(),
            _ => None,
        };
        let first = if self.puts.is_empty() { None } else { found(looks.first()) };
        if let Some(kv) = first.as_ref().filter(|kv| self.stamp.is_on(kv.value())) {
            return Attempt::Made(revision(kv.mod_revision()));
        }
        let checked = looks.get(usize::from(!self.puts.is_empty())..).unwrap_or_default();
        let holds = |(look, (_, at)): (&TxnOpResponse, &(String, i64))| {
            found(Some(look)).map_or(0, |kv| kv.mod_revision()) == *at
        };
        if guard.is_some() && checked.iter().zip(&self.checks).all(holds) {
            return Attempt::Guarded(first.map_or(0, |kv| kv.mod_revision()));
        }
        Attempt::Refused
    }

    /// Past its quota etcd refuses every transaction, while a plain delete still works. Revoking
    /// must work then: the checks are read first, and the keys go one by one, so this is not
    /// atomic.
    async fn delete_one_by_one(&self, link: &Link) -> Result<Revision, StoreError> {
        for (path, at) in &self.checks {
            let read = link.read(|client| async move { link::kv(&client).get(path.as_str(), None).await });
            if read.await.map_err(StoreError::from)?.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision) != *at
            {
                return Err(StoreError::Conflict);
            }
        }
        let mut last = 0;
        for path in &self.deletes {
            let delete = link.read(|client| async move { link::kv(&client).delete(path.as_str(), None).await });
            let deleted = delete.await.map_err(StoreError::from)?;
            last = deleted.header().map_or(last, |header| revision(header.revision()));
        }
        Ok(last)
    }
}

/// A read that failed wrote nothing.
fn not_sent(failure: Failure) -> Failure {
    match failure {
        Failure::Retry { reason, .. } => Failure::Retry { sent: false, reason },
        other => other,
    }
}

/// `error`, unless an earlier attempt may have been made.
fn lost_or(uncertain: Option<String>, error: StoreError) -> StoreError {
    match uncertain {
        Some(reason) => StoreError::Unknown(reason),
        None => error,
    }
}
