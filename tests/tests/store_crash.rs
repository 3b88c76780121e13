//! `kill -9` at any moment: every acknowledged write is there, nothing is half-written, a rotation
//! finishes, a first start is whole or has not happened. The process that is killed is this test
//! itself, started again with a task.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use seks_control_plane::{
    seal::{RecordId, SealConfig, Sealer, rotate},
    store::{self, Key, Store, StoreConfig, Transaction, WatchEvent, Write, key::prefix},
};
use seks_types::secret::Secret;

const TASK: &str = "SEKS_CRASH_TASK";
const PLACE: &str = "SEKS_CRASH_PLACE";
/// As often as it takes to hit every stage of a commit; all of it together takes some seconds.
const ROUNDS: u64 = 100;
const WRITERS: usize = 4;
const CREDENTIALS: u32 = 30;

/// What the killed process does. As a test of its own, without a task, it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task() {
    let (Ok(task), Ok(place)) = (std::env::var(TASK), std::env::var(PLACE)) else { return };
    let place = Path::new(&place);
    say("begin");
    match task.as_str() {
        "open" => drop(open(place).await),
        "write" => write_for_ever(open(place).await).await,
        "rotate" => {
            let store = open(place).await;
            rotate::rotate(&ring(place, "new", &["old"]), &*store).await.unwrap();
        }
        other => panic!("{other}"),
    }
    say("end");
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Another process with a task; its output line by line.
fn start(task: &str, place: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "task", "--nocapture", "--quiet"]).env(TASK, task).env(PLACE, place);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    (child, lines)
}

async fn open(place: &Path) -> Arc<dyn Store> {
    store::open(&StoreConfig::embedded(place.join("store.redb"))).await.unwrap()
}

fn key(writer: usize, half: usize) -> Key {
    Key::Agent("acme".parse().unwrap(), format!("w{writer}-{half}").parse().unwrap())
}

/// Each writer counts, in two records at once, and says so when it is committed.
async fn write_for_ever(store: Arc<dyn Store>) {
    let count = |writer| {
        let store = Arc::clone(&store);
        async move {
            let mut n = read(&store, &key(writer, 0)).await;
            loop {
                n += 1;
                let value = Bytes::from(format!("{n}{}", " ".repeat(usize::try_from(n * 37 % 3_000).unwrap())));
                let writes = [0, 1].map(|half| Write::Put(key(writer, half), value.clone())).into();
                store.commit(Transaction { checks: vec![], writes }).await.unwrap();
                say(&format!("ack {writer} {n}"));
            }
        }
    };
    futures_util::future::join_all((0..WRITERS).map(count)).await;
}

async fn read(store: &Arc<dyn Store>, key: &Key) -> u64 {
    let record = store.get(key).await.unwrap();
    record.map_or(0, |record| std::str::from_utf8(&record.value).unwrap().trim_end().parse().unwrap())
}

#[tokio::test]
async fn every_acknowledged_write_survives_and_none_is_half_made() {
    let place = tempfile::tempdir().unwrap();
    let (mut seen, mut total) = (1, 0);
    for round in 0..ROUNDS {
        let (mut child, mut lines) = start("write", place.path());
        let mut acknowledged = HashMap::new();
        let mut note = |line: String| {
            if let Some((writer, n)) = line.strip_prefix("ack ").and_then(|ack| ack.split_once(' ')) {
                acknowledged.insert(writer.parse::<usize>().unwrap(), n.parse::<u64>().unwrap());
            }
        };
        (&mut lines).filter(|line| line.starts_with("ack")).take((round * 7 % 23) as usize + 1).for_each(&mut note);
        std::thread::sleep(Duration::from_micros(round * 997 % 7_000)); // anywhere within a commit
        child.kill().unwrap();
        lines.for_each(&mut note); // what it had said before it died
        child.wait().unwrap();

        let store = open(place.path()).await;
        for writer in 0..WRITERS {
            let (one, other) = (store.get(&key(writer, 0)).await.unwrap(), store.get(&key(writer, 1)).await.unwrap());
            let (one, other) = (one.map(|r| (r.value, r.modified)), other.map(|r| (r.value, r.modified)));
            assert_eq!(one, other, "half a transaction in round {round}");
            let (kept, told) = (read(&store, &key(writer, 0)).await, acknowledged.get(&writer).copied());
            assert!(kept >= told.unwrap_or_default(), "writer {writer} lost {told:?}, has {kept}, in round {round}");
        }
        seen = follow(&store, seen).await;
        total += acknowledged.len();
    }
    assert!(total > 100, "only {total} writes were acknowledged");
}

