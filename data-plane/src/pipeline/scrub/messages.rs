//! Messages of a WebSocket: scrubbed as one stream, because a credential may be split over them,
//! without holding one up.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{Needles, scrubber::Scrubber};
use crate::pipeline::audit::Counters;

/// Scrubs the messages of one connection.
pub(crate) struct Messages {
    /// Absent: there is nothing to search for.
    scrubbers: Option<(Scrubber, Scrubber)>,
    counters: Arc<Counters>,
}

impl Messages {
    /// Counts what it finds in `counters`.
    #[must_use]
    pub(crate) fn new(needles: Needles, counters: Arc<Counters>) -> Self {
        let scrubbers = (!needles.is_empty()).then(|| (Scrubber::new(needles.clone()), Scrubber::new(needles)));
        Self { scrubbers, counters }
    }

    /// Takes a part of a message; what can go on is put into `out`.
    pub(crate) fn push(&mut self, part: Bytes, out: &mut VecDeque<Bytes>) {
        match &mut self.scrubbers {
            None => out.push_back(part),
            Some((scrubber, _)) => {
                scrubber.push(part, out);
                self.counters.scrubbed(scrubber.take_found());
            }
        }
    }

    /// The message has ended: the rest of it goes on.
    pub(crate) fn end_message(&mut self, out: &mut VecDeque<Bytes>) {
        if let Some((scrubber, _)) = &mut self.scrubbers {
            scrubber.flush_message(out);
        }
    }

    /// Scrubs what stands alone, such as a Close's reason. Returns what it is to be replaced by,
    /// when there is something in it.
    pub(crate) fn alone(&mut self, text: &[u8]) -> Option<Vec<u8>> {
        let (_, scrubber) = self.scrubbers.as_mut()?;
        let clean = scrubber.whole(text);
        self.counters.scrubbed(scrubber.take_found());
        clean
    }
}
