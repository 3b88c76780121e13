//! What must be true at every moment, whatever happens.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use seks_data_plane::table::{Found, Reevaluate, ServiceEntry, Table, TokenEntry, Verdict};
use seks_lease::BootInstant;

use crate::{
    fixtures::{Token, service, tenant},
    store::Defect,
};

/// What was promised, and what was broken.
#[derive(Default)]
pub(crate) struct Oracle {
    /// The step of the simulation that is running.
    pub(crate) step: AtomicU64,
    promises: Mutex<Promises>,
}

#[derive(Default)]
struct Promises {
    /// Tokens that nobody may honour, since which step.
    enforced: BTreeMap<usize, u64>,
    broken: Vec<String>,
    /// From this step on every node has a lease: nothing goes wrong in this simulation.
    calm: Option<u64>,
    looks: u64,
    accepted: u64,
}

/// How a request goes.
pub(crate) struct Exchange {
    /// Until its body is there.
    pub(crate) body: Duration,
    /// Until its answer is complete.
    pub(crate) answer: Duration,
    /// Its agent reads nothing of the answer.
    pub(crate) unread: bool,
}

/// Whoever has a token may do everything: the simulation has no policies.
struct Always;

impl Reevaluate for Always {
    fn reevaluate(&self, _: &TokenEntry, _: &ServiceEntry) -> Verdict {
        Verdict::Holds
    }
}

/// One node's table, and the requests that are in flight there.
#[derive(Clone)]
pub(crate) struct Watched {
    pub(crate) name: String,
    pub(crate) table: Arc<Table>,
    in_flight: Arc<Vec<AtomicUsize>>,
    highest: Arc<AtomicU64>,
}

impl Watched {
    pub(crate) fn new(name: String, table: Arc<Table>, tokens: usize) -> Self {
        let in_flight = (0..tokens).map(|_| AtomicUsize::new(0)).collect();
        Self { name, table, in_flight: Arc::new(in_flight), highest: Arc::default() }
    }

    /// Whether a request with `token` would be sent upstream, on a clock that is still `behind`.
    pub(crate) fn accepts(&self, token: &Token, behind: Duration) -> bool {
        let leased = BootInstant::now().plus(behind) < self.table.lease().ends();
        let Found::Token(entry) = self.table.find(&token.digest) else { return false };
        let agent = self.table.agent(&tenant(), &token.agent);
        leased && !entry.is_cut() && agent.is_some_and(|agent| !agent.disabled)
    }

    /// The version of the credential that it holds.
    pub(crate) fn credential(&self) -> Option<u32> {
        self.table.credential(&tenant(), &"main".parse().unwrap()).map(|credential| credential.version)
    }

    /// Does a request as the proxy does: decided, then its body is waited for; registered for being
    /// cut, and decided again if a record has changed; then in flight until the answer is complete
    /// or it is cut. An agent reads its answer, or not until it is complete.
    pub(crate) async fn request(self, at: usize, token: Token, plan: Exchange, defect: Option<Defect>) {
        let Exchange { body, answer, unread } = plan;
        let Found::Token(mut entry) = self.table.find(&token.digest) else { return };
        let mut version = entry.tenant_state().version();
        tokio::time::sleep(body).await;
        let cut = loop {
            let Some(cut) = self.table.register(token.digest, &entry, &service()) else { return };
            let mut cut = cut.with_decision(version, Box::new(Always));
            if defect == Some(Defect::DecidesOnce) {
                break None;
            }
            if !cut.is_latest() {
                let Found::Token(found) = self.table.find(&token.digest) else { return };
                (version, entry) = (found.tenant_state().version(), found);
                continue;
            }
            match cut.reason() {
                Some(_) => return,
                None => break Some(cut).filter(|_| !unread || defect != Some(Defect::CutUnpolled)),
            }
        };
        self.in_flight[at].fetch_add(1, SeqCst);
        let cut = async {
            match cut {
                Some(cut) => drop(cut.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = cut => {}
            () = tokio::time::sleep(answer) => {}
        }
        self.in_flight[at].fetch_sub(1, SeqCst);
    }
}

impl Oracle {
    fn lock(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock()
    }

    /// A replica has said that nobody honours `token` any more.
    pub(crate) fn promise(&self, token: usize) {
        let step = self.step.load(SeqCst);
        self.lock().enforced.entry(token).or_insert(step);
    }

    /// From `step` on no lease may lapse.
    pub(crate) fn expect_calm(&self, step: u64) {
        self.lock().calm = Some(step);
    }

    pub(crate) fn break_(&self, what: String) {
        let mut promises = self.lock();
        if promises.broken.len() < 5 {
            promises.broken.push(what);
        }
    }

    /// Looks at a node. What was promised in this step holds from the next on: hosts run one after
    /// the other.
    pub(crate) fn look(&self, node: &Watched, tokens: &[Token], behind: Duration) {
        let step = self.step.load(SeqCst);
        let mut promises = self.lock();
        promises.looks += 1;
        let mut broken = Vec::new();
        let mut accepted = 0;
        for (at, token) in tokens.iter().enumerate() {
            let accepts = node.accepts(token, behind);
            let in_flight = node.in_flight[at].load(SeqCst);
            accepted += u64::from(accepts);
            let Some(since) = promises.enforced.get(&at).filter(|since| **since < step) else { continue };
            // What is in flight is cut when the host runs: not yet, if it only just goes on. Past
            // its lease nothing more is relayed, cut or not: the right is asked for before every
            // byte. A machine that was suspended finds its lease over when it wakes.
            if accepts || (in_flight > 0 && behind.is_zero() && node.table.lease().valid()) {
                let name = &node.name;
                broken.push(format!(
                    "step {step}: {name} honours token {at} (accepts: {accepts}, in flight: {in_flight}), enforced at step {since}; \
                     applied {}, lease left {:?}",
                    node.table.revision(),
                    node.table.lease().remaining()
                ));
            }
        }
        if promises.calm.is_some_and(|calm| calm < step) && !node.table.lease().valid() {
            broken.push(format!("step {step}: {} has lost its lease, and nothing was wrong", node.name));
        }
        let revision = node.table.revision();
        if revision < node.highest.fetch_max(revision, SeqCst) {
            broken.push(format!("step {step}: {} went back to revision {revision}", node.name));
        }
        promises.accepted += accepted;
        promises.broken.extend(broken.into_iter().take(2));
    }

    pub(crate) fn broken(&self) -> Vec<String> {
        self.lock().broken.clone()
    }

    pub(crate) fn enforced(&self) -> Vec<usize> {
        self.lock().enforced.keys().copied().collect()
    }

    /// How often somebody looked, and how often a token was honoured then.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let promises = self.lock();
        (promises.looks, promises.accepted)
    }
}
