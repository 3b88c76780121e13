//! Writes lines to a file descriptor without blocking the caller.
//!
//! When a reader of stderr stops reading, the pipe fills up, and a `write` to it blocks. So lines
//! are appended to a bounded buffer, and one thread writes it out. When the buffer is full, new
//! lines are dropped and counted.

use std::{
    mem,
    sync::Once,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::{fd::BorrowedFd, io::Errno};

/// Most bytes that wait for the writing thread. The thread holds as many again while it writes: 2
/// MiB in all, about 8,000 lines.
const CAPACITY_BYTES: usize = 1024 * 1024;
/// Memory of a written batch that is kept for the next.
const KEPT_BYTES: usize = 64 * 1024;
/// How often [`Hooks::tick`] is called.
const TICK_INTERVAL: Duration = Duration::from_secs(10);
/// Pause before a write to a non-blocking descriptor is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Callbacks of the writing thread. Both may append lines.
pub(super) struct Hooks {
    /// The descriptor accepts lines again. The argument is the number of lines dropped since the
    /// last report.
    pub(super) recovered: fn(u64),
    /// Called every [`TICK_INTERVAL`].
    pub(super) tick: fn(),
}

/// A descriptor with its buffer. The thread starts with the first line.
pub(super) struct Writer {
    name: &'static str,
    fd: fn() -> BorrowedFd<'static>,
    hooks: Hooks,
    start: Once,
    state: Mutex<State>,
    /// Signalled when there are bytes to write.
    filled: Condvar,
    /// Signalled when everything is written.
    empty: Condvar,
}

struct State {
    waiting: Vec<u8>,
    /// Lines in `waiting`.
    lines: u64,
    /// The thread is writing a batch.
    writing: bool,
    dropped: u64,
    reported: u64,
}

impl Writer {
    pub(super) const fn new(name: &'static str, fd: fn() -> BorrowedFd<'static>, hooks: Hooks) -> Self {
        let state = State { waiting: Vec::new(), lines: 0, writing: false, dropped: 0, reported: 0 };
        Self {
            name,
            fd,
            hooks,
            start: Once::new(),
            state: Mutex::new(state),
            filled: Condvar::new(),
            empty: Condvar::new(),
        }
    }

    /// Queues a line, which ends with a line break. Drops and counts it when the buffer is full.
    pub(super) fn append(&'static self, line: &[u8]) {
        self.start.call_once(|| {
            // Without a thread the buffer fills up, and what comes after that is counted as
            // dropped.
            let _ = thread::Builder::new().name(self.name.into()).spawn(|| self.write_batches());
        });
        let mut state = self.lock();
        if state.waiting.len() + line.len() > CAPACITY_BYTES {
            state.dropped += 1;
            return;
        }
        state.waiting.extend_from_slice(line);
        state.lines += 1;
        let idle = !state.writing;
        drop(state);
        if idle {
            self.filled.notify_one();
        }
    }

    /// Lines dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Waits until everything is written, at most `within`. Returns whether it was.
    pub(super) fn flush(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut state = self.lock();
        while state.writing || !state.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.empty.wait_for(&mut state, left);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn write_batches(&self) {
        let mut batch = Vec::new();
        let mut ticked = Instant::now();
        loop {
            let lines = self.take_batch(&mut batch, ticked + TICK_INTERVAL);
            let lost = if self.write_batch(&batch) { 0 } else { lines };
            batch.clear();
            batch.shrink_to(KEPT_BYTES);
            if let Some(dropped) = self.finish_batch(lost) {
                (self.hooks.recovered)(dropped);
            }
            if ticked.elapsed() >= TICK_INTERVAL {
                ticked = Instant::now();
                (self.hooks.tick)();
            }
        }
    }

    /// Swaps the queued bytes into the empty `batch`, and returns the number of lines. Returns 0 at
    /// `until`.
    fn take_batch(&self, batch: &mut Vec<u8>, until: Instant) -> u64 {
        let mut state = self.lock();
        while state.waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return 0;
            }
            self.filled.wait_for(&mut state, left);
        }
        state.writing = true;
        mem::swap(&mut state.waiting, batch);
        mem::take(&mut state.lines)
    }

    /// Returns the number of lines dropped since the last report, once the buffer is empty.
    fn finish_batch(&self, lost: u64) -> Option<u64> {
        let mut state = self.lock();
        state.writing = false;
        state.dropped += lost;
        if !state.waiting.is_empty() {
            return None;
        }
        self.empty.notify_all();
        let since = state.dropped - state.reported;
        state.reported = state.dropped;
        (since > 0 && lost == 0).then_some(since)
    }

    /// Returns `false` when the descriptor is closed or broken.
    fn write_batch(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match rustix::io::write((self.fd)(), bytes) {
                Ok(0) => return false,
                Ok(wrote) => bytes = bytes.get(wrote..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                // The file may be shared with a process that made it non-blocking; this thread
                // alone waits for it.
                Err(Errno::AGAIN) => thread::sleep(RETRY_PAUSE),
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{PipeReader, PipeWriter, Read as _, pipe},
        os::fd::AsFd as _,
        sync::OnceLock,
    };

    use super::*;

    static PIPE: OnceLock<(PipeReader, PipeWriter)> = OnceLock::new();
    static RECOVERED: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    static WRITER: Writer = Writer::new(
        "test",
        || PIPE.get_or_init(|| pipe().unwrap()).1.as_fd(),
        Hooks { recovered: |dropped| RECOVERED.lock().push(dropped), tick: || {} },
    );

    #[test]
    fn a_reader_that_stops_costs_lines_that_are_counted_and_never_the_callers_time() {
        let (mut reader, _) = (PIPE.get_or_init(|| pipe().unwrap()).0.try_clone().unwrap(), ());
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let began = Instant::now();
        for _ in 0..4096 {
            WRITER.append(&line); // 4 MiB: more than the pipe, the batch and the buffer hold
        }
        let dropped = WRITER.dropped();
        assert!((1024..4096).contains(&dropped), "{dropped}");
        assert!(!WRITER.flush(Duration::from_millis(50)), "nobody reads");
        assert!(began.elapsed() < Duration::from_secs(30));

        let expected = (4096 - usize::try_from(dropped).unwrap()) * line.len();
        let reading = thread::spawn(move || {
            let mut text = vec![0; expected];
            reader.read_exact(&mut text).unwrap();
            text
        });
        assert!(WRITER.flush(Duration::from_secs(60)));
        let text = reading.join().unwrap();
        assert!(text.chunks(line.len()).all(|got| got == line), "whole lines, in order");
        while RECOVERED.lock().is_empty() {
            thread::yield_now();
        }
        assert_eq!(*RECOVERED.lock(), [dropped]);
    }
}
