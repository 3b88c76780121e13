mod replicas;
mod rotation;
mod seven;
mod skipping;

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::*;
use crate::{
    disk::simulated::SimulatedDisk,
    frame::{Frames, HEADER_BYTES},
    record::{Decision, RecordWriter, field},
    seal::{AuditKeyPair, AuditPublicKey},
    spool::{SpoolOptions, SpoolWriter},
    varint,
};

/// A node with its spool, and what a replica's upload would read of it.
struct Node {
    name: Arc<str>,
    disk: SimulatedDisk,
    spool: SpoolWriter,
}

static REQUESTS: AtomicU64 = AtomicU64::new(1);

/// A record of the request number `n`, which began at `n` seconds.
fn record(kind: Kind, n: u64, id: u64, agent: &str) -> Vec<u8> {
    let mut writer = RecordWriter::default();
    writer.number(field::KIND, kind as u64);
    writer.number(field::BEGAN_US, n * 1_000_000);
    writer.bytes(field::REQUEST_ID, &[7_u64.to_be_bytes(), id.to_be_bytes()].concat());
    writer.text(field::METHOD, "POST");
    writer.text(field::PATH, &format!("/v1/things/{}", n % 7));
    writer.bytes(field::SOURCE, &[10, 0, (n >> 8) as u8, n as u8]);
    writer.text(field::TENANT, if n.is_multiple_of(5) { "acme" } else { "default" });
    writer.text(field::AGENT, agent);
    writer.number(field::DECISION, if n.is_multiple_of(3) { Decision::Deny as u64 } else { Decision::Allow as u64 });
    writer.text(field::POLICIES, "first");
    if n.is_multiple_of(2) {
        writer.text(field::POLICIES, "second");
    }
    writer.number(field::WHOLE_US, n * 31 % 1000);
    writer.as_bytes().to_vec()
}

impl Node {
    fn new(name: &str, key: &AuditPublicKey) -> Self {
        Self::on(name, key, SimulatedDisk::default())
    }

    fn on(name: &str, key: &AuditPublicKey, disk: SimulatedDisk) -> Self {
        let options = SpoolOptions { segment_bytes: 4096, ..SpoolOptions::default() };
        let spool = SpoolWriter::open(Arc::new(disk.clone()), key.clone(), options).unwrap();
        Self { name: name.into(), disk, spool }
    }

    fn write(&mut self, records: &[Vec<u8>]) {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| varint::put_bytes(&mut bytes, record));
        self.spool.append(records.len() as u32, &bytes).unwrap();
        self.spool.sync().unwrap();
    }

    fn requests(&mut self, range: std::ops::Range<u64>, agent: &str) {
        for n in range {
            self.write(&[record(Kind::Whole, n, REQUESTS.fetch_add(1, Relaxed), agent)]);
        }
    }

    fn arrivals(&self, trail: &Trail) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        for info in self.spool.segments().list() {
            let bytes = self.disk.read_all(&info.name).unwrap();
            let segment = Arc::new(trail.open_segment(&bytes).unwrap());
            for frame in Frames::of(&bytes[HEADER_BYTES..]) {
                let sealed = bytes::Bytes::copy_from_slice(frame.bytes);
                arrivals.push(Trail::open_frame(&self.name, &segment, sealed).unwrap());
            }
        }
        arrivals
    }

    fn upload(&self, trail: &Trail) {
        for result in trail.ingest(&self.arrivals(trail)) {
            result.unwrap();
        }
    }

    fn head(&self, reported_us: u64) -> KnownHead {
        let head = self.spool.durable();
        KnownHead { node: self.name.to_string(), head, kept_from: head.sequence + 1, reported_us }
    }
}

fn key() -> AuditKeyPair {
    AuditKeyPair::generate().unwrap()
}

fn again(key: &AuditKeyPair) -> AuditKeyPair {
    AuditKeyPair::from_bytes(&key.to_bytes()).unwrap()
}

/// The tests' requests are of 1970.
const FOREVER: Duration = Duration::from_secs(1 << 40);

fn open(disk: &SimulatedDisk, key: &AuditKeyPair) -> Trail {
    let options = TrailOptions { block_rows: 100, max_age: FOREVER, ..TrailOptions::default() };
    Trail::open(Arc::new(disk.clone()), again(key), options).unwrap()
}

