//! Uploads what the bucket lacks, and removes what was removed here.

use std::{
    collections::BTreeSet,
    io,
    time::{Duration, Instant},
};

use futures_util::future::select_all;
use seks_audit::{chain::ChainId, disk::Disk as _};
use tokio_util::sync::CancellationToken;

use super::{Bucket, BucketDisk, Inner, OWNER, State, is_block, is_kept};

/// How often logs are uploaded, and what could not be uploaded is tried again.
const EVERY: Duration = Duration::from_secs(10);
/// The last uploads of a process that stops take this long at most.
const LAST_LIMIT: Duration = Duration::from_secs(5);

impl BucketDisk {
    /// Waits until there may be something to upload.
    pub async fn pending(&self) {
        self.0.pending.notified().await;
    }

    /// Uploads what the bucket lacks, removes from it what was removed here, and then from the
    /// directory what the bucket has and the cache has no room for. Returns how many files were
    /// uploaded.
    ///
    /// # Errors
    /// Of the bucket and the directory. What was not done is done by the next call.
    pub async fn synchronize(&self) -> io::Result<usize> {
        let result = self.try_synchronize().await;
        let mut state = self.0.state.lock();
        match &result {
            Ok(_) => state.failing_since = None,
            Err(_) => state.failing_since = state.failing_since.or_else(|| Some(Instant::now())),
        }
        result
    }

    async fn try_synchronize(&self) -> io::Result<usize> {
        let inner = &*self.0;
        if !inner.state.lock().is_listed {
            inner.list_remote().await?;
        }
        let (to_upload, to_remove): (Vec<String>, Vec<String>) = {
            let state = inner.state.lock();
            (state.changed.keys().cloned().collect(), state.removed.iter().cloned().collect())
        };
        if to_upload.is_empty() && to_remove.is_empty() {
            return Ok(0);
        }
        if inner.bucket.get(OWNER).await? != inner.owner.as_bytes() {
            return Err(taken(&inner.bucket));
        }
        for name in &to_upload {
            let was = {
                let mut state = inner.state.lock();
                state.uploading = Some(name.clone());
                state.changed.remove(name)
            };
            let uploaded = self.upload(name).await;
            let mut state = inner.state.lock();
            state.uploading = None;
            if let (Err(error), Some(bytes)) = (uploaded, was) {
                state.changed.entry(name.clone()).or_insert(bytes);
                return Err(error);
            }
        }
        for name in to_remove {
            inner.bucket.delete(&name).await?;
            inner.state.lock().removed.remove(&name);
        }
        let disk = self.clone();
        tokio::task::spawn_blocking(move || disk.0.evict()).await?;
        Ok(to_upload.len())
    }

    async fn upload(&self, name: &str) -> io::Result<()> {
        let (disk, file) = (self.clone(), name.to_owned());
        let contents = match tokio::task::spawn_blocking(move || disk.0.local.read_all(&file)).await? {
            Ok(contents) => contents,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()), // removed meanwhile
            Err(error) => return Err(error),
        };
        let bytes = contents.len() as u64;
        self.0.bucket.put(name, contents).await?;
        let mut state = self.0.state.lock();
        // What was removed while it was sent is removed from the bucket by the next call.
        if !state.removed.contains(name) {
            state.remote.insert(name.to_owned(), bytes);
        }
        Ok(())
    }
}

impl Inner {
    /// After a start without the bucket: what it has, and whether it is still this directory's.
    async fn list_remote(&self) -> io::Result<()> {
        claim(&self.bucket, Some(self.owner.clone())).await?;
        let mut remote = self.bucket.list().await?;
        let mut state = self.state.lock();
        let removed: &BTreeSet<String> = &state.removed;
        remote.retain(|name, _| is_kept(name) && !removed.contains(name));
        let State { changed, cached, .. } = &mut *state;
        changed.retain(|name, bytes| {
            *bytes = cached.get(name).map_or(0, |file| file.bytes);
            !is_block(name) || remote.get(name) != Some(bytes)
        });
        (state.remote, state.is_listed) = (remote, true);
        Ok(())
    }
}

/// Takes the prefix, unless another process has it whose directory is not this one, and returns the
/// owner's name. A directory that is new takes over: the disk of before is lost.
pub(super) async fn claim(bucket: &Bucket, here: Option<String>) -> io::Result<String> {
    let there = match bucket.get(OWNER).await {
        Ok(owner) => Some(String::from_utf8_lossy(&owner).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    match (here, there) {
        (Some(here), Some(there)) if here != there => Err(taken(bucket)),
        (Some(here), Some(_)) => Ok(here),
        (here, there) => {
            if there.is_some() {
                tracing::warn!(prefix = %bucket.prefix, "the audit directory is new: it takes over the trail in the bucket");
            }
            let owner = match here {
                Some(here) => here,
                None => ChainId::generate().map_err(io::Error::other)?.to_string(),
            };
            bucket.put(OWNER, owner.clone().into_bytes()).await?;
            Ok(owner)
        }
    }
}

fn taken(bucket: &Bucket) -> io::Error {
    let prefix = &bucket.prefix;
    let text =
        format!("another replica writes its trail to `{prefix}`: give each a telemetry.service_instance of its own");
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

/// Uploads until `stop`, and then once more.
pub async fn synchronize_until(disks: Vec<BucketDisk>, stop: CancellationToken) {
    loop {
        let is_last = stop.is_cancelled();
        let mut is_failing = false;
        for disk in &disks {
            let was_failing = disk.failing_seconds() > 0.0;
            let done = if is_last {
                let done = tokio::time::timeout(LAST_LIMIT, disk.synchronize()).await;
                done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            } else {
                disk.synchronize().await
            };
            match done {
                Ok(_) if was_failing => tracing::info!("the audit trail is uploaded again"),
                Ok(_) => {}
                Err(error) if was_failing => tracing::debug!(%error, "the audit trail cannot be uploaded"),
                Err(error) => {
                    tracing::error!(%error, "the audit trail cannot be uploaded: its files stay on this disk")
                }
            }
            is_failing |= disk.failing_seconds() > 0.0;
        }
        if is_last {
            return;
        }
        let pending = select_all(disks.iter().map(|disk| Box::pin(disk.pending())));
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(EVERY) => {}
            _ = pending, if !is_failing => {}
        }
    }
}
