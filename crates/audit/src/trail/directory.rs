//! What a block says of itself: its rows, its times, its chains, and where its columns are.

use super::{
    rows::{ChainPart, Shape},
    value_sets::ValueSets,
};
use crate::{
    chain::{ChainId, Digest, Head, Predecessor},
    varint::{put, put_bytes, take, take_bytes},
};

/// Where a column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The field, and whether it holds bytes.
    pub(crate) field: (u32, bool),
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// What a trail knows of intents when it makes a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IntentLists {
    /// Request ids of intents in the block that have no outcome yet.
    pub(crate) open: Vec<[u8; 16]>,
    /// Request ids of outcomes in the block whose intents are in earlier blocks.
    pub(crate) late: Vec<[u8; 16]>,
}

/// A block's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) rows: u32,
    /// Of the records' beginnings, in Unix microseconds.
    pub(crate) min_us: u64,
    pub(crate) max_us: u64,
    pub(crate) parts: Vec<ChainPart>,
    pub(crate) shapes: Vec<Shape>,
    pub(crate) columns: Vec<Place>,
    pub(crate) intents: IntentLists,
    /// Empty in blocks of versions without them.
    pub(crate) values: ValueSets,
}

impl Directory {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let numbers = [u64::from(self.rows), self.min_us, self.max_us, self.parts.len() as u64];
        numbers.iter().for_each(|number| put(&mut out, *number));
        for part in &self.parts {
            out.extend_from_slice(&part.chain.0);
            put_bytes(&mut out, part.node.as_bytes());
            let after = part.after.unwrap_or(Predecessor { chain: ChainId([0; 16]), sequence: 0 });
            out.extend_from_slice(&after.chain.0);
            let numbers = [after.sequence, part.first, part.head.sequence, part.written_us];
            numbers.iter().for_each(|number| put(&mut out, *number));
            out.extend_from_slice(&part.before.0);
            out.extend_from_slice(&part.head.digest.0);
            put(&mut out, part.checkpoints.len() as u64);
            for (sequence, digest) in &part.checkpoints {
                put(&mut out, *sequence);
                out.extend_from_slice(&digest.0);
            }
        }
        put(&mut out, self.shapes.len() as u64);
        for shape in &self.shapes {
            put(&mut out, shape.len() as u64);
            shape.iter().for_each(|field| put_field_id(&mut out, *field));
        }
        put(&mut out, self.columns.len() as u64);
        for place in &self.columns {
            put_field_id(&mut out, place.field);
            put(&mut out, place.offset);
            put(&mut out, place.length);
        }
        for list in [&self.intents.open, &self.intents.late] {
            put_bytes(&mut out, list.as_flattened());
        }
        self.values.encode(&mut out);
        out
    }

    /// Reads what [`encode`](Self::encode) wrote. `None` when it is something else.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let rest = &mut bytes;
        let (rows, min_us, max_us) = (u32::try_from(take(rest)?).ok()?, take(rest)?, take(rest)?);
        let parts = list(rest, take_part)?;
        let shapes = list(rest, |rest| list(rest, take_field_id))?;
        let place =
            |rest: &mut &[u8]| Some(Place { field: take_field_id(rest)?, offset: take(rest)?, length: take(rest)? });
        let columns = list(rest, place)?;
        let mut ids = || Some(take_bytes(rest)?.as_chunks::<16>().0.to_vec());
        let intents = IntentLists { open: ids()?, late: ids()? };
        let values = if rest.is_empty() { ValueSets::default() } else { ValueSets::decode(rest)? };
        bytes.is_empty().then_some(Self { rows, min_us, max_us, parts, shapes, columns, intents, values })
    }
}

fn take_part(rest: &mut &[u8]) -> Option<ChainPart> {
    let chain = ChainId(array(rest)?);
    let node = String::from_utf8(take_bytes(rest)?.to_vec()).ok()?;
    let before = ChainId(array(rest)?);
    let (sequence, first, last, written_us) = (take(rest)?, take(rest)?, take(rest)?, take(rest)?);
    let after = (before.0 != [0; 16]).then_some(Predecessor { chain: before, sequence });
    let (before, digest) = (Digest(array(rest)?), Digest(array(rest)?));
    let checkpoints = list(rest, |rest| Some((take(rest)?, Digest(array(rest)?))))?;
    let head = Head { chain, sequence: last, digest };
    Some(ChainPart { chain, node, after, first, before, head, checkpoints, written_us })
}

fn put_field_id(out: &mut Vec<u8>, (field, is_bytes): (u32, bool)) {
    put(out, u64::from(field) << 1 | u64::from(is_bytes));
}

fn take_field_id(rest: &mut &[u8]) -> Option<(u32, bool)> {
    let id = take(rest)?;
    Some((u32::try_from(id >> 1).ok()?, id & 1 == 1))
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

/// A count and as many items. Each item takes a byte at least, so a damaged count allocates
/// nothing.
fn list<T>(rest: &mut &[u8], item: impl Fn(&mut &[u8]) -> Option<T>) -> Option<Vec<T>> {
    let count = usize::try_from(take(rest)?).ok().filter(|count| *count <= rest.len())?;
    (0..count).map(|_| item(rest)).collect()
}