fn all(trail: &Trail, query: Query) -> Vec<Entry> {
    let (mut entries, mut after) = (Vec::new(), None);
    loop {
        let page = trail.search(&Query { after, limit: 37, ..query.clone() }).unwrap();
        assert_eq!(page.unreadable, Vec::<u64>::new());
        entries.extend(page.entries);
        after = page.next;
        if after.is_none() {
            return entries;
        }
    }
}

fn text(number: u32, text: &str) -> Test {
    Test::Text(number, text.into())
}

#[test]
fn what_was_recorded_is_found_byte_for_byte_and_once() {
    let (key, disk) = (key(), SimulatedDisk::default());
    let trail = open(&disk, &key);
    let (mut a, mut b) = (Node::new("node-a", key.public()), Node::new("node-b", key.public()));
    a.requests(0..130, "bot");
    a.upload(&trail);
    b.requests(130..300, "other");
    b.upload(&trail);
    a.requests(300..320, "bot");
    a.upload(&trail); // everything again, too
    b.upload(&trail);
    assert_eq!((trail.size().records, trail.size().blocks), (320, 2));
    let found = all(&trail, Query::default());
    let positions: BTreeSet<Position> = found.iter().map(|entry| entry.position).collect();
    assert_eq!((found.len(), positions.len()), (320, 320));
    let oldest_first = all(&trail, Query { newest_first: false, ..Query::default() });
    assert!(oldest_first.iter().rev().eq(found.iter()), "the other way round");
    for node in [&a, &b] {
        let of_node: Vec<&Entry> = oldest_first.iter().filter(|entry| *entry.node == *node.name).collect();
        let written: Vec<Vec<u8>> = node
            .arrivals(&trail)
            .iter()
            .flat_map(|a| a.frame.records().map(<[u8]>::to_vec).collect::<Vec<_>>())
            .collect();
        assert!(of_node.iter().map(|entry| &entry.record).eq(&written), "{}", node.name);
        assert!(of_node.iter().map(|entry| entry.sequence).eq(1..=written.len() as u64));
    }
    let reopened = open(&disk, &key);
    assert_eq!(all(&reopened, Query { newest_first: false, ..Query::default() }), oldest_first);
    a.upload(&reopened);
    assert_eq!(reopened.size().records, 320, "what was in the log is known after a restart");
}

#[test]
fn every_filter_finds_what_a_plain_scan_finds() {
    let (key, disk) = (key(), SimulatedDisk::default());
    let trail = open(&disk, &key);
    let (mut a, mut b) = (Node::new("node-a", key.public()), Node::new("node-b", key.public()));
    for n in 0..5 {
        a.requests(n * 60..n * 60 + 40, "bot");
        b.requests(n * 60 + 40..n * 60 + 60, "other");
        a.upload(&trail);
        b.upload(&trail);
    }
    let everything = all(&trail, Query::default());
    let queries = [
        Query { tests: vec![text(field::AGENT, "bot")], ..Query::default() },
        Query { tests: vec![text(field::AGENT, "nobody")], ..Query::default() },
        Query { tests: vec![text(field::REASON, "policy_denied")], ..Query::default() },
        Query { tests: vec![text(field::TENANT, "acme"), Test::Number(field::DECISION, 2)], ..Query::default() },
        Query { tests: vec![text(field::POLICIES, "second")], ..Query::default() },
        Query { tests: vec![text(field::POLICIES, "first")], since_us: 250_000_000, ..Query::default() },
        Query { tests: vec![Test::Source("10.0.1.0/24".parse().unwrap())], ..Query::default() },
        Query { since_us: 50_000_000, until_us: 60_000_000, ..Query::default() },
        Query { node: Some("node-b".into()), ..Query::default() },
        Query { node: Some("node-c".into()), ..Query::default() },
    ];
    for query in queries {
        let plain = everything.iter().filter(|entry| {
            let mut values: std::collections::HashMap<u32, Vec<String>> = std::collections::HashMap::new();
            for (field, value) in crate::record::FieldsOf::new(&entry.record).flatten() {
                values.entry(field).or_default().push(format!("{value:?}"));
            }
            let has = |test: &Test| match test {
                Test::Text(field, text) => values
                    .get(field)
                    .is_some_and(|all| all.contains(&format!("{:?}", crate::record::Value::Bytes(text.as_bytes())))),
                Test::Number(field, n) => values.get(field).is_some_and(|all| all[0] == format!("Number({n})")),
                Test::Source(_) => values[&field::SOURCE][0].starts_with("Bytes([10, 0, 1,"),
            };
            let began = Facts::of(&entry.record).began_us;
            query.tests.iter().all(has)
                && (query.since_us..query.until_us).contains(&began)
                && query.node.as_ref().is_none_or(|node| *node == entry.node)
        });
        let plain: Vec<&Entry> = plain.collect();
        assert_eq!(all(&trail, query.clone()).iter().collect::<Vec<_>>(), plain, "{query:?}");
    }
}

