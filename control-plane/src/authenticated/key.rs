//! The key that records are authenticated with: 256 random bits, sealed under the key-encryption key at [`Key::RecordKey`].
//!
//! The same envelope says whether every record has a frame. A store of an earlier version has none, until it is upgraded. That a store has
//! been so from its beginning, or since its upgrade, is also what its canary says: a key that is gone from such a store is refused
//! and not made anew.

use bytes::Bytes;
use zeroize::Zeroizing;

use crate::{
    seal::{RecordId, SealError, Sealer},
    store::{KEY_BYTES, Key, Revision, Store, StoreError, Transaction, Write, is_framed, key::prefix},
};

/// The key in the clear; wiped when dropped.
pub(super) struct RecordKey(Zeroizing<[u8; KEY_BYTES]>);

impl RecordKey {
    pub(super) fn fresh() -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(key.as_mut_slice()).map_err(SealError::Random)?;
        Ok(Self(key))
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// `complete u8, key`, sealed.
    pub(super) fn seal(&self, sealer: &Sealer, epoch: &str, complete: bool) -> Result<Bytes, SealError> {
        let mut content = Zeroizing::new([0; 1 + KEY_BYTES]);
        let (state, key) = content.split_at_mut(1);
        state.fill(u8::from(complete));
        key.copy_from_slice(self.bytes());
        sealer.vouch(&RecordId::record_key(epoch), content.as_slice())
    }

    /// The key and whether every record has a frame.
    pub(super) fn open(sealer: &Sealer, epoch: &str, envelope: &[u8]) -> Result<(Self, bool), SealError> {
        let content = Zeroizing::new(sealer.vouched(&RecordId::record_key(epoch), envelope)?);
        let parts =
            content.split_first().and_then(|(state, key)| Some((*state, <[u8; KEY_BYTES]>::try_from(key).ok()?)));
        let (state, key) = parts.ok_or(SealError::Malformed("not the key of a store's records"))?;
        Ok((Self(Zeroizing::new(key)), state == 1))
    }
}

/// What was found, or made.
pub(super) struct Opened {
    pub(super) key: RecordKey,
    pub(super) complete: bool,
    /// The revision since which it is complete; 0: it isn't.
    pub(super) since: Revision,
}

/// Reads the key of `store`, or makes it.
pub(super) async fn open(store: &dyn Store, sealer: &Sealer) -> Result<Opened, SealError> {
    loop {
        if let Some(record) = store.get(&Key::RecordKey).await? {
            let (key, complete) = RecordKey::open(sealer, store.epoch(), &record.value)?;
            return Ok(Opened { key, complete, since: if complete { record.modified } else { 0 } });
        }
        let canary = store.get(&Key::Canary).await?;
        if sealer.says_authenticated(store.epoch(), canary.as_ref().map(|record| &*record.value))? {
            return Err(SealError::RecordKeyGone);
        }
        let (records, _) = store.list(prefix::ALL).await?;
        if records.iter().any(|record| is_framed(&record.value)) {
            return Err(SealError::RecordKeyGone);
        }
        let complete = records.iter().all(|record| matches!(record.key, Key::Epoch | Key::Canary));
        let key = RecordKey::fresh()?;
        let mut change = Transaction {
            checks: vec![(Key::RecordKey, 0), (Key::Canary, canary.map_or(0, |record| record.modified))],
            writes: vec![Write::Put(Key::RecordKey, key.seal(sealer, store.epoch(), complete)?)],
        };
        if complete {
            change.writes.push(Write::Put(Key::Canary, sealer.canary(store.epoch(), true)?));
        }
        match store.commit(change).await {
            Ok(revision) => return Ok(Opened { key, complete, since: if complete { revision } else { 0 } }),
            Err(StoreError::Conflict) => {} // another replica's first start: read what it wrote
            Err(error) => return Err(error.into()),
        }
    }
}
