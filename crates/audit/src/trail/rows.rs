//! Records in the order in which they arrived, and where in their chains they belong.

use std::collections::HashMap;

use super::column::Column;
use crate::{
    chain::{ChainId, Digest, Head, Predecessor},
    frame::Frame,
    record::{FieldsOf, Value, field},
    varint,
};

/// Records of a chain between two checkpoints. A change is found between two of them.
pub(crate) const CHECKPOINT_EVERY: u64 = 256;

/// The part of one chain that lies in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChainPart {
    pub(crate) chain: ChainId,
    /// The node that handed it in, by its certificate.
    pub(crate) node: String,
    pub(crate) after: Option<Predecessor>,
    /// The sequence of its first record here.
    pub(crate) first: u64,
    /// The digest before that.
    pub(crate) before: Digest,
    /// After its last record here.
    pub(crate) head: Head,
    /// Digests in between, each after a sequence.
    pub(crate) checkpoints: Vec<(u64, Digest)>,
    /// Newest writing time so far, in Unix microseconds.
    pub(crate) written_us: u64,
}

/// One frame's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameRow {
    /// Index of its [`ChainPart`].
    pub(crate) part: u32,
    pub(crate) first: u64,
    pub(crate) count: u32,
    pub(crate) written_us: u64,
}

/// Rows in memory.
#[derive(Clone, Default)]
pub(crate) struct Rows {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    pub(crate) frames: Vec<FrameRow>,
    /// Rows before each frame.
    starts: Vec<u32>,
    pub(crate) parts: Vec<ChainPart>,
    by_chain: HashMap<ChainId, u32>,
}

