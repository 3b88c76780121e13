//! The driver: starts every part, measures the contestants in turns, prints the table.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{
    contestants::{self, Contestant, Part, Upstream, load_command},
    load::Measured,
    report,
};

/// What to compare, and how long.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The `seks` binary under test
    #[arg(long)]
    pub seks: PathBuf,
    /// Another `seks`, such as one of before a change: measured in the same rounds
    #[arg(long)]
    pub before: Option<PathBuf>,
    /// Measures SEKS with `[audit] mode = "required"` in the same rounds, too
    #[arg(long)]
    pub required: bool,
    /// Where the contestants keep their files. A sync costs nothing in memory: name a directory of
    /// a disk to measure audit modes [default: in memory]
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// nginx; without it only the upstream itself is compared with
    #[arg(long)]
    pub nginx: Option<PathBuf>,
    /// Tokens that the proxies know
    #[arg(long, default_value_t = 10_000)]
    pub tokens: usize,
    /// Connections
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Bytes of an answer
    #[arg(long, default_value_t = 1024)]
    pub size: usize,
    /// The upstream serves TLS, which the proxies verify
    #[arg(long)]
    pub tls: bool,
    /// Answers are streams of as many server-sent events; figures are those of an event
    #[arg(long, default_value_t = 0)]
    pub events: usize,
    /// Appends the result to this file, as one line of JSON
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Rounds: every contestant once a round
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// Seconds a contestant and round
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// Rounds in which other processes used more of a core than this are left out
    #[arg(long, default_value_t = 0.1)]
    pub noise: f64,
}

/// One contestant's rounds.
pub struct Results {
    /// Its name.
    pub name: &'static str,
    /// One measurement a round, noisy ones included.
    pub rounds: Vec<Measured>,
    /// System calls a request, when `strace` could count them.
    pub syscalls: Option<f64>,
    /// Syncs of the audit spool a request, of all rounds; of SEKS with a spool.
    pub syncs: Option<f64>,
}

struct Contest {
    args: Args,
    tokens: PathBuf,
    helpers: Vec<Part>,
    contestants: Vec<Contestant>,
    directory: tempfile::TempDir,
}

/// Runs the comparison.
pub fn run(args: &Args) {
    let contest = Contest::start(args.clone());
    let mut results: Vec<Results> = contest
        .contestants
        .iter()
        .map(|c| Results { name: c.name, rounds: Vec::new(), syscalls: None, syncs: None })
        .collect();
    let before: Vec<_> = contest.contestants.iter().map(Contestant::audit_counts).collect();
    for round in 1..=args.rounds {
        for (contestant, result) in contest.contestants.iter().zip(&mut results) {
            let measured = contest.load(contestant, args.seconds, 1.0, &[]);
            eprintln!(
                "round {round} {:24} {:6.2} µs CPU {:7.0} req/s p50 {} p99 {} µs, noise {:.2}",
                contestant.name, measured.cpu_us, measured.rate, measured.p50, measured.p99, measured.noise
            );
            result.rounds.push(measured);
        }
    }
    for ((contestant, result), before) in contest.contestants.iter().zip(&mut results).zip(before) {
        let counts = before.zip(contestant.audit_counts());
        result.syncs =
            counts.map(|(before, now)| (now.syncs - before.syncs) / (now.requests - before.requests).max(1.0));
        result.syscalls = contest.syscalls(contestant);
    }
    println!("{}", report::table(args, &results));
    if let Some(file) = &args.json {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        writeln!(file, "{}", report::json(args, &results)).unwrap();
    }
}

