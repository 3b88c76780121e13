//! States that differ only in names, or in what nothing depends on any more, are one state.

use crate::{
    protocol::Protocol,
    state::{Entry, State, Writing},
};

impl Protocol {
    /// The least of the states that are `state` but for the names of nodes, replicas and tokens.
    pub(crate) fn least(&self, state: State) -> State {
        let one = self.forget(state);
        let nodes = self.bounds.nodes > 1;
        let replicas = self.bounds.replicas > 1
            && !self.bounds.late
            && self.bounds.replica_clocks[0] == self.bounds.replica_clocks[1];
        let tokens = self.bounds.tokens > 1 && !self.bounds.requests; // requests are followed for the first
        let mut least = one;
        for (n, r, t) in (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)) {
            if (n && !nodes) || (r && !replicas) || (t && !tokens) {
                continue;
            }
            let mut other = one;
            if n && self.bounds.cloned {
                swap_processes(&mut other);
            } else if n {
                swap_nodes(&mut other);
            }
            if r {
                swap_replicas(&mut other);
            }
            if t {
                swap_tokens(&mut other);
            }
            least = least.min(other);
        }
        least
    }

    /// Acknowledgements and watermarks matter only as far as they reach a revocation, and no longer
    /// than somebody may hold a lease.
    fn forget(&self, mut state: State) -> State {
        let forever = self.bounds.forever();
        for node in &mut state.nodes {
            let head = node.stream.map_or(u8::MAX, |stream| state.replicas[usize::from(stream)].head);
            node.root_after = if head < node.root_after { node.root_after } else { 0 };
        }
        for id in 0..self.bounds.replicas {
            state.replicas[id].watermark = state.effective(state.replicas[id].watermark);
            for n in 0..self.bounds.nodes {
                let connected = self.processes(n as u8).any(|p| state.nodes[usize::from(p)].stream == Some(id as u8));
                let acked = state.effective(state.replicas[id].holders[n].acked);
                let former = state.effective(state.replicas[id].holders[n].former.0);
                let holder = &mut state.replicas[id].holders[n];
                let is_written = holder.writing.iter().any(|writing| *writing != Writing::No);
                holder.acked = if connected || is_written || holder.granted < forever { acked } else { 0 };
                holder.former.0 = if holder.former.1 < forever { former } else { 0 };
            }
        }
        state
    }
}

fn swap_nodes(state: &mut State) {
    state.nodes.swap(0, 1);
    state.replicas.iter_mut().for_each(|replica| replica.holders.swap(0, 1));
    for entry in &mut state.log {
        if let Entry::Answers(node, ..) | Entry::Released(node) = entry {
            *node ^= 1;
        }
    }
    name_processes(state);
}

fn swap_processes(state: &mut State) {
    state.nodes.swap(0, 1);
    name_processes(state);
    // There is no second node.
    state.replicas.iter_mut().for_each(|replica| replica.holders[1].process = 0);
}

/// After the nodes have been exchanged.
fn name_processes(state: &mut State) {
    for holder in state.replicas.iter_mut().flat_map(|replica| &mut replica.holders) {
        holder.process ^= 1;
        holder.writing.swap(0, 1);
    }
    for entry in &mut state.log {
        if let Entry::Answers(.., process) = entry {
            *process ^= 1;
        }
    }
}

fn swap_replicas(state: &mut State) {
    state.replicas.swap(0, 1);
    for entry in &mut state.log {
        if let Entry::Answers(_, replica, _) = entry {
            *replica ^= 1;
        }
    }
    for node in &mut state.nodes {
        node.stream = node.stream.map(|stream| stream ^ 1);
    }
}

fn swap_tokens(state: &mut State) {
    for entry in &mut state.log {
        if let Entry::Revoked(token) = entry {
            *token ^= 1;
        }
    }
    let swapped = |bits: u8| (bits & 1) << 1 | (bits & 2) >> 1;
    state.said = swapped(state.said);
    for node in &mut state.nodes {
        node.revoked = swapped(node.revoked);
    }
}