#[test]
fn intents_are_shown_only_while_their_outcome_is_unknown() {
    let (key, disk) = (key(), SimulatedDisk::default());
    let trail = open(&disk, &key);
    let mut node = Node::new("node-a", key.public());
    for n in 0..80 {
        node.write(&[record(Kind::Intent, n, 10_000 + n, "bot")]);
    }
    for n in 0..40 {
        node.write(&[record(Kind::Outcome, n, 10_000 + n, "bot")]);
    }
    node.upload(&trail);
    let kinds = |trail: &Trail| {
        let found = all(trail, Query::default());
        let of = |kind: Kind| found.iter().filter(|e| Facts::of(&e.record).kind == kind as u64).count();
        (of(Kind::Intent), of(Kind::Outcome), trail.size().open_intents)
    };
    assert_eq!(kinds(&trail), (40, 40, 40));
    for n in 40..79 {
        node.write(&[record(Kind::Outcome, n, 10_000 + n, "bot")]);
    }
    node.upload(&trail);
    assert_eq!(kinds(&trail), (1, 79, 1), "one has no outcome");
    let reopened = open(&disk, &key);
    assert_eq!(kinds(&reopened), (1, 79, 1));
    node.requests(0..101, "bot");
    node.upload(&reopened);
    assert_eq!(kinds(&open(&disk, &key)).0, 1, "also when all of it is in blocks");
}

#[test]
fn a_power_cut_of_the_replica_costs_nothing_that_was_acknowledged() {
    let key = key();
    for keep in [0, 1, 7, 40, 200, 1000, 100_000] {
        let disk = SimulatedDisk::default();
        let trail = open(&disk, &key);
        let mut node = Node::new("node-a", key.public());
        node.requests(0..250, "bot");
        node.upload(&trail);
        let after = disk.after_power_cut(|unsynced| unsynced.min(keep));
        let reopened = open(&after, &key);
        assert_eq!(reopened.size().records, 250);
        node.requests(250..260, "bot");
        node.upload(&reopened);
        assert_eq!(all(&open(&after, &key), Query::default()).len(), 260);
        assert_eq!(reopened.verify(&[node.head(0)], 0).unwrap().findings, []);
    }
}

#[test]
fn a_full_disk_is_told_and_nothing_is_acknowledged_that_is_not_there() {
    let (key, disk) = (key(), SimulatedDisk::default());
    let trail = open(&disk, &key);
    let mut node = Node::new("node-a", key.public());
    node.requests(0..10, "bot");
    node.upload(&trail);
    node.requests(10..20, "bot");
    for room in [0, 10, 500] {
        disk.set_room(Some(room));
        assert!(trail.ingest(&node.arrivals(&trail)).iter().all(Result::is_err), "{room}");
        assert_eq!(trail.size().records, 10);
    }
    disk.set_room(None);
    node.upload(&trail);
    assert_eq!((trail.size().records, open(&disk, &key).size().records), (20, 20));
    assert_eq!(open(&disk, &key).verify(&[node.head(0)], 0).unwrap().findings, []);
}

