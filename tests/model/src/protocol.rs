//! What may happen, and what comes of it.
//!
//! Nobody is ever obliged to do anything: a process that is paused, cut off or slow is one whose
//! actions don't come. A message that is lost is one whose action doesn't come; one that is late
//! comes later. What may come twice or out of order is said where it is sent.

use crate::{
    guard::Guard,
    rules::{Rules, is_continuous, may_accept_grant},
    state::{Age, Bounds, Entry, Grant, Holder, Node, Request, Revision, State, Writing},
};

/// The protocol, of a size, with all of its guards or all but one.
#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) bounds: Bounds,
    pub(crate) rules: Rules,
    /// The guard that is missing.
    without: Option<Guard>,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Time passes.
    Tick,
    /// An operator revokes a token: the store has it.
    Revoke(u8),
    /// The second replica is registered.
    Register,
    /// The replica whose stream a node follows decides to answer for it: that is on its way to the
    /// store.
    Decide(u8),
    /// It is there: the replica, the node (of two with one certificate: which).
    Answer(u8, u8),
    /// The replica gives back a node that is gone, as far as it can see: that is on its way to the
    /// store.
    Depart(u8, u8),
    /// It is there.
    Release(u8, u8),
    /// A replica's watch brings the next change.
    Watch(u8),
    /// A node begins a stream to a replica.
    Connect(u8, u8),
    /// Its stream ends.
    Leave(u8),
    /// A node receives a change: from the first revision to the second.
    Delta(u8, u8, u8),
    /// A node receives a whole table of that revision.
    Snapshot(u8, u8),
    /// A replica hears an acknowledgement of what the node has applied.
    Ack(u8),
    /// A node asks for a lease and its replica grants it, rooted in a barrier: it noted the time so
    /// many ticks ago, has read a revision since, and has taken it in. The grant is on its way.
    /// Asking earlier would be a shorter lease.
    Grant(u8, u8),
    /// The grant arrives.
    Take(u8),
    /// A replica writes its watermark.
    Mark(u8),
    /// A request: decided, registered, checked, in flight, in this order.
    Request(u8),
    /// The agent stops reading the answer.
    Stall(u8),
    /// The answer to a request is complete.
    Answered(u8),
    /// What should have been cut before the acknowledgement is cut at last.
    CutLate(u8),
    /// A node crashes and starts again, with an empty table.
    CrashNode(u8),
}

impl Protocol {
    pub(crate) fn new(bounds: Bounds, without: Option<Guard>) -> Self {
        Self { bounds, rules: Rules::new(&bounds), without }
    }

    pub(crate) fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    pub(crate) fn replicas(&self) -> impl Iterator<Item = u8> + use<> {
        (0..self.bounds.replicas).map(|r| r as u8)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = u8> + use<> {
        (0..self.bounds.nodes).map(|n| n as u8)
    }

    /// What the control plane takes for nodes: certificates.
    pub(crate) fn names(&self) -> impl Iterator<Item = u8> + use<> {
        (0..if self.bounds.cloned { 1 } else { self.bounds.nodes }).map(|n| n as u8)
    }

    /// What the control plane takes `node` for.
    pub(crate) fn name(&self, node: u8) -> u8 {
        if self.bounds.cloned { 0 } else { node }
    }

    /// Those that have the certificate `name`.
    pub(crate) fn processes(&self, name: u8) -> impl Iterator<Item = u8> + use<'_> {
        self.nodes().filter(move |n| self.name(*n) == name)
    }

