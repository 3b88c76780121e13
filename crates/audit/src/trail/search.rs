//! Searches: block by block, and in a block column by column. A block that cannot have a match
//! costs one column at most.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{
    State, Trail,
    block::{Block, BlockError},
    column::Column,
    rows::{Facts, FrameTable},
    value_sets::ValueSets,
};
use crate::{
    chain::ChainId,
    disk::Disk,
    record::{FieldsOf, Kind, Value, field},
};

/// A condition on one field of a record. A repeated field matches when one of its values does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// The field has this text.
    Text(u32, String),
    /// The field has this number.
    Number(u32, u64),
    /// The request came from this network.
    Source(IpNet),
}

/// A row of a trail. Positions grow with the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The block, or the block that the row will be in.
    pub block: u64,
    /// The row in it.
    pub row: u32,
}

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Query {
    /// All must match.
    pub tests: Vec<Test>,
    /// Requests that began at this time or later, in Unix microseconds.
    pub since_us: u64,
    /// Requests that began before this time.
    pub until_us: u64,
    /// The node that recorded it.
    pub node: Option<String>,
    /// Newest arrivals first; otherwise oldest first.
    pub newest_first: bool,
    /// Goes on behind this row.
    pub after: Option<Position>,
    /// Most records in the answer.
    pub limit: usize,
    /// How long to look. The page then ends where it is.
    pub patience: Duration,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            tests: Vec::new(),
            since_us: 0,
            until_us: u64::MAX,
            node: None,
            newest_first: true,
            after: None,
            limit: 100,
            patience: Duration::from_secs(5),
        }
    }
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub position: Position,
    /// The node that handed it in.
    pub node: String,
    /// Its chain.
    pub chain: ChainId,
    /// Its sequence in the chain.
    pub sequence: u64,
    /// The record, byte for byte.
    pub record: Vec<u8>,
}

/// A part of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The results, in the requested order.
    pub entries: Vec<Entry>,
    /// Where the next page begins. `None`: everything was looked at.
    pub next: Option<Position>,
    /// Blocks that cannot be read.
    pub unreadable: Vec<u64>,
}

/// What lies at a number: a block, or the rows that are no block yet.
enum Part {
    Block(std::sync::Arc<Block>),
    Rows(u64),
}

impl Trail {
    /// Looks for records.
    ///
    /// # Errors
    /// Of the file system. Damaged blocks are named in the page.
    pub fn search(&self, query: &Query) -> Result<Page, BlockError> {
        let until = Instant::now() + query.patience;
        let mut page = Page::default();
        for part in self.parts(query) {
            let left = query.limit.saturating_sub(page.entries.len());
            let number = match &part {
                Part::Block(block) => block.number,
                Part::Rows(number) => *number,
            };
            if left == 0 || Instant::now() >= until {
                // The page ends before this block. The next page begins with the block's first row
                // in the requested order.
                page.next = page
                    .entries
                    .last()
                    .map(|entry| entry.position)
                    .or(query.after)
                    .or(Some(edge(number, query.newest_first)));
                return Ok(page);
            }
            let found = match &part {
                Part::Block(block) => match self.search_block(block, query, left) {
                    Ok(found) => found,
                    Err(BlockError::Disk(error)) => return Err(error.into()),
                    Err(error) => {
                        tracing::error!(block = number, %error, "a block of the audit trail cannot be read");
                        page.unreadable.push(number);
                        continue;
                    }
                },
                Part::Rows(number) => self.search_rows(*number, query, left),
            };
            page.entries.extend(found);
        }
        if page.entries.len() == query.limit {
            page.next = page.entries.last().map(|entry| entry.position);
        }
        let state = self.state.read();
        page.unreadable.extend(state.damaged.keys());
        Ok(page)
    }

    /// The blocks that may have a match, in the requested order.
    fn parts(&self, query: &Query) -> Vec<Part> {
        let state = self.state.read();
        let mut parts: Vec<Part> = state
            .blocks
            .values()
            .filter(|block| {
                let directory = &block.directory;
                let is_in_time = directory.min_us < query.until_us && directory.max_us >= query.since_us;
                let node = query.node.as_ref().is_none_or(|node| directory.parts.iter().any(|part| part.node == *node));
                let values = query.tests.iter().all(|test| test.may_match_in(&directory.values));
                is_in_time && node && values && query.may_have(block.number)
            })
            .map(|block| Part::Block(block.clone()))
            .collect();
        if query.may_have(state.number) {
            parts.push(Part::Rows(state.number));
        }
        if query.newest_first {
            parts.reverse();
        }
        parts
    }

