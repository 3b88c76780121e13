//! The objects below one prefix of a bucket.

use std::{collections::BTreeMap, future::ready, io, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, path::Path as ObjectPath};
use seks_audit::trail::layout;
use tokio::runtime::Handle;

use super::{
    config::{ObjectStorageConfig, ObjectStorageError},
    outline::Outline,
};

/// Largest object that is read. Blocks have some 2 MiB, and 64 MiB at most.
const MAX_OBJECT_BYTES: u64 = 256 << 20;
/// Bytes of a block's end that are asked for at once. Most directories have some 10 KiB.
const TAIL_BYTES: u64 = 64 * 1024;
/// Outlines that are fetched at the same time. A start waits for all of them.
const OUTLINES_AT_ONCE: usize = 32;

/// Objects below one prefix.
#[derive(Clone)]
pub struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: ObjectPath,
    pub(super) runtime: Handle,
}

impl Bucket {
    /// The objects of `replica` in the bucket that is configured.
    ///
    /// # Errors
    /// [`ObjectStorageError`]. Nothing is sent.
    pub fn new(config: &ObjectStorageConfig, replica: &str, runtime: Handle) -> Result<Self, ObjectStorageError> {
        let prefix =
            ObjectPath::from_iter([config.prefix.as_str(), replica].into_iter().filter(|part| !part.is_empty()));
        Ok(Self { store: config.connect()?, prefix, runtime })
    }

    /// The objects below `name`.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        Self { prefix: self.prefix.clone().join(name), ..self.clone() }
    }

    fn at(&self, name: &str) -> ObjectPath {
        self.prefix.clone().join(name)
    }

    /// The names and lengths of the objects directly below the prefix.
    pub(super) async fn list(&self) -> io::Result<BTreeMap<String, u64>> {
        let found = self.store.list_with_delimiter(Some(&self.prefix)).await?;
        let name = |object: ObjectMeta| Some((object.location.filename()?.to_owned(), object.size));
        Ok(found.objects.into_iter().filter_map(name).collect())
    }

    pub(super) async fn put(&self, name: &str, contents: Vec<u8>) -> io::Result<()> {
        Ok(self.store.put(&self.at(name), contents.into()).await.map(drop)?)
    }

    pub(super) async fn get(&self, name: &str) -> io::Result<Bytes> {
        let found = self.store.get(&self.at(name)).await?;
        if found.meta.size > MAX_OBJECT_BYTES {
            return Err(io::Error::other(format!("the object {name} has more than {MAX_OBJECT_BYTES} bytes")));
        }
        let parts: Vec<Bytes> = found.into_stream().try_collect().await?;
        Ok(parts.concat().into())
    }

    pub(super) async fn get_range(&self, name: &str, offset: u64, end: u64) -> io::Result<Bytes> {
        Ok(self.store.get_range(&self.at(name), offset..end).await?)
    }

    pub(super) async fn delete(&self, name: &str) -> io::Result<()> {
        match self.store.delete(&self.at(name)).await {
            Err(error) if !matches!(error, object_store::Error::NotFound { .. }) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// What a start reads of these blocks, each with its length. A file that is no block has no
    /// outline.
    pub(super) async fn outlines(&self, blocks: Vec<(String, u64)>) -> io::Result<Vec<(String, Outline)>> {
        let outline = |(name, bytes): (String, u64)| async move {
            let outline = self.outline(&name, bytes).await?;
            Ok::<_, io::Error>(outline.map(|outline| (name, outline)))
        };
        let found = stream::iter(blocks).map(outline).buffer_unordered(OUTLINES_AT_ONCE);
        found.try_filter_map(|outline| ready(Ok(outline))).try_collect().await
    }

    async fn outline(&self, name: &str, bytes: u64) -> io::Result<Option<Outline>> {
        if bytes < layout::HEADER_BYTES + layout::TRAILER_BYTES {
            return Ok(None);
        }
        let head = self.get_range(name, 0, layout::HEADER_BYTES).await?;
        let mut start = bytes.saturating_sub(TAIL_BYTES);
        let mut tail = self.get_range(name, start, bytes).await?;
        let Some(directory) = layout::directory_start(bytes, &tail) else { return Ok(None) };
        if directory < start {
            (start, tail) = (directory, self.get_range(name, directory, bytes).await?);
        }
        let skip = usize::try_from(directory - start).unwrap_or(usize::MAX);
        Ok(Some(Outline { bytes, head: head.into(), tail: tail.get(skip..).unwrap_or_default().to_vec() }))
    }
}