impl Contest {
    fn start(args: Args) -> Self {
        // In memory where there is one: issuing 10,000 tokens is 10,000 durable commits, and not
        // what is measured.
        let place = PathBuf::from("/dev/shm");
        let place = if place.is_dir() { place } else { std::env::temp_dir() };
        let place = args.directory.clone().unwrap_or(place);
        let directory = tempfile::tempdir_in(place).unwrap();
        let path = directory.path();
        let root = args.tls.then(|| path.join("upstream-root.pem"));
        let (size, events) = (args.size.to_string(), args.events.to_string());
        let mut stub = vec!["stub", "--size", &size, "--events", &events];
        stub.extend(root.as_ref().and_then(|root| root.to_str()).into_iter().flat_map(|root| ["--tls-root", root]));
        let stub = contestants::own(&stub);
        let upstream = Upstream { address: stub.address, streams: args.events > 0, root };
        let collector = contestants::own(&["collector"]);
        let start = |name, program: &PathBuf, config| {
            let program = program.canonicalize().unwrap();
            contestants::seks(name, path, &program, &upstream, collector.address, args.tokens, config)
        };
        let (seks, tokens) = start("seks", &args.seks, "");
        // The load generator speaks no TLS.
        let mut all = if args.tls { Vec::new() } else { vec![contestants::direct(stub.address)] };
        if let Some(nginx) = &args.nginx {
            all.push(contestants::nginx(path, nginx, &upstream, &tokens, false));
            all.push(contestants::nginx(path, nginx, &upstream, &tokens, true));
        }
        all.extend(args.before.as_ref().map(|program| start("seks, before", program, "").0));
        all.push(seks);
        if args.required {
            all.push(start("seks, required", &args.seks, "[audit]\nmode = \"required\"\n").0);
        }
        let file = path.join("tokens");
        fs::write(&file, tokens.join("\n")).unwrap();
        Self { args, tokens: file, helpers: vec![stub, collector], contestants: all, directory }
    }

    /// One run of the load generator.
    fn load(&self, contestant: &Contestant, seconds: f64, warm_up: f64, more: &[&str]) -> Measured {
        let list = |pids: Vec<u32>| pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let tested = contestant.part.as_ref().map(Part::pids).unwrap_or_default();
        let others = self.helpers.iter().chain(self.contestants.iter().filter_map(|c| c.part.as_ref()));
        let ours = others.flat_map(Part::pids).filter(|pid| !tested.contains(pid)).collect();
        let mut command = load_command();
        command.arg("--target").arg(contestant.address.to_string()).args(["--path", contestant.path]);
        command
            .arg("--tokens")
            .arg(contestant.tokens.as_ref().unwrap_or(&self.tokens))
            .args(["--connections", &self.args.connections.to_string()]);
        command.args(["--size", &self.args.size.to_string(), "--seconds", &seconds.to_string()]);
        command.args(["--events", &self.args.events.to_string()]);
        command.args(["--warm-up", &warm_up.to_string(), "--ours", &list(ours)]).args(more);
        if !tested.is_empty() {
            command.args(["--pids", &list(tested)]);
        }
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        let measured: Measured = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
            let log = fs::read_to_string(self.directory.path().join("seks/seks.log")).unwrap_or_default();
            panic!("{}: the load generator ended with {}: {e}; seks said: {log}", contestant.name, output.status)
        });
        assert_eq!(measured.wrong, 0, "{}: wrong answers", contestant.name);
        measured
    }

    /// System calls a request, counted by `strace` over a run of its own: tracing slows everything,
    /// so nothing else is read from it.
    fn syscalls(&self, contestant: &Contestant) -> Option<f64> {
        let part = contestant.part.as_ref()?;
        let counts = self.directory.path().join("strace");
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-q", "-o"]).arg(&counts);
        part.pids().iter().for_each(|pid| {
            command.args(["-p", &pid.to_string()]);
        });
        let mut strace = command.stderr(Stdio::null()).spawn().ok()?;
        std::thread::sleep(std::time::Duration::from_millis(500)); // strace says nothing when it has attached
        let measured = self.load(contestant, 3.0, 0.0, &[]);
        drop(Command::new("kill").args(["-INT", &strace.id().to_string()]).status());
        drop(strace.wait());
        let text = fs::read_to_string(counts).ok()?;
        let total = text.lines().find(|line| line.trim_end().ends_with("total"))?;
        let calls: f64 = total.split_whitespace().nth(3)?.parse().ok()?;
        Some(calls / measured.requests.max(1) as f64)
    }
}
