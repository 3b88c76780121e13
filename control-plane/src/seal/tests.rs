//! What an envelope must withstand.

use futures_util::FutureExt as _;

use super::*;

const KEY: [u8; local::BYTES] = [7; local::BYTES];
const PLAINTEXT: &[u8] = b"sk-live-0123456789";

fn sealer(active: u8, older: &[u8]) -> Sealer {
    let kek = |byte: &u8| Arc::new(LocalKek::new(&[*byte; local::BYTES])) as Arc<dyn KekProvider>;
    Sealer::with_keys(kek(&active), older.iter().map(kek).collect())
}

/// A local key answers at once.
fn now<T>(answer: impl Future<Output = T>) -> T {
    answer.now_or_never().unwrap()
}

const ID: RecordId<'static> =
    RecordId { tenant: "acme", kind: "credential", name: "openai", version: 3, store_id: "e1", destination: None };

fn envelope() -> Bytes {
    now(sealer(7, &[]).seal(&ID, &Secret::new(PLAINTEXT.to_vec()))).unwrap()
}

fn opened(sealer: &Sealer, id: &RecordId<'_>, envelope: &[u8]) -> Result<Vec<u8>, SealError> {
    now(sealer.open(id, envelope)).map(|secret| secret.expose().to_vec())
}

#[test]
fn what_was_sealed_opens() {
    let envelope = envelope();
    assert_eq!(envelope.len(), envelope::OVERHEAD + PLAINTEXT.len());
    assert_eq!(opened(&sealer(7, &[]), &ID, &envelope).unwrap(), PLAINTEXT);
    assert!(!envelope.windows(4).any(|w| PLAINTEXT.windows(4).any(|p| p == w)), "plaintext shows");
    let empty = now(sealer(7, &[]).seal(&ID, &Secret::new(vec![]))).unwrap();
    assert_eq!(opened(&sealer(7, &[]), &ID, &empty).unwrap(), b"");
}

#[test]
fn every_write_has_its_own_key_and_nonces() {
    let (a, b) = (envelope(), envelope());
    assert_eq!(a[..10], b[..10]);
    for field in [10..22, 22..70, 70..82, 82..a.len()] {
        assert_ne!(a[field.clone()], b[field]);
    }
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let whole = envelope();
    let sealer = sealer(7, &[]);
    for cut in 0..whole.len() {
        assert!(now(sealer.open(&ID, &whole[..cut])).is_err(), "{cut}");
        assert!(now(sealer.rewrap(&whole[..cut])).is_err() || cut >= envelope::OVERHEAD, "{cut}");
    }
    let longer = [&whole[..], b"\0"].concat();
    assert!(matches!(now(sealer.open(&ID, &longer)), Err(SealError::Rejected)));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let whole = envelope();
    let sealer = sealer(7, &[]);
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = opened(&sealer, &ID, &flipped).unwrap_err();
        match bit / 8 {
            0 | 1 => assert!(matches!(error, SealError::Malformed(_)), "bit {bit}: {error}"),
            2..10 => assert!(matches!(error, SealError::UnknownKek(_)), "bit {bit}: {error}"),
            _ => assert!(matches!(error, SealError::Rejected), "bit {bit}: {error}"),
        }
    }
}

#[test]
fn unknown_format_and_algorithm_bytes_are_named() {
    for at in [0, 1] {
        for byte in [0, 3, 255] {
            let mut other = envelope().to_vec();
            other[at] = byte;
            assert!(matches!(now(sealer(7, &[]).open(&ID, &other)), Err(SealError::Malformed(_))));
        }
    }
}

#[test]
fn an_envelope_opens_in_its_own_record_only() {
    let envelope = envelope();
    let others = [
        RecordId { tenant: "acm", ..ID },
        RecordId { tenant: "", ..ID },
        RecordId { kind: "authority", ..ID },
        RecordId { name: "openai2", ..ID },
        RecordId { version: 2, ..ID },
        RecordId { store_id: "e2", ..ID },
        // The same bytes in a row, cut elsewhere.
        RecordId { tenant: "acmecredential", kind: "", ..ID },
        RecordId { name: "openaie", store_id: "1", ..ID },
        RecordId { tenant: ID.name, name: ID.tenant, ..ID },
    ];
    for other in others {
        assert!(matches!(now(sealer(7, &[]).open(&other, &envelope)), Err(SealError::Rejected)), "{other:?}");
    }
}

#[test]
fn a_wrapped_key_can_not_be_swapped_between_envelopes() {
    let (a, b) = (envelope(), envelope());
    let mixed = [&a[..70], &b[70..]].concat();
    assert!(matches!(now(sealer(7, &[]).open(&ID, &mixed)), Err(SealError::Rejected)));
    let empty_key = [&a[..22], &a[70..]].concat();
    assert!(now(sealer(7, &[]).open(&ID, &empty_key)).is_err());
}

#[test]
fn a_ring_opens_old_envelopes_and_rewraps_them_once() {
    let old = envelope();
    assert!(matches!(now(sealer(8, &[]).open(&ID, &old)), Err(SealError::UnknownKek(_))));
    let ring = sealer(8, &[9, 7]);
    assert_eq!(opened(&ring, &ID, &old).unwrap(), PLAINTEXT);
    let new = now(ring.rewrap(&old)).unwrap().expect("it was under the old KEK");
    assert_eq!(new[70..], old[70..], "the secret itself is not touched");
    assert_eq!(now(ring.rewrap(&new)).unwrap(), None);
    assert_eq!(opened(&sealer(8, &[]), &ID, &new).unwrap(), PLAINTEXT, "the old KEK is no longer needed");
    assert!(matches!(now(sealer(7, &[]).open(&ID, &new)), Err(SealError::UnknownKek(_))));
    assert!(matches!(now(sealer(8, &[]).rewrap(&old)), Err(SealError::UnknownKek(_))));
}

#[test]
fn a_kek_id_says_nothing_of_the_key() {
    let id = LocalKek::new(&KEY).id().to_string();
    assert_eq!(id.len(), 16);
    assert!(!id.contains("07070707"));
    assert_ne!(LocalKek::new(&KEY).id(), LocalKek::new(&[8; local::BYTES]).id());
}

mod remote;
