//! The rules of limits under partitions, crashes, lost messages and clocks that differ, from seeds.
//!
//! `SEKS_SIM_SEEDS` sets how many seeds are run (default 200). A failure names its seed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::collections::{BTreeMap, VecDeque};

use seks_limits::{Cut, Grant, Reserved, Share, Slice, Take, Window, WindowRecord};

const SEEDS: u64 = 200;
const TICK_MS: u64 = 10;
const WINDOWS: u64 = 8;
const WINDOW_MS: u64 = 1000;
/// True time begins here, so that clocks that are behind have a past.
const BEGIN: u64 = 1_000_000;
/// How often a node that was refused may ask again, at least.
const AGAIN_MS: u64 = 200;

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy)]
enum Message {
    Question { node: usize, asked: u64, wanted: u64, stream: u64 },
    Answer { node: usize, asked: u64, grant: Grant, stream: u64 },
}

struct Node {
    slice: Slice,
    replica: usize,
    /// Of the present connection; messages of earlier ones are lost.
    stream: u64,
    /// Its clock began at some other time.
    clock_ahead: u64,
    demand: u64,
    /// Answers that have not ended.
    answers: Vec<AnswerInProgress>,
}

/// A request whose usage is known when its answer ends.
#[derive(Clone, Copy)]
struct AnswerInProgress {
    ends: u64,
    reserved: Reserved,
    used: u64,
}

/// What a request takes, and what it uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Demand {
    /// One, known before it is sent.
    Requests,
    /// Some is reserved, and up to three times as much is used.
    Usage,
}

#[derive(Default)]
struct Replica {
    share: Share,
    /// How far its wall clock is ahead, with `drift` subtracted.
    ahead: u64,
    waiting: VecDeque<Waiting>,
    /// A compare-and-set on its way: what was read, at which version, and when it arrives.
    write: Option<(WindowRecord, u64, u64)>,
    partitioned_until: u64,
}

/// A question at a replica.
#[derive(Clone, Copy)]
struct Waiting {
    node: usize,
    asked: u64,
    wanted: u64,
    stream: u64,
}

struct World {
    random: Random,
    quantity: Demand,
    /// What requests used beyond their reservation, by the true time of their reservation.
    beyond: BTreeMap<u64, u64>,
    now: u64,
    limit: u64,
    window: Window,
    drift: u64,
    record: WindowRecord,
    version: u64,
    nodes: Vec<Node>,
    replicas: Vec<Replica>,
    messages: Vec<(u64, usize, Message)>,
    /// Requests that were served, by true time.
    served: BTreeMap<u64, u64>,
    streams: u64,
}

impl World {
    fn new(seed: u64, quantity: Demand) -> Self {
        let mut random = Random(seed);
        let (replicas, nodes) = (1 + random.below(3) as usize, 1 + random.below(6) as usize);
        let drift = [0, 0, 50, 200][random.below(4) as usize];
        let limit = [1, 3, 10, 100, 5000][random.below(5) as usize];
        let replica = |random: &mut Random| Replica { ahead: random.below(2 * drift + 1), ..Replica::default() };
        let replicas: Vec<_> = (0..replicas).map(|_| replica(&mut random)).collect();
        let node = |random: &mut Random, at: usize| Node {
            slice: Slice::default(),
            replica: random.below(replicas.len() as u64) as usize,
            stream: at as u64,
            clock_ahead: random.below(1 << 30),
            demand: random.below(1 + 3 * limit / 10),
            answers: Vec::new(),
        };
        let nodes: Vec<_> = (0..nodes).map(|at| node(&mut random, at)).collect();
        let streams = nodes.len() as u64;
        Self {
            random,
            quantity,
            beyond: BTreeMap::new(),
            now: BEGIN,
            limit,
            window: Window::Second,
            drift,
            record: WindowRecord::default(),
            version: 0,
            nodes,
            replicas,
            messages: Vec::new(),
            served: BTreeMap::new(),
            streams,
        }
    }

    fn wall(&self, replica: usize) -> u64 {
        self.now + self.replicas[replica].ahead - self.drift
    }

    fn send(&mut self, replica: usize, message: Message) {
        let delay = 1 + self.random.below(120);
        // Both directions of a partitioned replica's streams are lost.
        if self.now >= self.replicas[replica].partitioned_until && !self.random.chance(2) {
            self.messages.push((self.now + delay, replica, message));
        }
    }

