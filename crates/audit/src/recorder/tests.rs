use std::collections::HashMap;

use super::*;
use crate::{
    chain::ChainId,
    disk::simulated::SimulatedDisk,
    frame::{Frames, HEADER_BYTES, SegmentHeader},
    seal::AuditKeyPair,
};

fn start(disk: &SimulatedDisk, key: &AuditKeyPair, options: RecorderOptions) -> Arc<Recorder> {
    Arc::new(Recorder::start(Arc::new(disk.clone()), key.public().clone(), options).unwrap())
}

/// Every record on the disk, by chain.
fn read(disk: &SimulatedDisk, key: &AuditKeyPair) -> Vec<String> {
    let mut heads: HashMap<ChainId, Head> = HashMap::new();
    let mut texts = Vec::new();
    for (name, _) in disk.list().unwrap() {
        let bytes = disk.read_all(&name).unwrap();
        let Ok(header) = SegmentHeader::decode(&bytes) else { continue };
        let file_key = header.open(&key.alone()).unwrap();
        let head = heads.entry(header.chain).or_insert_with(|| Head::genesis(header.chain));
        for sealed in Frames::of(&bytes[HEADER_BYTES..]) {
            let frame = sealed.open(&file_key).unwrap();
            assert_eq!((frame.before, frame.first), (head.digest, head.sequence + 1));
            *head = frame.head(header.chain);
            texts.extend(frame.records().map(|r| String::from_utf8(r.to_vec()).unwrap()));
        }
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sync_serves_all_that_wait_and_the_record_is_on_the_disk_by_then() {
    let (disk, key) = (SimulatedDisk::default(), AuditKeyPair::generate().unwrap());
    disk.set_sync_takes(Duration::from_millis(20));
    let recorder = start(&disk, &key, RecorderOptions::default());
    let waiting = (0..200).map(|n| {
        let (recorder, disk) = (recorder.clone(), disk.clone());
        tokio::spawn(async move {
            recorder.push_durable(format!("record {n}").as_bytes()).unwrap().wait().await.unwrap();
            disk.after_power_cut(|_| 0)
        })
    });
    let waiting: Vec<_> = waiting.collect();
    for (n, after) in waiting.into_iter().enumerate() {
        let after = after.await.unwrap();
        assert!(read(&after, &key).contains(&format!("record {n}")), "record {n} was lost");
    }
    let syncs = recorder.counts().syncs.load(Relaxed);
    assert!(syncs < 20, "{syncs} syncs for 200 records");
    assert_eq!((recorder.head().sequence, recorder.queued_bytes()), (200, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_delays_only_who_waits_for_it() {
    let (disk, key) = (SimulatedDisk::default(), AuditKeyPair::generate().unwrap());
    disk.set_sync_takes(Duration::from_millis(200));
    let recorder = start(&disk, &key, RecorderOptions::default());
    // A sync is under way from here on.
    let first = recorder.push_durable(b"intent").unwrap();
    (0..5000).for_each(|n| recorder.push(format!("record {n}").as_bytes(), None));
    let syncs = recorder.counts().syncs.load(Relaxed);
    assert!(syncs <= 1, "5000 records that nobody waits for took {syncs} syncs");
    let waiting: Vec<_> = (0..64).map(|_| recorder.push_durable(b"intent").unwrap()).collect();
    first.wait().await.unwrap();
    for durable in waiting {
        durable.wait().await.unwrap();
    }
    let syncs = recorder.counts().syncs.load(Relaxed);
    assert!(syncs <= 4, "64 that wait at the same time took {syncs} syncs");
    recorder.close().await;
    assert_eq!(recorder.counts().dropped.load(Relaxed), 0);
    assert_eq!(read(&disk.after_power_cut(|_| 0), &key).len(), 5065);
}

#[tokio::test]
async fn records_that_nobody_waits_for_are_written_in_groups_and_at_the_end() {
    let (disk, key) = (SimulatedDisk::default(), AuditKeyPair::generate().unwrap());
    let recorder = start(&disk, &key, RecorderOptions::default());
    for n in 0..1000 {
        recorder.push(format!("record {n}").as_bytes(), None);
    }
    recorder.close().await;
    assert_eq!(read(&disk.after_power_cut(|_| 0), &key), (0..1000).map(|n| format!("record {n}")).collect::<Vec<_>>());
    assert!(recorder.counts().frames.load(Relaxed) < 10);
    recorder.push(b"late", None);
    assert_eq!(recorder.counts().dropped.load(Relaxed), 1);
    assert_eq!(recorder.push_durable(b"late").err(), Some(Unavailable::Closed));
}

#[tokio::test]
async fn a_disk_that_refuses_is_said_to_who_waits_and_loses_nothing_of_the_others() {
    let (disk, key) = (SimulatedDisk::default(), AuditKeyPair::generate().unwrap());
    let recorder = start(&disk, &key, RecorderOptions::default());
    let wait = async |text: &str| recorder.push_durable(text.as_bytes()).unwrap().wait().await;
    wait("intent 0").await.unwrap();
    disk.set_read_only(true);
    recorder.push(b"outcome 0", None);
    assert_eq!(wait("lost").await, Err(Unavailable::Disk));
    recorder.push(b"outcome 1", None);
    assert_eq!(wait("lost").await, Err(Unavailable::Disk));
    disk.set_read_only(false);
    wait("intent 2").await.unwrap();
    disk.set_room(Some(10));
    recorder.push(b"outcome 2", None);
    assert_eq!(wait("lost").await, Err(Unavailable::Full));
    disk.set_room(None);
    recorder.close().await;
    assert_eq!(read(&disk, &key), ["intent 0", "outcome 0", "outcome 1", "intent 2", "outcome 2"]);
    assert_eq!(recorder.counts().dropped.load(Relaxed), 0);
}

#[tokio::test]
async fn queue_and_spool_are_bounded() {
    let (disk, key) = (SimulatedDisk::default(), AuditKeyPair::generate().unwrap());
    disk.set_read_only(true);
    let recorder = start(&disk, &key, RecorderOptions { queue_bytes: 2048, ..RecorderOptions::default() });
    let reserved = recorder.reserve().unwrap();
    for _ in 0..100 {
        recorder.push(&[b'x'; 100], None);
    }
    let dropped = recorder.counts().dropped.load(Relaxed);
    assert!((90..=91).contains(&dropped) && recorder.queued_bytes() <= 2048, "{dropped}");
    assert!(recorder.reserve().is_none() && recorder.push_durable(&[b'x'; 100]).is_err());
    recorder.push(&[b'y'; 1000], Some(reserved));
    assert_eq!(recorder.counts().dropped.load(Relaxed), dropped, "a reserved record is kept");
    disk.set_read_only(false);
    recorder.close().await;
    assert!(read(&disk, &key).iter().any(|r| r.starts_with('y')));

    let spool = SpoolOptions { max_bytes: 3 << 20, ..SpoolOptions::default() };
    let recorder = start(&SimulatedDisk::default(), &key, RecorderOptions { spool, ..RecorderOptions::default() });
    let mut accepted = 0;
    while recorder.push_durable(&[b'x'; 10_000]).unwrap().wait().await.is_ok() {
        accepted += 1;
    }
    assert!((80..=110).contains(&accepted), "{accepted}: outcomes have their room");
    let outcome = recorder.push_durable(&[b'x'; 10_000]).unwrap().wait().await;
    assert_eq!(outcome, Err(Unavailable::Full));
    recorder.push(b"outcome", None);
    recorder.close().await;
    assert_eq!(recorder.counts().dropped.load(Relaxed), 0);
}
