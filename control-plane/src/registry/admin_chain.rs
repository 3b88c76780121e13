//! The chain of operators' changes. A change and the record of it are one transaction, so neither
//! exists without the other.
//!
//! A tenant has a chain of its own; the fleet's has nodes, operators and refused calls. Two
//! replicas that write at the same time conflict on the chain's head, and one of them tries again.
//! The store keeps the newest [`KEPT`] changes of a chain. Where a replica keeps a trail, older
//! ones leave the store only when they are in an archive ([`super::admin_archive`]); without one
//! they are removed.

mod object;

use std::{collections::HashMap, sync::Arc};

use futures_util::future::{BoxFuture, try_join_all};
use parking_lot::Mutex;
use prost::Message as _;
use seks_audit::admin::{KEPT, digest};
use seks_proto::wire::{AdminChange, AdminObject};

use self::object::{Described, describe, identify};
use super::{Change, Registry, RegistryError, admin_archive::oldest_without_archive, record::Stored};
use crate::{
    clock::unix_now_micros,
    store::{
        Key, Revision, StoreError, Write,
        key::{AdminChainName, prefix},
    },
};

/// Changes beyond [`KEPT`] that may wait for an archive. Then only deletes and revocations are
/// taken: whoever makes many changes must not be able to remove the record of earlier ones.
const UNARCHIVED: u64 = 10_000;
/// How often the head is read again when another replica has written to the chain.
const ROUNDS: usize = 16;
/// Objects of one change that are read at the same time.
const READS: usize = 16;
/// Objects of one change that are named.
const OBJECTS: usize = 128;
/// Longest change. Beyond that values are left out, the longest change's first.
const CHANGE_BYTES: usize = 8 * 1024;

tokio::task_local! {
    static ACTOR: Arc<Actor>;
}

/// On whose behalf the registry is called.
#[derive(Clone, Debug, Default)]
pub struct Actor {
    /// The operator; empty: a node with its join token.
    pub operator: String,
    /// The method of the admin API.
    pub verb: String,
    /// The tenant that the call names; empty: none.
    pub tenant: String,
    /// This replica.
    pub replica: String,
}

impl Actor {
    /// Runs `work` on behalf of this actor: changes in it are recorded. Work that it spawns is not.
    pub async fn run<F: Future>(self, work: F) -> F::Output {
        ACTOR.scope(Arc::new(self), work).await
    }

    fn current() -> Option<Arc<Self>> {
        ACTOR.try_with(Arc::clone).ok()
    }
}

/// The end of a chain.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AdminHead {
    /// The sequence of the last change; 0: there is none.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// Its digest.
    #[prost(bytes = "vec", tag = "2")]
    pub digest: Vec<u8>,
    /// When it was made, in Unix microseconds.
    #[prost(uint64, tag = "3")]
    pub at_us: u64,
}

/// One writer for each chain at a time, so that only replicas conflict. The value is the oldest
/// change that the store has, as far as it is known; 0: it is not.
#[derive(Default)]
pub(super) struct ChainLocks(Mutex<HashMap<AdminChainName, Arc<tokio::sync::Mutex<u64>>>>);

impl ChainLocks {
    fn of(&self, chain: &AdminChainName) -> Arc<tokio::sync::Mutex<u64>> {
        self.0.lock().entry(chain.clone()).or_default().clone()
    }
}

impl Registry {
    /// Commits `change`, and the record of it when an operator makes it.
    pub(super) async fn commit(&self, change: Change) -> Result<Revision, RegistryError> {
        let Some(actor) = Actor::current().filter(|_| change.writes().iter().any(|write| identify(write).is_some()))
        else {
            return Ok(self.store.commit(change.into_transaction()?).await?);
        };
        let (objects, is_last_resort) = (self.objects_of(change.writes()).await?, change.only_deletes());
        if objects.is_empty() {
            return Ok(self.store.commit(change.into_transaction()?).await?); // a mark, nothing that an operator sees
        }
        let chain = objects.first().map_or(AdminChainName::Fleet, |object| object.chain.clone());
        let record = record(&actor, "ok", objects);
        match self.append(&chain, change.clone(), record, is_last_resort).await {
            // A full store takes deletes alone. To revoke matters more than to have it in the
            // chain.
            Err(RegistryError::Store(StoreError::Full)) if is_last_resort => {
                tracing::error!(
                    target: "seks.admin", operator = actor.operator, verb = actor.verb, chain = %chain,
                    "the store is full: a removal is not in the chain of admin changes"
                );
                Ok(self.store.commit(change.into_transaction()?).await?)
            }
            done => done,
        }
    }

