//! A disk in memory: what is not synced may be lost or torn, it may be full, fail or stall.

use std::{collections::BTreeMap, io, sync::Arc, thread::sleep, time::Duration};

use parking_lot::Mutex;

use super::{Appender, Disk};

#[derive(Clone, Default)]
pub(crate) struct SimulatedDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<String, Contents>,
    /// Bytes that still fit; `None`: unlimited.
    room: Option<usize>,
    /// All writes fail.
    read_only: bool,
    /// Syncs fail, and nobody knows what they have written.
    sync_fails: bool,
    sync_takes: Duration,
}

#[derive(Clone, Default)]
struct Contents {
    bytes: Vec<u8>,
    synced: usize,
    /// The name is durable.
    named: bool,
}

impl SimulatedDisk {
    pub(crate) fn set_room(&self, room: Option<usize>) {
        self.0.lock().room = room;
    }

    pub(crate) fn set_read_only(&self, read_only: bool) {
        self.0.lock().read_only = read_only;
    }

    pub(crate) fn set_sync_fails(&self, fails: bool) {
        self.0.lock().sync_fails = fails;
    }

    pub(crate) fn set_sync_takes(&self, takes: Duration) {
        self.0.lock().sync_takes = takes;
    }

    /// The disk after a power cut: of each file what was synced, and `keep` of what was not.
    pub(crate) fn after_power_cut(&self, keep: impl Fn(usize) -> usize) -> Self {
        let state = self.0.lock();
        let files = state.files.iter().filter_map(|(name, contents)| {
            let length = contents.synced + keep(contents.bytes.len() - contents.synced);
            (contents.named || length > 0).then(|| {
                let bytes = contents.bytes[..length].to_vec();
                (name.clone(), Contents { bytes, synced: length, named: true })
            })
        });
        Self(Arc::new(Mutex::new(State { files: files.collect(), ..State::default() })))
    }

    /// Changes a file's bytes.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        let contents = state.files.get_mut(name).unwrap();
        change(&mut contents.bytes);
        contents.synced = contents.synced.min(contents.bytes.len());
    }

    /// Everything on the disk.
    pub(crate) fn contents(&self) -> Vec<u8> {
        self.0.lock().files.values().flat_map(|contents| contents.bytes.clone()).collect()
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for SimulatedDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.0.lock().files.iter().map(|(name, file)| (name.clone(), file.bytes.len() as u64)).collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appender>> {
        let mut state = self.0.lock();
        if state.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if state.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.files.insert(name.into(), Contents::default());
        Ok(Box::new(SimulatedFile { disk: self.clone(), name: name.into() }))
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let state = self.0.lock();
        let bytes = &state.files.get(name).ok_or_else(missing)?.bytes;
        let from = (offset as usize).min(bytes.len());
        let to = from.saturating_add(length).min(bytes.len());
        Ok(bytes[from..to].to_vec())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let removed = state.files.remove(name);
        if let (Some(room), Some(file)) = (&mut state.room, removed) {
            *room += file.bytes.len();
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        let contents = state.files.remove(from).ok_or_else(missing)?;
        state.files.insert(to.into(), contents);
        Ok(())
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    name: String,
}

impl Appender for SimulatedFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        if state.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        // A full disk takes a part, and then says so.
        let fits = state.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        if let Some(room) = &mut state.room {
            *room -= fits;
        }
        state.files.get_mut(&self.name).ok_or_else(missing)?.bytes.extend_from_slice(&bytes[..fits]);
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let takes = self.disk.0.lock().sync_takes;
        sleep(takes);
        let mut state = self.disk.0.lock();
        if state.sync_fails {
            return Err(io::Error::other("input/output error"));
        }
        let file = state.files.get_mut(&self.name).ok_or_else(missing)?;
        (file.synced, file.named) = (file.bytes.len(), true);
        Ok(())
    }
}
