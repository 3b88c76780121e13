//! The state of the whole system, small enough to have millions of.

/// Most of each that the arrays have room for; how many there are is in [`Bounds`].
pub(crate) const REPLICAS: usize = 2;
pub(crate) const NODES: usize = 2;
pub(crate) const TOKENS: usize = 2;
/// Longest history: every token revoked, a replica registered, every node in one replica's hands,
/// in another's after a few moves, one given back, and once more when it is left in peace.
pub(crate) const LOG: usize = TOKENS + 1 + NODES + 2 + 1 + NODES;

/// How long ago something was, in ticks; everything from [`Bounds::forever`] on is the same.
pub(crate) type Age = u8;
/// A time on some process's clock, or a span of it: a perfect clock counts a hundred a tick.
pub(crate) type Local = u16;
/// A place in the store's order: how many changes there were.
pub(crate) type Revision = u8;

/// The size of a system and what may happen to it.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Control-plane replicas.
    pub replicas: usize,
    /// Nodes.
    pub nodes: usize,
    /// Tokens, each of which is revoked at some time.
    pub tokens: usize,
    /// The lease's TTL, in ticks.
    pub ttl: u8,
    /// What the nodes' clocks count a tick; a hundred is perfect.
    pub node_clock: u16,
    /// What each replica's does.
    pub replica_clocks: [u16; REPLICAS],
    /// No replica answers for any node at the beginning, instead of the first for all.
    pub newcomers: bool,
    /// The second replica is not registered at the beginning.
    pub late: bool,
    /// How often a replica comes to answer for a node, at most; two at most.
    pub moves: u8,
    /// How often a replica gives back a node that is gone, at most; once at most.
    pub releases: u8,
    /// Requests for the first token are followed from their check to their end.
    pub requests: bool,
    /// Messages that come twice, late or never. Without, a change is delivered in order or not yet.
    pub stray: bool,
    /// Nodes that crash and start again, at most.
    pub node_crashes: u8,
    /// The two nodes are two processes with one certificate, as after a machine was cloned: one
    /// node to the control plane.
    pub cloned: bool,
    /// What the system comes to when it is left in peace is asked of one state in so many.
    pub peace: usize,
}

impl Bounds {
    /// A system without crashes, on the clocks that make leases longest and waiting shortest.
    #[must_use]
    pub const fn of(replicas: usize, nodes: usize, tokens: usize) -> Self {
        Self {
            replicas,
            nodes,
            tokens,
            ttl: 2,
            node_clock: 90,
            replica_clocks: [110; REPLICAS],
            newcomers: false,
            late: false,
            moves: 1,
            releases: 0,
            requests: false,
            stray: false,
            node_crashes: 0,
            cloned: false,
            peace: 1,
        }
    }

    /// The age at which no lease is left and no bound hasn't passed, whatever the clock.
    pub(crate) fn forever(&self) -> Age {
        let slowest = self.replica_clocks.iter().fold(self.node_clock, |slowest, clock| slowest.min(*clock));
        let bound = u32::from(self.ttl) * 110;
        u8::try_from(bound.div_ceil(slowest.into())).unwrap_or(u8::MAX)
    }
}

/// One change in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Entry {
    #[default]
    Nothing,
    Revoked(u8),
    /// The second replica may answer for nodes from now on.
    Registered,
    /// Whatever lease a process has, a replica answers for it: the node, the replica, the process.
    Answers(u8, u8, u8),
    /// The node is gone: nobody answers for it.
    Released(u8),
}

/// A record on its way to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Writing {
    #[default]
    No,
    Sent,
    /// It is there; the replica doesn't know yet.
    Landed,
}

