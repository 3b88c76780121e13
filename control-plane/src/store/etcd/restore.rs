//! Restores a store from a backup into an unused prefix. The store id's record marks it as
//! incomplete until the last transaction. Until then no control plane opens the store.

use bytes::Bytes;

use super::{Etcd, client_config};
use crate::store::{
    Framer, Key, MAX_TRANSACTION, MAX_TRANSACTION_BYTES, OpenError, Record, Revision, Store as _, StoreConfig,
    Transaction, Write, fresh_id, key::prefix,
};

/// What the store id's record begins with while a store is being restored.
pub(super) const UNFINISHED: &[u8] = b"restoring ";

/// Fills the prefix that `config` names. A prefix with a complete store is refused. One with an
/// interrupted restore is emptied and filled again.
pub(in crate::store) async fn restore(
    config: &StoreConfig,
    store_id: &str,
    records: Vec<(Key, Bytes)>,
    framer: &Framer,
) -> Result<(), OpenError> {
    let etcd = Etcd { link: client_config::link(config)?, store_id: String::new(), named: 0 };
    let claim = claim(&etcd, config).await?;
    let left = etcd.list(prefix::ALL).await?.0;
    let left = left.into_iter().filter(|record| record.key != Key::StoreId).map(|record| Write::Delete(record.key));
    write(&etcd, claim, left.collect(), framer).await?;
    write(&etcd, claim, records.into_iter().map(|(key, value)| Write::Put(key, value)).collect(), framer).await?;
    let store_id = Write::Put(Key::StoreId, Bytes::copy_from_slice(store_id.as_bytes()));
    commit(&etcd, claim, vec![store_id]).await?;
    Ok(())
}

/// Marks the prefix as ours; the revision of the mark, which every later transaction must find.
async fn claim(etcd: &Etcd, config: &StoreConfig) -> Result<Revision, OpenError> {
    let taken = || OpenError::Exists(format!("{} in etcd", config.prefix));
    let modified = match etcd.get(&Key::StoreId).await? {
        Some(Record { value, modified, .. }) if value.starts_with(UNFINISHED) => modified,
        Some(_) => return Err(taken()),
        None if etcd.list(prefix::ALL).await?.0.is_empty() => 0,
        None => return Err(taken()),
    };
    let id = fresh_id()?;
    let mark = Write::Put(Key::StoreId, [UNFINISHED, id.as_bytes()].concat().into());
    commit(etcd, modified, vec![mark]).await
}

/// All of `writes`, in as many transactions as it takes.
async fn write(etcd: &Etcd, claim: Revision, writes: Vec<Write>, framer: &Framer) -> Result<(), OpenError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    // Every record names a revision that is known before it is written: the mark's, and then that
    // of the batch before.
    let mut base = claim;
    for write in writes {
        let size = match &write {
            Write::Put(key, value) => key.to_string().len() + value.len(),
            Write::Delete(key) => key.to_string().len(),
        };
        if batch.len() == MAX_TRANSACTION || bytes + size > MAX_TRANSACTION_BYTES {
            base = base.max(commit(etcd, claim, std::mem::take(&mut batch)).await?);
            bytes = 0;
        }
        bytes += size;
        batch.push(match write {
            Write::Put(key, value) => {
                let value = framer.frame(&key, base, &value);
                Write::Put(key, value)
            }
            delete @ Write::Delete(_) => delete,
        });
    }
    if !batch.is_empty() {
        commit(etcd, claim, batch).await?;
    }
    Ok(())
}

async fn commit(etcd: &Etcd, claim: Revision, writes: Vec<Write>) -> Result<Revision, OpenError> {
    Ok(etcd.commit(Transaction { checks: vec![(Key::StoreId, claim)], writes }).await?)
}