    /// Records a call that was refused. `chain` is that of the tenant if the caller has a role
    /// there.
    ///
    /// # Errors
    /// Of the store.
    pub async fn record_refusal(
        &self,
        chain: &AdminChainName,
        actor: &Actor,
        object: &str,
    ) -> Result<(), RegistryError> {
        let mut refused = record(actor, "denied", Vec::new());
        if !object.is_empty() {
            refused.objects.push(AdminObject { name: object.into(), ..AdminObject::default() });
        }
        self.append(chain, Change::new(), refused, false).await.map(drop)
    }

    /// Records a tripwire: `facts` is a JSON object of names and addresses.
    ///
    /// # Errors
    /// Of the store.
    pub async fn record_alarm(
        &self,
        chain: &AdminChainName,
        actor: &Actor,
        token: &str,
        facts: String,
    ) -> Result<(), RegistryError> {
        let mut alarm = record(actor, "alarm", Vec::new());
        let (kind, name) = ("token".into(), token.into());
        alarm.objects.push(AdminObject { kind, name, before: String::new(), after: facts });
        self.append(chain, Change::new(), alarm, false).await.map(drop)
    }

    /// Commits `change` with `record` at the end of `chain`.
    async fn append(
        &self,
        chain: &AdminChainName,
        change: Change,
        mut record: AdminChange,
        is_last_resort: bool,
    ) -> Result<Revision, RegistryError> {
        let lock = self.chain_locks.of(chain);
        let mut kept_from = lock.lock().await;
        let mut head = self.load_admin_head(chain).await?;
        for _ in 0..ROUNDS {
            record.sequence = head.value.sequence + 1;
            record.previous.clone_from(&head.value.digest);
            let encoded = record.encode_to_vec();
            let after =
                AdminHead { sequence: record.sequence, digest: digest(&encoded).0.to_vec(), at_us: record.at_us };
            let mut whole = change
                .clone()
                .check(&head)
                .put(head.key.clone(), &after)
                .put_bytes(Key::AdminChange(chain.clone(), record.sequence), encoded.into());
            let room = self.admin_room(chain, record.sequence, &mut kept_from).await?;
            if room == Room::None && !is_last_resort {
                return Err(StoreError::Full.into());
            }
            if let Room::Replace(old) = room {
                let archive = Key::AdminArchive(chain.clone());
                whole = whole.check_absent(archive).delete(Key::AdminChange(chain.clone(), old));
            }
            match self.store.commit(whole.into_transaction()?).await {
                Err(StoreError::Conflict) => {
                    let now = self.load_admin_head(chain).await?;
                    let is_archived = matches!(room, Room::Replace(_)) && self.admin_archive(chain).await?.is_some();
                    if now.modified == head.modified && !is_archived {
                        return Err(StoreError::Conflict.into()); // of the change itself
                    }
                    head = now;
                }
                done => return Ok(done?),
            }
        }
        Err(RegistryError::Busy)
    }

    /// What one more change, the number `sequence`, does to a chain. `kept_from` is what the caller
    /// knows of the oldest one, so that the store is not asked each time.
    async fn admin_room(
        &self,
        chain: &AdminChainName,
        sequence: u64,
        kept_from: &mut u64,
    ) -> Result<Room, RegistryError> {
        let limit = if *kept_from == 0 { KEPT } else { KEPT + UNARCHIVED };
        if sequence - (*kept_from).max(1) < limit {
            return Ok(Room::More);
        }
        if let Some(archive) = self.admin_archive(chain).await? {
            *kept_from = archive.kept_from;
            let is_full = sequence.saturating_sub(archive.kept_from) >= KEPT + UNARCHIVED;
            if is_full {
                tracing::error!(
                    target: "seks.admin", %chain,
                    "{UNARCHIVED} admin changes wait for a replica that archives them in its trail (audit.dir): \
                     only deletes and revocations are taken"
                );
            }
            return Ok(if is_full { Room::None } else { Room::More });
        }
        // The fleet's chain is archived first. A replica that archives comes to this one, too.
        let is_archived = self.admin_archive(&AdminChainName::Fleet).await?.is_some();
        let old = oldest_without_archive(sequence).checked_sub(1).filter(|old| *old > 0);
        match old {
            Some(_) if is_archived && sequence > KEPT + UNARCHIVED => Ok(Room::None),
            Some(old) if !is_archived => Ok(Room::Replace(old)),
            _ => Ok(Room::More),
        }
    }