    fn requests(&mut self, node: usize) {
        let wanted = self.random.below(self.nodes[node].demand + 2);
        for _ in 0..wanted {
            let own = self.now + self.nodes[node].clock_ahead;
            let (amount, used) = match self.quantity {
                Demand::Requests => (1, 1),
                Demand::Usage => {
                    let amount = 1 + self.random.below(self.limit.div_ceil(8));
                    (amount, self.random.below(3 * amount))
                }
            };
            let ask = match self.nodes[node].slice.take(own, amount) {
                Take::Taken { ask, reserved } => {
                    *self.served.entry(self.now).or_default() += used;
                    *self.beyond.entry(self.now).or_default() += used.saturating_sub(amount);
                    if self.quantity == Demand::Usage {
                        let ends = self.now + self.random.below(600);
                        self.nodes[node].answers.push(AnswerInProgress { ends, reserved, used });
                    }
                    ask
                }
                Take::Wait { ask } => ask,
                Take::Spent { .. } => return,
            };
            if let Some(wanted) = ask {
                let Node { replica, stream, .. } = self.nodes[node];
                self.send(replica, Message::Question { node, asked: own, wanted, stream });
            }
        }
    }

    /// Settles the answers of a node that have ended.
    fn settle(&mut self, node: usize) {
        let now = self.now;
        let Node { slice, answers, clock_ahead, .. } = &mut self.nodes[node];
        answers.retain(|answer| {
            let goes_on = now < answer.ends;
            if !goes_on {
                slice.settle(now + *clock_ahead, answer.reserved, answer.used);
            }
            goes_on
        });
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) = self.messages.drain(..).partition(|(at, ..)| *at <= now);
        self.messages = later;
        for (_, replica, message) in due {
            match message {
                Message::Question { node, asked, wanted, stream } => {
                    self.replicas[replica].waiting.push_back(Waiting { node, asked, wanted, stream });
                }
                Message::Answer { node, asked, grant, stream } if self.nodes[node].stream == stream => {
                    let own = now + self.nodes[node].clock_ahead;
                    self.nodes[node].slice.granted(own, asked, grant);
                }
                Message::Answer { .. } => {}
            }
        }
    }

    /// A replica takes its steps one at a time, as `limit_shares.rs` does.
    fn replica(&mut self, at: usize) {
        let wall = self.wall(at);
        if let Some((record, version, arrives)) = self.replicas[at].write {
            if self.now < arrives {
                return;
            }
            self.replicas[at].write = None;
            let mut next = record;
            let span = record.span(self.window, wall);
            let wanted = self.replicas[at].waiting.front().map_or(1, |waiting| self.wanted(waiting));
            let step = next.take(self.limit, span, wanted);
            if step > 0 && version == self.version {
                (self.record, self.version) = (next, version + 1);
                // The answer of the store may be lost: then the step is, too.
                if !self.random.chance(3) {
                    self.replicas[at].share.add(span, step);
                }
            }
            // A node is told at once where the whole record was taken.
            let is_current = step == 0 || version == self.version - 1;
            if is_current && next.taken == self.limit && self.replicas[at].share.left(wall) < wanted {
                // Never stuck: a node is refused only when everything was taken.
                assert_eq!((next.taken, next.start), (self.limit, span.start), "refused while something was left");
                if let Some(waiting) = self.replicas[at].waiting.pop_front() {
                    let ends_in = span.end.saturating_sub(wall);
                    self.answer(at, waiting, Grant { ends_in, again_in: ends_in.min(AGAIN_MS), ..Grant::default() });
                }
            }
        }
        while let Some(waiting) = self.replicas[at].waiting.front().copied() {
            let wanted = self.wanted(&waiting);
            match self.replicas[at].share.cut(wall, waiting.node as u64, wanted) {
                Cut::Slice { amount, start, end } => {
                    self.replicas[at].waiting.pop_front();
                    self.answer(at, waiting, Grant { amount, window: start, ends_in: end - wall, ..Grant::default() });
                }
                Cut::NeedsStep => {
                    let arrives = self.now + 1 + self.random.below(60);
                    self.replicas[at].write = Some((self.record, self.version, arrives));
                    return;
                }
            }
        }
    }

    /// As `limit_shares.rs` reads a question.
    fn wanted(&self, waiting: &Waiting) -> u64 {
        waiting.wanted.clamp(1, self.limit)
    }

    fn answer(&mut self, replica: usize, Waiting { node, asked, wanted, stream }: Waiting, grant: Grant) {
        self.send(replica, Message::Answer { node, asked, grant: Grant { wanted, ..grant }, stream });
    }

    fn faults(&mut self) {
        if self.random.chance(1) {
            // A node restarts: what it held is lost.
            let node = self.random.below(self.nodes.len() as u64) as usize;
            self.nodes[node].slice = Slice::default();
            self.nodes[node].answers.clear();
            self.reconnect(node);
        }
        if self.random.chance(1) {
            // A replica restarts: its share is lost, and its nodes move.
            let at = self.random.below(self.replicas.len() as u64) as usize;
            self.replicas[at] = Replica { ahead: self.replicas[at].ahead, ..Replica::default() };
            (0..self.nodes.len())
                .filter(|node| self.nodes[*node].replica == at)
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|node| self.reconnect(node));
        }
        if self.random.chance(1) {
            let at = self.random.below(self.replicas.len() as u64) as usize;
            self.replicas[at].partitioned_until = self.now + self.random.below(800);
        }
    }

    fn reconnect(&mut self, node: usize) {
        self.streams += 1;
        self.nodes[node].stream = self.streams;
        self.nodes[node].replica = self.random.below(self.replicas.len() as u64) as usize;
        self.nodes[node].slice.forget_question();
    }

    fn run(&mut self) {
        while self.now < BEGIN + WINDOWS * WINDOW_MS {
            self.faults();
            self.deliver();
            (0..self.replicas.len()).for_each(|at| self.replica(at));
            (0..self.nodes.len()).for_each(|node| self.settle(node));
            (0..self.nodes.len()).for_each(|node| self.requests(node));
            self.now += TICK_MS;
        }
    }

    /// No window serves more than the limit, and what its requests used beyond their reservations.
    /// Clocks differ by `drift` at most: what is that close to a window's edge may belong to its
    /// neighbour.
    fn check(&self) {
        for window in 0..WINDOWS {
            let start = BEGIN + window * WINDOW_MS;
            let inner = start + self.drift..start + WINDOW_MS - self.drift;
            let served: u64 = self.served.range(inner.clone()).map(|(_, count)| count).sum();
            let most = self.limit + self.beyond.range(inner).map(|(_, count)| count).sum::<u64>();
            assert!(served <= most, "{served} served in window {window}, {most} is the most");
        }
        let all: u64 = self.served.values().sum();
        let beyond: u64 = self.beyond.values().sum();
        // Who is behind begins in the window before the first, and who is ahead ends in one more.
        let most = self.limit * (WINDOWS + 2 * u64::from(self.drift > 0)) + beyond;
        assert!(all <= most, "{all} served in all, {most} is the most");
    }
}