    /// What `replica` knows of what it takes `node` for.
    pub(crate) fn holder<'a>(&self, state: &'a State, replica: u8, node: u8) -> &'a Holder {
        &state.replicas[usize::from(replica)].holders[usize::from(self.name(node))]
    }

    fn holder_mut<'a>(&self, state: &'a mut State, replica: u8, node: u8) -> &'a mut Holder {
        &mut state.replicas[usize::from(replica)].holders[usize::from(self.name(node))]
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = u8> + use<> {
        (0..self.bounds.tokens).map(|t| t as u8)
    }

    fn of_store(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        let open = |entry| state.revision_of(entry).is_none();
        actions.extend(self.tokens().filter(|t| open(Entry::Revoked(*t))).map(Action::Revoke));
        if self.bounds.late && open(Entry::Registered) {
            actions.push(Action::Register);
        }
    }

    fn of_replica(&self, state: &State, id: u8, actions: &mut Vec<Action>) {
        let replica = &state.replicas[usize::from(id)];
        if replica.head < state.len {
            actions.push(Action::Watch(id));
        }
        if self.watermark(state, id) > replica.watermark {
            actions.push(Action::Mark(id));
        }
        let writing = self.nodes().filter(|n| self.holder(state, id, *n).writing[usize::from(*n)] == Writing::Sent);
        actions.extend(writing.map(|n| Action::Answer(id, n)));
        if self.bounds.releases > 0 {
            let sent = self.names().filter(|n| replica.holders[usize::from(*n)].releasing > 0);
            actions.extend(sent.map(|n| Action::Release(id, n)));
        }
        if state.releases < self.bounds.releases {
            actions.extend(self.names().map(|n| Action::Depart(id, n)));
        }
    }

    fn of_node(&self, state: &State, id: u8, actions: &mut Vec<Action>) {
        let node = &state.nodes[usize::from(id)];
        let reachable = |r: &u8| state.replicas[usize::from(*r)].head >= node.applied;
        actions.extend(self.replicas().filter(reachable).map(|r| Action::Connect(id, r)));
        if let Some(replica) = node.stream {
            self.of_stream(state, id, replica, actions);
            if self.bounds.releases > 0 {
                actions.push(Action::Leave(id));
            }
        }
        if node.grant.is_some() {
            actions.push(Action::Take(id));
        }
        if self.bounds.requests {
            match node.request {
                Request::InFlight => actions.extend([Action::Answered(id), Action::Stall(id)]),
                Request::Unread => actions.push(Action::Answered(id)),
                _ => actions.push(Action::Request(id)),
            }
        }
        if node.uncut {
            actions.push(Action::CutLate(id));
        }
        if state.node_crashes < self.bounds.node_crashes {
            actions.push(Action::CrashNode(id));
        }
    }

    fn of_stream(&self, state: &State, id: u8, replica: u8, actions: &mut Vec<Action>) {
        let node = &state.nodes[usize::from(id)];
        let replica = &state.replicas[usize::from(replica)];
        if node.loaded {
            if self.bounds.stray {
                let any = (1..=replica.head).flat_map(|to| (0..to).map(move |from| (from, to)));
                actions.extend(any.map(|(from, to)| Action::Delta(id, from, to)));
            } else if let Some(next) = state.effective_after(node.applied).filter(|next| *next <= replica.head) {
                actions.push(Action::Delta(id, node.applied, next));
            }
        }
        let oldest = if self.bounds.stray { 0 } else { replica.head };
        if !node.loaded || self.bounds.stray {
            actions.extend((oldest..=replica.head).map(|revision| Action::Snapshot(id, revision)));
        }
        actions.push(Action::Ack(id));
        actions.extend((0..self.bounds.ttl).map(|back| Action::Grant(id, back)));
        if state.moves < self.bounds.moves {
            actions.push(Action::Decide(id));
        }
    }

    /// Whose leases the replica answers for, or is about to, under one name: what they have
    /// acknowledged, and how old the barrier may be that their last lease is rooted in. The process
    /// that speaks for it, and those before.
    fn held(&self, holder: &Holder) -> [(Revision, Age); 2] {
        let is_written = |own: bool| {
            let writing = holder.writing.iter().enumerate().filter(|(_, writing)| **writing != Writing::No);
            self.has(Guard::HeldWhileWriting)
                && writing.into_iter().any(|(p, _)| (p == usize::from(holder.process)) == own)
        };
        let granted = if is_written(true) { 0 } else { holder.granted };
        [(holder.acked, granted), if is_written(false) { (0, 0) } else { holder.former }]
    }

    /// The lease that the process may have that speaks for a node becomes that of one before.
    fn supersede(&self, replica: u8, holder: &mut Holder) {
        let granted = std::mem::replace(&mut holder.granted, self.bounds.forever());
        self.former(replica, holder, (holder.acked, granted));
    }

    fn former(&self, replica: u8, holder: &mut Holder, (acked, granted): (Revision, Age)) {
        let (known, age) = holder.former;
        if !self.rules.is_over(replica, granted) {
            let acked = if self.rules.is_over(replica, age) { acked } else { acked.min(known) };
            holder.former = (acked, granted.min(age));
        }
    }

    /// What the replica could write of itself now; what it wrote before stays true.
    fn watermark(&self, state: &State, id: u8) -> Revision {
        let replica = &state.replicas[usize::from(id)];
        if !self.has(Guard::AcksAreNodes) {
            return replica.head;
        }
        let here = |p: u8| state.nodes[usize::from(p)].stream == Some(id);
        let counts = |n: &u8| self.has(Guard::DepartedCount) || self.processes(*n).any(here);
        let holders = self.names().filter(counts).flat_map(|n| self.held(&replica.holders[usize::from(n)]));
        let low = self.rules.watermark(id, holders, replica.head, state.effective(replica.head));
        let old = state.ages[..usize::from(replica.head)].iter().take_while(|age| self.rules.is_settled(id, **age));
        low.max(old.count() as u8).max(replica.watermark)
    }

    /// Whether replica `id` says that the revocation of `token` is enforced.
    pub(crate) fn says(&self, state: &State, id: u8, token: u8) -> bool {
        let replica = &state.replicas[usize::from(id)];
        let Some(revision) = state.revision_of(Entry::Revoked(token)).filter(|r| *r <= replica.head) else {
            return false;
        };
        let age = state.ages[usize::from(revision) - 1];
        let age = if self.has(Guard::WaitsOutLeases) { age } else { age.saturating_add(1) };
        let done = |n: u8| {
            self.held(&replica.holders[usize::from(n)]).into_iter().all(|(acked, granted)| {
                let acked = if self.has(Guard::AcksAreNodes) { acked } else { replica.head };
                self.rules.is_done(id, acked, revision, Some(granted), age)
            })
        };
        let marked = |r: u8| {
            let mark = state.replicas[usize::from(r)].watermark;
            let displaced = |n| {
                let mut before = state.displaced(n, replica.head);
                self.has(Guard::DisplacedCount) && before.any(|(who, age)| who == r && !self.rules.is_settled(id, age))
            };
            let named = |n| state.answers(n, replica.head).is_some_and(|(who, ..)| who == r);
            let answers = self.names().any(|n| named(n) || displaced(n));
            // Of another replica's nodes nobody here knows the leases; but whom the store names
            // nobody's, has none.
            !answers || self.rules.is_done(id, mark, revision, None, age)
        };
        let waits = |r: &u8| *r != id && state.is_registered(*r, replica.head) && self.has(Guard::OthersCount);
        self.names().all(done) && self.replicas().filter(waits).all(marked)
    }

    fn tick(&self, state: &mut State) {
        let forever = self.bounds.forever();
        let older = |age: &mut Age| *age = (*age + 1).min(forever);
        state.ages.iter_mut().for_each(older);
        for replica in &mut state.replicas {
            for holder in &mut replica.holders {
                older(&mut holder.granted);
                older(&mut holder.former.1);
            }
        }
        for n in self.nodes() {
            let node = &mut state.nodes[usize::from(n)];
            node.lease = node.lease.saturating_sub(1);
            let unheeded = match node.request {
                Request::Checked | Request::Decided => true,
                Request::Unread => !self.has(Guard::CutUnread),
                _ => false,
            };
            if node.lease == 0 && self.has(Guard::CutWithLease) && !unheeded {
                node.request = Request::None;
            }
            if let (Some(grant), true) = (&mut node.grant, self.has(Guard::CountsFromAsking)) {
                grant.left = grant.left.saturating_sub(1);
            }
            node.grant = node.grant.filter(|grant| grant.left > 0);
        }
    }

    /// For how many ticks a node may serve that asks now and is granted what a barrier of that age
    /// leaves.
    fn lease(&self, replica: u8, barrier: Age) -> Age {
        let local = match self.has(Guard::AllowsForSkew) {
            true => self.rules.lease(replica, barrier),
            // All of it.
            false => self.rules.ttl_left(replica, barrier),
        };
        u8::try_from(local.div_ceil(self.bounds.node_clock)).unwrap_or(u8::MAX)
    }

    fn connect(&self, state: &mut State, id: u8, replica: u8) {
        let node = &mut state.nodes[usize::from(id)];
        (node.stream, node.grant) = (Some(replica), None);
        node.root_after = if node.was_current || !self.has(Guard::RootedAfterBeginning) { 0 } else { state.len };
        // The stream of another process is fenced; what is on its way to that may arrive yet.
        for other in self.processes(self.name(id)).filter(|other| *other != id) {
            let other = &mut state.nodes[usize::from(other)];
            other.stream = other.stream.filter(|stream| *stream != replica);
        }
        let holder = self.holder_mut(state, replica, id);
        if holder.process != id {
            holder.process = id;
            if self.has(Guard::AcksAreProcesses) {
                self.supersede(replica, holder);
            }
        }
        // A new stream has acknowledged nothing yet; the lease of the one before lives on.
        holder.acked = 0;
    }

    /// The table becomes what `revoked` says, at `revision`; requests that it concerns are cut.
    fn apply(&self, state: &mut State, id: u8, revoked: u8, revision: Revision) {
        let revision = state.effective(revision);
        let node = &mut state.nodes[usize::from(id)];
        state.went_back |= node.loaded && revision < node.applied;
        (node.loaded, node.applied, node.revoked) = (true, revision, revoked);
        if revoked & 1 != 0 {
            match node.request {
                // Nobody looks at the right to it before the agent reads again.
                Request::Unread if !self.has(Guard::CutUnread) => {}
                Request::Registered | Request::InFlight | Request::Unread if self.has(Guard::CutBeforeAck) => {
                    node.request = Request::None
                }
                Request::InFlight | Request::Unread => node.uncut = true,
                _ => {}
            }
        }
    }

    fn delta(&self, state: &mut State, id: u8, from: Revision, to: Revision) {
        let node = &state.nodes[usize::from(id)];
        let revoked = node.revoked | state.revoked_between(from, to);
        // What doesn't follow on is rejected, and the table stays as it was.
        if is_continuous(node.applied, from, to) || !self.has(Guard::FollowsOn) {
            self.apply(state, id, revoked, to);
        }
    }

    fn snapshot(&self, state: &mut State, id: u8, revision: Revision) {
        let node = &state.nodes[usize::from(id)];
        if !node.loaded || revision >= node.applied || !self.has(Guard::NeverBackwards) {
            self.apply(state, id, state.revoked_at(revision), revision);
        }
    }

    /// A grant is rooted `back` ticks ago. What the replica had read by then of the store, or
    /// since, it may have read as late as now.
    fn grant(&self, state: &mut State, id: u8, back: Age) {
        let Some(stream) = state.nodes[usize::from(id)].stream else { return };
        let head = state.replicas[usize::from(stream)].head;
        let rooted = head >= state.nodes[usize::from(id)].root_after;
        let reached = rooted && (head >= state.revision_before(back) || !self.has(Guard::BarrierIsReached));
        let known = self.rules.may_grant(self.recorded(state, stream, id), head) || !self.has(Guard::NamedBeforeGrant);
        // Without a barrier it is rooted in nothing but the replica's opinion that it is up to
        // date.
        let root = if self.has(Guard::RootedInBarrier) { back } else { 0 };
        let left = self.lease(stream, root);
        if left == 0 || !known || !reached {
            return;
        }
        let holder = self.holder_mut(state, stream, id);
        holder.granted = holder.granted.min(root);
        state.nodes[usize::from(id)].grant = Some(Grant { left, revision: state.effective(head) });
    }

    fn take(&self, state: &mut State, id: u8) {
        let node = &mut state.nodes[usize::from(id)];
        let Some(grant) = node.grant.take() else { return };
        if node.loaded && (may_accept_grant(node.applied, grant.revision) || !self.has(Guard::AppliedBeforeTaking)) {
            node.lease = node.lease.max(grant.left);
            node.was_current = true;
        }
    }

    fn request(&self, state: &mut State, id: u8) {
        let may = self.serves(state, id, 0);
        let node = &mut state.nodes[usize::from(id)];
        let register_first = self.has(Guard::RegisteredBeforeCheck);
        node.request = match node.request {
            Request::None if may => Request::Decided,
            Request::Decided if register_first => Request::Registered,
            // The last check comes after it was registered; without the guard, before.
            Request::Decided if may => Request::Checked,
            Request::Registered if may || !self.has(Guard::DecidedAgain) => Request::InFlight,
            Request::Checked => Request::InFlight,
            _ => Request::None,
        };
    }

    /// Whether a request with `token` that begins now at node `id` is sent upstream.
    pub(crate) fn serves(&self, state: &State, id: u8, token: u8) -> bool {
        let node = &state.nodes[usize::from(id)];
        let leased = node.lease > 0 || !self.has(Guard::LeaseIsChecked);
        node.loaded && leased && node.revoked & 1 << token == 0
    }

    fn crash_node(&self, state: &mut State, id: u8) {
        state.nodes[usize::from(id)] = Node { was_current: false, ..State::new(&self.bounds).nodes[0] };
        state.node_crashes += 1;
    }

    /// The replica whose stream `id` follows is about to answer for it.
    fn decide(&self, state: &mut State, id: u8) {
        let Some(stream) = state.nodes[usize::from(id)].stream else { return };
        let replica = state.replicas[usize::from(stream)];
        let holder = self.holder(state, stream, id);
        let ours = self.recorded(state, stream, id).is_some();
        let registered = state.is_registered(stream, state.len) || !self.has(Guard::RegisteredBeforeAnswering);
        let promised = state.effective(replica.watermark);
        let caught_up = holder.acked >= promised || !self.has(Guard::CaughtUpBeforeAnswering);
        if ours || holder.writing[usize::from(id)] != Writing::No || !registered || !caught_up {
            return;
        }
        state.moves += 1;
        let holder = self.holder_mut(state, stream, id);
        holder.writing[usize::from(id)] = Writing::Sent;
        if self.has(Guard::TakesOverLeases) {
            holder.granted = 0;
        }
    }

    /// Since which revision the store says, as far as replica `id` knows, that it answers for
    /// `node`, so that it may grant it leases.
    fn recorded(&self, state: &State, id: u8, node: u8) -> Option<Revision> {
        let replica = &state.replicas[usize::from(id)];
        let given_back = self.holder(state, id, node).given_back && self.has(Guard::RecordedAnew);
        let ours = state.answers(self.name(node), replica.head);
        let ours = ours.filter(|(who, _, process)| *who == id && *process == node && !given_back);
        ours.map(|(_, since, _)| since)
    }

    /// Replica `id` gives `node` back if it answers for it and sees neither a stream nor a lease of
    /// it.
    fn depart(&self, state: &mut State, id: u8, node: u8) {
        let replica = state.replicas[usize::from(id)];
        let holder = replica.holders[usize::from(node)];
        let gone = self.processes(node).all(|p| state.nodes[usize::from(p)].stream != Some(id))
            && holder.writing.iter().all(|writing| *writing == Writing::No)
            && self.rules.is_over(id, holder.granted)
            && self.rules.is_over(id, holder.former.1);
        if let (true, Some((who, at, _))) = (gone, state.answers(node, replica.head))
            && who == id
        {
            state.releases += 1;
            let holder = &mut state.replicas[usize::from(id)].holders[usize::from(node)];
            (holder.given_back, holder.releasing) = (true, at);
        }
    }

    /// What replica `id` decided of `node` reaches the store.
    fn release(&self, state: &mut State, id: u8, node: u8) {
        let at = std::mem::take(&mut state.replicas[usize::from(id)].holders[usize::from(node)].releasing);
        let stands =
            |(who, since, _): (u8, Revision, u8)| who == id && (since == at || !self.has(Guard::ReleasedAsSeen));
        if at > 0 && state.answers(node, state.len).is_some_and(stands) {
            state.commit(Entry::Released(node));
        }
    }

    /// The watch brings the next change: who answers for a node is known before the head moves.
    fn watch(&self, state: &mut State, id: u8) {
        let replica = &mut state.replicas[usize::from(id)];
        let entry = state.log[usize::from(replica.head)];
        replica.head += 1;
        let Entry::Answers(name, who, process) = entry else { return };
        let mut holder = replica.holders[usize::from(name)];
        let same = holder.process == process;
        if who == id {
            if self.has(Guard::TakesOverLeases) {
                if same { holder.granted = 0 } else { self.former(id, &mut holder, (0, 0)) }
            }
            holder.given_back = false;
            holder.writing[usize::from(process)] = Writing::No;
        } else if holder.writing[usize::from(holder.process)] == Writing::No {
            // Another answers for it now, whatever lease it has, but not for what lease another
            // process has; a stream for which the next record is on its way stays.
            if same || !self.has(Guard::ForgetsNoOther) {
                holder.granted = self.bounds.forever();
            } else {
                self.supersede(id, &mut holder);
            }
            (holder.acked, holder.given_back, holder.process) = (0, false, process);
            for p in
                self.processes(name).filter(|p| state.nodes[usize::from(*p)].stream == Some(id)).collect::<Vec<_>>()
            {
                state.nodes[usize::from(p)].stream = None;
                if !self.bounds.cloned {
                    state.nodes[usize::from(p)].grant = None;
                }
            }
        }
        state.replicas[usize::from(id)].holders[usize::from(name)] = holder;
    }

    /// `state` after `action`, without what follows from it by itself.
    pub(crate) fn step(&self, state: &mut State, action: Action) {
        match action {
            Action::Tick => self.tick(state),
            Action::Revoke(token) => state.commit(Entry::Revoked(token)),
            Action::Register => state.commit(Entry::Registered),
            Action::Decide(node) => self.decide(state, node),
            Action::Answer(replica, node) => {
                self.holder_mut(state, replica, node).writing[usize::from(node)] = Writing::Landed;
                state.commit(Entry::Answers(self.name(node), replica, node));
            }
            Action::Depart(id, node) => self.depart(state, id, node),
            Action::Release(id, node) => self.release(state, id, node),
            Action::Watch(id) => self.watch(state, id),
            Action::Connect(id, replica) => self.connect(state, id, replica),
            Action::Leave(id) => {
                let node = &mut state.nodes[usize::from(id)];
                (node.stream, node.grant) = (None, None);
            }
            Action::Delta(id, from, to) => self.delta(state, id, from, to),
            Action::Snapshot(id, revision) => self.snapshot(state, id, revision),
            Action::Ack(id) => {
                let node = state.nodes[usize::from(id)];
                if let (Some(replica), true) = (node.stream, node.loaded) {
                    let holder = self.holder_mut(state, replica, id);
                    holder.acked = holder.acked.max(node.applied);
                }
            }
            Action::Grant(id, back) => self.grant(state, id, back),
            Action::Take(id) => self.take(state, id),
            Action::Mark(id) => state.replicas[usize::from(id)].watermark = self.watermark(state, id),
            Action::Request(id) => self.request(state, id),
            Action::Stall(id) => state.nodes[usize::from(id)].request = Request::Unread,
            Action::Answered(id) => state.nodes[usize::from(id)].request = Request::None,
            Action::CutLate(id) => {
                let node = &mut state.nodes[usize::from(id)];
                (node.request, node.uncut) = (Request::None, false);
            }
            Action::CrashNode(id) => self.crash_node(state, id),
        }
    }
}

impl Protocol {
    /// Everything that may happen in `state`.
    pub(crate) fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        self.of_store(state, &mut actions);
        self.replicas().for_each(|id| self.of_replica(state, id, &mut actions));
        self.nodes().for_each(|id| self.of_node(state, id, &mut actions));
        actions
    }

    /// What comes of it; `None`: nothing.
    pub(crate) fn next(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        self.step(&mut state, action);
        if state == *last {
            return None;
        }
        for token in self.tokens() {
            if state.said & 1 << token == 0 && self.replicas().any(|id| self.says(&state, id, token)) {
                state.said |= 1 << token;
            }
        }
        Some(self.least(state))
    }
}
