//! Which control plane to turn to: the nearest that hasn't failed since the last success.

/// How often a return to a nearer one may fail before it is tried less often, as a power of two.
const MAX_PATIENCE: u32 = 5;

/// Where a node is among its endpoints, nearest first.
pub(super) struct Route {
    at: usize,
    /// Which have failed since one worked.
    failed: Vec<bool>,
    /// A nearer one was turned to, and not yet for long.
    returning: bool,
    /// Returns in a row that came to nothing.
    vain: u32,
}

impl Route {
    pub(super) fn new(endpoints: usize) -> Self {
        Self { at: 0, failed: vec![false; endpoints], returning: false, vain: 0 }
    }

    /// The index of the one to turn to.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// By how much longer than usual to wait before looking for a nearer one.
    pub(super) fn patience(&self) -> u32 {
        1 << self.vain.min(MAX_PATIENCE)
    }

    /// A nearer one can be reached again. Says whether to pause first.
    pub(super) fn go(&mut self, nearer: usize) -> bool {
        self.failed.fill(false);
        self.at = nearer;
        self.returning = true;
        false
    }

    /// The stream to the present one has ended; `good`: it had worked for a while. Says whether to pause first: all have failed.
    pub(super) fn fail(&mut self, good: bool) -> bool {
        if good {
            self.failed.fill(false);
            self.vain = 0;
        } else if self.returning {
            self.vain += 1;
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
        let mut route = Route::new(3);
        let steps: Vec<_> = (0..7).map(|_| (route.at(), route.fail(false))).collect();
        let round = [(0, false), (1, false), (2, true)];
        assert_eq!(steps, [round, round, [(0, false); 3]].concat()[..7]);
    }

    #[test]
    fn after_a_good_stream_the_nearest_of_the_others_is_next() {
        let mut route = Route::new(3);
        route.fail(false);
        assert_eq!((route.at(), route.fail(true), route.at()), (1, false, 0));
        assert_eq!((route.fail(true), route.at()), (false, 1), "not the one that has just failed");
        let mut alone = Route::new(1);
        assert!(alone.fail(true) && alone.at() == 0);
    }

    #[test]
    fn returns_in_vain_are_tried_less_often() {
        let mut route = Route::new(2);
        route.fail(false);
        assert_eq!((route.at(), route.patience()), (1, 1));
        for _ in 0..9 {
            assert!(!route.go(0) && route.at() == 0);
            route.fail(false);
            assert_eq!(route.at(), 1);
        }
        assert_eq!(route.patience(), 32);
        route.go(0);
        route.fail(true);
        assert_eq!(route.patience(), 1);
    }
}
