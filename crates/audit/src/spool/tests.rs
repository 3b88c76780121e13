use super::*;
use crate::{disk::simulated::SimulatedDisk, seal::AuditKeyPair, varint::put_bytes};

fn records(texts: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    texts.iter().for_each(|text| put_bytes(&mut bytes, text.as_bytes()));
    bytes
}

fn open(disk: &SimulatedDisk, key: &AuditKeyPair, options: SpoolOptions) -> SpoolWriter {
    SpoolWriter::open(Arc::new(disk.clone()), key.public().clone(), options).unwrap()
}

fn append(spool: &mut SpoolWriter, text: &str) -> Result<(), SpoolError> {
    spool.append(1, &records(&[text.to_owned()]))
}

/// What a replica reads from a disk: every record, with its chain checked.
fn read(disk: &SimulatedDisk, key: &AuditKeyPair) -> Vec<String> {
    let (segments, _) = recover(disk).unwrap();
    let mut heads: std::collections::HashMap<ChainId, Head> = std::collections::HashMap::new();
    let mut texts = Vec::new();
    for segment in segments {
        let bytes = disk.read_all(&segment.name).unwrap();
        let header = SegmentHeader::decode(&bytes).unwrap();
        let file_key = header.open(&key.alone()).unwrap();
        let head = heads.entry(header.chain).or_insert_with(|| Head::genesis(header.chain));
        for sealed in Frames::of(&bytes[HEADER_BYTES..]) {
            let frame = sealed.open(&file_key).unwrap();
            assert_eq!((frame.before, frame.first), (head.digest, head.sequence + 1), "{}", segment.name);
            *head = frame.head(header.chain);
            texts.extend(frame.records().map(|r| String::from_utf8(r.to_vec()).unwrap()));
        }
        assert_eq!(head.sequence, segment.last);
    }
    texts
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("record {n}")).collect()
}

#[test]
fn whatever_a_power_cut_keeps_of_the_unsynced_end_the_synced_part_is_read() {
    let key = AuditKeyPair::generate().unwrap();
    let disk = SimulatedDisk::default();
    let mut spool = open(&disk, &key, SpoolOptions { segment_bytes: 600, ..SpoolOptions::default() });
    for n in 0..10 {
        append(&mut spool, &format!("record {n}")).unwrap();
        spool.sync().unwrap();
    }
    let synced = read(&disk, &key);
    assert_eq!((synced.clone(), disk.list().unwrap().len() > 1), (numbered(0..10), true));
    append(&mut spool, "record 10").unwrap();
    append(&mut spool, "record 11").unwrap();
    let unsynced = 2 * (frame::PREFIX_BYTES + 56 + 10) + HEADER_BYTES;
    let mut seen = std::collections::BTreeSet::new();
    for keep in 0..=unsynced {
        let after = disk.after_power_cut(|unsynced| unsynced.min(keep));
        let texts = read(&after, &key);
        assert_eq!(texts[..10], synced, "{keep} bytes were kept");
        assert_eq!(texts, numbered(0..texts.len()), "whole frames, in order");
        seen.insert(texts.len());
        // The next process goes on behind it, in a chain of its own.
        let mut next = open(&after, &key, SpoolOptions::default());
        append(&mut next, &format!("record {}", texts.len())).unwrap();
        next.sync().unwrap();
        assert_eq!(read(&after, &key), numbered(0..texts.len() + 1));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [10, 11, 12]);
}

#[test]
fn a_flipped_byte_costs_what_is_behind_it_in_its_segment_and_no_more() {
    let key = AuditKeyPair::generate().unwrap();
    let disk = SimulatedDisk::default();
    let mut spool = open(&disk, &key, SpoolOptions { segment_bytes: 300, ..SpoolOptions::default() });
    for n in 0..6 {
        append(&mut spool, &format!("record {n}")).unwrap();
        spool.sync().unwrap();
    }
    let on_disk = || disk.list().unwrap().into_iter().filter(|(name, _)| name.ends_with(SUFFIX)).collect::<Vec<_>>();
    let (name, length) = on_disk()[1].clone();
    for at in 0..length as usize {
        let copy = disk.after_power_cut(|_| 0);
        copy.change(&name, |bytes| bytes[at] ^= 4);
        let (segments, next) = recover(&copy).unwrap();
        let lost = 6 - segments.iter().map(|s| s.last + 1 - s.first).sum::<u64>();
        assert!((1..=2).contains(&lost) && next == on_disk().len() as u64, "byte {at}: {lost} lost");
    }
}

#[test]
fn a_full_disk_is_an_error_and_records_are_accepted_again_when_there_is_room() {
    let key = AuditKeyPair::generate().unwrap();
    let disk = SimulatedDisk::default();
    let mut spool = open(&disk, &key, SpoolOptions::default());
    append(&mut spool, "record 0").unwrap();
    spool.sync().unwrap();
    for room in 0..HEADER_BYTES + 80 {
        disk.set_room(Some(room));
        let failed = append(&mut spool, "lost").and_then(|()| spool.sync());
        assert!(matches!(failed, Err(SpoolError::Disk(error)) if error.kind() == io::ErrorKind::StorageFull), "{room}");
    }
    disk.set_room(None);
    append(&mut spool, "record 1").unwrap();
    spool.sync().unwrap();
    assert_eq!(read(&disk, &key), numbered(0..2));
    assert_eq!(spool.segments().list().len(), 2, "failed attempts leave no segments");
    disk.set_read_only(true);
    assert!(append(&mut spool, "lost").is_err());
    disk.set_read_only(false);
    append(&mut spool, "record 2").unwrap();
    spool.sync().unwrap();
    assert_eq!(read(&disk, &key), numbered(0..3));
}

