//! One column of a block: the values of one field, in the order of the rows.
//!
//! Each encoding that fits is tried on the first values, and the one that is smallest after zstd is
//! kept. Values come back exactly as they were.

use std::{collections::HashMap, io};

use zstd::bulk::Compressor;

use crate::varint;

/// zstd's level. Level 3 is a tenth smaller than level 1 and a quarter slower
/// (`examples/trail_cost.rs`).
pub(super) const LEVEL: i32 = 3;
/// Largest column after decompression: 65,536 records of 16 KiB are not met in practice, and a
/// damaged length must not allocate.
const MAX_COLUMN_BYTES: usize = 1 << 30;
/// Values that decide which encoding is the smallest. Compressing whole columns in each would
/// double what a block costs.
const SAMPLE: usize = 4096;
/// A dictionary with more entries than a half of the values is not tried.
const MAX_DICTIONARY: usize = 1 << 16;

/// The values of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// Varints.
    Numbers(Vec<u64>),
    /// Length-delimited values: the entries, and for each value the index of its entry.
    Bytes {
        /// Different values, or all of them where most differ.
        entries: Entries,
        /// One for each value.
        codes: Vec<u32>,
    },
}

/// Byte strings behind each other: a column of ids has no allocation for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl Entries {
    fn push(&mut self, entry: &[u8]) {
        self.data.extend_from_slice(entry);
        self.ends.push(self.data.len() as u32);
    }

    fn of_width(data: Vec<u8>, width: usize) -> Self {
        let ends = (1..=data.len() / width.max(1)).map(|n| (n * width) as u32).collect();
        Self { data, ends }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, at: usize) -> Option<&[u8]> {
        let start = at.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| *end as usize);
        self.data.get(start..*self.ends.get(at)? as usize)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|at| self.get(at))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Encoding {
    /// Varints.
    Plain = 0,
    /// The difference to the value before, zigzag.
    Delta = 1,
    /// A dictionary, and codes of fixed width.
    Dictionary = 2,
    /// Lengths, and the bytes behind each other.
    Raw = 3,
    /// All values have 16 bytes: two numbers, of which the second is mostly a counter.
    Halves = 4,
    /// All values have one length: only the bytes.
    Fixed = 5,
}

impl Encoding {
    fn of(byte: u8) -> Option<Self> {
        let all = [Self::Plain, Self::Delta, Self::Dictionary, Self::Raw, Self::Halves, Self::Fixed];
        all.into_iter().find(|encoding| *encoding as u8 == byte)
    }
}

