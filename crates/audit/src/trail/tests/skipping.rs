//! What a search reads, counted at the disk.

use std::{collections::BTreeMap, io};

use parking_lot::Mutex;

use super::*;
use crate::disk::Appender;

/// A disk that counts the bytes that are read of each file.
#[derive(Clone, Default)]
struct CountingDisk {
    disk: SimulatedDisk,
    read: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Disk for CountingDisk {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.disk.list()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Appender>> {
        self.disk.create(name)
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let bytes = self.disk.read(name, offset, length)?;
        *self.read.lock().entry(name.to_owned()).or_default() += bytes.len();
        Ok(bytes)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
}

/// How many records are found, and of which blocks something was read.
fn read_by(disk: &CountingDisk, trail: &Trail, tests: Vec<Test>) -> (usize, Vec<u64>) {
    disk.read.lock().clear();
    let found = all(trail, Query { tests, ..Query::default() }).len();
    let blocks = disk.read.lock().keys().filter_map(|name| name.split('.').next()?.parse().ok()).collect();
    (found, blocks)
}

#[test]
fn a_search_reads_only_blocks_that_have_its_values() {
    let (key, disk) = (key(), CountingDisk::default());
    let open = || {
        let options = TrailOptions { block_rows: 100, max_age: FOREVER, ..TrailOptions::default() };
        Trail::open(Arc::new(disk.clone()), again(&key), options).unwrap()
    };
    let trail = open();
    let mut node = Node::new("node-a", key.public());
    for block in 0..6 {
        // Each agent is in one block, one is in all, and `rare` has one record in the third.
        node.requests(block * 100..block * 100 + 60, &format!("agent-{block}"));
        node.requests(block * 100 + 60..block * 100 + 99, "everywhere");
        node.requests(block * 100 + 99..block * 100 + 100, if block == 2 { "rare" } else { "everywhere" });
        node.upload(&trail);
    }
    for trail in [&trail, &open()] {
        assert_eq!((trail.size().blocks, trail.size().records), (6, 600));
        let agent = |name: &str| vec![text(field::AGENT, name)];
        assert_eq!(read_by(&disk, trail, agent("agent-4")), (60, vec![4]));
        assert_eq!(read_by(&disk, trail, agent("rare")), (1, vec![2]));
        assert_eq!(read_by(&disk, trail, agent("nobody")), (0, vec![]));
        assert_eq!(read_by(&disk, trail, agent("everywhere")), (239, (0..6).collect()));
        // One of several conditions is enough.
        let both = vec![text(field::AGENT, "everywhere"), text(field::TENANT, "nowhere")];
        assert_eq!(read_by(&disk, trail, both), (0, vec![]));
        assert_eq!(read_by(&disk, trail, vec![text(field::POLICIES, "third")]), (0, vec![]));
        // One address; the requests of the last block come from 10.0.1.244 to 10.0.2.87.
        let source = |network: &str| vec![Test::Source(network.parse().unwrap())];
        assert_eq!(read_by(&disk, trail, source("10.0.2.0/32")), (1, vec![5]));
        assert_eq!(read_by(&disk, trail, source("10.9.9.9/32")), (0, vec![]));
        assert_eq!(read_by(&disk, trail, source("10.0.2.0/24")).0, 88);
    }
}

#[test]
fn a_search_of_one_day_reads_no_other() {
    let (key, disk) = (key(), CountingDisk::default());
    let options = TrailOptions { block_rows: 100, max_age: FOREVER, ..TrailOptions::default() };
    let trail = Trail::open(Arc::new(disk.clone()), again(&key), options).unwrap();
    let mut node = Node::new("node-a", key.public());
    for block in 0..5 {
        node.requests(block * 100..block * 100 + 100, "bot");
        node.upload(&trail);
    }
    disk.read.lock().clear();
    let query = Query { since_us: 210_000_000, until_us: 230_000_000, ..Query::default() };
    assert_eq!(all(&trail, query).len(), 20);
    let read = disk.read.lock().clone();
    assert_eq!(read.keys().map(|name| &name[..20]).collect::<Vec<_>>(), [format!("{:020}", 2)]);
}
