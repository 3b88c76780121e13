//! What `verify` must find, of the trail itself and of an export: each of seven tamperings, and
//! nothing on a clean fleet.

use std::{fs, path::Path};

use super::*;
use crate::{
    export::{ExportFinding, ExportWriter, Manifest, Piece, verify_export},
    signing::SigningKey,
};

/// A small fleet and what its control plane knows.
struct Fleet {
    key: AuditKeyPair,
    disk: SimulatedDisk,
    trail: Trail,
    nodes: Vec<Node>,
    known: Vec<KnownHead>,
}

/// The time of the verification: long after the reports.
const NOW_US: u64 = u64::MAX;

impl Fleet {
    /// Two nodes, and blocks of records of both.
    fn start() -> Self {
        let (key, disk) = (key(), SimulatedDisk::default());
        let trail = open(&disk, &key);
        let mut nodes = vec![Node::new("node-a", key.public()), Node::new("node-b", key.public())];
        for n in 0..5 {
            nodes[0].requests(n * 60..n * 60 + 40, "bot");
            nodes[1].requests(n * 60 + 40..n * 60 + 60, "other");
            nodes.iter().for_each(|node| node.upload(&trail));
        }
        let known = nodes.iter().map(|node| node.head(5)).collect();
        Self { key, disk, trail, nodes, known }
    }

    /// What the trail's own verification finds, as pairs of node and kind.
    fn verify(&self) -> Vec<(String, &'static str)> {
        let found = open(&self.disk, &self.key).verify(&self.known, NOW_US).unwrap().findings;
        kinds(found.into_iter())
    }

    fn blocks(&self) -> Vec<String> {
        let files = self.disk.list().unwrap().into_iter().map(|(name, _)| name);
        files.filter(|name| name.ends_with("blk")).collect()
    }

    /// Exports everything to a directory.
    fn export(&self, directory: &Path, signing: &SigningKey) {
        let manifest = Manifest { replica: "r-1".into(), created_us: NOW_US, ..Manifest::default() };
        let mut sink = |piece: Piece| {
            use std::io::Write as _;
            let mut file = fs::OpenOptions::new().create(true).append(true).open(directory.join(piece.file))?;
            file.write_all(&piece.data)
        };
        let mut writer = ExportWriter::new(manifest, &mut sink).unwrap();
        let each = &mut |frame: StoredFrame| {
            writer.frame(&frame)?;
            for (record, sequence) in frame.records.iter().zip(frame.first..) {
                let view =
                    serde_json::json!({ "node": frame.node, "chain": frame.chain.to_string(), "sequence": sequence });
                writer.record(view.as_object().unwrap().clone(), record)?;
            }
            Ok(())
        };
        let unreadable = self.trail.export_frames(0..u64::MAX, each).unwrap();
        writer.reported(&self.known);
        writer.finish(unreadable, signing).unwrap();
    }
}

fn kinds(findings: impl Iterator<Item = Finding>) -> Vec<(String, &'static str)> {
    let kind = |problem: &Problem| match problem {
        Problem::Gap { .. } => "gap",
        Problem::Changed { .. } => "changed",
        Problem::CutTail { .. } => "cut_tail",
        Problem::Silent { .. } => "silent",
        Problem::Cloned { .. } => "cloned",
        Problem::ClockSetBack { .. } => "clock_set_back",
        Problem::BlockMissing { .. } => "block_missing",
        Problem::BlockDamaged { .. } => "block_damaged",
    };
    findings.map(|finding| (finding.node.clone(), kind(&finding.problem))).collect()
}

/// A node hands in one more record, written an hour before the others by its clock.
fn set_clock_back(fleet: &mut Fleet) {
    fleet.nodes[0].requests(400..401, "bot");
    let mut arrivals = fleet.nodes[0].arrivals(&fleet.trail);
    let mut last = arrivals.pop().unwrap();
    last.frame.written_us -= 3_600_000_000;
    fleet.trail.ingest(&[last]).into_iter().for_each(|result| assert!(result.is_ok()));
    fleet.known[0] = fleet.nodes[0].head(5);
}

fn clone_node(fleet: &mut Fleet) {
    let copy = fleet.nodes[0].disk.after_power_cut(|_| 0);
    for (disk, n) in [(fleet.nodes[0].disk.clone(), 500), (copy, 600)] {
        let mut node = Node::on("node-a", fleet.key.public(), disk);
        node.requests(n..n + 1, "bot");
        node.upload(&fleet.trail);
    }
}

fn silence_node(fleet: &mut Fleet) {
    fleet.nodes[1].requests(700..703, "other");
    fleet.known[1] = KnownHead { kept_from: 1, ..fleet.nodes[1].head(5) };
}

