//! What a trail costs: bytes a record, records a second and core, and how long searches take.
//!
//! `cargo run -p seks-audit --release --example trail_cost -- 10000000`. The records are those of
//! 30 days of 300 agents.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::indexing_slicing, reason = "a measurement")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use seks_audit::{
    chain::{ChainId, Head},
    disk::Directory,
    frame::{self, SegmentHeader},
    record::{Decision, Kind, RecordWriter, field},
    seal::AuditKeyPair,
    spool::unix_micros,
    trail::{Query, Test, Trail, TrailOptions},
};

const DAYS: u64 = 30;
const AGENTS: u64 = 300;
/// Records in a frame, as a node under load writes them.
const GROUP: u64 = 64;

/// A generator of numbers that repeats from run to run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn main() {
    let records: u64 = std::env::args().nth(1).map_or(1_000_000, |text| text.parse().unwrap());
    let directory = std::env::temp_dir().join(format!("seks-trail-cost-{}", std::process::id()));
    let key = AuditKeyPair::generate().unwrap();
    let disk = Arc::new(Directory::open(&directory).unwrap());
    let trail = Trail::open(disk, key, TrailOptions::default()).unwrap();
    let began = unix_micros() - DAYS * 24 * 3600 * 1_000_000;
    ingest(&trail, records, began);
    search(&trail, began);
    let (cpu, start) = (cpu(), Instant::now());
    let verified = trail.verify(&[], unix_micros()).unwrap();
    let per_record = (self::cpu() - cpu).as_nanos() as f64 / verified.records as f64;
    println!(
        "verify: {} records, {} findings, {:?}, {per_record:.0} ns CPU a record",
        verified.records,
        verified.findings.len(),
        start.elapsed()
    );
    std::fs::remove_dir_all(&directory).unwrap();
}

fn ingest(trail: &Trail, records: u64, began: u64) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let chain = ChainId::generate().unwrap();
    let node: Arc<str> = "edge-eu-1".into();
    let (header, file_key) = SegmentHeader::create(&trail.public_key(), chain, 1, began, None).unwrap();
    let segment = Arc::new(trail.open_segment(&header.encode()).unwrap());
    let (mut head, mut time, mut made) = (Head::genesis(chain), began, 0);
    let step = DAYS * 24 * 3600 * 1_000_000 / records;
    let (mut used, mut raw) = (Duration::ZERO, 0);
    while made < records {
        let mut frames = Vec::new();
        for _ in 0..64 {
            let mut bytes = Vec::new();
            for _ in 0..GROUP {
                time += step / 2 + random.below(step.max(1));
                let record = record(&mut random, made, time);
                raw += record.as_bytes().len();
                put(&mut bytes, record.as_bytes());
                made += 1;
            }
            let mut sealed = Vec::new();
            head = frame::write_frame(&mut sealed, &file_key, &head, GROUP as u32, time, &bytes).unwrap();
            frames.push(bytes::Bytes::from(sealed));
        }
        let before = cpu();
        let arrivals: Vec<_> =
            frames.into_iter().map(|frame| Trail::open_frame(&node, &segment, frame).unwrap()).collect();
        assert!(trail.ingest(&arrivals).iter().all(Result::is_ok));
        used += cpu() - before;
    }
    let size = trail.size();
    println!(
        "ingest: {made} records of {:.0} bytes, {:.0} records a second and core, {:.1} bytes a record on disk, {} blocks",
        raw as f64 / made as f64,
        made as f64 / used.as_secs_f64(),
        size.bytes as f64 / made as f64,
        size.blocks
    );
}

