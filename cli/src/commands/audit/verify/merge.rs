//! What several replicas say of their trails, as one answer: a node may have handed parts of one
//! chain to several of them.

use std::collections::{BTreeMap, BTreeSet};

use seks_proto::wire::{AuditChainPart, AuditFinding, VerifyAuditResponse};

/// The parts of a chain, and which answer each is from.
type Parts<'a> = Vec<(usize, &'a AuditChainPart)>;

/// What is wrong, seen from all replicas: what one misses and another has is not missing.
pub(super) fn findings(answers: &[VerifyAuditResponse]) -> Vec<AuditFinding> {
    let mut chains: BTreeMap<&[u8], Parts<'_>> = BTreeMap::new();
    for (at, answer) in answers.iter().enumerate() {
        for part in &answer.parts {
            chains.entry(&part.chain).or_default().push((at, part));
        }
    }
    chains.values_mut().for_each(|parts| parts.sort_by_key(|(_, part)| (part.first, part.last)));
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    let mut add = |finding: AuditFinding| {
        let identity = (finding.kind.clone(), finding.chain.clone(), finding.from, finding.to, finding.detail.clone());
        if finding.kind.starts_with("block_") || seen.insert(identity) {
            found.push(finding);
        }
    };
    for (at, answer) in answers.iter().enumerate() {
        for finding in answer.findings.iter().cloned() {
            if !matches!(finding.kind.as_str(), "gap" | "cut_tail" | "silent") || finding.chain.starts_with("admin/") {
                let is_block = finding.kind.starts_with("block_") && answers.len() > 1;
                let detail = if is_block { of_replica(&answer.replica, &finding.detail) } else { finding.detail };
                add(AuditFinding { detail, ..finding });
                continue;
            }
            let chain = data_encoding::HEXLOWER.decode(finding.chain.as_bytes()).unwrap_or_default();
            let parts = chains.get(chain.as_slice()).map(Vec::as_slice).unwrap_or_default();
            let others = parts.iter().filter(|(from, _)| *from != at).map(|(_, part)| (part.first, part.last));
            for (from, to) in without(finding.from, finding.to, others) {
                add(AuditFinding { from, to, ..finding.clone() });
            }
        }
    }
    for parts in chains.values() {
        torn(parts).into_iter().for_each(&mut add);
    }
    cloned(&chains).into_iter().for_each(&mut add);
    found
}

fn of_replica(replica: &str, detail: &str) -> String {
    if detail.is_empty() { format!("replica {replica}") } else { format!("replica {replica}: {detail}") }
}

/// What is left of a range without `others`, which are in order.
fn without(from: u64, to: u64, others: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let (mut next, mut left) = (from, Vec::new());
    for (first, last) in others {
        if last < next || first > to {
            continue;
        }
        if first > next {
            left.push((next, first - 1));
        }
        next = last + 1;
    }
    if next <= to {
        left.push((next, to));
    }
    left
}

/// Parts of one chain that several replicas have and that do not fit together: a record of one of
/// them was changed, together with all digests behind it.
fn torn(parts: &Parts<'_>) -> Vec<AuditFinding> {
    let mut found = Vec::new();
    let changed = |part: &AuditChainPart, from, to| AuditFinding {
        node: part.node.clone(),
        chain: data_encoding::HEXLOWER.encode(&part.chain),
        kind: "changed".into(),
        from,
        to,
        detail: "two replicas have different records".into(),
        ..AuditFinding::default()
    };
    for (index, (at, part)) in parts.iter().enumerate() {
        let near = parts.iter().skip(index + 1).take_while(|(_, other)| other.first <= part.last + 1);
        for (_, other) in near.filter(|(other_at, _)| other_at != at) {
            let follows = other.first == part.last + 1 && other.before != part.digest;
            let begins = other.first == part.first && other.before != part.before;
            let ends = other.last == part.last && other.digest != part.digest;
            if follows || begins || ends {
                found.push(changed(other, other.first, other.last));
            }
        }
    }
    found
}

