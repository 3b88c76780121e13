//! What of a spool goes to a collector, too.
//!
//! Segments stay until the control plane has acknowledged them and the exporter has sent them. The
//! exporter reads them from disk. Keys of this process's segments are in memory until their segment
//! is removed. Keys of earlier processes' segments come from the control plane.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{SegmentInfo, Segments};
use crate::{disk::Disk, seal::FileKey};

/// Names each segment, the last of its records that the collector has, and the requests in it that
/// have no outcome yet. One line each.
const MARKS: &str = "exported";

/// The id of a request.
type RequestId = [u8; 16];

/// What segments need for export.
#[derive(Default)]
pub(super) struct Exporting {
    keys: Mutex<HashMap<String, Arc<FileKey>>>,
    /// Requests whose intent was read and whose outcome was not, by segment. Such a segment stays,
    /// so that a later process can read what the request was.
    open_requests: Mutex<HashMap<String, Vec<RequestId>>>,
    /// Signalled when there is more to read.
    grown: Notify,
    /// Records that were removed before the collector had them.
    dropped: AtomicU64,
}

impl Exporting {
    pub(super) fn keep_key(&self, segment: &str, key: &Arc<FileKey>) {
        self.keys.lock().insert(segment.to_owned(), key.clone());
    }

    pub(super) fn forget(&self, segment: &SegmentInfo) {
        self.keys.lock().remove(&segment.name);
        self.open_requests.lock().remove(&segment.name);
        self.dropped.fetch_add(segment.unexported(), Relaxed);
    }

    /// Whether a segment is still to be read.
    pub(super) fn needs(&self, segment: &SegmentInfo) -> bool {
        segment.unexported() > 0 || self.open_requests.lock().contains_key(&segment.name)
    }

    pub(super) fn wake(&self) {
        self.grown.notify_one();
    }
}

impl SegmentInfo {
    /// Records that the collector does not have.
    #[must_use]
    pub fn unexported(&self) -> u64 {
        self.last.saturating_sub(self.exported)
    }
}

impl Segments {
    /// The key of a segment's frames. `None`: an earlier process wrote it, and no control plane has
    /// opened it yet.
    #[must_use]
    pub fn key(&self, segment: &str) -> Option<Arc<FileKey>> {
        self.exporting.as_ref()?.keys.lock().get(segment).cloned()
    }

    /// Segments that must be opened before they can be exported, oldest first.
    #[must_use]
    pub fn sealed(&self) -> Vec<SegmentInfo> {
        let Some(exporting) = &self.exporting else { return Vec::new() };
        let keys = exporting.keys.lock();
        self.list().into_iter().filter(|s| !keys.contains_key(&s.name) && exporting.needs(s)).collect()
    }

    /// Whether an earlier process has read a request's intent in this segment, and not its outcome.
    #[must_use]
    pub fn is_open_request(&self, segment: &str, request: &RequestId) -> bool {
        let Some(exporting) = &self.exporting else { return false };
        exporting.open_requests.lock().get(segment).is_some_and(|requests| requests.contains(request))
    }

    /// Replaces the requests without an outcome of these segments. Segments that nobody needs any
    /// more are removed. Blocks.
    pub fn set_open_requests(&self, segments: Vec<(String, Vec<RequestId>)>) {
        let Some(exporting) = &self.exporting else { return };
        let mut open = exporting.open_requests.lock();
        for (segment, requests) in segments {
            if requests.is_empty() {
                open.remove(&segment);
            } else {
                open.insert(segment, requests);
            }
        }
        drop(open);
        self.remove_done();
    }

    /// Opens a segment of an earlier process for export.
    pub fn give_key(&self, segment: &str, key: FileKey) {
        if let Some(exporting) = &self.exporting {
            exporting.keep_key(segment, &Arc::new(key));
            exporting.wake();
        }
    }

    /// Waits until there may be more to export. Never returns where nothing is exported.
    pub async fn grown_for_export(&self) {
        match &self.exporting {
            Some(exporting) => exporting.grown.notified().await,
            None => std::future::pending().await,
        }
    }

    /// The collector has the records of a segment up to `sequence`. Blocks.
    pub fn exported(&self, segment: &str, sequence: u64) {
        self.update(segment, |segment| segment.exported = sequence.clamp(segment.exported, segment.last));
        self.remove_done();
    }

    /// Records that the collector does not have yet.
    #[must_use]
    pub fn export_backlog(&self) -> u64 {
        self.exporting.as_ref().map_or(0, |_| self.list.lock().iter().map(SegmentInfo::unexported).sum())
    }

    /// Records that were removed, for room or age, before the collector had them.
    #[must_use]
    pub fn export_dropped(&self) -> u64 {
        self.exporting.as_ref().map_or(0, |exporting| exporting.dropped.load(Relaxed))
    }

    /// Keeps what was [exported](Self::exported) for the next process. Without it, that process
    /// exports more of the same spans again. Blocks.
    ///
    /// # Errors
    /// Of the file system.
    pub fn save_marks(&self) -> io::Result<()> {
        let Some(exporting) = &self.exporting else { return Ok(()) };
        let mut text = String::new();
        let open = exporting.open_requests.lock().clone();
        for segment in self.list.lock().iter().filter(|segment| segment.exported >= segment.first) {
            let _ = write!(text, "{} {}", segment.name, segment.exported); // a String takes everything
            for request in open.get(&segment.name).into_iter().flatten() {
                let _ = write!(text, " {}", HEXLOWER.encode(request));
            }
            text.push('\n');
        }
        let new = format!("{MARKS}.new");
        self.disk.remove(&new)?;
        self.disk.create(&new)?.append(text.as_bytes())?;
        self.disk.rename(&new, MARKS)
    }
}

/// Sets what earlier processes have exported. Damaged marks count as none.
pub(super) fn load_marks(disk: &dyn Disk, list: &mut [SegmentInfo]) -> Exporting {
    let text = String::from_utf8(disk.read_all(MARKS).unwrap_or_default()).unwrap_or_default();
    let exporting = Exporting::default();
    let mut open = exporting.open_requests.lock();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(name), Some(Ok(sequence))) = (words.next(), words.next().map(str::parse::<u64>)) else { continue };
        let Some(segment) = list.iter_mut().find(|segment| segment.name == name) else { continue };
        segment.exported = sequence.clamp(segment.exported, segment.last.max(segment.exported));
        let requests = words.filter_map(|id| HEXLOWER.decode(id.as_bytes()).ok()?.try_into().ok());
        let requests: Vec<RequestId> = requests.collect();
        if !requests.is_empty() {
            open.insert(name.to_owned(), requests);
        }
    }
    drop(open);
    exporting
}
