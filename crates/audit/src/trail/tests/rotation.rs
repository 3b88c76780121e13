//! The audit key is rotated while nodes record.

use super::*;
use crate::recorder::{Recorder, RecorderOptions};

#[test]
fn a_stolen_old_key_reads_old_records_alone_and_the_ring_reads_all() {
    let (disk, old) = (SimulatedDisk::default(), key());
    let keys = Arc::new(old.alone());
    let options = TrailOptions { block_rows: 100, max_age: FOREVER, ..TrailOptions::default() };
    let trail = Trail::open(Arc::new(disk.clone()), keys.clone(), options).unwrap();
    let mut node = Node::new("a", &trail.public_key());
    node.requests(0..60, "before");
    node.upload(&trail);
    keys.rotate().unwrap();
    node.spool.seal_to(trail.public_key()).unwrap();
    node.requests(60..250, "after");
    node.upload(&trail);
    let known = [node.head(unix_micros())];
    let verified = trail.verify(&known, unix_micros()).unwrap();
    assert_eq!((verified.findings, verified.records, verified.chains), (vec![], 250, 1), "one chain goes on");
    drop(trail);

    // Blocks and the log of both keys are read again.
    let again = Trail::open(Arc::new(disk.clone()), AuditKeys::from_bytes(&keys.to_bytes()).unwrap(), options).unwrap();
    let agent = |trail: &Trail, name| {
        trail.search(&Query { tests: vec![text(field::AGENT, name)], limit: 1000, ..Query::default() })
    };
    assert_eq!(agent(&again, "before").unwrap().entries.len(), 60);
    assert_eq!(agent(&again, "after").unwrap().entries.len(), 190);
    assert_eq!(again.verify(&known, unix_micros()).unwrap().findings, []);
    drop(again);

    // The thief of the old key has the node's disk and the replica's.
    let mut opened = 0;
    for (name, _) in node.disk.list().unwrap() {
        let Ok(header) = SegmentHeader::decode(&node.disk.read_all(&name).unwrap()) else { continue };
        match header.open(&old.alone()) {
            Ok(_) => {
                opened += 1;
                assert!(header.first <= 60, "{name} begins at {}", header.first);
            }
            Err(error) => assert!(matches!(error, FormatError::OtherKey(_)) && header.first > 60, "{error}"),
        }
    }
    assert!(opened > 0);
    for (name, length) in disk.list().unwrap() {
        let Some(number) = name.strip_suffix(".blk") else { continue };
        let block = Block::open(&disk, number.parse().unwrap(), length, &old.alone());
        assert!(block.is_err(), "every block was made after the rotation");
    }
}

#[tokio::test]
async fn a_running_recorder_changes_its_key_and_no_request_is_refused_for_it() {
    let (disk, keys) = (SimulatedDisk::default(), key().alone());
    let recorder = Recorder::start(Arc::new(disk.clone()), keys.public(), RecorderOptions::default()).unwrap();
    let first = keys.public();
    for n in 0..50 {
        if n == 25 {
            keys.rotate().unwrap();
            recorder.seal_to(keys.public());
        }
        recorder.push_durable(format!("record {n}").as_bytes()).unwrap().wait().await.unwrap();
    }
    let chain = recorder.head().chain;
    recorder.close().await;
    let mut sealed_to: Vec<(u64, bool)> = Vec::new();
    for (name, _) in disk.list().unwrap() {
        let Ok(header) = SegmentHeader::decode(&disk.read_all(&name).unwrap()) else { continue };
        assert_eq!(header.chain, chain);
        header.open(&keys).unwrap();
        sealed_to.push((header.first, header.key_id == first.id()));
    }
    assert_eq!(sealed_to, [(1, true), (26, false)], "the next record after the rotation has the new key");
}
