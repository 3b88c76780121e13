//! What must hold in every state: `distribution.md`'s safety, and its liveness as what the system
//! comes to once it is left in peace.

use crate::{
    protocol::{Action, Protocol},
    state::{Entry, State, Writing},
};

/// Something that is asked of a state.
pub(crate) struct Property {
    pub(crate) name: &'static str,
    pub(crate) holds: fn(&Protocol, &State) -> bool,
    /// Asked of one state in [`Bounds::peace`](crate::Bounds::peace).
    pub(crate) costly: bool,
}

const fn property(name: &'static str, holds: fn(&Protocol, &State) -> bool) -> Property {
    Property { name, holds, costly: false }
}

/// What must hold always.
pub(crate) const ALWAYS: [Property; 7] = [
    property("1, 5: what a node has applied, it obeys", obeys),
    property("2: what is enforced, nobody serves", enforced),
    property("3: a table is the store's at its revision", materialised),
    property("3: revisions at a node never go back", |_, state| !state.went_back),
    property("4: past its lease, a node serves nothing", leased),
    Property { costly: true, ..property("6, 8: left in peace, every node catches up and serves", heals) },
    property("7: enforced at the latest when the bound has passed", bounded),
];

/// What must come to pass somewhere, or the rest would be true of a system that does nothing.
pub(crate) const SOMETIMES: [Property; 2] =
    [property("every node serves", everybody_serves), property("enforced while leases from before run on", prompt)];

fn everybody_serves(p: &Protocol, state: &State) -> bool {
    p.nodes().all(|n| p.tokens().all(|t| p.serves(state, n, t)))
}

/// 1 and 5: an applied revocation (or replacement) concerns every request that begins after it, and
/// those in flight.
fn obeys(p: &Protocol, state: &State) -> bool {
    (0..p.bounds.nodes).all(|n| {
        let node = &state.nodes[n];
        let gone = state.revoked_at(node.applied);
        let serves = p.tokens().any(|t| gone & 1 << t != 0 && p.serves(state, n as u8, t));
        !serves && (gone & 1 == 0 || !node.request.is_in_flight())
    })
}

/// 2: after "enforced", no request with the token begins, and none is in flight.
fn enforced(p: &Protocol, state: &State) -> bool {
    (0..p.bounds.nodes).all(|n| {
        let begins = p.tokens().any(|t| state.said & 1 << t != 0 && p.serves(state, n as u8, t));
        let goes_on = state.said & 1 != 0 && state.nodes[n].request.is_in_flight();
        !begins && !goes_on
    })
}

fn materialised(p: &Protocol, state: &State) -> bool {
    let nodes = &state.nodes[..p.bounds.nodes];
    nodes.iter().all(|node| !node.loaded || node.revoked == state.revoked_at(node.applied))
}

fn leased(p: &Protocol, state: &State) -> bool {
    (0..p.bounds.nodes).all(|n| {
        let node = &state.nodes[n];
        let begins = p.tokens().any(|t| p.serves(state, n as u8, t));
        node.lease > 0 || (!begins && !node.request.is_in_flight())
    })
}

/// 7: whatever has failed.
fn bounded(p: &Protocol, state: &State) -> bool {
    p.tokens().all(|token| {
        let Some(revision) = state.revision_of(Entry::Revoked(token)) else { return true };
        let passed = state.ages[usize::from(revision) - 1] >= p.bounds.forever();
        let heard = |id: &usize| state.replicas[*id].head >= revision;
        !passed || (0..p.bounds.replicas).filter(heard).all(|id| p.says(state, id as u8, token))
    })
}

/// 6 and 8: from any state, when nothing more goes wrong, every node soon has applied everything
/// and serves, without waiting; and everything is enforced when the last old lease has ended.
fn heals(p: &Protocol, state: &State) -> bool {
    let mut state = *state;
    calm(p, &mut state);
    let mut serving =
        state.nodes[..p.bounds.nodes].iter().map(|node| node.applied == state.effective(state.len) && node.lease > 0);
    // Of two with one certificate each turns the other away.
    let current = if p.bounds.cloned { serving.any(|serves| serves) } else { serving.all(|serves| serves) };
    for _ in 0..p.bounds.forever() {
        p.step(&mut state, Action::Tick);
        calm(p, &mut state);
    }
    let gone = |token: &u8| state.revision_of(Entry::Revoked(*token)).is_some();
    current && p.tokens().filter(gone).all(|token| p.replicas().all(|id| p.says(&state, id, token)))
}

/// Everything that is due is done, once: watches, a stream each, changes, acknowledgements, who
/// answers for whom, barriers, grants, watermarks.
fn calm(p: &Protocol, state: &mut State) {
    let everything = |state: &mut State| {
        for r in p.replicas() {
            while state.replicas[usize::from(r)].head < state.len {
                p.step(state, Action::Watch(r));
            }
        }
    };
    for (r, n) in p.replicas().flat_map(|r| p.nodes().map(move |n| (r, n))) {
        if p.holder(state, r, n).writing[usize::from(n)] == Writing::Sent {
            p.step(state, Action::Answer(r, n));
        }
        p.step(state, Action::Release(r, n));
    }
    if !state.is_registered(1, state.len) {
        p.step(state, Action::Register);
    }
    everything(state);
    for n in p.nodes() {
        let node = |state: &State| state.nodes[usize::from(n)];
        let streams = |state: &State, other: u8| state.nodes[usize::from(other)].stream.is_some();
        match p.processes(p.name(n)).any(|other| streams(state, other)) {
            false => p.step(state, Action::Connect(n, 0)),
            true if streams(state, n) => {}
            true => continue, // the other one has its turn
        }
        if !node(state).loaded {
            p.step(state, Action::Snapshot(n, state.len));
        }
        while let Some(next) = state.effective_after(node(state).applied) {
            p.step(state, Action::Delta(n, node(state).applied, next));
        }
        for action in [Action::CutLate(n), Action::Ack(n), Action::Decide(n)] {
            p.step(state, action);
        }
        let stream = node(state).stream.unwrap_or_default();
        if p.holder(state, stream, n).writing[usize::from(n)] == Writing::Sent {
            p.step(state, Action::Answer(stream, n));
        }
    }
    everything(state);
    for n in p.nodes() {
        for action in [Action::Ack(n), Action::Grant(n, 0), Action::Take(n)] {
            p.step(state, action);
        }
    }
    p.replicas().for_each(|r| p.step(state, Action::Mark(r)));
}

/// Revocations take milliseconds when nothing is wrong: somebody could say so while a lease from
/// before was running.
fn prompt(p: &Protocol, state: &State) -> bool {
    p.tokens().any(|token| {
        let revision = state.revision_of(Entry::Revoked(token));
        let at_once = revision.is_some_and(|r| state.ages[usize::from(r) - 1] == 0);
        let leased = state.nodes[..p.bounds.nodes].iter().all(|node| node.lease > 0);
        at_once && leased && state.said & 1 << token != 0
    })
}
