//! Limits the bytes of request bodies that the node buffers, because a signature or a policy needs
//! the whole body.
//!
//! Memory is counted as bytes arrive, not as they are announced. The node has a budget, and each
//! tenant has a share of it. A tenant that has used its share waits until its own bodies are sent.
//! A body whose signature cannot be verified before the body has arrived counts against a quarter
//! of the share, because anyone who knows an access key id can send one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use seks_types::id::TenantName;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::config::Limits;

/// What is accounted at a time, in bytes: a body is rounded up to it.
const UNIT: usize = 16 * 1024;
/// What a body whose signature isn't verified may take of a tenant's share.
const UNVERIFIED_SHARE: usize = 4;

/// The budget of one node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BodyBuffers {
    inner: Arc<Inner>,
}

struct Inner {
    all: Arc<Semaphore>,
    tenants: Mutex<HashMap<TenantName, Weak<Share>>>,
    total_units: usize,
    tenant_units: usize,
    wait: Duration,
    refused: AtomicU64,
}

/// What one tenant may hold. Lives as long as a body of it.
struct Share {
    all: Arc<Semaphore>,
    unverified: Arc<Semaphore>,
}

/// There was no room within `[proxy.limits] buffer_wait`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

impl BodyBuffers {
    pub(crate) fn new(limits: &Limits) -> Self {
        let units = |bytes: usize| (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        let total_units = units(limits.buffered_bytes);
        let inner = Inner {
            all: Arc::new(Semaphore::new(total_units)),
            tenants: Mutex::default(),
            total_units,
            tenant_units: units(limits.tenant_buffered_bytes).min(total_units),
            wait: limits.buffer_wait,
            refused: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A body of `tenant` that is about to be read whole. `announced`: how long it is said to be.
    /// `verified`: who sends it has been authenticated.
    pub(crate) fn body(&self, tenant: &TenantName, announced: Option<u64>, verified: bool) -> Buffer {
        let announced = announced.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
        Buffer {
            bytes: BytesMut::with_capacity(announced.min(UNIT)),
            announced,
            held: Held { share: self.share(tenant), permits: Vec::new(), units: 0 },
            buffers: self.clone(),
            verified,
        }
    }

    /// Bytes that are held now.
    pub(crate) fn held(&self) -> u64 {
        let free = self.inner.all.available_permits();
        (self.inner.total_units.saturating_sub(free) * UNIT) as u64
    }

    /// Bodies that were refused because there was no room.
    pub(crate) fn refused(&self) -> u64 {
        self.inner.refused.load(Relaxed)
    }

    fn share(&self, tenant: &TenantName) -> Arc<Share> {
        let mut tenants = self.inner.tenants.lock();
        if let Some(share) = tenants.get(tenant).and_then(Weak::upgrade) {
            return share;
        }
        // As many as there are tenants with a body in memory, or twice that.
        if tenants.len() >= 64 && tenants.len() == tenants.capacity() {
            tenants.retain(|_, share| share.strong_count() > 0);
        }
        let units = self.inner.tenant_units;
        let unverified = (units / UNVERIFIED_SHARE).max(1);
        let share = Share { all: Arc::new(Semaphore::new(units)), unverified: Arc::new(Semaphore::new(unverified)) };
        let share = Arc::new(share);
        tenants.insert(tenant.clone(), Arc::downgrade(&share));
        share
    }
}

/// A body on its way in.
pub(crate) struct Buffer {
    bytes: BytesMut,
    announced: usize,
    held: Held,
    buffers: BodyBuffers,
    verified: bool,
}

/// Memory that is accounted for until this is dropped.
struct Held {
    share: Arc<Share>,
    permits: Vec<OwnedSemaphorePermit>,
    units: usize,
}

impl Buffer {
    /// How many bytes are there.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds bytes, waiting for room where there is none.
    ///
    /// # Errors
    /// [`NoRoom`] when that takes too long.
    pub(crate) async fn push(&mut self, data: &[u8]) -> Result<(), NoRoom> {
        let wanted = (self.bytes.len() + data.len()).div_ceil(UNIT);
        if wanted > self.held.units {
            self.reserve(wanted - self.held.units).await?;
        }
        let needed = self.bytes.len() + data.len();
        if needed > self.bytes.capacity() {
            // Room for what is announced, but not for more than 16 times what is there: few copies,
            // and a byte reserves no megabyte.
            let room = self.announced.min(needed.saturating_mul(16)).max(needed);
            self.bytes.reserve(room - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    async fn reserve(&mut self, units: usize) -> Result<(), NoRoom> {
        let permits = u32::try_from(units).map_err(|_| NoRoom)?;
        let (share, inner) = (&self.held.share, &self.buffers.inner);
        // The tenant's own share first, so that a tenant at its limit takes nothing from others.
        let from = [(!self.verified).then_some(&share.unverified), Some(&share.all), Some(&inner.all)];
        let mut taken = Vec::with_capacity(3);
        for semaphore in from.into_iter().flatten() {
            let permit = match Arc::clone(semaphore).try_acquire_many_owned(permits) {
                Ok(permit) => permit,
                Err(_) => {
                    let waited = timeout(inner.wait, Arc::clone(semaphore).acquire_many_owned(permits)).await;
                    waited.ok().and_then(Result::ok).ok_or_else(|| {
                        inner.refused.fetch_add(1, Relaxed);
                        NoRoom
                    })?
                }
            };
            taken.push(permit);
        }
        self.held.permits.append(&mut taken);
        self.held.units += units;
        Ok(())
    }

    /// The whole body. It is accounted for until the last of it is dropped.
    pub(crate) fn freeze(self) -> Bytes {
        let Self { bytes, held, .. } = self;
        if bytes.is_empty() {
            return Bytes::new();
        }
        Bytes::from_owner(Owned { bytes: bytes.freeze(), _held: held })
    }
}

struct Owned {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(total: usize, tenant: usize) -> BodyBuffers {
        let buffer_wait = Duration::from_millis(20);
        BodyBuffers::new(&Limits {
            buffered_bytes: total * UNIT,
            tenant_buffered_bytes: tenant * UNIT,
            buffer_wait,
            ..Limits::default()
        })
    }

    fn tenant(name: &str) -> TenantName {
        name.try_into().unwrap()
    }

    #[tokio::test]
    async fn a_tenant_fills_its_share_and_no_more() {
        let (buffers, page) = (buffers(16, 8), vec![0; UNIT]);
        let mut own = buffers.body(&tenant("a"), None, true);
        for _ in 0..4 {
            own.push(&page).await.unwrap();
        }
        let mut second = buffers.body(&tenant("a"), Some(1 << 30), true);
        let mut third = buffers.body(&tenant("a"), None, true);
        second.push(&vec![0; 4 * UNIT]).await.unwrap();
        assert_eq!(third.push(&[0]).await, Err(NoRoom), "what is announced takes no room, what has come does");
        assert_eq!((buffers.held(), buffers.refused()), ((8 * UNIT) as u64, 1));
        let mut other = buffers.body(&tenant("b"), None, true);
        other.push(&vec![0; 8 * UNIT]).await.unwrap();
        let sent = own.freeze();
        let part = sent.slice(1..2);
        drop(sent);
        assert_eq!(third.push(&[0]).await, Err(NoRoom), "a part of it is still held");
        drop(part);
        third.push(&[0]).await.unwrap();
        drop((second, third, other));
        assert_eq!(buffers.held(), 0);
    }

    #[tokio::test]
    async fn bodies_that_nobody_has_signed_yet_take_a_quarter_of_the_share() {
        let buffers = buffers(16, 8);
        let mut unverified = buffers.body(&tenant("a"), None, false);
        unverified.push(&vec![0; 2 * UNIT]).await.unwrap();
        assert_eq!(buffers.body(&tenant("a"), None, false).push(&[0]).await, Err(NoRoom));
        buffers.body(&tenant("a"), None, true).push(&vec![0; 6 * UNIT]).await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_gets_the_room_that_becomes_free() {
        let buffers =
            BodyBuffers::new(&Limits { buffered_bytes: UNIT, tenant_buffered_bytes: UNIT, ..Limits::default() });
        let mut first = buffers.body(&tenant("a"), None, true);
        first.push(&[1]).await.unwrap();
        let (mut second, free) = (buffers.body(&tenant("b"), None, true), async { drop(first) });
        let (pushed, ()) = tokio::join!(second.push(&[2]), free);
        assert_eq!(pushed, Ok(()));
    }
}
