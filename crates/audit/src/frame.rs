//! The form of segments: a header, then frames.
//!
//! A frame is `length u32, CRC-32 u32, first sequence u64, count u32, body`. The length is the
//! body's, and the CRC covers everything after it. The body is sealed under the segment's key, with
//! the first sequence as nonce. It holds the digest of the chain before the frame, the time of
//! writing and the records, each with its length in front. Numbers are big-endian.

use zeroize::Zeroizing;

use crate::{
    chain::{ChainId, Digest, Head, Predecessor},
    seal::{AuditKeys, AuditPublicKey, FileKey, KeyId, SEALED_KEY_BYTES, SealError, TAG_BYTES},
};

const MAGIC: &[u8; 8] = b"SEKSAUD1";
/// Bytes of a segment's header that its key is bound to.
const BOUND_BYTES: usize = 8 + 8 + 16 + 8 + 8 + 16 + 8;
/// Bytes of a segment's header: what the key is bound to, the sealed key, and a CRC-32 of both.
pub const HEADER_BYTES: usize = BOUND_BYTES + SEALED_KEY_BYTES + 4;
/// Bytes in front of a frame's body.
pub const PREFIX_BYTES: usize = 4 + 4 + 8 + 4;
/// Bytes of a frame's contents in front of its records.
const INNER_BYTES: usize = 32 + 8;
/// Most bytes of records in one frame, lengths included. gRPC servers accept 4 MiB by default.
pub const MAX_RECORDS_BYTES: usize = 1024 * 1024;
/// Longest body.
const MAX_BODY_BYTES: usize = MAX_RECORDS_BYTES + INNER_BYTES + TAG_BYTES;

/// Why bytes are not a segment's header or a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// They end too early, or their checksum differs: a torn write, or damage.
    #[error("cut or damaged")]
    Torn,
    /// They are whole and mean nothing.
    #[error("not a segment of this version")]
    Unknown,
    /// The key that is needed is not this one.
    #[error("sealed to the audit key {0}")]
    OtherKey(KeyId),
    /// The seal does not open, so something was changed on purpose.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// What a segment says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The audit key that it is sealed to.
    pub key_id: KeyId,
    /// The chain that its frames belong to.
    pub chain: ChainId,
    /// The sequence of its first record.
    pub first: u64,
    /// The writer's wall clock at its beginning, in Unix microseconds.
    pub created_us: u64,
    /// The chain before, on the same disk.
    pub after: Option<Predecessor>,
    sealed_key: [u8; SEALED_KEY_BYTES],
}

impl SegmentHeader {
    /// A new segment's header, and the key to seal its frames with.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn create(
        key: &AuditPublicKey,
        chain: ChainId,
        first: u64,
        created_us: u64,
        after: Option<Predecessor>,
    ) -> Result<(Self, FileKey), SealError> {
        let mut header = Self { key_id: key.id(), chain, first, created_us, after, sealed_key: [0; SEALED_KEY_BYTES] };
        let (file_key, sealed_key) = key.file_key(&header.bound())?;
        header.sealed_key = sealed_key;
        Ok((header, file_key))
    }

    fn bound(&self) -> Vec<u8> {
        let after = self.after.unwrap_or(Predecessor { chain: ChainId([0; 16]), sequence: 0 });
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.key_id.0);
        bytes.extend_from_slice(&self.chain.0);
        bytes.extend_from_slice(&self.first.to_be_bytes());
        bytes.extend_from_slice(&self.created_us.to_be_bytes());
        bytes.extend_from_slice(&after.chain.0);
        bytes.extend_from_slice(&after.sequence.to_be_bytes());
        bytes
    }

    /// As it is on disk.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.bound();
        bytes.extend_from_slice(&self.sealed_key);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// Reads a header from the front of `bytes`.
    ///
    /// # Errors
    /// [`FormatError::Torn`], [`FormatError::Unknown`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(FormatError::Torn)?;
        let (covered, crc) = header.split_last_chunk::<4>().ok_or(FormatError::Torn)?;
        if crc32fast::hash(covered) != u32::from_be_bytes(*crc) {
            return Err(FormatError::Torn);
        }
        let mut rest = covered;
        let mut part = Fields(&mut rest);
        if part.take::<8>()? != *MAGIC {
            return Err(FormatError::Unknown);
        }
        let (key_id, chain) = (KeyId(part.take()?), ChainId(part.take()?));
        let (first, created_us) = (u64::from_be_bytes(part.take()?), u64::from_be_bytes(part.take()?));
        let before = Predecessor { chain: ChainId(part.take()?), sequence: u64::from_be_bytes(part.take()?) };
        let after = (before.chain.0 != [0; 16]).then_some(before);
        Ok(Self { key_id, chain, first, created_us, after, sealed_key: part.take()? })
    }

    /// The key of its frames.
    ///
    /// # Errors
    /// [`FormatError::OtherKey`]; [`FormatError::Seal`] when the header was changed.
    pub fn open(&self, keys: &AuditKeys) -> Result<FileKey, FormatError> {
        Ok(FileKey::from_bytes(&self.open_bytes(keys)?)?)
    }

    /// The bytes of that key.
    pub(crate) fn open_bytes(&self, keys: &AuditKeys) -> Result<Zeroizing<Vec<u8>>, FormatError> {
        let key = keys.get(self.key_id).ok_or(FormatError::OtherKey(self.key_id))?;
        Ok(key.open_bytes(&self.bound(), &self.sealed_key)?)
    }
}

