//! A request's record for the spool, written while the request is served.

use std::{net::IpAddr, ops::Range, sync::Arc, time::Duration};

use seks_audit::{
    record::{Kind, RecordWriter, field},
    recorder::{Durable, Recorder, Reservation},
};
use tokio::time::timeout;

use super::buffers;
use crate::{code::Code, config::AuditMode};

/// Room for an ordinary record.
const RECORD_BYTES: usize = 448;
/// Longest wait for a disk. A request that waited longer is refused.
const DISK_LIMIT: Duration = Duration::from_secs(5);

/// One request's record. What is written to it is appended to one buffer.
pub(super) struct Spooled {
    /// Absent: the node has no spool, and the record goes to the collector.
    recorder: Option<Arc<Recorder>>,
    writer: RecordWriter,
    /// Where what the decision is recorded in begins.
    decision: usize,
    /// Where the path is.
    path: Range<usize>,
    /// Where records are required: room for the record that closes the request.
    reservation: Option<Reservation>,
    is_required: bool,
    written: Written,
}

/// What of a request is on its way to the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Nothing,
    Intent,
    Everything,
}

/// An intent on its way to the disk, or nothing where none is needed.
#[must_use]
pub(crate) struct Intent(Option<Durable>);

impl Intent {
    /// Nothing to wait for.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Waits until it is on the disk.
    ///
    /// # Errors
    /// `audit_unavailable`: nothing may be sent.
    pub(crate) async fn recorded(self) -> Result<(), Code> {
        match self.0 {
            None => Ok(()),
            Some(durable) => wait(durable).await,
        }
    }
}

async fn wait(durable: Durable) -> Result<(), Code> {
    let recorded = timeout(DISK_LIMIT, durable.wait()).await;
    recorded.is_ok_and(|recorded| recorded.is_ok()).then_some(()).ok_or(Code::AuditUnavailable)
}

impl Spooled {
    pub(super) fn begin(recorder: Arc<Recorder>, mode: AuditMode) -> Self {
        let is_required = mode == AuditMode::Required;
        let reservation = if is_required { recorder.reserve() } else { None };
        Self { recorder: Some(recorder), reservation, is_required, ..Self::unspooled() }
    }

    /// A record that goes to the collector when it is closed. Nothing of it is on a disk.
    pub(super) fn unspooled() -> Self {
        let writer = RecordWriter::reusing(buffers::take(RECORD_BYTES));
        Self {
            recorder: None,
            writer,
            decision: 0,
            path: 0..0,
            reservation: None,
            is_required: false,
            written: Written::Nothing,
        }
    }

    /// Whether the request can be recorded as far as is known now.
    pub(super) fn may_begin(&self) -> bool {
        !self.is_required || self.reservation.is_some()
    }

    /// Where fields are appended.
    pub(super) fn fields(&mut self) -> &mut RecordWriter {
        &mut self.writer
    }

    pub(super) fn path(&mut self, path: &str) {
        self.writer.text(field::PATH, path);
        let end = self.writer.position();
        self.path = end - path.len()..end;
    }

    /// The path as it was written, to be masked.
    pub(super) fn path_mut(&mut self) -> &mut [u8] {
        self.writer.as_bytes_mut().get_mut(self.path.clone()).unwrap_or_default()
    }

    pub(super) fn source(&mut self, source: IpAddr) {
        match source.to_canonical() {
            IpAddr::V4(address) => self.writer.bytes(field::SOURCE, &address.octets()),
            IpAddr::V6(address) => self.writer.bytes(field::SOURCE, &address.octets()),
        }
    }

    /// From here on a new decision replaces what was written.
    pub(super) fn decision_begins(&mut self) {
        self.decision = self.writer.position();
    }

    pub(super) fn decide_again(&mut self) {
        self.writer.rewind(self.decision);
    }

    /// Sends an intent to the disk, once, where records are required. `closing` are fields that the
    /// outcome has at its end.
    pub(super) fn intend(&mut self, closing: impl FnOnce(&mut RecordWriter)) -> Result<Intent, Code> {
        let Some(recorder) = self.recorder.as_ref().filter(|_| self.is_required) else { return Ok(Intent(None)) };
        if self.written != Written::Nothing {
            return Ok(Intent(None));
        }
        let position = self.writer.position();
        closing(&mut self.writer);
        self.writer.number(field::KIND, Kind::Intent as u64);
        let pushed = recorder.push_durable(self.writer.as_bytes());
        self.writer.rewind(position);
        let durable = pushed.map_err(|_| Code::AuditUnavailable)?;
        self.written = Written::Intent;
        Ok(Intent(Some(durable)))
    }

    /// Whether the answer must wait for [`whole`](Self::whole): nothing of the request is on the
    /// disk yet.
    pub(super) fn needs_whole(&self) -> bool {
        self.is_required && self.written == Written::Nothing
    }

    /// Sends the whole record to the disk, before its request is answered. `closing` are the fields
    /// that are known at its end.
    pub(super) fn whole(&mut self, closing: impl FnOnce(&mut RecordWriter)) -> Result<Intent, Code> {
        let Some(recorder) = &self.recorder else { return Ok(Intent(None)) };
        closing(&mut self.writer);
        self.writer.number(field::KIND, Kind::Whole as u64);
        let pushed = recorder.push_durable(self.writer.as_bytes());
        self.written = Written::Everything;
        drop(self.reservation.take());
        pushed.map(|durable| Intent(Some(durable))).map_err(|_| Code::AuditUnavailable)
    }

    /// Closes the record. Gives it back where it does not go to a disk.
    pub(super) fn close(mut self, closing: impl FnOnce(&mut RecordWriter)) -> Option<RecordWriter> {
        let kind = match self.written {
            Written::Everything => return None,
            Written::Intent => Kind::Outcome,
            Written::Nothing => Kind::Whole,
        };
        closing(&mut self.writer);
        self.writer.number(field::KIND, kind as u64);
        let Some(recorder) = &self.recorder else { return Some(self.writer) };
        recorder.push(self.writer.as_bytes(), self.reservation.take());
        buffers::give_back(self.writer.into_buffer());
        None
    }
}