#[test]
fn verify_names_each_tampering_and_is_silent_otherwise() {
    let (key, disk) = (key(), SimulatedDisk::default());
    let trail = open(&disk, &key);
    let (mut a, mut b) = (Node::new("node-a", key.public()), Node::new("node-b", key.public()));
    for n in 0..5 {
        a.requests(n * 60..n * 60 + 40, "bot");
        b.requests(n * 60 + 40..n * 60 + 60, "other");
        a.upload(&trail);
        b.upload(&trail);
    }
    let known = [a.head(5), b.head(5)];
    let clean = trail.verify(&known, 0).unwrap();
    assert_eq!((clean.findings, clean.records, clean.chains), (vec![], 300, 2));
    drop(trail);
    let files = disk.list().unwrap();
    let blocks: Vec<&String> = files.iter().map(|(name, _)| name).filter(|name| name.ends_with("blk")).collect();
    let problems = |disk: &SimulatedDisk, known: &[KnownHead]| -> Vec<(String, Problem)> {
        let found = open(disk, &key).verify(known, u64::MAX).unwrap().findings;
        found.into_iter().map(|finding| (finding.node, finding.problem)).collect()
    };
    // A record changed: whatever byte of a block's file.
    let length = disk.read_all(blocks[1]).unwrap().len();
    for at in (0..length).step_by(97) {
        let copy = disk.after_power_cut(|unsynced| unsynced);
        copy.change(blocks[1], |bytes| bytes[at] ^= 1);
        let found = problems(&copy, &known);
        assert!(found.iter().any(|(_, p)| matches!(p, Problem::BlockDamaged { block: 1, .. })), "byte {at}: {found:?}");
        assert!(found.iter().any(|(node, p)| node == "node-a" && matches!(p, Problem::Gap { .. })), "{found:?}");
    }
    // Removed in the middle.
    let copy = disk.after_power_cut(|unsynced| unsynced);
    copy.remove(blocks[1]).unwrap();
    let found = problems(&copy, &known);
    assert_eq!(found[0], (String::new(), Problem::BlockMissing { block: 1 }));
    let gaps = found.iter().filter(|(_, p)| matches!(p, Problem::Gap { .. } | Problem::CutTail { .. })).count();
    assert!(gaps >= 2, "{found:?}");
    // Removed at the end: nobody but the heads tells.
    let copy = disk.after_power_cut(|unsynced| unsynced);
    copy.remove(blocks.last().unwrap()).unwrap();
    let last = files.last().unwrap();
    if last.0.ends_with("log") {
        copy.remove(&last.0).unwrap();
    }
    assert_eq!(problems(&copy, &[]), []);
    let found = problems(&copy, &known);
    assert!(found.iter().all(|(node, p)| !node.is_empty() && matches!(p, Problem::CutTail { .. })), "{found:?}");
    assert_eq!(found.len(), 2);
    // Two blocks swapped.
    let copy = disk.after_power_cut(|unsynced| unsynced);
    let (one, two) = (copy.read_all(blocks[0]).unwrap(), copy.read_all(blocks[1]).unwrap());
    copy.change(blocks[0], |bytes| *bytes = two);
    copy.change(blocks[1], |bytes| *bytes = one);
    let damaged = problems(&copy, &known);
    assert!(damaged.iter().filter(|(_, p)| matches!(p, Problem::BlockDamaged { .. })).count() == 2, "{damaged:?}");
}

#[test]
fn a_silenced_node_a_clone_a_lost_spool_and_a_clock_are_named() {
    let (key, disk) = (key(), SimulatedDisk::default());
    let trail = open(&disk, &key);
    let mut node = Node::new("node-a", key.public());
    node.requests(0..10, "bot");
    node.upload(&trail);
    let first = node.spool.durable();
    node.requests(10..15, "bot");
    let kept = KnownHead { kept_from: 1, ..node.head(1_000_000) };
    let soon = trail.verify(std::slice::from_ref(&kept), 2_000_000).unwrap().findings;
    assert_eq!(soon, [], "it has a minute");
    let later = trail.verify(std::slice::from_ref(&kept), 100_000_000).unwrap().findings;
    let silent = Problem::Silent { from: 11, to: 15, since_us: 1_000_000 };
    assert_eq!(later, [Finding { node: "node-a".into(), chain: Some(first.chain), problem: silent }]);
    // The disk is copied, and both copies go on.
    let copy = node.disk.after_power_cut(|_| 0);
    let mut one = Node::on("node-a", key.public(), node.disk.clone());
    let mut two = Node::on("node-a", key.public(), copy);
    one.requests(20..22, "bot");
    two.requests(30..32, "bot");
    one.upload(&trail);
    two.upload(&trail);
    assert_eq!(trail.size().records, 19, "what both have counts once");
    let found = trail.verify(&[], 0).unwrap().findings;
    let (one, two) = (one.spool.durable().chain, two.spool.durable().chain);
    let cloned = Finding { node: "node-a".into(), chain: Some(two), problem: Problem::Cloned { other: one } };
    assert_eq!(found, [cloned]);
    // A spool that was emptied behind the node's back.
    let (key, disk) = (self::key(), SimulatedDisk::default());
    let trail = open(&disk, &key);
    let mut node = Node::new("node-b", key.public());
    node.requests(0..4, "bot");
    let known = node.head(0);
    for (name, _) in node.disk.list().unwrap() {
        node.disk.remove(&name).unwrap();
    }
    let mut node = Node::on("node-b", key.public(), node.disk.clone());
    node.requests(5..7, "bot");
    node.upload(&trail);
    let found = trail.verify(&[known], 0).unwrap().findings;
    assert_eq!(found.iter().map(|f| &f.problem).collect::<Vec<_>>(), [&Problem::CutTail { from: 1, to: 4 }]);
}

