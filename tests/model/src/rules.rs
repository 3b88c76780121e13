//! The product's rules, on the model's clocks: ages in ticks and spans of local time become the
//! instants that they take. What they answer for every age that there is is asked once, before the
//! check.

use std::time::Duration;

use seks_lease::{
    BootInstant,
    rules::{self, NodeStatus, Position},
};

use crate::state::{Age, Bounds, Local, REPLICAS, Revision};

/// "Now" on every clock: far enough from its beginning for every age.
const NOW: u64 = 1_000_000;
/// More ages than there are.
const AGES: usize = 16;

fn now() -> BootInstant {
    BootInstant::from_nanos(NOW)
}

fn span(local: u64) -> Duration {
    Duration::from_nanos(local)
}

/// When something was, by a clock that counts `rate` a tick.
fn ago(age: Age, rate: u16) -> BootInstant {
    now().minus(span(u64::from(age) * u64::from(rate)))
}

fn local(span: Duration) -> Local {
    u16::try_from(span.as_nanos()).unwrap_or(u16::MAX)
}

/// One replica's view of time.
#[derive(Clone, Copy, Debug)]
struct View {
    ttl_left: [Local; AGES],
    granted_until: [BootInstant; AGES],
    bound: [BootInstant; AGES],
}

/// What the rules say.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    ttl: Duration,
    views: [View; REPLICAS],
    /// What a lease is worth to who asks now: by the age of the barrier and whose it was.
    lease: [[Local; AGES]; REPLICAS],
}

impl Rules {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let ttl = span(u64::from(bounds.ttl) * 100);
        let never = BootInstant::from_nanos(0);
        let ages = || 0..bounds.forever();
        let view = |clock: u16| {
            // From "forever" on nothing is left of anything.
            let mut view = View { ttl_left: [0; AGES], granted_until: [never; AGES], bound: [never; AGES] };
            for age in ages() {
                let at = usize::from(age);
                view.ttl_left[at] = local(rules::remaining_ttl(ago(age, clock), now(), ttl));
                view.granted_until[at] = rules::grant_expiry(ago(age, clock), ttl);
                view.bound[at] = rules::all_leases_end(ago(age, clock), ttl);
            }
            view
        };
        let views = bounds.replica_clocks.map(view);
        let lease = views.map(|view| {
            view.ttl_left.map(|left| local(rules::lease_expiry(now(), span(left.into()), ttl).since(now())))
        });
        Self { ttl, views, lease }
    }

    /// What `replica` grants that has a barrier of this age.
    pub(crate) fn ttl_left(&self, replica: u8, barrier: Age) -> Local {
        self.views[usize::from(replica)].ttl_left[usize::from(barrier)]
    }

    /// Whether a replica may grant, the node being recorded at that revision.
    pub(crate) fn may_grant(&self, recorded: Option<Revision>, barrier: Revision) -> bool {
        rules::may_grant(recorded.map(u64::from), self.ttl, self.ttl, barrier.into())
    }

    /// How much longer a node may serve that asks now and is granted what a barrier of that age
    /// leaves at `replica`.
    pub(crate) fn lease(&self, replica: u8, barrier: Age) -> Local {
        self.lease[usize::from(replica)][usize::from(barrier)]
    }

    /// Whether `replica` waits for somebody no longer, whose last lease is rooted in a barrier of
    /// age `granted` (`None`: unknown), for the change at `revision` of age `committed`.
    pub(crate) fn is_done(
        &self,
        replica: u8,
        acked: Revision,
        revision: Revision,
        granted: Option<Age>,
        committed: Age,
    ) -> bool {
        let view = &self.views[usize::from(replica)];
        let ends = granted.map(|age| view.granted_until[usize::from(age)]);
        let bound = view.bound[usize::from(committed)];
        rules::node_status(acked.into(), revision.into(), ends, bound, now()) != NodeStatus::Outstanding
    }

    /// Whether no lease is left, by `replica`'s clock, of those that it answers for, the last of
    /// which is rooted in a barrier of age `granted`.
    pub(crate) fn is_over(&self, replica: u8, granted: Age) -> bool {
        self.views[usize::from(replica)].granted_until[usize::from(granted)] <= now()
    }

    /// Whether every lease has ended, by `replica`'s clock, that is rooted before a change of age
    /// `committed`.
    pub(crate) fn is_settled(&self, replica: u8, committed: Age) -> bool {
        self.views[usize::from(replica)].bound[usize::from(committed)] <= now()
    }

    /// What a replica writes of itself.
    pub(crate) fn watermark(
        &self,
        replica: u8,
        holders: impl Iterator<Item = (Revision, Age)>,
        head: Revision,
        effective: Revision,
    ) -> Revision {
        let view = &self.views[usize::from(replica)];
        let holders = holders.map(|(acked, age)| (u64::from(acked), view.granted_until[usize::from(age)]));
        let mark = rules::watermark(holders, head.into(), effective.into(), now());
        u8::try_from(mark).unwrap_or(u8::MAX)
    }
}

fn position(revision: Revision) -> Position<'static> {
    Position { epoch: "model", revision: revision.into() }
}

/// Whether a node takes a grant.
pub(crate) fn may_accept_grant(applied: Revision, granted: Revision) -> bool {
    rules::may_accept_grant(position(applied), position(granted))
}

/// Whether a change from `previous` to `revision` leads on.
pub(crate) fn is_continuous(applied: Revision, previous: Revision, revision: Revision) -> bool {
    rules::check_continuity(position(applied), "model", previous.into(), revision.into()).is_ok()
}