/// Two chains with one predecessor, of which no replica has both.
fn cloned(chains: &BTreeMap<&[u8], Parts<'_>>) -> Vec<AuditFinding> {
    let mut successors: BTreeMap<&[u8], (usize, &[u8])> = BTreeMap::new();
    let mut found = Vec::new();
    for (chain, parts) in chains {
        let Some((at, part)) = parts.first().filter(|(_, part)| !part.after.is_empty()) else { continue };
        if let Some((other_at, other)) = successors.insert(&part.after, (*at, chain))
            && other_at != *at
        {
            let hex = |id: &[u8]| data_encoding::HEXLOWER.encode(id);
            let (node, kind) = (part.node.clone(), "cloned".to_owned());
            found.push(AuditFinding { node, chain: hex(chain), kind, detail: hex(other), ..AuditFinding::default() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: [u8; 16] = [7; 16];

    fn part(first: u64, last: u64) -> AuditChainPart {
        let digest = |sequence: u64| sequence.to_be_bytes().to_vec();
        let (before, digest) = (digest(first - 1), digest(last));
        AuditChainPart { node: "a".into(), chain: CHAIN.to_vec(), after: vec![6; 16], first, last, before, digest }
    }

    fn missing(kind: &str, from: u64, to: u64) -> AuditFinding {
        let chain = data_encoding::HEXLOWER.encode(&CHAIN);
        AuditFinding { node: "a".into(), chain, kind: kind.into(), from, to, ..AuditFinding::default() }
    }

    fn answer(parts: Vec<AuditChainPart>, findings: Vec<AuditFinding>) -> VerifyAuditResponse {
        VerifyAuditResponse { parts, findings, replica: "r".into(), ..VerifyAuditResponse::default() }
    }

    fn brief(answers: &[VerifyAuditResponse]) -> Vec<(String, u64, u64)> {
        findings(answers).into_iter().map(|found| (found.kind, found.from, found.to)).collect()
    }

    #[test]
    fn what_another_replica_has_is_not_missing() {
        let one = answer(vec![part(1, 50), part(81, 130)], vec![missing("gap", 51, 80), missing("cut_tail", 131, 140)]);
        let two = answer(vec![part(51, 80), part(131, 140)], vec![missing("gap", 1, 50), missing("gap", 81, 130)]);
        assert_eq!(brief(&[one.clone(), two]), []);
        let partly = answer(vec![part(55, 60)], vec![missing("gap", 1, 54)]);
        let gap = |from, to| ("gap".to_owned(), from, to);
        assert_eq!(
            brief(&[one.clone(), partly.clone()]),
            [gap(51, 54), gap(61, 80), ("cut_tail".into(), 131, 140)],
            "what nobody has is named once"
        );
        assert_eq!(brief(std::slice::from_ref(&one)).len(), 2, "alone it misses what it misses");
        assert_eq!(brief(&[one.clone(), one]).len(), 2, "its own parts do not help");
    }

    #[test]
    fn parts_that_do_not_fit_and_clones_in_two_trails_are_found() {
        let one = answer(vec![part(1, 50)], vec![]);
        let mut changed = part(51, 80);
        changed.before = b"another".to_vec();
        assert_eq!(brief(&[one.clone(), answer(vec![changed], vec![])]), [("changed".to_owned(), 51, 80)]);
        let mut other_chain = part(1, 9);
        other_chain.chain = vec![8; 16];
        let found = findings(&[one, answer(vec![other_chain], vec![])]);
        assert_eq!((found.len(), found[0].kind.as_str()), (1, "cloned"));
        let block = |why: &str| AuditFinding {
            kind: "block_damaged".into(),
            block: 3,
            detail: why.into(),
            ..AuditFinding::default()
        };
        let blocks = [answer(vec![], vec![block("cut")]), answer(vec![], vec![block("cut")])];
        assert_eq!(findings(&blocks).len(), 2, "each replica has a block 3");
        assert_eq!(findings(&blocks)[0].detail, "replica r: cut");
    }
}