fn search(trail: &Trail, began: u64) {
    let mut random = Random(7);
    let day = 24 * 3600 * 1_000_000;
    for (name, limit) in [("agent and day, first 100", 100), ("agent and day, all of up to 1,000", 1000)] {
        let mut times: Vec<(Duration, Duration)> = (0..200)
            .map(|_| {
                let since_us = began + random.below(DAYS - 1) * day;
                let agent = format!("agent-{}", random.below(AGENTS));
                let tests = vec![Test::Text(field::TENANT, "acme".into()), Test::Text(field::AGENT, agent)];
                let query = Query { tests, since_us, until_us: since_us + day, limit, ..Query::default() };
                let (start, cpu) = (Instant::now(), thread_cpu());
                trail.search(&query).unwrap();
                (start.elapsed(), thread_cpu() - cpu)
            })
            .collect();
        times.sort();
        let mut cpu: Vec<Duration> = times.iter().map(|(_, cpu)| *cpu).collect();
        cpu.sort();
        println!(
            "search by {name}: p50 {:?}, p99 {:?}; CPU p50 {:?}, p99 {:?}",
            times[100].0, times[198].0, cpu[100], cpu[198]
        );
    }
    let start = Instant::now();
    let tests = vec![Test::Text(field::TOKEN_ID, "tok-nobody".into())];
    trail.search(&Query { tests, patience: Duration::from_secs(600), ..Query::default() }).unwrap();
    println!("search for a token that was never used, everything: {:?}", start.elapsed());
}

fn record(random: &mut Random, number: u64, time: u64) -> RecordWriter {
    let mut writer = RecordWriter::with_capacity(448);
    let agent = (random.below(AGENTS) * random.below(AGENTS)) / AGENTS;
    let service = ["openai", "anthropic", "github", "slack", "stripe", "jira"][random.below(6) as usize];
    writer.number(field::BEGAN_US, time);
    writer.bytes(field::REQUEST_ID, &[0x51_4a_22_9c_u64.to_be_bytes(), number.to_be_bytes()].concat());
    writer.bytes(field::TRACE_ID, &[random.next().to_be_bytes(), random.next().to_be_bytes()].concat());
    writer.text(field::METHOD, if random.below(3) == 0 { "GET" } else { "POST" });
    let path = match random.below(4) {
        0 => format!("/api/{service}/v1/repos/acme/project-{}/issues/{}", random.below(40), random.below(9000)),
        1 => format!("/api/{service}/v1/messages"),
        _ => format!("/api/{service}/v1/chat/completions"),
    };
    writer.text(field::PATH, &path);
    writer.bytes(field::SOURCE, &[10, 0, (agent / 8) as u8, random.below(8) as u8]);
    writer.number(field::HTTP_VERSION, if random.below(4) == 0 { 20 } else { 11 });
    writer.number(field::TABLE_REVISION, 10_000 + number / 5000);
    writer.text(field::TENANT, "acme");
    writer.text(field::AGENT, &format!("agent-{agent}"));
    writer.text(field::TOKEN_ID, &format!("tok-{:016x}", agent.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    writer.text(field::SERVICE, service);
    writer.text(field::UPSTREAM, &format!("api.{service}.com"));
    let denied = random.below(20) == 0;
    if !denied {
        writer.text(field::CREDENTIAL, &format!("{service}-key"));
        writer.number(field::CREDENTIAL_VERSION, 3);
    }
    writer.text(field::POLICIES, "granted-services");
    writer.number(field::DECISION, if denied { Decision::Deny } else { Decision::Allow } as u64);
    writer.text(field::REASON, if denied { "policy_denied" } else { "" });
    writer.number(field::STATUS, if denied { 403 } else { 200 });
    if !denied {
        writer.number(field::UPSTREAM_STATUS, 200);
        writer.number(field::CONNECT_US, 80 + random.below(60));
        writer.number(field::FIRST_BYTE_US, 20_000 + random.below(900_000));
    }
    writer.number(field::REQUEST_BYTES, 200 + random.below(4000));
    writer.number(field::RESPONSE_BYTES, 300 + random.below(9000));
    writer.number(field::WHOLE_US, 30_000 + random.below(900_000));
    writer.number(field::KIND, Kind::Whole as u64);
    writer
}

fn put(out: &mut Vec<u8>, record: &[u8]) {
    let mut length = record.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(record);
}

/// CPU time of this thread. What else the machine does has less effect on it than on the clock.
fn thread_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// CPU time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
