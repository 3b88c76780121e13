//! What happens, drawn from a seed: a time of trouble, then peace, in which everything must come
//! right by itself.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use prost::Message as _;
use seks_control_plane::{
    registry::{
        RegistryError,
        record::{Agent, Credential},
    },
    store::{Key, Revision},
};
use serde::{Deserialize, Serialize};

use crate::{
    fixtures::{Fixtures, TOKENS, tenant},
    host::Hold,
    network::HostId,
    oracle::Exchange,
    random::Random,
    store::Defect,
    world::{Pending, STORE, TICK, World},
};

/// How long trouble lasts, in milliseconds.
const TROUBLE: std::ops::Range<usize> = 8_000..16_000;
/// How long peace may take to heal everything: the longest pauses between attempts, and a lease.
const PEACE: Duration = Duration::from_secs(40);

/// One simulation.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// What the store does that it must not.
    pub defect: Option<Defect>,
    /// Prints what happens.
    pub trace: bool,
}

/// What a simulation has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Of the plan.
    pub seed: u64,
    /// How long it was, in simulated time.
    pub time: Duration,
    /// What went wrong in it on purpose.
    pub faults: usize,
    /// Tokens whose revocation was enforced.
    pub enforced: usize,
    /// How often a node was looked at.
    pub looks: u64,
    /// How often a token was honoured then.
    pub accepted: u64,
    /// Of everything that arrived, and when: equal for equal runs.
    pub digest: u64,
    /// What must not be.
    pub broken: Vec<String>,
}

/// An operator's change: who was asked, and what came of it.
struct Change {
    replica: HostId,
    starts: u32,
    what: String,
    outcome: Pending<Outcome>,
}

#[derive(Clone, Debug)]
enum Outcome {
    /// The change was not made, or nobody knows.
    Failed,
    /// It was made.
    Waiting,
    Enforced,
    NotEnforced,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Cut(HostId, HostId),
    Crash(HostId),
    Hold(HostId),
    Outage,
    Stall(HostId),
    StaleMember(HostId),
}

struct Scenario {
    plan: Plan,
    random: Random,
    world: World,
    /// How many faults in ten seconds; some seeds are quiet.
    wildness: usize,
    repairs: Vec<(Duration, Fault)>,
    changes: Vec<Change>,
    faults: usize,
}

/// Runs one.
#[must_use]
pub fn run(plan: Plan) -> Report {
    let mut random = Random::new(plan.seed);
    let replicas = [1, 2, 2, 2, 3][random.below(5)];
    let nodes = random.within(2..5);
    let wildness = [0, 10, 25, 50][random.below(4)];
    // Where every lease has to last, messages take no great part of one.
    let quiet = wildness == 0;
    let lease = random.millis(if quiet { 3_000..3_500 } else { 2_000..3_500 });
    let clone = !quiet && (random.percent(30) || plan.defect == Some(Defect::ClonesUnnamed));
    let world = World::new(random.fork(), (replicas, nodes, clone), lease, quiet, plan.defect);
    let (repairs, changes) = (Vec::new(), Vec::new());
    let mut scenario = Scenario { plan, random, world, wildness, repairs, changes, faults: 0 };
    scenario.trouble();
    scenario.peace();
    scenario.report()
}

impl Scenario {
    fn say(&self, what: impl FnOnce() -> String) {
        if self.plan.trace {
            #[expect(clippy::print_stdout, reason = "a replay that was asked for")]
            {
                println!("{:>9.3?} step {:>5}: {}", self.world.now, self.world.oracle.step.load(SeqCst), what());
            }
        }
    }

    fn trouble(&mut self) {
        let until = self.random.millis(TROUBLE);
        if self.wildness == 0 {
            let settled = Duration::from_secs(5).as_millis() / TICK.as_millis();
            self.world.oracle.expect_calm(settled as u64);
        }
        if let Some(clone) = self.world.clone() {
            let at = self.random.millis(0..6_000);
            self.repairs.push((at, Fault::Crash(clone)));
        }
        while self.world.now < until {
            let per_tick = |per_ten_seconds: usize| per_ten_seconds as f64 * TICK.as_secs_f64() / 10.0;
            if self.random.fraction() < per_tick(self.wildness) {
                self.fault();
            }
            if self.random.fraction() < per_tick(12) {
                self.operate();
            }
            if self.random.fraction() < per_tick(30) {
                self.request();
            }
            self.step();
            if !self.world.oracle.broken().is_empty() {
                return;
            }
        }
    }

    fn step(&mut self) {
        let now = self.world.now;
        let due: Vec<Fault> = self.repairs.iter().filter(|(at, _)| *at <= now).map(|(_, fault)| *fault).collect();
        self.repairs.retain(|(at, _)| *at > now);
        due.into_iter().for_each(|fault| self.repair(fault));
        self.world.step();
    }