/// Reads the change log on from `after`: without a gap up to the present revision.
async fn follow(store: &Arc<dyn Store>, after: u64) -> u64 {
    let head = store.revision().await.unwrap();
    let mut watch = store.watch(after);
    for expected in after + 1..=head {
        match watch.next().await {
            Some(WatchEvent::Changes { revision, changes }) => assert_eq!((revision, changes.len()), (expected, 2)),
            other => panic!("{other:?}"),
        }
    }
    head
}

#[tokio::test]
async fn a_first_start_that_is_killed_leaves_a_whole_store_or_none() {
    let whole = {
        let place = tempfile::tempdir().unwrap();
        let (mut child, mut lines) = start("open", place.path());
        assert!(lines.any(|line| line == "begin"));
        let begun = Instant::now();
        assert!(lines.any(|line| line == "end"));
        child.wait().unwrap();
        begun.elapsed()
    };
    let mut made = 0;
    for round in 0..ROUNDS {
        let place = tempfile::tempdir().unwrap();
        let (mut child, mut lines) = start("open", place.path());
        assert!(lines.any(|line| line == "begin"));
        // Anywhere within what a start takes on this machine now, and in every tenth round just
        // behind its end.
        if round % 10 == 9 {
            assert!(lines.any(|line| line == "end"));
        } else {
            std::thread::sleep(whole.mul_f64((round * 37 % 100) as f64 / 100.0));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        made += u32::from(place.path().join("store.redb").exists());
        let store = open(place.path()).await;
        assert_eq!((store.store_id().len(), store.list(prefix::ALL).await.unwrap().0.len()), (32, 1));
    }
    assert!(made >= u32::try_from(ROUNDS / 10).unwrap(), "{made} starts came to an end");
}

fn ring(place: &Path, active: &str, older: &[&str]) -> Sealer {
    let path = |name: &str| place.join(format!("{name}.kek"));
    let older = older.iter().map(|name| path(name).display().to_string()).collect();
    Sealer::load(&SealConfig { older, ..SealConfig::file(path(active)) }).unwrap()
}

fn envelope(n: u32) -> Key {
    Key::Envelope("acme".parse().unwrap(), "openai".parse().unwrap(), n)
}

#[tokio::test]
async fn a_rotation_that_is_killed_again_and_again_loses_nothing() {
    let place = tempfile::tempdir().unwrap();
    for name in ["old", "new"] {
        Sealer::create_file(&place.path().join(format!("{name}.kek"))).unwrap();
    }
    let (old, both, new) =
        (ring(place.path(), "old", &[]), ring(place.path(), "new", &["old"]), ring(place.path(), "new", &[]));
    let (mut unfinished, mut finished, mut whole) = (0, 0, Duration::ZERO);
    for round in 0..ROUNDS / 2 {
        let store = open(place.path()).await;
        if round % 5 == 0 {
            for n in 0..CREDENTIALS {
                let id = envelope(n);
                let (record, secret) = (RecordId::of(&id, store.store_id()).unwrap(), Secret::new(vec![n as u8; 40]));
                let sealed = old.seal(&record, &secret).await.unwrap();
                let writes = vec![Write::Put(id, sealed), Write::Delete(Key::Rotation)];
                store.commit(Transaction { checks: vec![], writes }).await.unwrap();
            }
        }
        drop(store);
        let (mut child, mut lines) = start("rotate", place.path());
        assert!(lines.any(|line| line == "begin"));
        if round == 0 {
            let begun = Instant::now();
            assert!(child.wait().unwrap().success());
            whole = begun.elapsed();
        } else {
            // Anywhere in what one takes on this machine today, and a little beyond.
            std::thread::sleep(whole.mul_f64((round as f64 * 0.618).fract() * 1.25));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let store = open(place.path()).await;
        let mut under_old = 0;
        for n in 0..CREDENTIALS {
            let record = store.get(&envelope(n)).await.unwrap().unwrap();
            let id = envelope(n);
            let opened = both.open_now(&RecordId::of(&id, store.store_id()).unwrap(), &record.value).unwrap();
            assert!(opened.expose() == vec![n as u8; 40]);
            under_old += u32::from(new.open_now(&RecordId::of(&id, store.store_id()).unwrap(), &record.value).is_err());
        }
        let done = rotate::Progress::read(&*store).await.unwrap().is_some_and(|progress| progress.done);
        assert!(!done || under_old == 0, "done, with {under_old} under the old key");
        *(if under_old > 0 { &mut unfinished } else { &mut finished }) += 1;
    }
    assert!(
        unfinished > 0 && finished > 0,
        "{unfinished} unfinished, {finished} finished: the blows fell all on one side"
    );
}
