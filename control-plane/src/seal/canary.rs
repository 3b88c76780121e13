//! A wrong KEK is found at start, before anything is written: every store holds one sealed record
//! with known content.

use bytes::Bytes;
use seks_types::secret::Secret;

use super::{Header, RecordId, SealError, Sealer};
use crate::store::{Key, Store, StoreError, Transaction, Write};

const CONTENT: &[u8] = b"seks/v1/canary";
/// What it says of a store whose every record is authenticated.
const AUTHENTICATED: &[u8] = b"seks/v1/canary, authenticated";

impl Sealer {
    /// Checks that this is the KEK that `store` was sealed with. A store without sealed records is
    /// marked as this KEK's.
    ///
    /// # Errors
    /// [`SealError::WrongKek`], and then nothing was written; [`SealError::Rejected`] when the
    /// sealed check record is damaged; [`SealError::Store`].
    pub async fn verify(&self, store: &dyn Store) -> Result<(), SealError> {
        loop {
            for key in [Key::Canary, Key::Authority] {
                if let Some(record) = store.get(&key).await? {
                    self.must_open(&key, store.store_id(), &record.value).await?;
                    if key == Key::Canary {
                        return Ok(());
                    }
                }
            }
            let canary = self.canary(store.store_id(), false).await?;
            let write = Transaction { checks: vec![(Key::Canary, 0)], writes: vec![Write::Put(Key::Canary, canary)] };
            match store.commit(write).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict) => {} // another replica's first start: read what it wrote
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The sealed check record of a store, which also says whether every record of it is
    /// authenticated.
    ///
    /// # Errors
    /// As [`seal`](Self::seal).
    pub(crate) async fn canary(&self, store_id: &str, authenticated: bool) -> Result<Bytes, SealError> {
        let content = if authenticated { AUTHENTICATED } else { CONTENT };
        self.seal(&RecordId::canary(store_id), &Secret::new(content.to_vec())).await
    }

    /// Whether a store's check record says that every record of the store is authenticated.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) async fn says_authenticated(&self, store_id: &str, canary: Option<&[u8]>) -> Result<bool, SealError> {
        match canary {
            Some(canary) => Ok(self.verify_record(&RecordId::canary(store_id), canary).await? == AUTHENTICATED),
            None => Ok(false),
        }
    }

    async fn must_open(&self, key: &Key, store_id: &str, envelope: &[u8]) -> Result<(), SealError> {
        let want = Header::parse(envelope)?.kek;
        let Some(id) = RecordId::of(key, store_id) else { return Ok(()) };
        match self.open(&id, envelope).await {
            Err(SealError::UnknownKek(_)) => Err(SealError::WrongKek { have: self.ids(), want }),
            opened => opened.map(drop),
        }
    }
}