    fn fault(&mut self) {
        let hosts = self.world.machines.len();
        let any = 1 + self.random.below(hosts - 1);
        let replica = self.world.replicas[self.random.below(self.world.replicas.len())];
        let kinds = if self.plan.defect == Some(Defect::StaleReads) { 20 } else { 12 };
        let fault = match self.random.below(kinds) {
            0..=3 => {
                // The cluster's link to a node is none.
                let other = if self.random.percent(50) { replica } else { STORE };
                let one = if other == STORE { replica } else { any };
                let (from, to) = if self.random.percent(50) { (one, other) } else { (other, one) };
                if self.random.percent(60) {
                    self.world.network.cut(to, from);
                    let until = self.later();
                    self.repairs.push((until, Fault::Cut(to, from)));
                }
                self.world.network.cut(from, to);
                Fault::Cut(from, to)
            }
            4..=5 if self.world.machines[any].host.is_some() => {
                let power = self.random.percent(50);
                self.world.crash(any, power);
                Fault::Crash(any)
            }
            6..=7 => {
                let hold = if self.random.percent(60) { Hold::Stopped } else { Hold::Suspended };
                self.world.hold(any, Some(hold));
                Fault::Hold(any)
            }
            8 => {
                self.world.cluster.set_up(false);
                Fault::Outage
            }
            9 => {
                self.world.cluster.stall(replica);
                Fault::Stall(replica)
            }
            10 => {
                self.world.cluster.compact();
                return;
            }
            12.. => {
                self.world.cluster.cut_off(replica, true);
                self.world.cluster.stall(replica);
                Fault::StaleMember(replica)
            }
            _ => {
                let (a, b) = (self.random.below(hosts), any);
                self.world.rewire(a, b, false);
                return;
            }
        };
        self.faults += 1;
        let until = self.later();
        self.say(|| format!("{fault:?} until {until:.3?}"));
        self.repairs.push((until, fault));
    }

    /// Short troubles, and some that outlast a lease.
    fn later(&mut self) -> Duration {
        let range = if self.random.percent(70) { 20..1_500 } else { 1_500..7_000 };
        self.world.now + self.random.millis(range)
    }

    fn repair(&mut self, fault: Fault) {
        self.say(|| format!("over: {fault:?}"));
        match fault {
            Fault::Cut(from, to) => self.world.network.heal(from, to),
            Fault::Crash(host) if self.world.machines[host].host.is_none() => self.world.start(host),
            Fault::Crash(_) => {}
            Fault::Hold(host) => self.world.hold(host, None),
            Fault::Outage => self.world.cluster.set_up(true),
            Fault::Stall(host) => self.world.cluster.unstall(host),
            Fault::StaleMember(host) => {
                self.world.cluster.cut_off(host, false);
                self.world.cluster.unstall(host);
            }
        }
    }

    /// An operator changes something, at some replica.
    fn operate(&mut self) {
        let replica = self.world.replicas[self.random.below(self.world.replicas.len())];
        match self.random.below(8) {
            0 => self.change(replica, Some(2), "disable agent `doomed`"),
            1..=4 => {
                let token = self.random.below(TOKENS);
                self.change(replica, Some(token), "revoke");
            }
            _ if self.changes.len() % 3 == 1 => self.change(replica, None, "put a credential for some"),
            _ => self.change(replica, None, "put a credential"),
        }
    }

    fn change(&mut self, replica: HostId, token: Option<usize>, what: &'static str) {
        let Some((distribution, registry)) = self.world.serving(replica) else { return };
        let machine = &self.world.machines[replica];
        let Some(host) = &machine.host else { return };
        let outcome: Pending<Outcome> = Pending::default();
        let what_of = format!("{what} {token:?} at replica-{replica}");
        self.say(|| what_of.clone());
        let (oracle, told, tokens) = (self.world.oracle.clone(), outcome.clone(), &Fixtures::get().tokens);
        host.spawn(async move {
            let tell = |outcome| *told.lock() = Some(outcome);
            let done: Result<Revision, RegistryError> = match (what, token) {
                ("revoke", Some(at)) => registry.revoke_token(&tenant(), &tokens[at].id).await,
                (_, Some(at)) => registry.set_agent_disabled(&tenant(), &tokens[at].agent, true).await,
                (_, None) => {
                    let (name, by) = ("main".parse().unwrap(), "root".parse().unwrap());
                    let secret = seks_types::secret::Secret::new("not-a-real-key-either".into());
                    let service = crate::fixtures::service();
                    let put = match what {
                        "put a credential for some" => {
                            let pools = [crate::fixtures::EVEN.parse().unwrap()];
                            registry.put_credential(&tenant(), &name, &service, &secret, &pools, &by).await
                        }
                        _ => registry.put_credential(&tenant(), &name, &service, &secret, &[], &by).await,
                    };
                    put.map(|(_, revision)| revision)
                }
            };
            let revision = match done {
                Ok(revision) => revision,
                Err(_) => return tell(Outcome::Failed),
            };
            tell(Outcome::Waiting);
            let answer = distribution.await_enforced(revision, Duration::from_secs(300)).await;
            if !answer.enforced {
                return tell(Outcome::NotEnforced);
            }
            match (what, token) {
                ("revoke", Some(at)) => oracle.promise(at),
                (_, Some(agents)) => {
                    let same = |(_, token): &(usize, &crate::fixtures::Token)| token.agent == tokens[agents].agent;
                    tokens.iter().enumerate().filter(same).for_each(|(at, _)| oracle.promise(at));
                }
                _ => {}
            }
            tell(Outcome::Enforced);
        });
        self.changes.push(Change { replica, starts: machine.starts, what: what_of, outcome });
    }

