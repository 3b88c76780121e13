//! The instance of a node: which process this is, of all that may show the same certificate.
//!
//! A machine can be cloned, or started elsewhere while the first one is only cut off. Both have the
//! same key, and an acknowledgement of one must not count for the other. So each process names its
//! instance, and a control plane waits for the lease of an instance that it no longer hears from. A
//! process that restarts in the same data directory keeps its instance, and nothing waits for the
//! old process.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::time::sleep;

/// The lock file in the data directory. The process that uses the directory has it locked.
const LOCK: &str = "lock";
/// How often a directory that is in use is looked at.
const PERIOD: Duration = Duration::from_millis(100);
/// Another at each boot of a machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A name's length, in bytes.
const LENGTH: usize = 32;

/// A name that no other living process has, for as long as this is kept.
pub(super) struct Instance {
    name: [u8; LENGTH],
    /// The kernel takes the lock back when the process ends, however it ends.
    _lock: Option<File>,
}

impl Instance {
    /// The name of who uses `data_dir`, as soon as nobody else does; `waits` is called if that
    /// isn't at once. Without a directory, or where the machine has no boot's id, it is drawn anew
    /// with every start.
    ///
    /// # Errors
    /// Of the file system; of the machine's randomness.
    pub(super) async fn claim(data_dir: Option<&Path>, waits: impl FnOnce()) -> io::Result<Self> {
        let Some(dir) = data_dir else { return Ok(Self { name: drawn()?, _lock: None }) };
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK))?;
        let mut waits = Some(waits);
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            waits.take().into_iter().for_each(|waits| waits());
            sleep(PERIOD).await;
        }
        let name = match fs::read(BOOT_ID) {
            Ok(boot) => of_place(&boot, &lock.metadata()?),
            Err(_) => drawn()?,
        };
        Ok(Self { name, _lock: Some(lock) })
    }

    #[cfg(feature = "simulation")]
    pub(super) fn of_machine(machine: u64) -> Self {
        let mut name = [0; LENGTH];
        name[..8].copy_from_slice(&machine.to_be_bytes());
        Self { name, _lock: None }
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }
}

/// A copy of the file is another file, on this machine; on another it is another boot.
fn of_place(boot: &[u8], lock: &fs::Metadata) -> [u8; LENGTH] {
    let place = [lock.dev().to_be_bytes(), lock.ino().to_be_bytes()];
    Sha256::new().chain_update(boot).chain_update(place.as_flattened()).finalize().into()
}

fn drawn() -> io::Result<[u8; LENGTH]> {
    let mut name = [0; LENGTH];
    getrandom::fill(&mut name).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn claim(dir: Option<&Path>) -> Instance {
        Instance::claim(dir, || panic!("it is in use")).await.unwrap()
    }

    #[tokio::test]
    async fn who_is_started_in_the_same_place_has_the_same_name_and_a_copy_another() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = claim(Some(dir.path())).await.name;
        fs::copy(dir.path().join(LOCK), copy.path().join(LOCK)).unwrap();
        let again = claim(Some(dir.path())).await;
        assert_eq!(again.name, first);
        assert_ne!(claim(Some(copy.path())).await.name, first, "beside it");
        assert_ne!(of_place(b"another boot", &fs::metadata(dir.path().join(LOCK)).unwrap()), first, "another machine");
        assert_ne!(claim(None).await.name, claim(None).await.name);
    }

    #[tokio::test]
    async fn a_directory_is_one_process_s_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = claim(Some(dir.path())).await;
        let (waiting, waits) = tokio::sync::oneshot::channel();
        let second = Instance::claim(Some(dir.path()), || waiting.send(()).unwrap());
        let free = async {
            waits.await.unwrap();
            drop(first);
        };
        let (second, ()) = tokio::join!(second, free);
        assert!(second.is_ok());
    }
}
