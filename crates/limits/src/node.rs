//! What a node may spend of one limit.

/// The part of a window's budget that a node may spend. Times are milliseconds of a clock that is
/// never set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    left: u64,
    /// The window that it is of: its first millisecond, in Unix time.
    window: u64,
    /// What answers used beyond what was reserved for them. It is paid from the next grants, and
    /// until then nothing else is spent.
    owed: u64,
    /// Half of the last grant: below it the next one is due.
    low: u64,
    /// Until when `left` may be spent.
    ends: u64,
    /// When the node asked, while no answer has come.
    asked: Option<u64>,
    /// So much and more is not to be had before `refused_until`.
    refused: u64,
    refused_until: u64,
    /// When the window ends that the last answer was about.
    window_ends: u64,
}

/// What [`Slice::take`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// The request may go.
    Taken {
        /// How much to ask for, where the next slice is due. It is at least 1.
        ask: Option<u64>,
        /// What it has.
        reserved: Reserved,
    },
    /// Nothing is left here. Ask for so much if it is there, wait for the answer, then try again.
    Wait {
        /// `None`: somebody has asked.
        ask: Option<u64>,
    },
    /// The window's budget is spent, or less than the request needs is left of it.
    Spent {
        /// When the window ends.
        until: u64,
    },
}

/// What a request has taken of a slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// How much.
    pub amount: u64,
    window: u64,
}