    fn search_rows(&self, number: u64, query: &Query, limit: usize) -> Vec<Entry> {
        let state = self.state.read();
        if state.number != number {
            return Vec::new(); // it became a block meanwhile; whoever asks again finds it there
        }
        let frames = FrameTable::of_rows(&state.rows);
        let rows = 0..state.rows.len() as u32;
        let found = |row: u32| {
            let position = Position { block: number, row };
            let record = state.rows.record(row as usize)?;
            if !query.reaches(position) || !query.matches(record) || !shows(&state, &Facts::of(record)) {
                return None;
            }
            let (part, sequence) = frames.locate(row)?;
            let part = state.rows.parts.get(part as usize)?;
            let is_node = query.node.as_ref().is_none_or(|node| part.node == *node);
            let (node, chain, record) = (part.node.clone(), part.chain, record.to_vec());
            is_node.then_some(Entry { position, node, chain, sequence, record })
        };
        if query.newest_first {
            rows.rev().filter_map(found).take(limit).collect()
        } else {
            rows.filter_map(found).take(limit).collect()
        }
    }

    fn search_block(&self, block: &Block, query: &Query, limit: usize) -> Result<Vec<Entry>, BlockError> {
        let disk = &*self.disk;
        let Some(mut rows) = matching_rows(block, disk, query)? else { return Ok(Vec::new()) };
        rows.retain(|row| query.reaches(Position { block: block.number, row: *row }));
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let frames = block.frames(disk)?;
        if let Some(node) = &query.node {
            let part = |row: &u32| frames.locate(*row).and_then(|(part, _)| block.directory.parts.get(part as usize));
            rows.retain(|row| part(row).is_some_and(|part| part.node == *node));
        }
        self.hide_closed_intents(block, &mut rows)?;
        if query.newest_first {
            rows.drain(..rows.len().saturating_sub(limit));
        } else {
            rows.truncate(limit);
        }
        let mut entries = Vec::with_capacity(rows.len());
        for (row, record) in rows.iter().zip(block.records(disk, &rows)?) {
            let (part, sequence) = frames.locate(*row).ok_or(BlockError::Damaged)?;
            let part = block.directory.parts.get(part as usize).ok_or(BlockError::Damaged)?;
            let position = Position { block: block.number, row: *row };
            entries.push(Entry { position, node: part.node.clone(), chain: part.chain, sequence, record });
        }
        if query.newest_first {
            entries.reverse();
        }
        Ok(entries)
    }

    /// Removes the rows of intents whose outcome is known: the outcome says everything again.
    fn hide_closed_intents(&self, block: &Block, rows: &mut Vec<u32>) -> Result<(), BlockError> {
        let Some(kinds) = block.field(&*self.disk, (field::KIND, false))? else { return Ok(()) };
        let of_intent = |at: usize| kinds.number(at) == Some(Kind::Intent as u64);
        if !(0..kinds.len()).any(of_intent) {
            return Ok(());
        }
        let ids = block.field(&*self.disk, (field::REQUEST_ID, true))?;
        let (kind_at, id_at) =
            (starts(block, &*self.disk, (field::KIND, false))?, starts(block, &*self.disk, (field::REQUEST_ID, true))?);
        let state = self.state.read();
        rows.retain(|row| {
            let at = |starts: &[u32]| starts.get(*row as usize).map_or(usize::MAX, |at| *at as usize);
            let id = ids.as_ref().and_then(|ids| ids.bytes(at(&id_at)));
            !of_intent(at(&kind_at))
                || id.and_then(|id| <[u8; 16]>::try_from(id).ok()).is_some_and(|id| state.open_intents.contains(&id))
        });
        Ok(())
    }
}

/// Whether a record is shown: an intent only while nothing is known of its outcome.
fn shows(state: &State, facts: &Facts) -> bool {
    facts.kind != Kind::Intent as u64 || state.open_intents.contains(&facts.request_id)
}

/// A position before all rows of a block, in the requested order.
fn edge(block: u64, newest_first: bool) -> Position {
    if newest_first {
        Position { block, row: u32::MAX }
    } else {
        match block.checked_sub(1) {
            Some(before) => Position { block: before, row: u32::MAX },
            None => Position { block, row: 0 },
        }
    }
}

/// The index of each row's first value of a field.
fn starts(block: &Block, disk: &dyn Disk, field: (u32, bool)) -> Result<Vec<u32>, BlockError> {
    let counts: Vec<u32> = block
        .directory
        .shapes
        .iter()
        .map(|shape| shape.iter().filter(|known| **known == field).count() as u32)
        .collect();
    let mut next = 0;
    let start = |shape: &u32| {
        let start = next;
        next += counts.get(*shape as usize).copied().unwrap_or(0);
        start
    };
    Ok(block.row_shapes(disk)?.iter().map(start).collect())
}