impl Rows {
    /// Empty, with room for as much as `like` holds: growing would copy each record several times.
    pub(crate) fn with_room_of(like: &Self) -> Self {
        let room = |length: usize| length + length / 16;
        Self {
            bytes: Vec::with_capacity(room(like.bytes.len())),
            ends: Vec::with_capacity(room(like.ends.len())),
            ..Self::default()
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a frame of its chain, whose head is `head` then. `after` is the chain before it.
    pub(crate) fn push(&mut self, node: &str, (head, after): (Head, Option<Predecessor>), frame: &Frame) {
        let chain = head.chain;
        let known = self.by_chain.get(&chain).copied();
        let follows =
            |part: &u32| self.parts.get(*part as usize).is_some_and(|part| part.head.sequence + 1 == frame.first);
        let part = known.filter(follows).unwrap_or_else(|| {
            // Behind a gap, whose records another replica may have, the digest starts anew.
            let written_us = known.and_then(|part| self.parts.get(part as usize)).map_or(0, |part| part.written_us);
            self.parts.push(ChainPart {
                chain,
                node: node.to_owned(),
                after,
                first: frame.first,
                before: frame.before,
                head: Head { chain, sequence: frame.first - 1, digest: frame.before },
                checkpoints: Vec::new(),
                written_us,
            });
            let part = self.parts.len() as u32 - 1;
            self.by_chain.insert(chain, part);
            part
        });
        self.starts.push(self.ends.len() as u32);
        for record in frame.records() {
            self.bytes.extend_from_slice(record);
            self.ends.push(self.bytes.len() as u32);
        }
        let Frame { first, count, written_us, .. } = *frame;
        self.frames.push(FrameRow { part, first, count, written_us });
        if let Some(part) = self.parts.get_mut(part as usize) {
            part.head = head;
            part.written_us = part.written_us.max(written_us);
            let since = part.checkpoints.last().map_or(part.first - 1, |(sequence, _)| *sequence);
            if part.head.sequence - since >= CHECKPOINT_EVERY {
                part.checkpoints.push((part.head.sequence, part.head.digest));
            }
        }
    }

    pub(crate) fn record(&self, row: usize) -> Option<&[u8]> {
        let end = *self.ends.get(row)? as usize;
        let start = row.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        self.bytes.get(start..end)
    }

    pub(crate) fn records(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        (0..self.len()).map(|row| self.record(row).unwrap_or_default())
    }

    /// The frames as columns: their parts, their counts, what their first sequences skip, and their
    /// times.
    pub(crate) fn frame_columns(&self) -> [Column; 4] {
        let mut expected: Vec<u64> = self.parts.iter().map(|part| part.first).collect();
        let mut skipped = Vec::with_capacity(self.frames.len());
        for frame in &self.frames {
            let next = expected.get_mut(frame.part as usize);
            skipped.push(next.as_ref().map_or(0, |next| frame.first.wrapping_sub(**next)));
            next.into_iter().for_each(|next| *next = frame.first + u64::from(frame.count));
        }
        let numbers = |of: fn(&FrameRow) -> u64| Column::Numbers(self.frames.iter().map(of).collect());
        [numbers(|f| f.part.into()), numbers(|f| f.count.into()), Column::Numbers(skipped), numbers(|f| f.written_us)]
    }
}

/// Finds the frame of a row.
#[derive(Clone, Default)]
pub(crate) struct FrameTable {
    frames: Vec<FrameRow>,
    starts: Vec<u32>,
}

impl FrameTable {
    pub(crate) fn of_rows(rows: &Rows) -> Self {
        Self { frames: rows.frames.clone(), starts: rows.starts.clone() }
    }

    pub(crate) fn of_columns(columns: &[Column; 4], parts: &[ChainPart]) -> Option<Self> {
        let [part, count, skipped, written] = columns;
        let mut expected: Vec<u64> = parts.iter().map(|part| part.first).collect();
        let (mut frames, mut starts, mut row) = (Vec::new(), Vec::new(), 0_u32);
        for at in 0..part.len() {
            let part = u32::try_from(part.number(at)?).ok()?;
            let count = u32::try_from(count.number(at)?).ok()?;
            let next = expected.get_mut(part as usize)?;
            let first = next.wrapping_add(skipped.number(at)?);
            *next = first.checked_add(count.into())?;
            frames.push(FrameRow { part, first, count, written_us: written.number(at)? });
            starts.push(row);
            row = row.checked_add(count)?;
        }
        Some(Self { frames, starts })
    }

    pub(crate) fn frames(&self) -> &[FrameRow] {
        &self.frames
    }

    /// The part and the sequence of a row.
    pub(crate) fn locate(&self, row: u32) -> Option<(u32, u64)> {
        let at = self.starts.partition_point(|start| *start <= row).checked_sub(1)?;
        let (frame, start) = (self.frames.get(at)?, self.starts.get(at)?);
        Some((frame.part, frame.first + u64::from(row - start)))
    }
}

/// The fields of a record in its order, without their values.
pub(crate) type Shape = Vec<(u32, bool)>;

/// Records as columns, one for each field, and the shape of each record. Nothing is lost, not even
/// the order of fields.
pub(crate) struct Columns<'a> {
    pub(crate) shapes: Vec<Shape>,
    pub(crate) row_shapes: Vec<u64>,
    /// By field and by whether it holds bytes.
    pub(crate) fields: Vec<((u32, bool), Values<'a>)>,
}

/// The values of one field.
pub(crate) enum Values<'a> {
    Numbers(Vec<u64>),
    Bytes(Vec<&'a [u8]>),
}

impl Values<'_> {
    pub(crate) fn into_column(self) -> Column {
        match self {
            Self::Numbers(values) => Column::Numbers(values),
            Self::Bytes(values) => Column::of_bytes(values.into_iter()),
        }
    }
}

/// The field that holds a whole record which is no list of varints and length-delimited fields in
/// their shortest form.
pub(crate) const OPAQUE: (u32, bool) = (0, true);

impl<'a> Columns<'a> {
    pub(crate) fn of(records: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut numbers: ByField<Vec<u64>> = ByField::default();
        let mut texts: ByField<Vec<&[u8]>> = ByField::default();
        let (mut shapes, mut row_shapes) = (KnownShapes::default(), Vec::new());
        let (mut shape, mut read) = (Shape::new(), Vec::new());
        for record in records {
            shape.clear();
            if read_canonical(record, &mut read) {
                for &(field, value) in &read {
                    match value {
                        Value::Number(number) => {
                            shape.push((field, false));
                            numbers.of(field).push(number);
                        }
                        Value::Bytes(bytes) => {
                            shape.push((field, true));
                            texts.of(field).push(bytes);
                        }
                    }
                }
            } else {
                shape.push(OPAQUE);
                texts.of(OPAQUE.0).push(record);
            }
            row_shapes.push(shapes.id(&shape));
        }
        let mut fields: Vec<((u32, bool), Values<'a>)> =
            numbers.into_iter().map(|(field, values)| ((field, false), Values::Numbers(values))).collect();
        fields.extend(texts.into_iter().map(|(field, values)| ((field, true), Values::Bytes(values))));
        fields.sort_by_key(|(field, _)| *field);
        Self { shapes: shapes.list, row_shapes, fields }
    }
}

/// One value for each field: by index for the fields that records have, so that a block's million
/// values cost no hash each.
struct ByField<T> {
    low: Vec<T>,
    others: HashMap<u32, T>,
}

/// Fields with an index. Records have some 40.
const LOW_FIELDS: u32 = 128;

impl<T> Default for ByField<T> {
    fn default() -> Self {
        Self { low: Vec::new(), others: HashMap::new() }
    }
}

impl<T: Default> ByField<T> {
    fn of(&mut self, field: u32) -> &mut T {
        let at = field as usize;
        if field < LOW_FIELDS && at >= self.low.len() {
            self.low.resize_with(at + 1, T::default);
        }
        match self.low.get_mut(at) {
            Some(value) => value,
            None => self.others.entry(field).or_default(),
        }
    }
}

impl<T> ByField<Vec<T>> {
    /// Those that are not empty.
    fn into_iter(self) -> impl Iterator<Item = (u32, Vec<T>)> {
        (0..).zip(self.low).chain(self.others).filter(|(_, values)| !values.is_empty())
    }
}

/// The shapes so far. Most records have the shape of the one before.
#[derive(Default)]
struct KnownShapes {
    list: Vec<Shape>,
    ids: HashMap<Shape, u64>,
    last: usize,
}

impl KnownShapes {
    fn id(&mut self, shape: &Shape) -> u64 {
        if self.list.get(self.last) == Some(shape) {
            return self.last as u64;
        }
        let id = match self.ids.get(shape) {
            Some(id) => *id,
            None => {
                let id = self.list.len() as u64;
                self.list.push(shape.clone());
                self.ids.insert(shape.clone(), id);
                id
            }
        };
        self.last = id as usize;
        id
    }
}

/// Reads a record's fields into `read`. `false`: it does not come back byte for byte from them.
///
/// A varint that is longer than needed is the only thing that a reader forgets, so the lengths
/// tell.
fn read_canonical<'a>(record: &'a [u8], read: &mut Vec<(u32, Value<'a>)>) -> bool {
    read.clear();
    let mut length = 0;
    for field in FieldsOf::new(record) {
        let Some((number, value)) = field else { return false };
        length += varint::len(u64::from(number) << 3)
            + match value {
                Value::Number(number) => varint::len(number),
                Value::Bytes(bytes) => varint::len(bytes.len() as u64) + bytes.len(),
            };
        read.push((number, value));
    }
    length == record.len()
}

/// Appends a field as a record has it.
pub(crate) fn put_field(out: &mut Vec<u8>, field: u32, value: Value<'_>) {
    match value {
        Value::Number(number) => {
            varint::put(out, u64::from(field) << 3);
            varint::put(out, number);
        }
        Value::Bytes(bytes) => {
            varint::put(out, u64::from(field) << 3 | 2);
            varint::put_bytes(out, bytes);
        }
    }
}

/// What the trail itself reads of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: u64,
    pub(crate) began_us: u64,
    pub(crate) request_id: [u8; 16],
}

impl Facts {
    pub(crate) fn of(record: &[u8]) -> Self {
        let mut facts = Self::default();
        for (number, value) in FieldsOf::new(record).flatten() {
            match (number, value) {
                (field::KIND, Value::Number(kind)) => facts.kind = kind,
                (field::BEGAN_US, Value::Number(time)) => facts.began_us = time,
                (field::REQUEST_ID, Value::Bytes(id)) => facts.request_id = id.try_into().unwrap_or_default(),
                _ => {}
            }
        }
        facts
    }
}
