//! A block: up to 65,536 records as columns, in one file that never changes.
//!
//! The file is `magic, audit key id, number u64, sealed key`, then the columns, then the directory
//! and its length. Columns and directory are sealed under the file's key, each with its index as
//! nonce. The number is bound to the key, so a block that was given another block's name does not
//! open.

use std::io;

use zstd::bulk::Compressor;

use super::{
    column::{Column, LEVEL},
    directory::{Directory, IntentLists, Place},
    rows::{Columns, Facts, FrameTable, OPAQUE, Rows, put_field},
    value_sets::ValueSets,
};
use crate::{
    disk::Disk,
    record::Value,
    seal::{AuditKeys, AuditPublicKey, FileKey, KeyId, SEALED_KEY_BYTES, SealError},
};

const MAGIC: &[u8; 8] = b"SEKSBLK1";
const BOUND_BYTES: usize = 8 + 8 + 8;
const HEADER_BYTES: usize = BOUND_BYTES + SEALED_KEY_BYTES;
/// The directory's plain length and its sealed length.
const TRAILER_BYTES: usize = 16;
/// The directory's nonce. Columns count from 0.
const DIRECTORY_PART: u64 = u64::MAX;
const AAD: &[u8] = b"seks/v1/audit-block";
/// Longest directory: thousands of chains with all their checkpoints.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
/// Columns in front of those of the fields: four of the frames, and the shapes of the rows.
const FRAME_COLUMNS: usize = 4;

/// Where the ends of a block's file are: its header, and its directory. A reader of both needs no
/// key to find them.
pub mod layout {
    /// The header's bytes, from the beginning.
    pub const HEADER_BYTES: u64 = super::HEADER_BYTES as u64;
    /// Bytes behind the directory, at the end.
    pub const TRAILER_BYTES: u64 = super::TRAILER_BYTES as u64;

    /// Where the directory of a block of this many bytes begins. `end` is at least the trailer.
    /// `None`: it is no block.
    #[must_use]
    pub fn directory_start(block_bytes: u64, end: &[u8]) -> Option<u64> {
        let length = u64::from_be_bytes(*end.last_chunk::<8>()?);
        block_bytes.checked_sub(TRAILER_BYTES)?.checked_sub(length).filter(|start| *start >= HEADER_BYTES)
    }
}

/// Why a block cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The file system.
    #[error("the disk: {0}")]
    Disk(#[from] io::Error),
    /// It is cut, or no block.
    #[error("cut or damaged")]
    Damaged,
    /// It was changed, or is another block's file.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// It needs another audit key.
    #[error("sealed to the audit key {0}")]
    OtherKey(KeyId),
}

/// A block on disk, with its directory in memory.
pub(crate) struct Block {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) directory: Directory,
    name: String,
    key: FileKey,
}

/// The file of a block.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:020}.blk")
}

fn bound(key: KeyId, number: u64) -> Vec<u8> {
    [&MAGIC[..], &key.0, &number.to_be_bytes()].concat()
}