#[test]
fn nothing_is_found_on_a_clean_fleet() {
    let fleet = Fleet::start();
    assert_eq!(fleet.verify(), []);
    let (directory, signing) = (tempfile::tempdir().unwrap(), SigningKey::generate().unwrap());
    fleet.export(directory.path(), &signing);
    let verified = verify_export(&[directory.path().into()], &signing.public()).unwrap();
    assert_eq!((verified.findings, verified.records, verified.chains), (vec![], 300, 2));
    let other = SigningKey::generate().unwrap();
    assert!(
        verify_export(&[directory.path().into()], &other.public()).unwrap_err().to_string().contains("another key")
    );
    let manifest = directory.path().join("manifest.json");
    fs::write(&manifest, fs::read_to_string(&manifest).unwrap().replace("node-a", "node-x")).unwrap();
    assert!(verify_export(&[directory.path().into()], &signing.public()).is_err());
}

/// A tampering, and a finding that must be among those of the trail. The clock is not on the disk
/// of the trail's log, so it is looked for before the trail is opened again.
type Case = (&'static str, fn(&mut Fleet), (&'static str, &'static str));

const OF_THE_TRAIL: [Case; 12] = [
    ("a record changed", |f| f.disk.change(&f.blocks()[1], |bytes| bytes[700] ^= 1), ("", "block_damaged")),
    ("removed in the middle", |f| f.disk.remove(&f.blocks()[1]).unwrap(), ("node-a", "gap")),
    (
        "removed at the end",
        |f| {
            let newest = f.disk.list().unwrap().into_iter().rfind(|(name, _)| name.ends_with("log"));
            newest.into_iter().for_each(|(name, _)| f.disk.remove(&name).unwrap());
            f.disk.remove(f.blocks().last().unwrap()).unwrap();
        },
        ("node-a", "cut_tail"),
    ),
    (
        "files swapped",
        |f| {
            let blocks = f.blocks();
            let (one, two) = (f.disk.read_all(&blocks[0]).unwrap(), f.disk.read_all(&blocks[1]).unwrap());
            f.disk.change(&blocks[0], |bytes| *bytes = two);
            f.disk.change(&blocks[1], |bytes| *bytes = one);
        },
        ("", "block_damaged"),
    ),
    ("segments of a node swapped", swap_segments_of_a_node, ("node-a", "gap")),
    ("segments of two nodes swapped", swap_segments_of_two_nodes, ("node-b", "cut_tail")),
    ("a node silenced", silence_node, ("node-b", "silent")),
    ("a node cloned", clone_node, ("node-a", "cloned")),
    ("a clock set back", set_clock_back, ("node-a", "clock_set_back")),
    (
        "the index of a block edited", // the directory is the last part of the file
        |f| f.disk.change(&f.blocks()[1], |bytes| *bytes.iter_mut().rev().nth(40).unwrap() ^= 1),
        ("", "block_damaged"),
    ),
    (
        "a block cut within a record",
        |f| f.disk.change(&f.blocks()[1], |bytes| bytes.truncate(bytes.len() / 2)),
        ("", "block_damaged"),
    ),
    ("the log cut within a record", cut_log, ("node-b", "cut_tail")),
];

/// Two segments that a node has not handed in yet.
fn swap_segments_of_a_node(fleet: &mut Fleet) {
    let node = &mut fleet.nodes[0];
    let before = node.spool.segments().list().len();
    node.requests(800..900, "bot");
    let new: Vec<String> = node.spool.segments().list().iter().skip(before).map(|info| info.name.clone()).collect();
    let contents: Vec<Vec<u8>> = new.iter().take(2).map(|name| node.disk.read_all(name).unwrap()).collect();
    node.disk.change(&new[0], |bytes| bytes.clone_from(&contents[1]));
    node.disk.change(&new[1], |bytes| bytes.clone_from(&contents[0]));
    fleet.trail.ingest(&fleet.nodes[0].arrivals(&fleet.trail));
    fleet.known[0] = fleet.nodes[0].head(5);
}

/// The newest segments of two nodes, on each other's disk.
fn swap_segments_of_two_nodes(fleet: &mut Fleet) {
    let mut newest = Vec::new();
    for node in &mut fleet.nodes {
        node.requests(800..803, "bot");
        let name = node.spool.segments().list().last().unwrap().name.clone();
        newest.push((name.clone(), node.disk.read_all(&name).unwrap()));
    }
    for (node, other) in fleet.nodes.iter().zip(newest.iter().rev()) {
        let own = node.spool.segments().list().last().unwrap().name.clone();
        node.disk.change(&own, |bytes| bytes.clone_from(&other.1));
        let refused = fleet.trail.ingest(&node.arrivals(&fleet.trail)).into_iter().filter_map(Result::err);
        assert!(refused.into_iter().all(|error| matches!(error, IngestError::OtherNode(_))));
    }
    fleet.known = fleet.nodes.iter().map(|node| node.head(5)).collect();
}

/// A power cut has the same effect on what was not acknowledged; this was.
fn cut_log(fleet: &mut Fleet) {
    fleet.nodes[1].requests(900..903, "other");
    fleet.nodes[1].upload(&fleet.trail);
    fleet.known[1] = fleet.nodes[1].head(5);
    let log = fleet.disk.list().unwrap().into_iter().rfind(|(name, _)| name.ends_with("log")).unwrap().0;
    fleet.disk.change(&log, |bytes| bytes.truncate(bytes.len() - 10));
}

#[test]
fn each_tampering_with_the_trail_is_found() {
    for (what, tamper, (node, kind)) in OF_THE_TRAIL {
        let mut fleet = Fleet::start();
        tamper(&mut fleet);
        let found = match kind {
            "clock_set_back" => kinds(fleet.trail.verify(&fleet.known, NOW_US).unwrap().findings.into_iter()),
            _ => fleet.verify(),
        };
        assert!(found.contains(&(node.to_owned(), kind)), "{what}: {found:?}");
    }
}

/// Decompresses a file's lines, changes them, and puts them back.
fn edit(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let text = zstd::stream::decode_all(fs::File::open(path).unwrap()).unwrap();
    let mut lines: Vec<String> = String::from_utf8(text).unwrap().lines().map(str::to_owned).collect();
    change(&mut lines);
    lines.push(String::new());
    fs::write(path, zstd::stream::encode_all(lines.join("\n").as_bytes(), 1).unwrap()).unwrap();
}

fn records(directory: &Path) -> std::path::PathBuf {
    directory.join("records-000001.jsonl.zst")
}

/// What was done to the fleet before the export, to the export, and what must be found of node-a or
/// node-b.
type ExportCase = (&'static str, fn(&mut Fleet), fn(&Path), &'static [(&'static str, &'static str)]);

const OF_AN_EXPORT: [ExportCase; 9] = [
    (
        "a record changed",
        |_| {},
        |directory| {
            edit(&records(directory), |lines| {
                let mut line: serde_json::Value = serde_json::from_str(&lines[100]).unwrap();
                let mut record = data_encoding::BASE64.decode(line["record"].as_str().unwrap().as_bytes()).unwrap();
                *record.last_mut().unwrap() ^= 1;
                line["record"] = data_encoding::BASE64.encode(&record).into();
                lines[100] = line.to_string();
            });
        },
        &[("file", "changed"), ("node-b", "changed")],
    ),
    (
        "removed in the middle",
        |_| {},
        |directory| edit(&records(directory), |lines| drop(lines.drain(70..75))),
        &[("file", "changed"), ("node-a", "gap")],
    ),
    (
        "removed at the end",
        |_| {},
        |directory| edit(&records(directory), |lines| lines.truncate(lines.len() - 5)),
        &[("file", "changed"), ("node-b", "cut_tail")],
    ),
    (
        "files swapped",
        |_| {},
        |directory| {
            let (one, two) = (records(directory), directory.join("frames.jsonl.zst"));
            let bytes = fs::read(&one).unwrap();
            fs::copy(&two, &one).unwrap();
            fs::write(&two, bytes).unwrap();
        },
        &[("file", "swapped")],
    ),
    (
        "a file added",
        |_| {},
        |directory| {
            fs::copy(records(directory), directory.join("records-000099.jsonl.zst")).unwrap();
            fs::write(directory.join("NOTES.txt"), "the reader's own").unwrap();
        },
        &[("file", "unknown")],
    ),
    (
        "a file replaced by a link",
        |_| {},
        |directory| {
            fs::rename(records(directory), directory.join("elsewhere")).unwrap();
            std::os::unix::fs::symlink("elsewhere", records(directory)).unwrap();
        },
        &[("file", "link")],
    ),
    ("a node silenced", silence_node, |_| {}, &[("node-b", "silent")]),
    ("a node cloned", clone_node, |_| {}, &[("node-a", "cloned")]),
    ("a clock set back", set_clock_back, |_| {}, &[("node-a", "clock_set_back")]),
];

#[test]
fn each_tampering_with_an_export_is_found() {
    for (what, before, after, wanted) in OF_AN_EXPORT {
        let mut fleet = Fleet::start();
        before(&mut fleet);
        let (directory, signing) = (tempfile::tempdir().unwrap(), SigningKey::generate().unwrap());
        fleet.export(directory.path(), &signing);
        after(directory.path());
        let findings = verify_export(&[directory.path().into()], &signing.public()).unwrap().findings;
        let brief = |finding: &ExportFinding| match finding {
            ExportFinding::FileChanged { has_contents_of: Some(_), .. } => ("file".to_owned(), "swapped"),
            ExportFinding::FileChanged { .. } => ("file".to_owned(), "changed"),
            ExportFinding::FileUnknown { .. } => ("file".to_owned(), "unknown"),
            ExportFinding::FileIsLink { .. } => ("file".to_owned(), "link"),
            ExportFinding::FileMissing { .. } => ("file".to_owned(), "missing"),
            ExportFinding::Chain(finding) => kinds(std::iter::once(finding.clone())).remove(0),
            ExportFinding::Admin { .. } => ("admin".to_owned(), "fault"),
            ExportFinding::UnreadableBlock { .. } => ("block".to_owned(), "unreadable"),
        };
        let found: BTreeSet<(String, &str)> = findings.iter().map(brief).collect();
        for (node, kind) in wanted {
            assert!(found.contains(&((*node).to_owned(), *kind)), "{what}: {findings:?}");
        }
        let is_expected =
            |(node, kind): &(String, &str)| wanted.contains(&(node.as_str(), kind)) || what == "files swapped";
        assert!(found.iter().all(is_expected), "{what}: more than that: {findings:?}");
    }
}
