//! What a replica has taken of a window's budget, and what it gives its nodes.

use super::{Span, Window};

/// A step takes this part of what is left in the window.
const STEP_PART: u64 = 8;
/// A slice takes this part of a share, for each node.
const SLICE_PART: u64 = 2;

/// The store's record of one limit: which window it is about, and how much of it replicas have
/// taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowRecord {
    /// The window's first millisecond, in Unix time.
    pub start: u64,
    /// What was taken of it.
    pub taken: u64,
}

impl WindowRecord {
    /// The window that counts at `now`, in Unix milliseconds: the clock's, or the record's where
    /// that is later.
    #[must_use]
    pub fn span(&self, window: Window, now: u64) -> Span {
        window.span(now.max(self.start))
    }

    /// Takes a step of at least `wanted`, if so much is left, and returns it; 0: nothing is left.
    /// Write the record by compare-and-set before the step is spent.
    pub fn take(&mut self, limit: u64, span: Span, wanted: u64) -> u64 {
        if self.start < span.start {
            *self = Self { start: span.start, taken: 0 };
        }
        let left = limit.saturating_sub(self.taken);
        let step = left.div_ceil(STEP_PART).max(wanted).min(left);
        self.taken += step;
        step
    }
}

/// A replica's share of a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    start: u64,
    end: u64,
    left: u64,
    /// Nodes that asked in this window.
    nodes: Vec<u64>,
}

/// What [`Share::cut`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A slice of the window that ends at `end`, in Unix milliseconds.
    Slice {
        /// How much.
        amount: u64,
        /// Its window's first millisecond.
        start: u64,
        /// When its window ends.
        end: u64,
    },
    /// Take a step first.
    NeedsStep,
}

impl Share {
    /// Cuts a slice for `node` that wants at least `wanted`.
    pub fn cut(&mut self, now: u64, node: u64, wanted: u64) -> Cut {
        if now >= self.end {
            return Cut::NeedsStep;
        }
        if !self.nodes.contains(&node) {
            self.nodes.push(node);
        }
        if self.left < wanted.max(1) {
            return Cut::NeedsStep;
        }
        let parts = SLICE_PART.saturating_mul(self.nodes.len() as u64).max(1);
        let amount = (self.left / parts).max(wanted).max(1).min(self.left);
        self.left -= amount;
        Cut::Slice { amount, start: self.start, end: self.end }
    }

    /// A step of the window `span` was taken.
    pub fn add(&mut self, span: Span, step: u64) {
        if self.start < span.start || self.end == 0 {
            *self = Self { start: span.start, end: span.end, left: 0, nodes: std::mem::take(&mut self.nodes) };
            self.nodes.clear();
        }
        // A step of a window that has ended is lost.
        if self.start == span.start {
            self.left = self.left.saturating_add(step);
        }
    }

    /// What is left of it for the limit's own window at `now`.
    #[must_use]
    pub fn left(&self, now: u64) -> u64 {
        if now < self.end { self.left } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_add_up_to_the_limit_and_begin_again_with_the_window() {
        let (mut record, span) = (WindowRecord::default(), Window::Minute.span(120_000));
        let steps: Vec<u64> =
            std::iter::repeat_with(|| record.take(100, span, 1)).take_while(|step| *step > 0).collect();
        assert_eq!(steps.iter().sum::<u64>(), 100);
        assert_eq!(steps.first(), Some(&13));
        assert_eq!(record.take(100, Window::Minute.span(180_000), 1), 13);
        assert_eq!(record.span(Window::Minute, 119_000).start, 180_000, "it never goes back");
    }

    #[test]
    fn a_share_is_divided_among_the_nodes_that_ask() {
        let mut share = Share::default();
        assert_eq!(share.cut(0, 1, 1), Cut::NeedsStep);
        share.add(Span { start: 0, end: 100 }, 16);
        assert_eq!(share.cut(0, 1, 1), Cut::Slice { amount: 8, start: 0, end: 100 });
        assert_eq!(share.cut(0, 2, 1), Cut::Slice { amount: 2, start: 0, end: 100 });
        assert_eq!(share.cut(0, 2, 6), Cut::Slice { amount: 6, start: 0, end: 100 }, "what one request needs");
        assert_eq!(share.cut(0, 1, 1), Cut::NeedsStep);
        assert_eq!(share.cut(100, 1, 1), Cut::NeedsStep);
    }
}