#[test]
fn no_window_serves_more_than_its_limit_and_none_is_stuck() {
    run_seeds(Demand::Requests);
}

#[test]
fn a_budget_is_over_by_no_more_than_what_answers_used_beyond_their_reservations() {
    run_seeds(Demand::Usage);
}

/// Without lost messages and crashes a debt is paid: the next windows serve less.
#[test]
fn what_was_used_beyond_a_reservation_is_paid() {
    let mut world = World::new(7, Demand::Usage);
    (world.limit, world.drift, world.window) = (5000, 0, Window::Second);
    world.replicas = vec![Replica::default()];
    world.nodes.truncate(1);
    (world.nodes[0].replica, world.nodes[0].demand) = (0, 20);
    while world.now < BEGIN + WINDOWS * WINDOW_MS {
        world.deliver();
        world.replica(0);
        world.settle(0);
        world.requests(0);
        world.now += TICK_MS;
    }
    let (used, limit) = (world.served.values().sum::<u64>(), world.limit * WINDOWS);
    // A request uses 1.5 times its reservation in the mean: without a debt it would be that much.
    assert!(used * 5 > limit && used * 5 < limit * 6, "{used} of {limit}");
}

fn run_seeds(quantity: Demand) {
    let seeds = std::env::var("SEKS_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let mut served = 0;
    for seed in 0..seeds {
        let caught = std::panic::catch_unwind(|| {
            let mut world = World::new(seed, quantity);
            world.run();
            world.check();
            world.served.values().sum::<u64>()
        });
        served += caught.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(served > seeds, "the simulation serves nothing");
}

/// Without faults all of a window's budget can be spent, but for what other replicas and nodes
/// hold.
#[test]
fn a_busy_fleet_spends_what_is_left() {
    for limit in [1, 10, 100, 5000] {
        let mut world = World::new(limit, Demand::Requests);
        world.limit = limit;
        (world.window, world.drift) = (Window::Minute, 0);
        world.replicas = vec![Replica::default(), Replica::default()];
        for (at, node) in world.nodes.iter_mut().enumerate() {
            (node.replica, node.demand) = (at % 2, limit);
        }
        while world.now < Window::Minute.span(BEGIN).end {
            world.deliver();
            (0..2).for_each(|at| world.replica(at));
            (0..world.nodes.len()).for_each(|node| world.requests(node));
            world.now += TICK_MS;
        }
        let served: u64 = world.served.values().sum();
        assert!(served <= limit && served * 100 >= limit * 60, "{served} of {limit}");
    }
}
