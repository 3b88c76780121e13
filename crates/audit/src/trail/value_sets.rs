//! Which values a block has in the fields that searches name. A search does not open blocks that
//! lack its values.

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::column::Column;
use crate::{
    record::field,
    varint::{put, put_bytes, take, take_bytes},
};

/// Fields with a set of values.
const FIELDS: [u32; 9] = [
    field::SOURCE,
    field::TENANT,
    field::AGENT,
    field::TOKEN_ID,
    field::SERVICE,
    field::CREDENTIAL,
    field::REASON,
    field::POLICIES,
    field::METHOD,
];
/// Up to so many values are kept exactly, as 32 bits of their digest each.
const MAX_EXACT: usize = 512;
/// Bytes of a Bloom filter: with `MAX_BLOOM_VALUES` values one of 17 others passes. A trail of
/// 10,000 blocks (20 GiB) has at most some 40 MiB of filters a field, and in practice only tokens
/// and sources need one.
const BLOOM_BYTES: usize = 4096;
/// More values have no set: a search opens the block.
const MAX_BLOOM_VALUES: usize = 5500;
/// Bits that a value sets in a filter.
const BLOOM_BITS: usize = 4;

/// The sets of a block, by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ValueSets(Vec<(u32, ValueSet)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum ValueSet {
    /// Sorted.
    Exact(Box<[u32]>),
    Bloom(Box<[u8]>),
}

impl ValueSets {
    /// Adds the set of a column, if searches name its field and it does not have too many values.
    pub(crate) fn add(&mut self, (field, _): (u32, bool), column: &Column) {
        let Column::Bytes { entries, .. } = column else { return };
        if !FIELDS.contains(&field) {
            return;
        }
        let count = entries.iter().count();
        if count <= MAX_EXACT {
            let mut exact: Vec<u32> = entries.iter().map(|value| short(&digest(value))).collect();
            exact.sort_unstable();
            exact.dedup();
            self.0.push((field, ValueSet::Exact(exact.into())));
        } else if count <= MAX_BLOOM_VALUES {
            let mut filter = vec![0_u8; BLOOM_BYTES];
            for value in entries.iter() {
                for (byte, mask) in bits(&digest(value)) {
                    filter.get_mut(byte).into_iter().for_each(|byte| *byte |= mask);
                }
            }
            self.0.push((field, ValueSet::Bloom(filter.into())));
        }
    }

    /// Whether a record of the block may come from this network. `false` is certain. Only a network
    /// of one address is looked for.
    pub(crate) fn may_have_source(&self, network: &IpNet) -> bool {
        let is_one = network.prefix_len() == network.max_prefix_len();
        !is_one || forms(network).iter().any(|address| self.may_have(field::SOURCE, address))
    }

    /// Whether a record of the block may have this value in this field. `false` is certain.
    pub(crate) fn may_have(&self, field: u32, value: &[u8]) -> bool {
        let Some((_, set)) = self.0.iter().find(|(of, _)| *of == field) else { return true };
        let digest = digest(value);
        match set {
            ValueSet::Exact(exact) => exact.binary_search(&short(&digest)).is_ok(),
            ValueSet::Bloom(filter) => {
                bits(&digest).all(|(byte, mask)| filter.get(byte).is_some_and(|byte| byte & mask != 0))
            }
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.0.len() as u64);
        for (field, set) in &self.0 {
            put(out, u64::from(*field));
            match set {
                ValueSet::Exact(exact) => {
                    put(out, 0);
                    put_bytes(out, exact.iter().map(|value| value.to_be_bytes()).collect::<Vec<_>>().as_flattened());
                }
                ValueSet::Bloom(filter) => {
                    put(out, 1);
                    put_bytes(out, filter);
                }
            }
        }
    }

