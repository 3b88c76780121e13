//! The key that authenticates records: 256 random bits, sealed under the key-encryption key at
//! [`Key::RecordKey`].
//!
//! The same envelope states whether every record has a frame. In a store of an earlier version none
//! has, until the upgrade. The canary also states whether the store has had frames since its
//! creation or its upgrade. If the key is missing from such a store, the store is refused. A new
//! key is not created.

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

    /// `complete u8, since u64 BE, key`, sealed. `complete`: the revision since which every record
    /// has a frame; `None`: some may have none.
    pub(super) async fn seal(
        &self,
        sealer: &Sealer,
        store_id: &str,
        complete: Option<Revision>,
    ) -> Result<Bytes, SealError> {
        let mut content = Zeroizing::new(Vec::with_capacity(1 + 8 + KEY_BYTES));
        content.push(u8::from(complete.is_some()));
        content.extend_from_slice(&complete.unwrap_or_default().to_be_bytes());
        content.extend_from_slice(self.bytes());
        sealer.authenticate_record(&RecordId::record_key(store_id), &content).await
    }

    /// The key, and since when every record has a frame.
    pub(super) async fn open(
        sealer: &Sealer,
        store_id: &str,
        envelope: &[u8],
    ) -> Result<(Self, Option<Revision>), SealError> {
        let content = Zeroizing::new(sealer.verify_record(&RecordId::record_key(store_id), envelope).await?);
        let parts = || {
            let (complete, rest) = content.split_first()?;
            let (since, key) = rest.split_first_chunk::<8>()?;
            let key = <[u8; KEY_BYTES]>::try_from(key).ok()?;
            Some(((*complete == 1).then(|| Revision::from_be_bytes(*since)), key))
        };
        let (complete, key) = parts().ok_or(SealError::Malformed("not the key of a store's records"))?;
        Ok((Self(Zeroizing::new(key)), complete))
    }
}

/// What was found, or made.
pub(super) struct Opened {
    pub(super) key: RecordKey,
    /// The revision since which every record has a frame; `None`: some may have none.
    pub(super) complete: Option<Revision>,
}

/// Reads the key of `store`, or makes it.
pub(super) async fn open(store: &dyn Store, sealer: &Sealer) -> Result<Opened, SealError> {
    loop {
        if let Some(record) = store.get(&Key::RecordKey).await? {
            let (key, complete) = RecordKey::open(sealer, store.store_id(), &record.value).await?;
            return Ok(Opened { key, complete });
        }
        let canary = store.get(&Key::Canary).await?;
        if sealer.says_authenticated(store.store_id(), canary.as_ref().map(|record| &*record.value)).await? {
            return Err(SealError::RecordKeyGone);
        }
        let (records, _) = store.list(prefix::ALL).await?;
        if records.iter().any(|record| is_framed(&record.value)) {
            return Err(SealError::RecordKeyGone);
        }
        let fresh = records.iter().all(|record| matches!(record.key, Key::StoreId | Key::Canary));
        let complete = fresh.then_some(0);
        let key = RecordKey::fresh()?;
        let mut change = Transaction {
            checks: vec![(Key::RecordKey, 0), (Key::Canary, canary.map_or(0, |record| record.modified))],
            writes: vec![Write::Put(Key::RecordKey, key.seal(sealer, store.store_id(), complete).await?)],
        };
        if fresh {
            change.writes.push(Write::Put(Key::Canary, sealer.canary(store.store_id(), true).await?));
        }
        match store.commit(change).await {
            Ok(_) => return Ok(Opened { key, complete }),
            Err(StoreError::Conflict) => {} // another replica's first start: read what it wrote
            Err(error) => return Err(error.into()),
        }
    }
}