/// A replica's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// How much the node asked for.
    pub wanted: u64,
    /// How much more the node may spend. 0: so much is not left.
    pub amount: u64,
    /// The window: its first millisecond, in Unix time.
    pub window: u64,
    /// When it ends, in milliseconds from the question.
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
        let needed = amount.saturating_add(self.owed);
        let is_refused = |wanted: u64| now < self.refused_until && wanted >= self.refused;
        let may_ask = self.asked.is_none_or(|at| now >= at + ASKED_FOR);
        if self.left >= amount && self.owed == 0 {
            self.left -= amount;
            let ask = may_ask && self.left < self.low && !is_refused(amount);
            let reserved = Reserved { amount, window: self.window };
            return Take::Taken { ask: self.mark_asked(ask, now, amount), reserved };
        }
        if is_refused(needed) {
            return Take::Spent { until: self.window_ends.max(self.refused_until) };
        }
        Take::Wait { ask: self.mark_asked(may_ask, now, needed) }
    }

    fn mark_asked(&mut self, ask: bool, now: u64, wanted: u64) -> Option<u64> {
        ask.then(|| {
            self.asked = Some(now);
            wanted.max(1)
        })
    }

    /// An answer has come to what was asked at `asked`: `amount` more, of a window that ends
    /// `ends_in` milliseconds after the question. 0: so much is not left, and there is no use in
    /// asking for it again for `again_in` milliseconds from now.
    pub fn granted(&mut self, now: u64, asked: u64, Grant { wanted, amount, window, ends_in, again_in }: Grant) {
        if self.asked == Some(asked) {
            self.asked = None;
        }
        let ends = asked.saturating_add(ends_in);
        self.window_ends = ends;
        if now >= self.ends {
            self.left = 0;
        }
        if amount == 0 {
            (self.refused, self.refused_until) = (wanted, now.saturating_add(again_in));
            return;
        }
        // Two windows' slices are not added up: the earlier end counts.
        if self.left == 0 {
            (self.ends, self.window) = (ends, window);
        }
        self.ends = self.ends.min(ends);
        let paid = self.owed.min(amount);
        self.owed -= paid;
        self.left = self.left.saturating_add(amount - paid);
        self.low = amount / 2;
        self.refused_until = 0;
    }

    /// Nobody answers any more: the stream has ended.
    pub fn forget_question(&mut self) {
        self.asked = None;
    }

    /// What a request took and did not need goes back, if its window is still the slice's.
    pub fn give_back(&mut self, now: u64, reserved: Reserved) {
        if now < self.ends && reserved.window == self.window {
            self.left = self.left.saturating_add(reserved.amount);
        }
    }

    /// A request that had reserved an amount has used another. What it used beyond is taken from
    /// what is left, and where that is not enough it is owed.
    pub fn settle(&mut self, now: u64, reserved: Reserved, used: u64) {
        if used <= reserved.amount {
            return self.give_back(now, Reserved { amount: reserved.amount - used, ..reserved });
        }
        let left = if now < self.ends { self.left } else { 0 };
        let beyond = used - reserved.amount;
        let taken = beyond.min(left);
        self.left = left - taken;
        self.owed = self.owed.saturating_add(beyond - taken);
    }

    /// What is left at `now`.
    #[must_use]
    pub fn left(&self, now: u64) -> u64 {
        if now < self.ends { self.left } else { 0 }
    }

    /// Whether it can be forgotten without a loss.
    #[must_use]
    pub fn is_idle(&self, now: u64) -> bool {
        now >= self.ends
            && now >= self.refused_until
            && self.owed == 0
            && self.asked.is_none_or(|at| now >= at + ASKED_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(amount: u64, ends_in: u64) -> Grant {
        Grant { wanted: 1, amount, window: 1, ends_in, again_in: 0 }
    }

    fn taken(amount: u64, ask: Option<u64>) -> Take {
        Take::Taken { ask, reserved: Reserved { amount, window: 1 } }
    }

    fn reserved(amount: u64) -> Reserved {
        Reserved { amount, window: 1 }
    }

    #[test]
    fn a_slice_is_spent_asked_for_and_ends() {
        let mut slice = Slice::default();
        assert_eq!(slice.take(10, 1), Take::Wait { ask: Some(1) });
        assert_eq!(slice.take(11, 1), Take::Wait { ask: None }, "one question at a time");
        slice.granted(15, 10, grant(4, 100));
        assert_eq!(slice.take(16, 1), taken(1, None));
        assert_eq!(slice.take(17, 1), taken(1, None));
        assert_eq!(slice.take(18, 1), taken(1, Some(1)), "less than half is left");
        assert_eq!(slice.take(109, 1), taken(1, None));
        slice.granted(109, 18, grant(4, 92));
        assert_eq!(slice.take(110, 1), Take::Wait { ask: Some(1) }, "counted from the question: the window has ended");
    }

    #[test]
    fn a_spent_window_is_not_asked_about_again_at_once() {
        let mut slice = Slice::default();
        slice.take(0, 1);
        slice.granted(5, 0, Grant { wanted: 1, amount: 0, window: 1, ends_in: 1000, again_in: 300 });
        assert_eq!(slice.take(6, 1), Take::Spent { until: 1000 }, "the window's end");
        assert_eq!(slice.take(305, 1), Take::Wait { ask: Some(1) });
    }

    #[test]
    fn a_lost_answer_is_asked_for_again() {
        let mut slice = Slice::default();
        assert_eq!(slice.take(0, 1), Take::Wait { ask: Some(1) });
        assert_eq!(slice.take(ASKED_FOR - 1, 1), Take::Wait { ask: None });
        assert_eq!(slice.take(ASKED_FOR, 1), Take::Wait { ask: Some(1) });
        slice.forget_question();
        assert_eq!(slice.take(ASKED_FOR, 1), Take::Wait { ask: Some(1) });
    }

    #[test]
    fn a_request_that_needs_less_than_what_was_refused_asks() {
        let mut slice = Slice::default();
        assert_eq!(slice.take(0, 500), Take::Wait { ask: Some(500) });
        slice.granted(5, 0, Grant { wanted: 500, amount: 0, window: 1, ends_in: 1000, again_in: 900 });
        assert_eq!(slice.take(6, 500), Take::Spent { until: 1000 });
        assert_eq!(slice.take(6, 499), Take::Wait { ask: Some(499) });
        slice.granted(9, 6, grant(499, 900));
        assert_eq!(slice.take(10, 499), taken(499, Some(499)));
    }

    #[test]
    fn what_was_not_needed_goes_back_and_what_was_used_beyond_is_paid() {
        let mut slice = Slice::default();
        slice.take(0, 100);
        slice.granted(1, 0, grant(200, 1000));
        slice.take(2, 100);
        slice.settle(3, reserved(100), 30);
        assert_eq!(slice.left(3), 170);
        assert_eq!(slice.take(4, 160), taken(160, Some(160)));
        slice.settle(5, reserved(160), 190);
        assert_eq!((slice.left(5), slice.owed), (0, 20), "10 were left");
        assert_eq!(slice.take(6, 1), Take::Wait { ask: None });
        slice.granted(7, 4, grant(60, 900));
        assert_eq!((slice.left(7), slice.owed), (40, 0), "the debt is paid first");
        slice.settle(8, reserved(0), 50);
        assert_eq!(slice.take(9, 0), Take::Wait { ask: Some(10) }, "who owes spends nothing");
        assert!(!slice.is_idle(5000), "a debt is not forgotten");
    }

    #[test]
    fn what_an_earlier_window_reserved_does_not_go_back_to_a_later_one() {
        let mut slice = Slice::default();
        slice.take(0, 100);
        slice.granted(1, 0, grant(100, 1000));
        assert_eq!(slice.take(900, 100), taken(100, Some(100)));
        slice.granted(1001, 900, Grant { window: 2, ..grant(50, 1000) });
        slice.settle(1002, reserved(100), 0);
        assert_eq!(slice.left(1002), 50);
    }
}