/// What a replica knows of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub(crate) acked: Revision,
    /// How old the barrier is that the last lease is rooted in that the replica answers for;
    /// forever: none is left.
    pub(crate) granted: Age,
    /// The process whose acknowledgements and lease those are.
    pub(crate) process: u8,
    /// What another has acknowledged that showed the same certificate before, and the age of the
    /// barrier that its last lease is rooted in.
    pub(crate) former: (Revision, Age),
    /// Whether the store is to say that the replica answers for it: for each process.
    pub(crate) writing: [Writing; NODES],
    /// The replica has given it back: no record of before is one to grant by.
    pub(crate) given_back: bool,
    /// The record, by revision, that is to be taken back, on its way to the store; 0: none is.
    pub(crate) releasing: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Replica {
    pub(crate) head: Revision,
    pub(crate) holders: [Holder; NODES],
    /// What it has written of itself: none of its nodes serves anything that was taken away up to
    /// here.
    pub(crate) watermark: Revision,
}

/// A grant on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Grant {
    /// What it is worth to the node, in ticks.
    pub(crate) left: Age,
    /// What the node must have applied.
    pub(crate) revision: Revision,
}

/// A request for the first token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Request {
    #[default]
    None,
    /// Decided on the table as it was, and waiting for its body, or for a connection.
    Decided,
    /// Registered for being cut, not checked.
    Registered,
    /// Checked, not registered: only without
    /// [`Guard::RegisteredBeforeCheck`](crate::Guard::RegisteredBeforeCheck).
    Checked,
    /// With the upstream: the credential has been written, the answer comes.
    InFlight,
    /// The same, and the agent doesn't read what comes.
    Unread,
}

impl Request {
    /// Whether something of the answer may reach the agent yet.
    pub(crate) fn is_in_flight(self) -> bool {
        matches!(self, Self::InFlight | Self::Unread)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Node {
    /// The replica whose stream it follows.
    pub(crate) stream: Option<u8>,
    pub(crate) loaded: bool,
    /// It has taken a grant since it was started anew.
    pub(crate) was_current: bool,
    /// What its stream's replica must have taken in before the first grant of this life: the store
    /// as it was when the stream began. 0: anything will do.
    pub(crate) root_after: Revision,
    /// The last revocation that it has applied: the store's other changes mean nothing to a node.
    pub(crate) applied: Revision,
    /// Tokens that are not in its table: a bit each.
    pub(crate) revoked: u8,
    /// What is left of its lease, in ticks: it ends within the last of them.
    pub(crate) lease: Age,
    pub(crate) grant: Option<Grant>,
    pub(crate) request: Request,
    /// Something that it has acknowledged is still to be cut: only without
    /// [`Guard::CutBeforeAck`](crate::Guard::CutBeforeAck).
    pub(crate) uncut: bool,
}

/// The whole system at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct State {
    pub(crate) log: [Entry; LOG],
    /// How long ago each was committed.
    pub(crate) ages: [Age; LOG],
    pub(crate) len: Revision,
    pub(crate) replicas: [Replica; REPLICAS],
    pub(crate) nodes: [Node; NODES],
    /// Tokens of which some replica has said that their revocation is enforced: a bit each.
    pub(crate) said: u8,
    /// Some table has gone back in the store's order.
    pub(crate) went_back: bool,
    pub(crate) node_crashes: u8,
    pub(crate) moves: u8,
    pub(crate) releases: u8,
}

impl State {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let forever = bounds.forever();
        let holder = Holder {
            acked: 0,
            granted: forever,
            process: 0,
            former: (0, forever),
            writing: [Writing::No; NODES],
            given_back: false,
            releasing: 0,
        };
        let node = Node {
            stream: None,
            loaded: false,
            was_current: !bounds.cloned, // before its first life there was none, but of the one that was cloned
            root_after: 0,
            applied: 0,
            revoked: 0,
            lease: 0,
            grant: None,
            request: Request::None,
            uncut: false,
        };
        let mut state = Self {
            log: [Entry::Nothing; LOG],
            ages: [forever; LOG],
            len: 0,
            replicas: [Replica { head: 0, holders: [holder; NODES], watermark: 0 }; REPLICAS],
            nodes: [node; NODES],
            said: 0,
            went_back: false,
            node_crashes: 0,
            moves: 0,
            releases: 0,
        };
        if !bounds.late {
            state.commit(Entry::Registered);
        }
        if !bounds.newcomers {
            let known = if bounds.cloned { 1 } else { bounds.nodes };
            (0..known as u8).for_each(|node| state.commit(Entry::Answers(node, 0, node)));
        }
        for replica in &mut state.replicas {
            (0..NODES).for_each(|node| replica.holders[node].process = if bounds.cloned { 0 } else { node as u8 });
        }
        if state.len > 0 {
            state.ages = [forever; LOG];
            state.replicas.iter_mut().for_each(|replica| replica.head = state.len);
        }
        state
    }

