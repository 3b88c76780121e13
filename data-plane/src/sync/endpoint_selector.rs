//! Selects the control plane to connect to: the nearest that has not failed since the last success.

/// How often a return to a nearer one may fail before it is tried less often, as a power of two.
const MAX_RETURN_BACKOFF: u32 = 5;

/// Where a node is among its endpoints, nearest first.
pub(super) struct EndpointSelector {
    at: usize,
    /// Which have failed since one worked.
    failed: Vec<bool>,
    /// A nearer one was turned to, and not yet for long.
    returning: bool,
    /// Returns in a row that came to nothing.
    failed_returns: u32,
}

impl EndpointSelector {
    pub(super) fn new(endpoints: usize) -> Self {
        Self { at: 0, failed: vec![false; endpoints], returning: false, failed_returns: 0 }
    }

    /// The index of the one to turn to.
    pub(super) fn current(&self) -> usize {
        self.at
    }

    /// By how much longer than usual to wait before looking for a nearer one.
    pub(super) fn return_backoff(&self) -> u32 {
        1 << self.failed_returns.min(MAX_RETURN_BACKOFF)
    }

    /// A nearer one can be reached again. Says whether to pause first.
    pub(super) fn move_to(&mut self, nearer: usize) -> bool {
        self.failed.fill(false);
        self.at = nearer;
        self.returning = true;
        false
    }

    /// The stream to the present one has ended; `good`: it had worked for a while. Says whether to
    /// pause first: all have failed.
    pub(super) fn stream_ended(&mut self, was_stable: bool) -> bool {
        if was_stable {
            self.failed.fill(false);
            self.failed_returns = 0;
        } else if self.returning {
            self.failed_returns += 1;
        }
        self.returning = false;
        if let Some(failed) = self.failed.get_mut(self.at) {
            *failed = true;
        }
        let next = self.failed.iter().position(|failed| !failed);
        if next.is_none() {
            self.failed.fill(false);
        }
        self.at = next.unwrap_or(0);
        next.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_tried_once_nearest_first_before_a_pause() {
        let mut selector = EndpointSelector::new(3);
        let steps: Vec<_> = (0..7).map(|_| (selector.current(), selector.stream_ended(false))).collect();
        let round = [(0, false), (1, false), (2, true)];
        assert_eq!(steps, [round, round, [(0, false); 3]].concat()[..7]);
    }

    #[test]
    fn after_a_good_stream_the_nearest_of_the_others_is_next() {
        let mut selector = EndpointSelector::new(3);
        selector.stream_ended(false);
        assert_eq!((selector.current(), selector.stream_ended(true), selector.current()), (1, false, 0));
        assert_eq!((selector.stream_ended(true), selector.current()), (false, 1), "not the one that has just failed");
        let mut alone = EndpointSelector::new(1);
        assert!(alone.stream_ended(true) && alone.current() == 0);
    }

    #[test]
    fn returns_in_vain_are_tried_less_often() {
        let mut selector = EndpointSelector::new(2);
        selector.stream_ended(false);
        assert_eq!((selector.current(), selector.return_backoff()), (1, 1));
        for _ in 0..9 {
            assert!(!selector.move_to(0) && selector.current() == 0);
            selector.stream_ended(false);
            assert_eq!(selector.current(), 1);
        }
        assert_eq!(selector.return_backoff(), 32);
        selector.move_to(0);
        selector.stream_ended(true);
        assert_eq!(selector.return_backoff(), 1);
    }
}