impl Column {
    /// A column of length-delimited values.
    pub(crate) fn of_bytes<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut entries, mut codes) = (Entries::default(), Vec::new());
        let mut known: HashMap<&[u8], u32, foldhash::quality::RandomState> = HashMap::default();
        let mut last: Option<(&[u8], u32)> = None;
        for value in values {
            if let Some((_, code)) = last.filter(|(known, _)| *known == value) {
                codes.push(code);
                continue;
            }
            let next = entries.len() as u32;
            let code = *known.entry(value).or_insert(next);
            if code == next {
                entries.push(value);
            }
            last = Some((value, code));
            codes.push(code);
        }
        Self::Bytes { entries, codes }
    }

    /// The number of values.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Numbers(values) => values.len(),
            Self::Bytes { codes, .. } => codes.len(),
        }
    }

    /// Value number `at` of a column of length-delimited values.
    pub(crate) fn bytes(&self, at: usize) -> Option<&[u8]> {
        match self {
            Self::Numbers(_) => None,
            Self::Bytes { entries, codes } => entries.get(*codes.get(at)? as usize),
        }
    }

    /// Value number `at` of a column of numbers.
    pub(crate) fn number(&self, at: usize) -> Option<u64> {
        match self {
            Self::Numbers(values) => values.get(at).copied(),
            Self::Bytes { .. } => None,
        }
    }

    /// Its smallest form, as far as the first [`SAMPLE`] values tell.
    ///
    /// # Errors
    /// Of zstd.
    pub(crate) fn encode(&self, zstd: &mut Compressor<'_>) -> io::Result<Vec<u8>> {
        let mut candidates = self.candidates();
        if self.len() > SAMPLE && candidates.len() > 1 {
            let mut best = (usize::MAX, Encoding::Plain);
            for (encoding, raw) in self.sample().candidates() {
                let length = zstd.compress(&raw)?.len();
                best = if length < best.0 { (length, encoding) } else { best };
            }
            candidates.retain(|(encoding, _)| *encoding == best.1);
        }
        if candidates.is_empty() {
            candidates = self.candidates(); // a dictionary that was good for the first values became too large
        }
        let mut smallest: Option<Vec<u8>> = None;
        for (encoding, raw) in candidates {
            let mut encoded = vec![encoding as u8];
            varint::put(&mut encoded, self.len() as u64);
            varint::put(&mut encoded, raw.len() as u64);
            encoded.extend_from_slice(&zstd.compress(&raw)?);
            if smallest.as_ref().is_none_or(|smallest| encoded.len() < smallest.len()) {
                smallest = Some(encoded);
            }
        }
        Ok(smallest.unwrap_or_default())
    }

    fn candidates(&self) -> Vec<(Encoding, Vec<u8>)> {
        match self {
            Self::Numbers(values) => vec![(Encoding::Plain, plain(values)), (Encoding::Delta, delta(values))],
            Self::Bytes { entries, codes } => bytes_candidates(entries, codes),
        }
    }

    /// Its first values.
    fn sample(&self) -> Self {
        match self {
            Self::Numbers(values) => Self::Numbers(values.iter().take(SAMPLE).copied().collect()),
            Self::Bytes { entries, codes } => {
                Self::of_bytes(codes.iter().take(SAMPLE).filter_map(|code| entries.get(*code as usize)))
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote. `None` when it is something else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&encoding, mut rest) = bytes.split_first()?;
        let count = usize::try_from(varint::take(&mut rest)?).ok()?;
        let length = usize::try_from(varint::take(&mut rest)?).ok().filter(|length| *length <= MAX_COLUMN_BYTES)?;
        let raw = zstd::bulk::decompress(rest, length).ok()?;
        let column = match Encoding::of(encoding)? {
            Encoding::Plain => Self::Numbers(take_plain(&mut raw.as_slice(), count)?),
            Encoding::Delta => Self::Numbers(take_delta(&mut raw.as_slice(), count)?),
            Encoding::Dictionary => take_dictionary(&raw, count)?,
            Encoding::Raw => {
                let mut rest = raw.as_slice();
                let lengths = take_plain(&mut rest, count)?;
                let mut entries = Entries::default();
                for length in lengths {
                    let (entry, tail) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                    entries.push(entry);
                    rest = tail;
                }
                all_different(entries)
            }
            Encoding::Halves => {
                let mut rest = raw.as_slice();
                let (high, low) = (take_plain(&mut rest, count)?, take_delta(&mut rest, count)?);
                let mut data = Vec::with_capacity(16 * count);
                for (high, low) in high.iter().zip(low) {
                    data.extend_from_slice(&high.to_be_bytes());
                    data.extend_from_slice(&low.to_be_bytes());
                }
                all_different(Entries::of_width(data, 16))
            }
            Encoding::Fixed => {
                let width = raw.len().checked_div(count)?;
                all_different(Entries::of_width(raw, width))
            }
        };
        (column.len() == count).then_some(column)
    }
}

fn all_different(entries: Entries) -> Column {
    let codes = (0..entries.len() as u32).collect();
    Column::Bytes { entries, codes }
}

fn bytes_candidates(entries: &Entries, codes: &[u32]) -> Vec<(Encoding, Vec<u8>)> {
    let values = || codes.iter().filter_map(|code| entries.get(*code as usize));
    let mut candidates = Vec::new();
    if entries.len() <= MAX_DICTIONARY && entries.len() <= codes.len() / 2 + 1 {
        let mut raw = Vec::new();
        varint::put(&mut raw, entries.len() as u64);
        entries.iter().for_each(|entry| varint::put_bytes(&mut raw, entry));
        let width = width(entries.len());
        codes.iter().for_each(|code| raw.extend_from_slice(code.to_le_bytes().get(..width).unwrap_or_default()));
        candidates.push((Encoding::Dictionary, raw));
        if entries.len() <= codes.len() / 16 {
            return candidates;
        }
    }
    let first = entries.get(0).map_or(0, <[u8]>::len);
    if first > 0 && entries.iter().all(|entry| entry.len() == first) {
        candidates.push((Encoding::Fixed, values().flatten().copied().collect()));
        if first == 16 {
            let half = |entry: &[u8], at: usize| {
                entry.get(at..at + 8).and_then(|half| half.try_into().ok()).map_or(0, u64::from_be_bytes)
            };
            let mut raw = plain(&values().map(|entry| half(entry, 0)).collect::<Vec<_>>());
            raw.extend(delta(&values().map(|entry| half(entry, 8)).collect::<Vec<_>>()));
            candidates.push((Encoding::Halves, raw));
        }
        return candidates;
    }
    let mut raw = Vec::new();
    values().for_each(|value| varint::put(&mut raw, value.len() as u64));
    values().for_each(|value| raw.extend_from_slice(value));
    candidates.push((Encoding::Raw, raw));
    candidates
}