#[test]
fn a_node_cannot_change_what_it_has_handed_in_nor_another_nodes_chain() {
    let (key, disk) = (key(), SimulatedDisk::default());
    let trail = open(&disk, &key);
    let mut node = Node::new("node-a", key.public());
    node.requests(0..3, "bot");
    node.upload(&trail);
    let other: Arc<str> = "node-b".into();
    for mut arrival in node.arrivals(&trail) {
        arrival.node = other.clone();
        assert!(matches!(trail.ingest(&[arrival])[0], Err(IngestError::OtherNode(_))));
    }
    let mut forged = node.arrivals(&trail).remove(2);
    forged.frame.records = forged.frame.records.iter().map(|b| b ^ 1).collect();
    forged.after = forged.frame.head(forged.chain());
    assert!(matches!(trail.ingest(&[forged])[0], Err(IngestError::Forked { first: 3, .. })));
    let mut next = node.arrivals(&trail).remove(2);
    next.frame.first = 4;
    next.after = next.frame.head(next.chain());
    assert!(matches!(trail.ingest(&[next])[0], Err(IngestError::Forked { first: 4, .. })), "its digest is another");
    assert_eq!(trail.size().records, 3);
    assert_eq!(trail.heads("node-b", &[node.spool.durable().chain]), []);
    assert_eq!(trail.heads("node-a", &[node.spool.durable().chain]), [node.spool.durable()]);
}

#[test]
fn retention_removes_the_oldest_and_verify_knows() {
    let (key, disk) = (key(), SimulatedDisk::default());
    let options = TrailOptions { block_rows: 50, max_bytes: 9000, max_age: FOREVER };
    let trail = Trail::open(Arc::new(disk.clone()), again(&key), options).unwrap();
    let mut node = Node::new("node-a", key.public());
    for n in 0..20 {
        node.requests(n * 50..n * 50 + 50, "bot");
        node.upload(&trail);
    }
    let size = trail.size();
    assert!(size.bytes <= 9000 && size.blocks >= 2 && size.records < 1000, "{size:?}");
    assert!(trail.oldest_us().is_some_and(|oldest| oldest > 0), "the oldest that is left");
    assert_eq!(trail.verify(&[node.head(0)], 0).unwrap().findings, []);
    let reopened = open(&disk, &key);
    assert_eq!((reopened.size(), reopened.verify(&[], 0).unwrap().findings), (size, vec![]));
    let old = TrailOptions { max_age: Duration::ZERO, ..options };
    let aged = Trail::open(Arc::new(disk.clone()), again(&key), old).unwrap();
    aged.retain().unwrap();
    assert_eq!(aged.size().blocks, 0);
}

#[test]
fn nothing_of_a_record_is_readable_on_the_disk() {
    let (key, disk) = (key(), SimulatedDisk::default());
    let trail = open(&disk, &key);
    let mut node = Node::new("node-a", key.public());
    for range in [0..150, 150..160] {
        node.requests(range, "secretive-agent");
        node.upload(&trail);
    }
    assert!(disk.list().unwrap().len() >= 2);
    let bytes = disk.contents();
    for part in [&b"secretive"[..], b"/v1/thin", b"default", b"POST"] {
        assert!(!bytes.windows(part.len()).any(|window| window == part), "{}", String::from_utf8_lossy(part));
    }
}
