//! The terminal while `seks top` runs: its alternate screen, keys and size. Dropping it restores
//! what was there before.

use std::{
    io::{self, IsTerminal as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use crate::{error, output::Output};

/// Alternate screen, no cursor; and back (xterm's control sequences).
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";
/// Tenths of a second after which a read of the keyboard ends without a key.
const READ_TENTHS: u8 = 1;
/// Lines of a terminal that does not say how many it has.
const LINES: usize = 24;

/// Why the wait for the next frame ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It is time for new figures.
    Due,
    /// The same figures are to be drawn again.
    Resized,
    /// The user, or a service manager, ends it.
    Quit,
}

/// The terminal.
pub(super) struct Screen {
    output: Output,
    before: Termios,
    keys: mpsc::Receiver<u8>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    // Streams, and not futures that are made for each wait: a signal between two waits must not be
    // lost.
    resized: Signal,
    interrupted: Signal,
    terminated: Signal,
    hung_up: Signal,
}

impl Screen {
    /// Whether standard input and output are a terminal.
    pub(super) fn is_possible() -> bool {
        io::stdout().is_terminal() && io::stdin().is_terminal()
    }

    /// Takes the terminal over: keys come at once and are not echoed.
    ///
    /// # Errors
    /// Of the terminal.
    pub(super) fn open(output: Output) -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let (sender, keys) = mpsc::channel(16);
        let mut screen = Self {
            output,
            before: before.clone(),
            keys,
            stop: Arc::default(),
            reader: None,
            resized: signal(SignalKind::window_change())?,
            interrupted: signal(SignalKind::interrupt())?,
            terminated: signal(SignalKind::terminate())?,
            hung_up: signal(SignalKind::hangup())?,
        };
        let mut raw = before;
        raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        raw.special_codes[SpecialCodeIndex::VMIN] = 0;
        raw.special_codes[SpecialCodeIndex::VTIME] = READ_TENTHS;
        raw.special_codes[SpecialCodeIndex::VSUSP] = 0; // a suspended program would leave this screen behind
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        let stop = Arc::clone(&screen.stop);
        screen.reader = Some(thread::Builder::new().name("keys".into()).spawn(move || read_keys(&sender, &stop))?);
        output.raw(ENTER).map_err(|error| io::Error::other(error.why))?;
        Ok(screen)
    }

    /// Draws `text` over what is there, as far as it fits.
    ///
    /// # Errors
    /// Of the terminal.
    pub(super) fn draw(&self, text: &str) -> error::Result<()> {
        let size = tcgetwinsize(io::stdout()).ok();
        let lines = size.map(|size| usize::from(size.ws_row)).filter(|rows| *rows > 1);
        let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
        let mut frame = String::from("\u{1b}[H");
        for (number, line) in text.lines().take(lines.unwrap_or(LINES).saturating_sub(1)).enumerate() {
            let start = if number == 0 { "" } else { "\r\n" };
            frame.push_str(&format!("{start}{}\u{1b}[K", cut(line, columns.unwrap_or(usize::MAX))));
        }
        frame.push_str("\u{1b}[J");
        self.output.raw(&frame)
    }

    /// Waits for the next frame's time, a key or a signal.
    pub(super) async fn next(&mut self, interval: Duration) -> Event {
        let due = tokio::time::sleep(interval);
        tokio::pin!(due);
        loop {
            tokio::select! {
                () = &mut due => return Event::Due,
                _ = self.resized.recv() => return Event::Resized,
                _ = self.terminated.recv() => return Event::Quit,
                _ = self.hung_up.recv() => return Event::Quit,
                _ = self.interrupted.recv() => return Event::Quit,
                key = self.keys.recv() => match key {
                    // `None`: the keyboard is gone. 3 is Ctrl-C, 4 Ctrl-D.
                    Some(b'q' | b'Q' | 3 | 4) | None => return Event::Quit,
                    Some(b' ' | b'r') => return Event::Due,
                    Some(_) => {}
                },
            }
        }
    }
}

impl Screen {
    /// Waits until the user, or a service manager, ends it. Other keys are ignored meanwhile.
    pub(super) async fn quits(&mut self) {
        while self.next(Duration::MAX).await != Event::Quit {}
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(reader) = self.reader.take() {
            drop(reader.join()); // within a tenth of a second
        }
        drop(self.output.raw(LEAVE));
        // Keys that were typed meanwhile are not for the shell.
        let _: rustix::io::Result<()> = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// The beginning of a line, as long as `columns` visible characters. Control sequences have no
/// width and all stay, so that a colour ends.
fn cut(line: &str, columns: usize) -> String {
    let (mut cut, mut width, mut is_sequence) = (String::with_capacity(line.len()), 0, false);
    for character in line.chars() {
        is_sequence |= character == '\u{1b}';
        width += usize::from(!is_sequence);
        if is_sequence || width <= columns {
            cut.push(character);
        }
        is_sequence &= !character.is_ascii_alphabetic();
    }
    cut
}

fn read_keys(keys: &mpsc::Sender<u8>, stop: &AtomicBool) {
    let mut key = [0];
    while !stop.load(Relaxed) {
        match rustix::io::read(io::stdin(), &mut key) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            // A key that nobody waits for is lost: the channel is full of others.
            Ok(_) => {
                let [key] = key;
                let _: Result<(), _> = keys.try_send(key);
            }
            Err(_) => return, // the terminal is gone
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_by_what_is_seen_of_it() {
        for (line, columns, want) in [
            ("abc", 5, "abc"),
            ("abcdef", 3, "abc"),
            ("\u{1b}[1mabcdef\u{1b}[0m", 3, "\u{1b}[1mabc\u{1b}[0m"),
            ("äöü", 2, "äö"),
            ("", 0, ""),
        ] {
            assert_eq!(cut(line, columns), want);
        }
    }
}