/// Bytes of a code.
fn width(entries: usize) -> usize {
    match entries {
        0..=0x100 => 1,
        0x101..=0x1_0000 => 2,
        _ => 4,
    }
}

fn take_dictionary(raw: &[u8], count: usize) -> Option<Column> {
    let mut rest = raw;
    let size = usize::try_from(varint::take(&mut rest)?).ok().filter(|size| *size <= MAX_DICTIONARY)?;
    let mut entries = Entries::default();
    for _ in 0..size {
        entries.push(varint::take_bytes(&mut rest)?);
    }
    let width = width(size);
    if rest.len() != count.checked_mul(width)? {
        return None;
    }
    let code = |bytes: &[u8]| bytes.iter().rev().fold(0_u32, |code, byte| code << 8 | u32::from(*byte));
    let codes: Vec<u32> = rest.chunks_exact(width).map(code).collect();
    codes.iter().all(|code| (*code as usize) < size).then_some(Column::Bytes { entries, codes })
}

fn plain(values: &[u64]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(values.len() * 2);
    values.iter().for_each(|value| varint::put(&mut raw, *value));
    raw
}

fn delta(values: &[u64]) -> Vec<u8> {
    let (mut raw, mut before) = (Vec::with_capacity(values.len() * 2), 0_u64);
    for value in values {
        varint::put(&mut raw, varint::zigzag(value.wrapping_sub(before) as i64));
        before = *value;
    }
    raw
}

fn take_plain(raw: &mut &[u8], count: usize) -> Option<Vec<u64>> {
    (count <= raw.len()).then_some(())?; // each takes a byte at least
    (0..count).map(|_| varint::take(raw)).collect()
}

fn take_delta(raw: &mut &[u8], count: usize) -> Option<Vec<u64>> {
    (count <= raw.len()).then_some(())?;
    let mut before = 0_u64;
    let next = |_| {
        before = before.wrapping_add(varint::unzigzag(varint::take(raw)?) as u64);
        Some(before)
    };
    (0..count).map(next).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(column: &Column) -> Vec<u8> {
        column.encode(&mut Compressor::new(LEVEL).unwrap()).unwrap()
    }

    fn same(column: &Column) {
        let decoded = Column::decode(&encode(column)).unwrap();
        assert_eq!(decoded.len(), column.len());
        for at in 0..column.len() {
            assert_eq!((decoded.bytes(at), decoded.number(at)), (column.bytes(at), column.number(at)), "value {at}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn numbers_come_back(values in prop::collection::vec(any::<u64>(), 0..300)) {
            same(&Column::Numbers(values));
        }

        #[test]
        fn bytes_come_back(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..300)) {
            same(&Column::of_bytes(values.iter().map(Vec::as_slice)));
        }

        #[test]
        fn ids_come_back(values in prop::collection::vec(any::<[u8; 16]>(), 1..300)) {
            same(&Column::of_bytes(values.iter().map(|id| &id[..])));
        }

        #[test]
        fn whatever_it_is_given_it_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Column::decode(&bytes);
        }
    }

    #[test]
    fn counters_and_names_are_small() {
        let ids: Vec<Vec<u8>> = (0..60_000_u64).map(|n| [7_u64.to_be_bytes(), n.to_be_bytes()].concat()).collect();
        let ids = Column::of_bytes(ids.iter().map(Vec::as_slice));
        assert!(encode(&ids).len() < 1000);
        let names: Vec<String> = (0..60_000).map(|n| format!("agent-{}", n % 200)).collect();
        let names = Column::of_bytes(names.iter().map(String::as_bytes));
        assert!(encode(&names).len() < 10_000);
        same(&ids);
        same(&names);
    }

    #[test]
    fn values_that_change_behind_the_sample_come_back() {
        // Few different texts first, then only different ones: the dictionary that the sample
        // chooses is none any more.
        let texts: Vec<String> =
            (0..3 * SAMPLE).map(|n| if n < SAMPLE { "same".into() } else { format!("t{n}") }).collect();
        same(&Column::of_bytes(texts.iter().map(String::as_bytes)));
        let widths: Vec<Vec<u8>> = (0..2 * SAMPLE).map(|n| vec![n as u8; 16 + n / SAMPLE]).collect();
        same(&Column::of_bytes(widths.iter().map(Vec::as_slice)));
        same(&Column::Numbers((0..2 * SAMPLE as u64).map(|n| n * n).collect()));
    }
}
