//! Tasks that are woken when something is cut. A slab of wakers: registering is one short lock and,
//! once warm, allocates nothing. A `Notify` for each request would need a pinned box each.

use std::task::Waker;

use parking_lot::{Mutex, MutexGuard};

/// Slots that remain when no request is left, so that an agent with sequential requests allocates
/// nothing here.
const KEPT: usize = 4;

/// A set of tasks to be woken.
#[derive(Default)]
pub(super) struct Waiters(Mutex<Slab>);

#[derive(Default)]
struct Slab {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Waiters {
    /// Adds `waker`, or replaces the one at `key`; returns its key.
    pub(super) fn register(&self, key: Option<usize>, waker: &Waker) -> usize {
        let mut slab = self.lock();
        let key = key.or_else(|| slab.free.pop()).unwrap_or(slab.wakers.len());
        match slab.wakers.get_mut(key) {
            Some(place) => *place = Some(waker.clone()),
            None => slab.wakers.push(Some(waker.clone())),
        }
        key
    }

    /// Takes out what [`register`](Self::register) put at `key`.
    pub(super) fn remove(&self, key: usize) {
        let mut slab = self.lock();
        if let Some(place) = slab.wakers.get_mut(key)
            && place.take().is_some()
        {
            slab.free.push(key);
        }
        if slab.free.len() == slab.wakers.len() && slab.wakers.len() > KEPT {
            // No request is left. The memory of a burst of a thousand requests is released.
            *slab = Slab::default();
        }
    }

    /// Wakes all; they stay registered.
    pub(super) fn wake_all(&self) {
        let wakers: Vec<Waker> = self.lock().wakers.iter().flatten().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Slab> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use super::*;

    struct Count(AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn who_is_registered_is_woken_and_nobody_else() {
        let waiters = Waiters::default();
        let (a, b) = (Arc::new(Count(AtomicUsize::new(0))), Arc::new(Count(AtomicUsize::new(0))));
        let key_a = waiters.register(None, &a.clone().into());
        let key_b = waiters.register(None, &b.clone().into());
        waiters.wake_all();
        waiters.remove(key_a);
        waiters.wake_all();
        assert_eq!((a.0.load(SeqCst), b.0.load(SeqCst)), (1, 2));
        assert_eq!(waiters.register(None, &a.clone().into()), key_a, "places are used again");
        waiters.remove(key_a);
        waiters.remove(key_b);
        waiters.remove(key_b);
        let burst: Vec<usize> = (0..=KEPT).map(|_| waiters.register(None, &a.clone().into())).collect();
        burst.into_iter().for_each(|key| waiters.remove(key));
        assert!(waiters.lock().wakers.is_empty(), "a burst is forgotten");
    }
}
