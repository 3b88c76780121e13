//! Visits every state that can be reached, breadth first, so that a counterexample is a shortest
//! one.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasherDefault, Hash as _, Hasher},
    time::{Duration, Instant},
};

use crate::{
    guard::Guard,
    properties::{ALWAYS, Property, SOMETIMES},
    protocol::{Action, Protocol},
    state::{Bounds, State},
};

/// What a check has come to.
#[derive(Debug)]
pub struct Found {
    /// Different states, up to the names of those in them.
    pub states: usize,
    /// Steps of the shortest way to the farthest of them.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Everything was visited: nothing was wrong, and the limit wasn't reached.
    pub exhausted: bool,
    /// What is wrong, and the steps that lead there.
    pub wrong: Option<(&'static str, Vec<String>)>,
    /// What should come to pass somewhere and doesn't.
    pub never: Vec<&'static str>,
}

/// How a state was reached: from which, by what.
type Way = (u32, Action);

/// Checks every state that a system of `bounds` can reach, `limit` of them at most, with all guards
/// or `without` one. Stops at the first that is wrong.
#[must_use]
pub fn check(bounds: Bounds, without: Option<Guard>, limit: usize) -> Found {
    let (start, protocol) = (Instant::now(), Protocol::new(bounds, without));
    let first = State::new(&bounds);
    // A state's own 64-bit hash stands for it: a clash among 130 million is one chance in 2,200.
    let mut seen: HashSet<u64, BuildHasherDefault<Mix>> = HashSet::default();
    seen.insert(fingerprint(&first));
    let mut ways: Vec<Option<Way>> = vec![None];
    let mut due = VecDeque::from([(0_u32, 0_usize, first)]);
    let (mut never, mut depth, mut wrong): (Vec<&Property>, _, _) = (SOMETIMES.iter().collect(), 0, None);
    while let Some((id, steps, state)) = due.pop_front() {
        depth = steps;
        never.retain(|property| !(property.holds)(&protocol, &state));
        let asked = |property: &&Property| !property.costly || (id as usize).is_multiple_of(bounds.peace);
        if let Some(property) = ALWAYS.iter().filter(asked).find(|property| !(property.holds)(&protocol, &state)) {
            wrong = Some((property.name, trace(&ways, id)));
            break;
        }
        if seen.len() >= limit {
            break;
        }
        for action in protocol.actions(&state) {
            let Some(next) = protocol.next(&state, action) else { continue };
            if seen.insert(fingerprint(&next)) {
                due.push_back((ways.len() as u32, steps + 1, next));
                ways.push(Some((id, action)));
            }
        }
    }
    let exhausted = wrong.is_none() && due.is_empty();
    let never = never.into_iter().map(|property| property.name).collect();
    Found { states: seen.len(), depth, took: start.elapsed(), exhausted, wrong, never }
}

/// Multiplies and folds, once for each field: a state has a hundred of them, and there are millions
/// of states.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f;
        self.0 = (product as u64) ^ (product >> 64) as u64 ^ self.0.rotate_left(23);
    }
}

fn fingerprint(state: &State) -> u64 {
    let mut hasher = Mix::default();
    state.hash(&mut hasher);
    hasher.finish()
}

/// The steps to a state. Who is who in a step is up to renaming.
fn trace(ways: &[Option<Way>], mut id: u32) -> Vec<String> {
    let mut steps = Vec::new();
    while let Some((from, action)) = ways[id as usize] {
        steps.push(format!("{action:?}"));
        id = from;
    }
    steps.reverse();
    steps
}