    /// An agent calls some node.
    fn request(&mut self) {
        let nodes: Vec<HostId> = self.world.nodes.iter().copied().chain(self.world.clone()).collect();
        let node = nodes[self.random.below(nodes.len())];
        let (at, answer) = (self.random.below(TOKENS), self.random.millis(10..6_000));
        let body = if self.random.percent(50) { self.random.millis(10..3_000) } else { Duration::ZERO };
        let plan = Exchange { body, answer, unread: self.random.percent(30) };
        let defect = self.plan.defect;
        let Some(watched) = self.world.watched(node) else { return };
        if let Some(host) = &self.world.machines[node].host {
            host.spawn(watched.clone().request(at, Fixtures::get().tokens[at].clone(), plan, defect));
        }
    }

    /// Nothing goes wrong any more: every node must come back, hold what the store holds, and every
    /// operator get an answer.
    fn peace(&mut self) {
        self.say(|| "peace".into());
        self.world.network.heal_all();
        for fault in std::mem::take(&mut self.repairs) {
            self.repair(fault.1);
        }
        // Two with one certificate turn each other away for as long as both are there.
        if let Some(clone) = self.world.clone() {
            self.world.crash(clone, true);
        }
        let until = self.world.now + PEACE;
        let mut wrong = vec!["nothing was looked at".to_owned()];
        while self.world.now < until && !wrong.is_empty() && self.world.oracle.broken().is_empty() {
            for _ in 0..10 {
                self.step();
            }
            wrong = self.unsettled();
        }
        wrong.into_iter().for_each(|what| self.world.oracle.break_(format!("in peace: {what}")));
    }

    fn unsettled(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        let honoured = honoured(&self.world);
        for id in self.world.nodes.clone() {
            let Some(watched) = self.world.watched(id).cloned() else { continue };
            let Some(host) = &mut self.world.machines[id].host else { continue };
            let tokens = &Fixtures::get().tokens;
            let held: Vec<bool> =
                host.ask(|| tokens.iter().map(|token| watched.accepts(token, Duration::ZERO)).collect());
            let credential = host.ask(|| watched.credential());
            let due = credential_at(&self.world, id);
            if credential != due {
                wrong.push(format!("node-{id} holds version {credential:?} of the credential, not {due:?}"));
            }
            if held != honoured {
                wrong.push(format!("node-{id} honours {held:?}, the store {honoured:?}"));
            }
        }
        for change in &self.changes {
            let lives = self.world.machines[change.replica].starts == change.starts;
            let outcome = change.outcome.lock().clone();
            match outcome {
                Some(Outcome::Enforced | Outcome::Failed) => {}
                outcome if lives => wrong.push(format!("{}: {outcome:?}", change.what)),
                _ => {}
            }
        }
        wrong
    }

    fn report(self) -> Report {
        let oracle = &self.world.oracle;
        let (looks, accepted) = oracle.counts();
        Report {
            seed: self.plan.seed,
            time: self.world.now,
            faults: self.faults,
            enforced: oracle.enforced().len(),
            looks,
            accepted,
            digest: self.world.network.digest(),
            broken: oracle.broken(),
        }
    }
}

/// The version of the credential that a node should hold: while a token reaches it, and the node
/// may.
fn credential_at(world: &World, node: HostId) -> Option<u32> {
    let token = |token: &crate::fixtures::Token| Key::Token(tenant(), token.id.clone());
    let is_there = |key: &Key| world.cluster.read(|contents| contents.get(key)).is_some();
    Fixtures::get().tokens.iter().map(token).find(is_there)?;
    let key = Key::Credential(tenant(), "main".parse().unwrap());
    let record = world.cluster.read(|contents| contents.get(&key))?;
    let record = Credential::decode(record.value).ok()?;
    (record.pools.is_empty() || crate::fixtures::is_even(node)).then_some(record.version)
}

/// Which tokens are good, by what the store holds.
fn honoured(world: &World) -> Vec<bool> {
    let good = |token: &crate::fixtures::Token| {
        let agent = world.cluster.read(|contents| contents.get(&Key::Agent(tenant(), token.agent.clone())));
        let agent = agent.and_then(|record| Agent::decode(record.value).ok());
        let there = world.cluster.read(|contents| contents.get(&Key::Token(tenant(), token.id.clone()))).is_some();
        there && agent.is_some_and(|agent| !agent.disabled)
    };
    Fixtures::get().tokens.iter().map(good).collect()
}