/// Takes fixed parts from the front.
struct Fields<'a, 'b>(&'a mut &'b [u8]);

impl Fields<'_, '_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(FormatError::Torn)?;
        *self.0 = rest;
        Ok(*head)
    }
}

/// A frame as it is on disk, whole and with a good checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedFrame<'a> {
    /// The sequence of its first record.
    pub first: u64,
    /// Its records. At least one.
    pub count: u32,
    body: &'a [u8],
    /// Its bytes on disk.
    pub bytes: &'a [u8],
}

/// A frame's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The sequence of its first record.
    pub first: u64,
    /// Its records.
    pub count: u32,
    /// The digest of the chain before it.
    pub before: Digest,
    /// When it was written, by the node's wall clock, in Unix microseconds.
    pub written_us: u64,
    /// Its records, each with its length in front.
    pub records: Vec<u8>,
}

impl<'a> SealedFrame<'a> {
    /// Reads a frame from the front of `bytes`.
    ///
    /// # Errors
    /// [`FormatError::Torn`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut rest = bytes;
        let mut part = Fields(&mut rest);
        let length = u32::from_be_bytes(part.take()?) as usize;
        let crc = u32::from_be_bytes(part.take()?);
        if !(INNER_BYTES + TAG_BYTES..=MAX_BODY_BYTES).contains(&length) {
            return Err(FormatError::Torn);
        }
        let bytes = bytes.get(..PREFIX_BYTES + length).ok_or(FormatError::Torn)?;
        let covered = bytes.get(8..).unwrap_or_default();
        if crc32fast::hash(covered) != crc {
            return Err(FormatError::Torn);
        }
        let (first, count) = (u64::from_be_bytes(part.take()?), u32::from_be_bytes(part.take()?));
        if first == 0 || count == 0 || first.checked_add(count.into()).is_none() {
            return Err(FormatError::Torn);
        }
        Ok(Self { first, count, body: covered.get(12..).unwrap_or_default(), bytes })
    }

    /// The sequence of its last record.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }

    /// Its contents. The caller compares `before` with the chain.
    ///
    /// # Errors
    /// [`FormatError::Seal`] when anything of it was changed; [`FormatError::Unknown`].
    pub fn open(&self, key: &FileKey) -> Result<Frame, FormatError> {
        let mut contents = key.open(self.first, &aad(self.first, self.count), self.body)?;
        let mut rest = contents.as_slice();
        let mut part = Fields(&mut rest);
        let (before, written_us) = (Digest(part.take()?), u64::from_be_bytes(part.take()?));
        contents.drain(..INNER_BYTES);
        let frame = Frame { first: self.first, count: self.count, before, written_us, records: contents };
        if frame.records().count() != self.count as usize {
            return Err(FormatError::Unknown);
        }
        Ok(frame)
    }
}

impl Frame {
    /// Its records, in order.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        records(&self.records)
    }

    /// The head of the chain after it.
    #[must_use]
    pub fn head(&self, chain: ChainId) -> Head {
        let sequence = self.first + u64::from(self.count) - 1;
        Head { chain, sequence, digest: self.before.after(self.first, self.count, &self.records) }
    }
}

/// Records that each have their length in front. Ends at invalid bytes.
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || if bytes.is_empty() { None } else { crate::varint::take_bytes(&mut bytes) })
}

/// Appends a frame to `out` and returns the chain's head after it.
///
/// # Errors
/// [`SealError`].
pub fn write_frame(
    out: &mut Vec<u8>,
    key: &FileKey,
    head: &Head,
    count: u32,
    written_us: u64,
    records: &[u8],
) -> Result<Head, SealError> {
    let (start, first) = (out.len(), head.sequence + 1);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&first.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    let body = out.len();
    out.extend_from_slice(&head.digest.0);
    out.extend_from_slice(&written_us.to_be_bytes());
    out.extend_from_slice(records);
    key.seal(first, &aad(first, count), out, body)?;
    let length = u32::try_from(out.len() - body).map_err(|_| SealError::Contents)?;
    let crc = crc32fast::hash(out.get(start + 8..).unwrap_or_default());
    if let Some(prefix) = out.get_mut(start..).and_then(|frame| frame.first_chunk_mut::<8>()) {
        let (at_length, at_crc) = prefix.split_at_mut(4);
        at_length.copy_from_slice(&length.to_be_bytes());
        at_crc.copy_from_slice(&crc.to_be_bytes());
    }
    let sequence = head.sequence + u64::from(count);
    Ok(Head { chain: head.chain, sequence, digest: head.digest.after(first, count, records) })
}