    /// Reads what [`encode`](Self::encode) wrote. `None` when it is something else.
    pub(crate) fn decode(rest: &mut &[u8]) -> Option<Self> {
        let count = usize::try_from(take(rest)?).ok().filter(|count| *count <= rest.len())?;
        let set = |rest: &mut &[u8]| {
            let field = u32::try_from(take(rest)?).ok()?;
            let (kind, bytes) = (take(rest)?, take_bytes(rest)?);
            let set = match kind {
                0 => ValueSet::Exact(bytes.as_chunks::<4>().0.iter().map(|value| u32::from_be_bytes(*value)).collect()),
                1 if bytes.len() == BLOOM_BYTES => ValueSet::Bloom(bytes.into()),
                _ => return None,
            };
            Some((field, set))
        };
        (0..count).map(|_| set(rest)).collect::<Option<Vec<_>>>().map(Self)
    }
}

/// The forms in which a record may have an address.
fn forms(network: &IpNet) -> Vec<Vec<u8>> {
    match network.addr() {
        IpAddr::V4(address) => vec![address.octets().to_vec(), address.to_ipv6_mapped().octets().to_vec()],
        IpAddr::V6(address) => {
            let mapped = address.to_ipv4_mapped().map(|address| address.octets().to_vec());
            [Some(address.octets().to_vec()), mapped].into_iter().flatten().collect()
        }
    }
}

fn digest(value: &[u8]) -> [u8; 32] {
    Sha256::digest(value).into()
}

fn short(digest: &[u8; 32]) -> u32 {
    u32::from_be_bytes(*digest.first_chunk::<4>().unwrap_or(&[0; 4]))
}

/// The bits of a value: of each the byte and the mask.
fn bits(digest: &[u8; 32]) -> impl Iterator<Item = (usize, u8)> {
    let words = digest.as_chunks::<2>().0.iter().take(BLOOM_BITS);
    words.map(|word| {
        let bit = usize::from(u16::from_be_bytes(*word)) % (BLOOM_BYTES * 8);
        (bit / 8, 1 << (bit % 8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(values: usize) -> ValueSets {
        let names: Vec<String> = (0..values).map(|n| format!("agent-{n}")).collect();
        let mut sets = ValueSets::default();
        sets.add((field::AGENT, true), &Column::of_bytes(names.iter().map(String::as_bytes)));
        sets
    }

    fn has(sets: &ValueSets, n: usize) -> bool {
        sets.may_have(field::AGENT, format!("agent-{n}").as_bytes())
    }

    #[test]
    fn what_is_there_is_never_missed_and_little_else_passes() {
        for (values, most) in [(1, 0), (MAX_EXACT, 0), (MAX_EXACT + 1, 10), (MAX_BLOOM_VALUES, 700)] {
            let sets = sets(values);
            assert!((0..values).all(|n| has(&sets, n)), "{values}");
            let others = (values..values + 10_000).filter(|n| has(&sets, *n)).count();
            assert!(others <= most, "{others} of 10000 pass beside {values}");
            let mut bytes = Vec::new();
            sets.encode(&mut bytes);
            assert!(bytes.len() < BLOOM_BYTES + 20);
            assert_eq!(ValueSets::decode(&mut bytes.as_slice()), Some(sets));
        }
        assert!(has(&sets(MAX_BLOOM_VALUES + 1), 1 << 40), "too many values rule nothing out");
        assert!(has(&ValueSets::default(), 1), "nor does a block of a version without sets");
        assert_eq!(ValueSets::decode(&mut &[1, 11, 1, 3, 0, 0, 0][..]), None);
        assert_eq!(ValueSets::decode(&mut &[255][..]), None);
    }

    #[test]
    fn one_address_is_looked_for_in_both_forms() {
        let mut sets = ValueSets::default();
        let addresses = [&[10, 0, 0, 1][..], &[0; 16]];
        sets.add((field::SOURCE, true), &Column::of_bytes(addresses.into_iter()));
        for (network, may) in [
            ("10.0.0.1/32", true),
            ("::ffff:10.0.0.1/128", true),
            ("::/128", true),
            ("10.0.0.2/32", false),
            ("::1/128", false),
            ("10.0.0.0/8", true),
            ("192.0.2.0/24", true), // a network is looked for in the block
        ] {
            assert_eq!(sets.may_have_source(&network.parse().unwrap()), may, "{network}");
        }
    }
}
