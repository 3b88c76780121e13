//! Without any one of its guards the protocol fails, and the check sees it.

use seks_model::{Bounds, Guard, check};

use crate::MOST;

/// A system that is as small as can show what the guard is for.
fn smallest(guard: Guard) -> Bounds {
    use Guard::{
        AcksAreProcesses, CaughtUpBeforeAnswering, CutBeforeAck, CutUnread, CutWithLease, DecidedAgain, DepartedCount,
        DisplacedCount, FollowsOn, ForgetsNoOther, HeldWhileWriting, NamedBeforeGrant, NeverBackwards, OthersCount,
        RecordedAnew, RegisteredBeforeAnswering, RegisteredBeforeCheck, ReleasedAsSeen, RootedAfterBeginning,
        TakesOverLeases,
    };
    let one = Bounds { moves: 0, ..Bounds::of(1, 1, 1) };
    match guard {
        FollowsOn => Bounds { stray: true, moves: 0, ..Bounds::of(1, 1, 2) },
        NeverBackwards => Bounds { stray: true, ..one },
        CutBeforeAck | RegisteredBeforeCheck | DecidedAgain | CutUnread | CutWithLease => {
            Bounds { requests: true, ..one }
        }
        NamedBeforeGrant
        | CaughtUpBeforeAnswering
        | TakesOverLeases
        | HeldWhileWriting
        | DepartedCount
        | OthersCount => Bounds::of(2, 1, 1),
        RecordedAnew | ReleasedAsSeen => Bounds { releases: 1, ..Bounds::of(2, 1, 1) },
        AcksAreProcesses => Bounds { cloned: true, ..Bounds::of(1, 2, 1) },
        ForgetsNoOther | DisplacedCount => Bounds { cloned: true, ttl: 1, peace: 1024, ..Bounds::of(2, 2, 1) },
        RootedAfterBeginning => Bounds { node_crashes: 1, ttl: 1, ..Bounds::of(2, 1, 1) },
        RegisteredBeforeAnswering => Bounds { late: true, ..Bounds::of(2, 1, 1) },
        _ => one,
    }
}

#[test]
fn every_guard_is_needed() {
    for guard in Guard::ALL {
        let found = check(smallest(guard), Some(guard), MOST);
        let Some((property, steps)) = found.wrong else { panic!("nothing is wrong without {guard:?}: {found:#?}") };
        println!("without {guard:?}, {property:?} fails after {} steps: {}", steps.len(), steps.join(", "));
    }
}
