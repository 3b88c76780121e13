//! A credential that was replaced is in the node's memory as long as requests that began with it,
//! and not for long after the last.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use memchr::memmem::Finder;
use seks_tests::{
    Sandbox, Upstream,
    raw::Connection,
    upstream::{
        Answer, Gate,
        answer::{Step, chunk},
    },
};

const OLD: &str = "sk-real-memory-key-0000-the-old-one-1";
const NEW: &str = "sk-real-memory-key-0000-the-new-one-2";
/// After the last request with it has ended.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// How often `needle` is in the writable memory of a process. `None`: it may not be read by this
/// user.
fn count(process: u32, needle: &[u8]) -> Option<usize> {
    let memory = File::open(format!("/proc/{process}/mem")).ok()?;
    let finder = Finder::new(needle);
    let mut found = 0;
    let maps = fs::read_to_string(format!("/proc/{process}/smaps")).ok()?;
    let mut range = "";
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (first, second) = (fields.next()?, fields.next()?);
        if second.starts_with("rw") {
            range = first;
        } else if first.contains('-') {
            range = "";
        }
        // What was never touched needn't be read.
        if first != "Rss:" || second == "0" || range.is_empty() {
            continue;
        }
        let (from, to) = range.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        // A page that was given back meanwhile can't be read.
        const PIECE: u64 = 1 << 20;
        let mut at = from;
        while at < to {
            let mut bytes = vec![0; (PIECE + needle.len() as u64).min(to - at) as usize];
            if let Ok(read) = memory.read_at(&mut bytes, at) {
                found += finder.find_iter(&bytes[..read]).count();
            }
            at += PIECE;
        }
    }
    Some(found)
}

#[test]
#[cfg_attr(not(has = "ptrace"), ignore = "needs ptrace")]
fn a_replaced_credential_is_gone_from_memory_soon_after_the_last_request_with_it() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::start(move |_| {
        let steps = vec![chunk(b"data: 1\n\n"), Step::Hold(held.clone())];
        Answer::chunked(200, &[("Content-Type", "text/event-stream")], steps, &[])
    });
    let mut sandbox = Sandbox::start();
    let process = sandbox.process().id();
    sandbox.service("openai", &upstream, OLD);
    let token = sandbox.token("agent", &["openai"]).secret;
    let mut agent = Connection::open(sandbox.proxy());
    agent.send(format!(
        "GET /api/openai/v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    ));
    assert_eq!(agent.read_head().unwrap().0, 200);
    agent.read_chunk().unwrap();
    let put = sandbox.cli().put_credential("openai", "openai", NEW);
    assert_eq!(put["enforced"], true, "{put}");
    match count(process, OLD.as_bytes()) {
        None => panic!("needs CAP_SYS_PTRACE"),
        Some(found) => assert!(found > 0, "the answer is searched for it: this test could not fail"),
    }
    gate.open();
    while agent.read_chunk().is_some() {}
    drop(agent);
    let ended = Instant::now();
    loop {
        let looked = ended.elapsed(); // to look takes a while
        let found = count(process, OLD.as_bytes()).unwrap();
        if found == 0 {
            break println!("gone {looked:?} after the last request, or before the look was over");
        }
        assert!(looked < GONE_WITHIN, "it is there {found} times, {looked:?} after the last request");
        std::thread::sleep(Duration::from_millis(100));
    }
}
