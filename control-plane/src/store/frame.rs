//! The form of an authenticated record:
//! `magic 4 bytes, base revision u64 BE, HMAC-SHA256 32 bytes, value`.
//!
//! The tag covers the store's id, the record's key, the base revision and the value. The base is a
//! revision of the store that the writer knew before it committed. No value of an earlier version
//! begins with the magic: its first byte begins no protobuf message, no envelope and no JSON.

use aws_lc_rs::hmac;
use bytes::Bytes;
use subtle::ConstantTimeEq as _;

use super::{Key, Revision};

const MAGIC: [u8; 4] = [0xff, b'S', b'R', 1];
const TAG: usize = 32;
/// What a frame adds to the length of a value.
const FRAME_BYTES: usize = MAGIC.len() + 8 + TAG;

/// The length of the key that tags are made with.
pub(crate) const KEY_BYTES: usize = 32;

/// Why a record does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It has no frame.
    Unframed,
    /// Its tag is wrong: it was edited, or is of another key, another store or another writer.
    Forged,
    /// It was written long after it was made.
    Stale,
    /// It was replaced or deleted before it was written.
    Replayed,
}

impl Reason {
    /// Its name in logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unframed => "unframed",
            Self::Forged => "forged",
            Self::Stale => "stale",
            Self::Replayed => "replayed",
        }
    }
}

/// Records that are framed. The others are what frames are opened with, and the authority: an
/// envelope that is made once in a store's id, and opens nowhere else.
pub(crate) fn has_frame(key: &Key) -> bool {
    match key {
        Key::StoreId | Key::Canary | Key::RecordKey | Key::Authority => false,
        Key::Epoch
        | Key::AuditKey
        | Key::AuditSigningKey
        | Key::AuditHead(_)
        | Key::AdminHead(_)
        | Key::AdminArchive(_)
        | Key::AdminChange(..)
        | Key::Rotation
        | Key::Operator(_)
        | Key::Node(_)
        | Key::Replica(_)
        | Key::Join(_)
        | Key::Tenant(_)
        | Key::Agent(..)
        | Key::Service(..)
        | Key::Credential(..)
        | Key::Envelope(..)
        | Key::Mint(..)
        | Key::MintSecret(..)
        | Key::AwsKey(_)
        | Key::Token(..)
        | Key::Tombstone(..)
        | Key::Policy(..)
        | Key::PolicySet(_)
        | Key::LimitWindow(..)
        | Key::Approval(..)
        | Key::ApprovalTurn(_)
        | Key::Request(..) => true,
    }
}

/// Makes and checks frames.
pub(crate) struct Framer {
    key: hmac::Key,
    store_id: String,
}

impl Framer {
    pub(crate) fn new(key: &[u8; KEY_BYTES], store_id: &str) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), store_id: store_id.to_owned() }
    }

    /// `value` as the record at `key`, written by a process that knew the store at revision `base`.
    pub(crate) fn frame(&self, key: &Key, base: Revision, value: &[u8]) -> Bytes {
        if !has_frame(key) {
            return Bytes::copy_from_slice(value);
        }
        let mut framed = Vec::with_capacity(FRAME_BYTES + value.len());
        framed.extend_from_slice(&MAGIC);
        framed.extend_from_slice(&base.to_be_bytes());
        framed.extend_from_slice(self.tag(key, base, value).as_ref());
        framed.extend_from_slice(value);
        framed.into()
    }

    /// The base of a framed value whose tag is right.
    pub(crate) fn check(&self, key: &Key, framed: &[u8]) -> Result<Revision, Reason> {
        let (base, tag, value) = split(framed).ok_or(Reason::Unframed)?;
        let right: bool = self.tag(key, base, value).as_ref().ct_eq(tag).into();
        if right { Ok(base) } else { Err(Reason::Forged) }
    }

    fn tag(&self, key: &Key, base: Revision, value: &[u8]) -> hmac::Tag {
        let mut tag = hmac::Context::with_key(&self.key);
        for part in [b"seks/v1/stored", self.store_id.as_bytes(), key.to_string().as_bytes()] {
            tag.update(&(part.len() as u64).to_be_bytes());
            tag.update(part);
        }
        tag.update(&base.to_be_bytes());
        tag.update(value);
        tag.sign()
    }
}

/// The length of a value without its frame: bounds on values hold for what is in it.
pub(in crate::store) fn bare_len(value: &[u8]) -> usize {
    if is_framed(value) { value.len().saturating_sub(FRAME_BYTES) } else { value.len() }
}

/// Whether a value has a frame, valid or not.
pub(crate) fn is_framed(value: &[u8]) -> bool {
    value.starts_with(&MAGIC)
}

/// The value in a frame; `None` when there is no frame.
pub(crate) fn strip(framed: &Bytes) -> Option<Bytes> {
    split(framed)?;
    Some(framed.slice(FRAME_BYTES..))
}

fn split(framed: &[u8]) -> Option<(Revision, &[u8; TAG], &[u8])> {
    let rest = framed.strip_prefix(&MAGIC)?;
    let (base, rest) = rest.split_first_chunk::<8>()?;
    let (tag, value) = rest.split_first_chunk::<TAG>()?;
    Some((Revision::from_be_bytes(*base), tag, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> Key {
        Key::Agent("acme".parse().unwrap(), name.parse().unwrap())
    }

    #[test]
    fn a_frame_is_good_for_its_record_its_store_and_its_bytes() {
        let framer = Framer::new(&[7; KEY_BYTES], "e1");
        let framed = framer.frame(&agent("a"), 41, b"value");
        assert_eq!(framer.check(&agent("a"), &framed), Ok(41));
        assert_eq!(strip(&framed).as_deref(), Some(&b"value"[..]));
        assert_eq!(framer.check(&agent("b"), &framed), Err(Reason::Forged));
        assert_eq!(Framer::new(&[7; KEY_BYTES], "e2").check(&agent("a"), &framed), Err(Reason::Forged));
        assert_eq!(Framer::new(&[8; KEY_BYTES], "e1").check(&agent("a"), &framed), Err(Reason::Forged));
        for at in MAGIC.len()..framed.len() {
            let mut changed = framed.to_vec();
            changed[at] ^= 1;
            assert_eq!(framer.check(&agent("a"), &changed), Err(Reason::Forged), "byte {at}");
        }
        for short in [&framed[..FRAME_BYTES - 1], b"", b"value"] {
            assert_eq!(framer.check(&agent("a"), short), Err(Reason::Unframed));
            assert!(strip(&Bytes::copy_from_slice(short)).is_none());
        }
    }
}
