//! Room on the disk: puts are refused while some is left, and a file holds what deletes need when
//! others took the rest.
//!
//! Deleting writes too (redb copies pages), and to revoke is to delete: it must work on a full
//! disk. So puts stop early, and when even a delete finds no room, the reserve is given up for it.
//! It is taken back once there is room again.

use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Enough for thousands of deletes, few enough not to be missed.
const RESERVE_BYTES: u64 = 4 * 1024 * 1024;
/// Puts leave this much, beside what they need themselves.
const HEADROOM_BYTES: u64 = 1024 * 1024;
/// What a put may take on the disk, for each of its bytes: the record, the log, copied pages.
const AMPLIFICATION: u64 = 4;

/// The reserve of the store at a path: a file beside it, with `.reserve` at the end of its name.
#[derive(Clone)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(super) fn beside(store: &Path) -> Self {
        let mut path = store.as_os_str().to_owned();
        path.push(".reserve");
        let reserve = Self { path: path.into() };
        reserve.has_room_for(0); // takes the reserve when there is room
        reserve
    }

    /// Whether `bytes` may be put.
    pub(super) fn has_room_for(&self, bytes: u64) -> bool {
        let needed = HEADROOM_BYTES + bytes.saturating_mul(AMPLIFICATION);
        let Some(free) = self.free() else { return true }; // where the system doesn't say, the write itself will
        if self.path.exists() {
            return free >= needed;
        }
        free >= needed.saturating_add(RESERVE_BYTES) && self.take()
    }

    /// Whether puts are refused now. Unlike [`has_room_for`](Self::has_room_for) it changes
    /// nothing.
    pub(super) fn is_full(&self) -> bool {
        let needed = HEADROOM_BYTES + if self.path.exists() { 0 } else { RESERVE_BYTES };
        self.free().is_some_and(|free| free < needed)
    }

    /// Gives the room to the writes that need it most; false when that has happened before.
    pub(super) fn give_up(&self) -> bool {
        std::fs::remove_file(&self.path).is_ok()
    }

    fn free(&self) -> Option<u64> {
        let disk = statvfs(self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// True also where a file system can't reserve: then the headroom has to do.
    fn take(&self) -> bool {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path);
        match file
            .map_err(|_| ())
            .and_then(|file| fallocate(file, FallocateFlags::empty(), 0, RESERVE_BYTES).map_err(|_| ()))
        {
            Ok(()) => true,
            Err(()) => {
                self.give_up();
                self.free().is_none_or(|free| free >= RESERVE_BYTES)
            }
        }
    }
}