#[test]
fn a_failed_sync_ends_the_chain() {
    let key = AuditKeyPair::generate().unwrap();
    let disk = SimulatedDisk::default();
    let mut spool = open(&disk, &key, SpoolOptions::default());
    append(&mut spool, "record 0").unwrap();
    spool.sync().unwrap();
    let before = spool.durable();
    disk.set_sync_fails(true);
    append(&mut spool, "record 1").unwrap();
    assert!(spool.sync().is_err());
    disk.set_sync_fails(false);
    append(&mut spool, "record 2").unwrap();
    spool.sync().unwrap();
    let name = &spool.segments().list()[1].name;
    let header = SegmentHeader::decode(&disk.read_all(name).unwrap()).unwrap();
    assert_eq!(header.after, Some(Predecessor { chain: before.chain, sequence: 1 }));
    assert_ne!(header.chain, before.chain);
    // The upload of this process sends what it knows to be durable.
    assert_eq!(spool.segments().list()[0].last, 1);
}

#[test]
fn segments_go_when_they_are_acknowledged_and_when_they_are_too_old() {
    let key = AuditKeyPair::generate().unwrap();
    let disk = SimulatedDisk::default();
    let mut spool = open(&disk, &key, SpoolOptions { segment_bytes: 1, max_bytes: 1000, ..SpoolOptions::default() });
    for n in 0..3 {
        append(&mut spool, &format!("record {n}")).unwrap();
        spool.sync().unwrap();
    }
    let chain = spool.durable().chain;
    let files = || disk.list().unwrap().len() - 1; // beside the chain's name
    assert_eq!((files(), spool.segments().records()), (3, 3));
    assert!(matches!(spool.check_room(500), Err(SpoolError::Full(1000))));
    spool.segments().acknowledge(ChainId([0; 16]), 3);
    spool.segments().acknowledge(chain, 2);
    assert_eq!((files(), spool.check_room(500).is_ok()), (1, true));
    let mut later = open(&disk, &key, SpoolOptions { max_age: Duration::ZERO, ..SpoolOptions::default() });
    assert_eq!((later.tidy(Duration::ZERO), files()), (1, 0));
}

#[test]
fn nothing_of_a_record_is_on_the_disk() {
    let key = AuditKeyPair::generate().unwrap();
    let disk = SimulatedDisk::default();
    let mut spool = open(&disk, &key, SpoolOptions::default());
    append(&mut spool, "agent ci-bot called openai").unwrap();
    spool.sync().unwrap();
    let contents = disk.contents();
    assert!(!contents.windows(4).any(|w| [&b"agen"[..], b"bot ", b"open"].contains(&w)));
    assert_eq!(read(&disk, &key), ["agent ci-bot called openai"]);
}

#[test]
fn segments_wait_for_the_collector_as_long_as_there_is_room() {
    let key = AuditKeyPair::generate().unwrap();
    let disk = SimulatedDisk::default();
    let options = SpoolOptions { segment_bytes: 1, max_bytes: 1000, is_exported: true, ..SpoolOptions::default() };
    let mut spool = open(&disk, &key, options);
    for n in 0..3 {
        append(&mut spool, &format!("record {n}")).unwrap();
        spool.sync().unwrap();
    }
    let (chain, segments) = (spool.durable().chain, spool.segments().clone());
    let names: Vec<String> = segments.list().into_iter().map(|segment| segment.name).collect();
    assert_eq!((segments.acknowledge(chain, 2), segments.acknowledge(chain, 2)), (2, 0));
    assert_eq!((segments.list().len(), segments.records(), segments.export_backlog()), (3, 1, 3));
    segments.exported(&names[0], 1);
    segments.exported(&names[2], 3);
    assert_eq!((segments.list().len(), segments.export_backlog()), (2, 1), "the last one waits for a replica");
    segments.save_marks().unwrap();

    // The next process has no keys, and knows what was exported.
    let later = open(&disk, &key, options);
    let sealed: Vec<String> = later.segments().sealed().into_iter().map(|segment| segment.name).collect();
    assert_eq!((sealed, later.segments().key(&names[1]).is_none()), (vec![names[1].clone()], true));
    // So it knows which requests had no outcome yet: their segments stay, however much was
    // exported.
    segments.set_open_requests(vec![(names[1].clone(), vec![[7; 16]])]);
    segments.exported(&names[1], 2);
    segments.save_marks().unwrap();
    let later = open(&disk, &key, options);
    assert!(
        later.segments().is_open_request(&names[1], &[7; 16]) && !later.segments().is_open_request(&names[1], &[8; 16])
    );
    assert_eq!((later.segments().sealed().len(), later.segments().export_backlog()), (1, 0));
    let header = disk.read_all(&names[1]).unwrap();
    later.segments().give_key(&names[1], SegmentHeader::decode(&header).unwrap().open(&key.alone()).unwrap());
    assert!(later.segments().sealed().is_empty());

    later.segments().acknowledge(chain, 2);
    assert_eq!(later.segments().list().len(), 2, "a request in it is open");
    later.segments().set_open_requests(vec![(names[1].clone(), Vec::new())]);
    assert_eq!(later.segments().list().len(), 1);

    // Records that a replica has make room for new ones. Others don't.
    let mut later = open(&disk, &key, options);
    append(&mut later, "record 3").unwrap();
    later.sync().unwrap();
    assert!(matches!(later.check_room(900), Err(SpoolError::Full(1000))));
    assert_eq!((later.segments().list().len(), later.segments().export_dropped()), (2, 0));
    later.segments().acknowledge(later.durable().chain, 1);
    assert!(later.check_room(600).is_ok());
    assert_eq!((later.segments().list().len(), later.segments().export_dropped()), (1, 1));
}
