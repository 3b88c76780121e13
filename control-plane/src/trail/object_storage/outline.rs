//! What is kept of a block whose file is in the bucket alone: its two ends, from which a start
//! learns what the block holds. So a start sends no request for a block, and succeeds while the
//! bucket is away.

use std::{collections::BTreeMap, io};

use seks_audit::{
    disk::{Directory, Disk},
    trail::layout,
};

/// How the name of an outline's file ends.
const END: &str = ".outline";
/// The length of the block, before its two ends.
const LENGTH_BYTES: usize = 8;

/// The two ends of a block.
pub(super) struct Outline {
    /// Of the whole block.
    pub(super) bytes: u64,
    pub(super) head: Vec<u8>,
    /// The directory and what follows it.
    pub(super) tail: Vec<u8>,
}

/// Whether a file is an outline.
pub(super) fn is_outline(name: &str) -> bool {
    name.ends_with(END)
}

fn file_of(block: &str) -> String {
    format!("{block}{END}")
}

impl Outline {
    /// Of a block in the directory. `None`: the file is no block.
    pub(super) fn of_file(local: &Directory, name: &str, bytes: u64) -> io::Result<Option<Self>> {
        let Some(end) = bytes.checked_sub(layout::TRAILER_BYTES) else { return Ok(None) };
        let trailer = local.read(name, end, usize::MAX)?;
        let Some(start) = layout::directory_start(bytes, &trailer) else { return Ok(None) };
        let head = local.read(name, 0, layout::HEADER_BYTES as usize)?;
        Ok(Some(Self { bytes, head, tail: local.read(name, start, usize::MAX)? }))
    }

    /// Writes it, durably.
    pub(super) fn write(&self, local: &Directory, name: &str) -> io::Result<()> {
        let (file, unfinished) = (file_of(name), format!("{}.new", file_of(name)));
        local.remove(&unfinished)?;
        let mut contents = self.bytes.to_be_bytes().to_vec();
        contents.extend_from_slice(&self.head);
        contents.extend_from_slice(&self.tail);
        let mut out = local.create(&unfinished)?;
        out.append(&contents)?;
        out.sync()?;
        local.rename(&unfinished, &file)
    }

    /// Reads a part of the block `name` from its outline. `None`: the part is not in it.
    pub(super) fn read(local: &Directory, name: &str, offset: u64, length: usize) -> Option<Vec<u8>> {
        let file = local.read_all(&file_of(name)).ok()?;
        let (bytes, ends) = file.split_first_chunk::<LENGTH_BYTES>()?;
        let (head, tail) = ends.split_at_checked(layout::HEADER_BYTES as usize)?;
        let bytes = u64::from_be_bytes(*bytes);
        let end = bytes.min(offset.saturating_add(length as u64));
        let part = |of: &[u8], start: u64| {
            let range =
                usize::try_from(offset.checked_sub(start)?).ok()?..usize::try_from(end.checked_sub(start)?).ok()?;
            of.get(range).map(<[u8]>::to_vec)
        };
        part(head, 0).or_else(|| part(tail, bytes.checked_sub(tail.len() as u64)?))
    }

    /// Removes it. One that is gone is no error.
    pub(super) fn remove(local: &Directory, name: &str) -> io::Result<()> {
        local.remove(&file_of(name))
    }

    /// The blocks that have one, with their lengths.
    pub(super) fn list(local: &Directory) -> io::Result<BTreeMap<String, u64>> {
        let mut blocks = BTreeMap::new();
        for (file, _) in local.list()? {
            let Some(name) = file.strip_suffix(END) else { continue };
            if let Ok(bytes) = local.read(&file, 0, LENGTH_BYTES)?.try_into() {
                blocks.insert(name.to_owned(), u64::from_be_bytes(bytes));
            }
        }
        Ok(blocks)
    }
}