fn aad(first: u64, count: u32) -> [u8; 12] {
    let mut aad = [0; 12];
    aad.first_chunk_mut::<8>().into_iter().for_each(|place| *place = first.to_be_bytes());
    aad.last_chunk_mut::<4>().into_iter().for_each(|place| *place = count.to_be_bytes());
    aad
}

/// The whole frames at the front of `bytes`.
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// Of a segment's bytes behind its header, or of any part that begins with a frame.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What follows the frames so far: empty at a clean end.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = SealedFrame<'a>;

    fn next(&mut self) -> Option<SealedFrame<'a>> {
        let frame = SealedFrame::decode(self.rest).ok()?;
        self.rest = self.rest.get(frame.bytes.len()..).unwrap_or_default();
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{seal::AuditKeyPair, varint::put_bytes};

    fn segment(key: &AuditKeyPair) -> (Vec<u8>, Head) {
        let chain = ChainId([7; 16]);
        let after = Some(Predecessor { chain: ChainId([6; 16]), sequence: 9 });
        let (header, file_key) = SegmentHeader::create(key.public(), chain, 1, 5, after).unwrap();
        let (mut bytes, mut head) = (header.encode(), Head::genesis(chain));
        for texts in [&["one"][..], &["two", "three"], &[""]] {
            let mut records = Vec::new();
            texts.iter().for_each(|text| put_bytes(&mut records, text.as_bytes()));
            let count = u32::try_from(texts.len()).unwrap();
            head = write_frame(&mut bytes, &file_key, &head, count, 77, &records).unwrap();
        }
        (bytes, head)
    }

    fn read(key: &AuditKeyPair, bytes: &[u8]) -> Result<(Vec<String>, Head), FormatError> {
        let header = SegmentHeader::decode(bytes)?;
        let file_key = header.open(&key.alone())?;
        let (mut texts, mut head) = (Vec::new(), Head::genesis(header.chain));
        for sealed in Frames::of(&bytes[HEADER_BYTES..]) {
            let frame = sealed.open(&file_key)?;
            assert_eq!((frame.before, frame.first, frame.written_us), (head.digest, head.sequence + 1, 77));
            head = frame.head(header.chain);
            texts.extend(frame.records().map(|r| String::from_utf8(r.to_vec()).unwrap()));
        }
        Ok((texts, head))
    }

    #[test]
    fn a_segment_cut_anywhere_gives_its_whole_frames() {
        let key = AuditKeyPair::generate().unwrap();
        let (bytes, head) = segment(&key);
        assert_eq!(read(&key, &bytes).unwrap(), (["one", "two", "three", ""].map(String::from).into(), head));
        let ends: Vec<usize> = Frames::of(&bytes[HEADER_BYTES..])
            .scan(HEADER_BYTES, |at, frame| {
                *at += frame.bytes.len();
                Some(*at)
            })
            .collect();
        for cut in 0..bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            match read(&key, &bytes[..cut]) {
                Ok((texts, _)) => assert_eq!((texts.len(), cut >= HEADER_BYTES), ([0, 1, 3, 4][whole], true), "{cut}"),
                Err(error) => assert_eq!((error, cut < HEADER_BYTES), (FormatError::Torn, true), "cut at {cut}"),
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let key = AuditKeyPair::generate().unwrap();
        let (bytes, head) = segment(&key);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            let found = match read(&key, &changed) {
                Err(FormatError::Torn) => true, // also what a whole frame after the changed one becomes unreachable by
                Err(_) => true,
                Ok((_, read)) => read != head,
            };
            assert!(found, "byte {at}");
        }
        // Somebody who repairs the checksum is found by the seal.
        let mut changed = bytes.clone();
        let body = HEADER_BYTES + PREFIX_BYTES;
        changed[body] ^= 1;
        let length = u32::from_be_bytes(*changed[HEADER_BYTES..].first_chunk().unwrap()) as usize;
        let crc = crc32fast::hash(&changed[HEADER_BYTES + 8..body + length]);
        changed[HEADER_BYTES + 4..HEADER_BYTES + 8].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(read(&key, &changed).err(), Some(FormatError::Seal(SealError::Contents)));
    }

    #[test]
    fn another_key_opens_nothing_and_the_clear_says_little() {
        let key = AuditKeyPair::generate().unwrap();
        let (bytes, _) = segment(&key);
        assert!(!bytes.windows(5).any(|w| w == b"three"));
        let other = AuditKeyPair::generate().unwrap();
        assert_eq!(read(&other, &bytes).err(), Some(FormatError::OtherKey(key.public().id())));
        let header = SegmentHeader::decode(&bytes).unwrap();
        assert_eq!(header.after, Some(Predecessor { chain: ChainId([6; 16]), sequence: 9 }));
        let lied = SegmentHeader { first: 2, ..header };
        assert!(matches!(lied.open(&key.alone()), Err(FormatError::Seal(SealError::FileKey))));
    }
}