    pub(crate) fn commit(&mut self, entry: Entry) {
        let at = usize::from(self.len);
        (self.log[at], self.ages[at]) = (entry, 0);
        self.len += 1;
    }

    /// The revision that holds `entry`.
    pub(crate) fn revision_of(&self, entry: Entry) -> Option<Revision> {
        let at = self.log[..usize::from(self.len)].iter().position(|e| *e == entry)?;
        u8::try_from(at + 1).ok()
    }

    /// Who answers for `node`, as far as the first `head` changes tell, since which, and for which
    /// process.
    pub(crate) fn answers(&self, node: u8, head: Revision) -> Option<(u8, Revision, u8)> {
        let seen = &self.log[..usize::from(head)];
        seen.iter().enumerate().rev().find_map(|(at, entry)| match entry {
            Entry::Answers(n, replica, process) if *n == node => Some(Some((*replica, at as u8 + 1, *process))),
            Entry::Released(n) if *n == node => Some(None),
            _ => None,
        })?
    }

    /// Who answered for a process of `node` until a record of another process took the place of
    /// that one, and how long ago that was.
    pub(crate) fn displaced(&self, node: u8, head: Revision) -> impl Iterator<Item = (u8, Age)> {
        let seen = self.log[..usize::from(head)].iter().zip(self.ages);
        let records = seen.filter_map(move |(entry, age)| match entry {
            Entry::Answers(n, replica, process) if *n == node => Some((*replica, *process, age)),
            _ => None,
        });
        let next = records.clone().skip(1);
        records
            .zip(next)
            .filter(|((_, process, _), (_, other, _))| process != other)
            .map(|((who, ..), (.., age))| (who, age))
    }

    /// Whether `replica` is registered, as far as the first `head` changes tell.
    pub(crate) fn is_registered(&self, replica: u8, head: Revision) -> bool {
        replica == 0 || self.log[..usize::from(head)].contains(&Entry::Registered)
    }

    /// The least that a read may have returned that was started `age` ticks ago: before whatever
    /// was committed in that tick.
    pub(crate) fn revision_before(&self, age: Age) -> Revision {
        self.ages[..usize::from(self.len)].iter().filter(|a| **a > age).count() as u8
    }

    /// Tokens that are revoked at `revision`: a bit each.
    pub(crate) fn revoked_at(&self, revision: Revision) -> u8 {
        self.revoked_between(0, revision)
    }

    /// Those of the changes after `from` up to `to`.
    pub(crate) fn revoked_between(&self, from: Revision, to: Revision) -> u8 {
        let range = usize::from(from.min(to))..usize::from(to);
        self.log[range].iter().fold(0, |bits, entry| match entry {
            Entry::Revoked(token) => bits | 1 << token,
            _ => bits,
        })
    }

    /// The next change after `revision` that means anything to nodes.
    pub(crate) fn effective_after(&self, revision: Revision) -> Option<Revision> {
        let mut later = usize::from(revision)..usize::from(self.len);
        later.find(|at| matches!(self.log[*at], Entry::Revoked(_))).map(|at| at as u8 + 1)
    }

    /// The last change up to `revision` that meant anything to nodes.
    pub(crate) fn effective(&self, revision: Revision) -> Revision {
        let upto = &self.log[..usize::from(revision)];
        upto.iter().rposition(|entry| matches!(entry, Entry::Revoked(_))).map_or(0, |at| at as u8 + 1)
    }
}