    pub(super) async fn load_admin_head(&self, chain: &AdminChainName) -> Result<Stored<AdminHead>, RegistryError> {
        let key = Key::AdminHead(chain.clone());
        let head = self.load::<AdminHead>(key.clone()).await?;
        Ok(head.unwrap_or_else(|| Stored { key, value: AdminHead::default(), modified: 0 }))
    }

    /// What a change touches, with the values before it.
    async fn objects_of(&self, writes: &[Write]) -> Result<Vec<Described>, RegistryError> {
        let mut objects = Vec::new();
        for some in writes.chunks(READS) {
            let described = try_join_all(some.iter().map(|write| self.object_of(write))).await?;
            objects.extend(described.into_iter().flatten());
        }
        Ok(objects)
    }

    fn object_of<'a>(&'a self, write: &'a Write) -> BoxFuture<'a, Result<Option<Described>, StoreError>> {
        Box::pin(async move {
            let Some(known) = identify(write) else { return Ok(None) };
            let before = self.store.get(known.key).await?;
            Ok(describe(&known, before.map(|record| record.value), write))
        })
    }

    /// The ends of all chains.
    ///
    /// # Errors
    /// Of the store.
    pub async fn admin_heads(&self) -> Result<Vec<(AdminChainName, AdminHead)>, RegistryError> {
        let (mut heads, mut pages) = (Vec::new(), self.pages(prefix::ADMIN_HEADS));
        while let Some(page) = pages.next::<AdminHead>().await? {
            for stored in page {
                if let Key::AdminHead(chain) = stored.key {
                    heads.push((chain, stored.value));
                }
            }
        }
        Ok(heads)
    }

    /// Calls `each` with the changes of a chain that the store has, the newest first, until it
    /// returns `false`: the sequence, the change as it is encoded, and its revision.
    ///
    /// # Errors
    /// Of the store.
    pub async fn admin_changes(
        &self,
        chain: &AdminChainName,
        mut each: impl FnMut(u64, bytes::Bytes, Revision) -> bool,
    ) -> Result<(), RegistryError> {
        let (prefix, mut after) = (prefix::admin_changes(chain), String::new());
        loop {
            let page = self.store.list_page(&prefix, &after, 1000).await?;
            for record in page.records {
                let Key::AdminChange(_, sequence) = record.key else { continue };
                if !each(sequence, record.value, record.modified) {
                    return Ok(());
                }
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(()),
            }
        }
    }
}

/// What becomes of a chain with one more change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    /// It has room.
    More,
    /// This one is removed: nobody archives changes.
    Replace(u64),
    /// Too many wait for an archive.
    None,
}

/// A record within its bounds.
fn record(actor: &Actor, outcome: &str, objects: Vec<Described>) -> AdminChange {
    let more = objects.len().saturating_sub(OBJECTS);
    let mut record = AdminChange {
        at_us: unix_now_micros(),
        operator: actor.operator.clone(),
        verb: actor.verb.clone(),
        tenant: actor.tenant.clone(),
        outcome: outcome.into(),
        replica: actor.replica.clone(),
        objects: objects.into_iter().take(OBJECTS).map(|described| described.object).collect(),
        more_objects: u32::try_from(more).unwrap_or(u32::MAX),
        ..AdminChange::default()
    };
    while record.encoded_len() > CHANGE_BYTES {
        let longest = record.objects.iter_mut().max_by_key(|object| object.before.len() + object.after.len());
        match longest {
            Some(object) if object.before.len() + object.after.len() > 0 => {
                (object.before, object.after) = (String::new(), String::new());
            }
            _ => {
                record.more_objects += u32::from(record.objects.pop().is_some());
            }
        }
    }
    record
}
