//! What a node may spend of one limit.

/// The part of a window's budget that a node may spend. Times are milliseconds of a clock that is
/// never set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    left: u64,
    /// Half of the last grant: below it the next one is due.
    low: u64,
    /// Until when `left` may be spent.
    ends: u64,
    /// When the node asked, while no answer has come.
    asked: Option<u64>,
    /// Nothing is to be had before.
    refused_until: u64,
    /// When the window ends that the last answer was about.
    window_ends: u64,
}

/// What [`Slice::take`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// The request may go.
    Taken {
        /// The next slice is due: ask for it.
        ask: bool,
    },
    /// Nothing is left here. Ask if `ask`, wait for the answer, then try again.
    Wait {
        /// Nobody has asked yet.
        ask: bool,
    },
    /// The window's budget is spent.
    Spent {
        /// When the window ends.
        until: u64,
    },
}

/// A replica's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// How much more the node may spend. 0: nothing is left.
    pub amount: u64,
    /// When the window ends, in milliseconds from the question.
    pub ends_in: u64,
    /// Where nothing is left: when to ask again, in milliseconds from the answer.
    pub again_in: u64,
}

/// An answer that has not come after this is taken for lost, in milliseconds.
const ASKED_FOR: u64 = 2_000;

impl Slice {
    /// Takes `amount`, whole or not at all.
    pub fn take(&mut self, now: u64, amount: u64) -> Take {
        if now >= self.ends {
            self.left = 0;
        }
        let may_ask = now >= self.refused_until && self.asked.is_none_or(|at| now >= at + ASKED_FOR);
        if self.left >= amount {
            self.left -= amount;
            let ask = may_ask && self.left < self.low;
            self.mark_asked(ask, now);
            return Take::Taken { ask };
        }
        if now < self.refused_until {
            return Take::Spent { until: self.window_ends.max(self.refused_until) };
        }
        self.mark_asked(may_ask, now);
        Take::Wait { ask: may_ask }
    }

    fn mark_asked(&mut self, ask: bool, now: u64) {
        if ask {
            self.asked = Some(now);
        }
    }

    /// An answer has come to what was asked at `asked`: `amount` more, of a window that ends
    /// `ends_in` milliseconds after the question. 0: nothing is left, and there is no use in asking
    /// again for `again_in` milliseconds from now.
    pub fn granted(&mut self, now: u64, asked: u64, Grant { amount, ends_in, again_in }: Grant) {
        if self.asked == Some(asked) {
            self.asked = None;
        }
        let ends = asked.saturating_add(ends_in);
        self.window_ends = ends;
        if now >= self.ends {
            self.left = 0;
        }
        if amount == 0 {
            self.refused_until = now.saturating_add(again_in);
            return;
        }
        // Two windows' slices are not added up: the earlier end counts.
        self.ends = if self.left == 0 { ends } else { self.ends.min(ends) };
        self.left = self.left.saturating_add(amount);
        self.low = amount / 2;
        self.refused_until = 0;
    }

    /// Nobody answers any more: the stream has ended.
    pub fn forget_question(&mut self) {
        self.asked = None;
    }

    /// What a request took and did not need goes back, while its window lasts.
    pub fn give_back(&mut self, now: u64, amount: u64) {
        if now < self.ends {
            self.left = self.left.saturating_add(amount);
        }
    }

    /// What is left at `now`.
    #[must_use]
    pub fn left(&self, now: u64) -> u64 {
        if now < self.ends { self.left } else { 0 }
    }

    /// Whether it can be forgotten without a loss.
    #[must_use]
    pub fn is_idle(&self, now: u64) -> bool {
        now >= self.ends && now >= self.refused_until && self.asked.is_none_or(|at| now >= at + ASKED_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(amount: u64, ends_in: u64) -> Grant {
        Grant { amount, ends_in, again_in: 0 }
    }

    #[test]
    fn a_slice_is_spent_asked_for_and_ends() {
        let mut slice = Slice::default();
        assert_eq!(slice.take(10, 1), Take::Wait { ask: true });
        assert_eq!(slice.take(11, 1), Take::Wait { ask: false }, "one question at a time");
        slice.granted(15, 10, grant(4, 100));
        assert_eq!(slice.take(16, 1), Take::Taken { ask: false });
        assert_eq!(slice.take(17, 1), Take::Taken { ask: false });
        assert_eq!(slice.take(18, 1), Take::Taken { ask: true }, "less than half is left");
        assert_eq!(slice.take(109, 1), Take::Taken { ask: false });
        slice.granted(109, 18, grant(4, 92));
        assert_eq!(slice.take(110, 1), Take::Wait { ask: true }, "counted from the question: the window has ended");
    }

    #[test]
    fn a_spent_window_is_not_asked_about_again_at_once() {
        let mut slice = Slice::default();
        slice.take(0, 1);
        slice.granted(5, 0, Grant { amount: 0, ends_in: 1000, again_in: 300 });
        assert_eq!(slice.take(6, 1), Take::Spent { until: 1000 }, "the window's end");
        assert_eq!(slice.take(305, 1), Take::Wait { ask: true });
    }

    #[test]
    fn a_lost_answer_is_asked_for_again() {
        let mut slice = Slice::default();
        assert_eq!(slice.take(0, 1), Take::Wait { ask: true });
        assert_eq!(slice.take(ASKED_FOR - 1, 1), Take::Wait { ask: false });
        assert_eq!(slice.take(ASKED_FOR, 1), Take::Wait { ask: true });
        slice.forget_question();
        assert_eq!(slice.take(ASKED_FOR, 1), Take::Wait { ask: true });
    }
}
