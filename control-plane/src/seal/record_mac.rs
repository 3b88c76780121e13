//! What else an envelope is good for: moving a secret to another record, and vouching for what is
//! no secret.

use bytes::Bytes;
use seks_types::secret::Secret;

use super::{RecordId, SealError, Sealer};

impl Sealer {
    /// Seals the secret in `envelope` again, as the secret of the record `to`.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`seal`](Self::seal).
    pub async fn move_to(&self, from: &RecordId<'_>, to: &RecordId<'_>, envelope: &[u8]) -> Result<Bytes, SealError> {
        self.seal(to, &self.open(from, envelope).await?).await
    }

    /// An envelope around `content`, which is no secret: that only a holder of the KEK can make it
    /// is the point.
    ///
    /// # Errors
    /// As [`seal`](Self::seal).
    pub async fn authenticate_record(&self, id: &RecordId<'_>, content: &[u8]) -> Result<Bytes, SealError> {
        self.seal(id, &Secret::new(content.to_vec())).await
    }

    /// What `envelope` vouches for.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn verify_record(&self, id: &RecordId<'_>, envelope: &[u8]) -> Result<Vec<u8>, SealError> {
        Ok(self.open(id, envelope).await?.expose().to_vec())
    }
}