/// The rows that match, sorted. `None` when a column shows that there are none.
fn matching_rows(block: &Block, disk: &dyn Disk, query: &Query) -> Result<Option<Vec<u32>>, BlockError> {
    // First the columns that may rule out the block.
    let mut columns: Vec<(Column, (u32, bool), Vec<bool>)> = Vec::new();
    for test in &query.tests {
        let field = test.field();
        let Some(column) = block.field(disk, field)? else { return Ok(None) };
        let matches: Vec<bool> = match &column {
            Column::Bytes { entries, .. } => entries.iter().map(|entry| test.matches(Value::Bytes(entry))).collect(),
            Column::Numbers(values) => values.iter().map(|value| test.matches(Value::Number(*value))).collect(),
        };
        if !matches.contains(&true) {
            return Ok(None);
        }
        columns.push((column, field, matches));
    }
    let directory = &block.directory;
    let times = if directory.min_us >= query.since_us && directory.max_us < query.until_us {
        None
    } else {
        block.field(disk, (field::BEGAN_US, false))?
    };
    if let Some(times) = times {
        let matches = (0..times.len()).map(|at| times.number(at).is_some_and(|time| query.is_in_time(time))).collect();
        columns.push((times, (field::BEGAN_US, false), matches));
    }
    if columns.is_empty() {
        return Ok(Some((0..directory.rows).collect()));
    }
    let count = |shape: &[(u32, bool)], field| shape.iter().filter(|known| **known == field).count();
    let counts: Vec<Vec<usize>> = directory
        .shapes
        .iter()
        .map(|shape| columns.iter().map(|(_, field, _)| count(shape, *field)).collect())
        .collect();
    let mut passed = vec![0_usize; columns.len()];
    let mut rows = Vec::new();
    for (row, shape) in block.row_shapes(disk)?.iter().enumerate() {
        let counts = counts.get(*shape as usize).ok_or(BlockError::Damaged)?;
        let mut is_match = true;
        for (((column, _, matches), passed), count) in columns.iter().zip(&mut passed).zip(counts) {
            let hit = |at: usize| match column {
                Column::Numbers(_) => matches.get(at).copied(),
                Column::Bytes { codes, .. } => codes.get(at).and_then(|code| matches.get(*code as usize)).copied(),
            };
            is_match &= (*passed..*passed + count).any(|at| hit(at).unwrap_or(false));
            *passed += count;
        }
        if is_match {
            rows.push(row as u32);
        }
    }
    Ok(Some(rows))
}

impl Query {
    fn is_in_time(&self, began_us: u64) -> bool {
        (self.since_us..self.until_us).contains(&began_us)
    }

    fn may_have(&self, block: u64) -> bool {
        self.after.is_none_or(|after| if self.newest_first { block <= after.block } else { block >= after.block })
    }

    fn reaches(&self, position: Position) -> bool {
        self.after.is_none_or(|after| if self.newest_first { position < after } else { position > after })
    }

    /// Whether a record has what is looked for.
    fn matches(&self, record: &[u8]) -> bool {
        let mut is_in_time = self.is_in_time(0);
        let mut matched = vec![false; self.tests.len()];
        for (number, value) in FieldsOf::new(record).flatten() {
            if let (field::BEGAN_US, Value::Number(time)) = (number, value) {
                is_in_time = self.is_in_time(time);
            }
            for (test, matched) in self.tests.iter().zip(&mut matched) {
                *matched |= test.field().0 == number && test.matches(value);
            }
        }
        is_in_time && matched.iter().all(|matched| *matched)
    }
}

impl Test {
    /// Whether a block with these values may have a match. `false` is certain.
    fn may_match_in(&self, values: &ValueSets) -> bool {
        match self {
            Self::Text(field, text) => values.may_have(*field, text.as_bytes()),
            Self::Source(network) => values.may_have_source(network),
            Self::Number(..) => true,
        }
    }

    /// The field, and whether it holds bytes.
    fn field(&self) -> (u32, bool) {
        match self {
            Self::Text(field, _) => (*field, true),
            Self::Number(field, _) => (*field, false),
            Self::Source(_) => (field::SOURCE, true),
        }
    }

    fn matches(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::Text(_, text), Value::Bytes(bytes)) => text.as_bytes() == bytes,
            (Self::Number(_, wanted), Value::Number(number)) => *wanted == number,
            (Self::Source(network), Value::Bytes(bytes)) => {
                address(bytes).is_some_and(|source| network.contains(&source))
            }
            _ => false,
        }
    }
}

/// The address of a `source` field.
#[must_use]
fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.try_into().ok().map(|bytes: [u8; 4]| IpAddr::V4(Ipv4Addr::from(bytes))),
        16 => bytes.try_into().ok().map(|bytes: [u8; 16]| IpAddr::V6(Ipv6Addr::from(bytes))),
        _ => None,
    }
}