/// The bytes of a block with these rows.
///
/// # Errors
/// [`BlockError::Seal`]; of zstd.
pub(crate) fn encode(
    number: u64,
    rows: &Rows,
    intents: IntentLists,
    key: &AuditPublicKey,
) -> Result<Vec<u8>, BlockError> {
    let Columns { shapes, row_shapes, fields } = Columns::of(rows.records());
    let mut out = bound(key.id(), number);
    let (file_key, sealed_key) = key.file_key(&out)?;
    out.extend_from_slice(&sealed_key);
    let of_rows = rows.frame_columns().into_iter().chain([Column::Numbers(row_shapes)]).map(|column| (OPAQUE, column));
    // One column at a time is in memory twice.
    let of_fields = fields.into_iter().map(|(field, values)| (field, values.into_column()));
    let (mut columns, mut values, mut zstd) = (Vec::new(), ValueSets::default(), Compressor::new(LEVEL)?);
    for (part, (field, column)) in of_rows.chain(of_fields).enumerate() {
        values.add(field, &column);
        let offset = out.len();
        out.extend_from_slice(&column.encode(&mut zstd)?);
        file_key.seal(part as u64, AAD, &mut out, offset)?;
        columns.push(Place { field, offset: offset as u64, length: (out.len() - offset) as u64 });
    }
    let times = rows.records().map(|record| Facts::of(record).began_us);
    let (min_us, max_us) = times.fold((u64::MAX, 0), |(min, max), time| (min.min(time), max.max(time)));
    let (rows, parts) = (rows.len() as u32, rows.parts.clone());
    let directory = Directory { rows, min_us, max_us, parts, shapes, columns, intents, values }.encode();
    let at = out.len();
    out.extend_from_slice(&zstd.compress(&directory)?);
    file_key.seal(DIRECTORY_PART, AAD, &mut out, at)?;
    let length = (out.len() - at) as u64;
    out.extend_from_slice(&(directory.len() as u64).to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    Ok(out)
}

impl Block {
    /// Reads the directory of the block `number`, whose file has this many bytes.
    ///
    /// # Errors
    /// [`BlockError`].
    pub(crate) fn open(disk: &dyn Disk, number: u64, bytes: u64, keys: &AuditKeys) -> Result<Self, BlockError> {
        let name = file_name(number);
        let head = disk.read(&name, 0, HEADER_BYTES)?;
        let (start, sealed) = head.split_at_checked(BOUND_BYTES).ok_or(BlockError::Damaged)?;
        let sealed: &[u8; SEALED_KEY_BYTES] = sealed.try_into().map_err(|_| BlockError::Damaged)?;
        let id = start.get(8..16).and_then(|id| id.try_into().ok()).map(KeyId).ok_or(BlockError::Damaged)?;
        if !start.starts_with(MAGIC) {
            return Err(BlockError::Damaged);
        }
        let key = keys.get(id).ok_or(BlockError::OtherKey(id))?;
        let file_key = key.open(&bound(id, number), sealed)?;
        let end = bytes.checked_sub(TRAILER_BYTES as u64).ok_or(BlockError::Damaged)?;
        let tail = disk.read(&name, end, TRAILER_BYTES)?;
        let (plain, length) = tail.split_first_chunk::<8>().ok_or(BlockError::Damaged)?;
        let plain = u64::from_be_bytes(*plain);
        let length = length.try_into().map(u64::from_be_bytes).map_err(|_| BlockError::Damaged)?;
        let at = end.checked_sub(length).filter(|_| plain <= MAX_DIRECTORY_BYTES).ok_or(BlockError::Damaged)?;
        let directory = file_key.open(DIRECTORY_PART, AAD, &disk.read(&name, at, length as usize)?)?;
        let directory = zstd::bulk::decompress(&directory, plain as usize).map_err(|_| BlockError::Damaged)?;
        let directory = Directory::decode(&directory).ok_or(BlockError::Damaged)?;
        Ok(Self { number, bytes, directory, name, key: file_key })
    }

    fn column(&self, disk: &dyn Disk, index: usize) -> Result<Column, BlockError> {
        let place = self.directory.columns.get(index).ok_or(BlockError::Damaged)?;
        let sealed = disk.read(&self.name, place.offset, place.length as usize)?;
        Column::decode(&self.key.open(index as u64, AAD, &sealed)?).ok_or(BlockError::Damaged)
    }

    /// The values of a field. `None` when no record has it.
    ///
    /// # Errors
    /// [`BlockError`].
    pub(crate) fn field(&self, disk: &dyn Disk, field: (u32, bool)) -> Result<Option<Column>, BlockError> {
        let of_fields = self.directory.columns.iter().enumerate().skip(FRAME_COLUMNS + 1);
        let index = of_fields.into_iter().find(|(_, place)| place.field == field).map(|(index, _)| index);
        index.map(|index| self.column(disk, index)).transpose()
    }

    /// Where the rows belong.
    ///
    /// # Errors
    /// [`BlockError`].
    pub(crate) fn frames(&self, disk: &dyn Disk) -> Result<FrameTable, BlockError> {
        let columns = [self.column(disk, 0)?, self.column(disk, 1)?, self.column(disk, 2)?, self.column(disk, 3)?];
        FrameTable::of_columns(&columns, &self.directory.parts).ok_or(BlockError::Damaged)
    }

    /// The shape of each row, as an index into the directory's shapes.
    ///
    /// # Errors
    /// [`BlockError`].
    pub(crate) fn row_shapes(&self, disk: &dyn Disk) -> Result<Vec<u32>, BlockError> {
        let column = self.column(disk, FRAME_COLUMNS)?;
        let shapes = self.directory.shapes.len() as u64;
        let shape = |row| column.number(row).filter(|shape| *shape < shapes).map(|shape| shape as u32);
        let rows: Option<Vec<u32>> = (0..column.len()).map(shape).collect();
        rows.filter(|rows| rows.len() == self.directory.rows as usize).ok_or(BlockError::Damaged)
    }

    /// The records of some rows, byte for byte. `rows` is sorted.
    ///
    /// # Errors
    /// [`BlockError`].
    pub(crate) fn records(&self, disk: &dyn Disk, rows: &[u32]) -> Result<Vec<Vec<u8>>, BlockError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (row_shapes, directory) = (self.row_shapes(disk)?, &self.directory);
        let fields: Vec<(u32, bool)> =
            directory.columns.iter().skip(FRAME_COLUMNS + 1).map(|place| place.field).collect();
        let columns: Vec<Column> = (FRAME_COLUMNS + 1..directory.columns.len())
            .map(|index| self.column(disk, index))
            .collect::<Result<_, _>>()?;
        // Of each shape: its fields as indices into the columns, and how many values of each column
        // it has.
        let mut shapes = Vec::with_capacity(directory.shapes.len());
        for shape in &directory.shapes {
            let indices: Option<Vec<usize>> =
                shape.iter().map(|field| fields.iter().position(|known| known == field)).collect();
            let indices = indices.ok_or(BlockError::Damaged)?;
            let mut counts = vec![0_usize; columns.len()];
            indices.iter().for_each(|index| counts.get_mut(*index).into_iter().for_each(|count| *count += 1));
            shapes.push((indices, counts));
        }
        // How many rows of each shape were passed: from these follows which values are a row's.
        let mut passed = vec![0_usize; shapes.len()];
        let (mut wanted, mut records) = (rows.iter().peekable(), Vec::with_capacity(rows.len()));
        for (row, shape) in row_shapes.iter().enumerate() {
            if wanted.next_if(|next| **next as usize == row).is_some() {
                let mut values: Vec<usize> = (0..columns.len())
                    .map(|column| {
                        let of_shape = |((_, counts), passed): (&(Vec<usize>, Vec<usize>), &usize)| {
                            counts.get(column).copied().unwrap_or(0) * passed
                        };
                        shapes.iter().zip(&passed).map(of_shape).sum()
                    })
                    .collect();
                let (indices, _) = shapes.get(*shape as usize).ok_or(BlockError::Damaged)?;
                let mut record = Vec::new();
                for index in indices {
                    let (column, field) = columns.get(*index).zip(fields.get(*index)).ok_or(BlockError::Damaged)?;
                    let value = values.get_mut(*index).ok_or(BlockError::Damaged)?;
                    put_value(&mut record, *field, column, *value).ok_or(BlockError::Damaged)?;
                    *value += 1;
                }
                records.push(record);
                if wanted.peek().is_none() {
                    break;
                }
            }
            passed.get_mut(*shape as usize).into_iter().for_each(|passed| *passed += 1);
        }
        Ok(records)
    }
}

fn put_value(record: &mut Vec<u8>, field: (u32, bool), column: &Column, at: usize) -> Option<()> {
    match field {
        OPAQUE => record.extend_from_slice(column.bytes(at)?),
        (field, true) => put_field(record, field, Value::Bytes(column.bytes(at)?)),
        (field, false) => put_field(record, field, Value::Number(column.number(at)?)),
    }
    Some(())
}
