//! Who answers for which node's lease, and what follows for a change.

use super::*;

const TTL: Duration = Duration::from_secs(10);

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn hello(region: &str) -> wire::Hello {
    wire::Hello { region: region.into(), ..Default::default() }
}

fn record(replica: &str) -> wire::Node {
    wire::Node { region: "eu".into(), replica: replica.into(), lease_ttl_ms: 10_000, ..Default::default() }
}

/// A fleet of the replica `me`, without nodes.
fn fleet() -> Leases {
    let fleet = Leases::new(Vec::new(), TTL);
    fleet.register("me".parse().unwrap());
    fleet
}

/// As [`fleet`], with the node `a` on stream 1, which it answers for since revision 5.
fn with_a() -> Leases {
    let fleet = fleet();
    fleet.open_stream(&id("a"), 1, &hello("eu"));
    let record = ownership_to_record(&fleet, "a").unwrap();
    fleet.ownership_recorded(&id("a"), &record, 5);
    fleet
}

fn ownership_to_record(fleet: &Leases, name: &str) -> Option<wire::Node> {
    fleet.ownership_to_record(&id(name), TTL, |revision| revision)
}

fn status(fleet: &Leases, name: &str, revision: Revision, bound: BootInstant) -> ApplyStatus {
    let all = fleet.statuses(revision, bound, |_| ApplyStatus::Outstanding);
    all.into_iter().find(|(node, ..)| *node == id(name)).unwrap().2
}

fn later() -> BootInstant {
    BootInstant::now().plus(Duration::from_secs(60))
}

#[test]
fn an_ack_counts_for_the_stream_that_speaks_for_the_node() {
    let fleet = fleet();
    let old = fleet.open_stream(&id("a"), 1, &hello("eu"));
    assert!(fleet.grant(&id("a"), 1, later()) && fleet.ack(&id("a"), 1, 5));
    assert!(matches!(status(&fleet, "a", 5, later()), ApplyStatus::Applied(_)));
    assert_eq!(status(&fleet, "a", 6, later()), ApplyStatus::Outstanding);
    let new = fleet.open_stream(&id("a"), 2, &hello("eu"));
    assert!(old.is_cancelled() && !new.is_cancelled());
    assert!(!fleet.ack(&id("a"), 1, 9) && !fleet.grant(&id("a"), 1, later()));
    assert_eq!(status(&fleet, "a", 5, later()), ApplyStatus::Outstanding, "the new stream has said nothing yet");
    fleet.close_stream(&id("a"), 1);
    assert_eq!(fleet.streams(), 1, "the old stream's end isn't the new one's");
}

#[test]
fn a_node_is_done_with_a_change_when_it_has_applied_it_or_its_lease_is_over() {
    let fleet = fleet();
    fleet.open_stream(&id("a"), 1, &hello("eu"));
    let past = BootInstant::now();
    assert!(matches!(status(&fleet, "a", 5, later()), ApplyStatus::LeaseExpired(_)), "it never had one");
    assert!(fleet.grant(&id("a"), 1, later()));
    fleet.close_stream(&id("a"), 1);
    assert_eq!(status(&fleet, "a", 5, later()), ApplyStatus::Outstanding, "gone, but it may still serve");
    assert!(matches!(status(&fleet, "a", 5, past), ApplyStatus::LeaseExpired(_)), "every old lease has ended");
}

#[test]
fn a_node_is_recorded_before_its_first_lease_and_when_what_matters_changes() {
    let fleet = Leases::new(Vec::new(), TTL);
    fleet.open_stream(&id("a"), 1, &hello("eu"));
    assert!(ownership_to_record(&fleet, "a").is_none(), "not before we are registered");
    fleet.register("me".parse().unwrap());
    let record = ownership_to_record(&fleet, "a").unwrap();
    assert_eq!((record.id.as_str(), record.region.as_str(), record.replica.as_str()), ("a", "eu", "me"));
    assert!(record.lease_ttl_ms == 10_000 && !fleet.may_grant(&id("a"), TTL, 99));
    fleet.ownership_recorded(&id("a"), &record, 7);
    assert!(ownership_to_record(&fleet, "a").is_none());
    assert!(fleet.may_grant(&id("a"), TTL, 7) && !fleet.may_grant(&id("a"), TTL, 6));
    assert_eq!(fleet.ownership_to_record(&id("a"), TTL * 2, |r| r).unwrap().lease_ttl_ms, 20_000);
    fleet.open_stream(&id("a"), 2, &hello("us"));
    assert!(ownership_to_record(&fleet, "a").is_some() && !fleet.may_grant(&id("a"), TTL, 99));
}

#[test]
fn of_a_node_elsewhere_its_replica_speaks() {
    let fleet = fleet();
    fleet.update_from_store(id("a"), Some(record("r2")), 3);
    let at = BootInstant::now();
    let of = |standing: ApplyStatus| {
        let elsewhere = |replica: &str| if replica == "r2" { standing } else { ApplyStatus::Outstanding };
        fleet.statuses(5, later(), elsewhere)[0].2
    };
    assert_eq!(
        (of(ApplyStatus::Outstanding), of(ApplyStatus::Applied(at))),
        (ApplyStatus::Outstanding, ApplyStatus::Applied(at))
    );
    assert_eq!(fleet.watermark(9, 0, |r| r), 9, "it is not ours to answer for");
    let list = fleet.list(9, 9, |replica| (replica == "r2").then_some(7));
    assert_eq!((list[0].connected, list[0].applied_revision, list[0].lag), (true, 7, 2));
    let list = fleet.list(9, 9, |_| None);
    assert!(!list[0].connected && list[0].lease_remaining_ms == 0);
}

#[test]
fn a_node_that_has_moved_is_forgotten_with_its_lease_and_what_is_left_here_is_fenced() {
    let fleet = fleet();
    let stream = fleet.open_stream(&id("a"), 1, &hello("eu"));
    let ours = ownership_to_record(&fleet, "a").unwrap();
    fleet.ownership_recorded(&id("a"), &ours, 5);
    assert!(fleet.grant(&id("a"), 1, later()) && fleet.ack(&id("a"), 1, 6));
    assert_eq!((fleet.watermark(6, 0, |r| r), fleet.watermark(9, 0, |r| r)), (6, 6), "it hasn't applied 9");
    fleet.update_from_store(id("a"), Some(record("r2")), 4);
    assert!(!stream.is_cancelled(), "an older record says nothing");
    fleet.update_from_store(id("a"), Some(record("r2")), 10);
    assert!(stream.is_cancelled() && !fleet.ack(&id("a"), 1, 9) && !fleet.may_grant(&id("a"), TTL, 99));
    assert_eq!(fleet.watermark(10, 0, |r| r), 10);
    assert!(fleet.owns_nodes(&"r2".parse().unwrap()) && !fleet.owns_nodes(&"me".parse().unwrap()));
}

#[test]
fn a_node_that_comes_here_is_answered_for_whatever_lease_it_brings() {
    let fleet = fleet();
    fleet.update_from_store(id("a"), Some(record("r2")), 3);
    let stream = fleet.open_stream(&id("a"), 1, &hello("eu"));
    fleet.update_from_store(id("a"), Some(record("r3")), 4);
    assert!(!stream.is_cancelled(), "the record that we are about to write comes later");
    assert!(ownership_to_record(&fleet, "a").is_some());
    assert_eq!(fleet.watermark(9, 0, |r| r), 0, "from before the record is written");
    fleet.close_stream(&id("a"), 1);
    assert!(fleet.has_leases(), "r2 may have granted it one a moment ago");
}

#[test]
fn nobody_comes_in_below_what_was_promised() {
    let fleet = fleet();
    assert_eq!(fleet.watermark(9, 0, |r| r), 9);
    fleet.open_stream(&id("a"), 1, &hello("eu"));
    fleet.ack(&id("a"), 1, 8);
    assert!(ownership_to_record(&fleet, "a").is_none());
    assert!(fleet.ownership_to_record(&id("a"), TTL, |_| 8).is_some(), "9 meant nothing to nodes");
    fleet.ack(&id("a"), 1, 9);
    assert!(ownership_to_record(&fleet, "a").is_some());
}

#[test]
fn who_waits_to_come_in_is_not_run_away_from() {
    let fleet = fleet();
    fleet.open_stream(&id("a"), 1, &hello("eu"));
    assert_eq!(fleet.watermark(7, 0, |r| r), 7, "it has no table yet");
    fleet.ack(&id("a"), 1, 6);
    assert_eq!(fleet.watermark(9, 0, |r| r), 7);
    fleet.ack(&id("a"), 1, 8);
    assert_eq!(fleet.watermark(12, 0, |r| r), 8);
    assert!(ownership_to_record(&fleet, "a").is_some());
}

#[test]
fn a_stream_that_came_back_is_not_fenced_for_what_happened_while_it_was_away() {
    let fleet = with_a();
    fleet.close_stream(&id("a"), 1);
    let back = fleet.open_stream(&id("a"), 2, &hello("eu"));
    fleet.update_from_store(id("a"), Some(record("r2")), 6);
    assert!(!back.is_cancelled() && ownership_to_record(&fleet, "a").is_some());
}

#[test]
fn what_no_lease_from_before_is_left_of_is_passed_whoever_is_silent() {
    let fleet = with_a();
    assert_eq!((fleet.watermark(9, 0, |r| r), fleet.watermark(9, 7, |r| r)), (0, 7));
    assert_eq!(fleet.watermark(9, 0, |r| r), 7, "a promise is kept");
}

#[test]
fn a_replica_that_was_retired_grants_nothing_and_answers_for_what_it_granted() {
    let fleet = with_a();
    assert!(fleet.may_grant(&id("a"), TTL, 9));
    fleet.resign_if(&"other".parse().unwrap());
    assert!(fleet.may_grant(&id("a"), TTL, 9));
    fleet.resign_if(&"me".parse().unwrap());
    assert!(!fleet.may_grant(&id("a"), TTL, 9) && ownership_to_record(&fleet, "a").is_none());
    assert_eq!(fleet.watermark(9, 0, |r| r), 0);
    fleet.register("me-again".parse().unwrap());
    assert_eq!(ownership_to_record(&fleet, "a").unwrap().replica, "me-again");
}

#[test]
fn an_evicted_node_keeps_its_replica_waited_for_until_its_lease_has_ended() {
    let (fleet, other) = (fleet(), "r2".parse().unwrap());
    fleet.update_from_store(id("a"), Some(record("r2")), 3);
    fleet.update_from_store(id("a"), None, 4);
    fleet.update_from_store(id("a"), Some(record("")), 5);
    assert!(fleet.owns_nodes(&other) && status(&fleet, "a", 9, later()) == ApplyStatus::Outstanding);
    let fleet = with_a();
    fleet.update_from_store(id("a"), None, 6);
    assert!(fleet.has_leases() && !fleet.owns_nodes(&"me".parse().unwrap()));
}

#[test]
fn an_answer_that_comes_late_brings_no_evicted_node_back() {
    let fleet = fleet();
    fleet.open_stream(&id("a"), 1, &hello("eu"));
    let ours = ownership_to_record(&fleet, "a").unwrap();
    fleet.update_from_store(id("a"), Some(ours.clone()), 5);
    fleet.update_from_store(id("a"), None, 6);
    fleet.ownership_recorded(&id("a"), &ours, 5); // written before it was evicted, heard of after
    assert!(!fleet.may_grant(&id("a"), TTL, 99));
    assert!(fleet.has_leases(), "whatever it may have is waited for");
    fleet.close_stream(&id("a"), 1);
    assert!(fleet.list(9, 9, |_| None).is_empty() && fleet.departed_nodes(9).is_empty());
    fleet.update_from_store(id("a"), Some(record("")), 7);
    assert_eq!(fleet.list(9, 9, |_| None).len(), 1, "enrolled anew under its name");
}

#[test]
fn a_listing_removes_who_is_not_in_it() {
    let fleet = Leases::new(vec![(id("a"), record("r2"), 2), (id("b"), record("r2"), 3)], TTL);
    fleet.reset(vec![(id("b"), record("r3"), 7)], 9);
    assert_eq!(fleet.list(9, 9, |_| None).len(), 1);
    assert!(fleet.owns_nodes(&"r3".parse().unwrap()));
}

#[test]
fn who_is_gone_with_its_lease_is_given_back() {
    let fleet = fleet();
    fleet.raise_longest_lease(TTL);
    fleet.open_stream(&id("a"), 1, &hello("eu"));
    let ours = ownership_to_record(&fleet, "a").unwrap();
    fleet.ownership_recorded(&id("a"), &ours, 5);
    fleet.close_stream(&id("a"), 1);
    assert!(fleet.departed_nodes(9).is_empty(), "it may have a lease");
    fleet.lock().nodes.values_mut().for_each(|node| node.lease_ends = BootInstant::now());
    assert!(fleet.departed_nodes(0).is_empty() && fleet.may_grant(&id("a"), TTL, 9));
    assert_eq!(fleet.departed_nodes(9), [(id("a"), 5)]);
    assert_eq!(fleet.departed_nodes(9), [(id("a"), 5)], "for all that is known, it was not written");
}

#[test]
fn who_comes_back_while_it_is_given_back_is_recorded_anew() {
    let fleet = with_a();
    fleet.close_stream(&id("a"), 1);
    fleet.lock().nodes.values_mut().for_each(|node| node.lease_ends = BootInstant::now());
    assert_eq!(fleet.departed_nodes(9), [(id("a"), 5)]);
    fleet.open_stream(&id("a"), 2, &hello("eu"));
    assert!(!fleet.may_grant(&id("a"), TTL, 9), "the store may say by now that nobody answers for it");
    let ours = ownership_to_record(&fleet, "a").unwrap();
    assert!(fleet.departed_nodes(9).is_empty());
    fleet.ownership_recorded(&id("a"), &ours, 8);
    assert!(fleet.may_grant(&id("a"), TTL, 9) && !fleet.may_grant(&id("a"), TTL, 7));
}

#[test]
fn nothing_is_promised_while_it_is_unknown_whether_we_answer_for_a_node() {
    let fleet = Leases::new(Vec::new(), Duration::ZERO); // a hold lapses at once, as it does in a process that is stopped for long
    fleet.register("me".parse().unwrap());
    fleet.open_stream(&id("a"), 1, &hello("eu"));
    assert!(fleet.ack(&id("a"), 1, 3));
    let ours = ownership_to_record(&fleet, "a").unwrap();
    fleet.close_stream(&id("a"), 1);
    assert_eq!(fleet.watermark(9, 0, |revision| revision), 3, "the write may still arrive");
    fleet.ownership_unknown(&id("a"), &ours);
    assert_eq!(fleet.watermark(9, 0, |revision| revision), 9);
}

fn hello_of(instance: &str) -> wire::Hello {
    wire::Hello { instance: instance.into(), ..hello("eu") }
}

fn record_of(replica: &str, instance: &str) -> wire::Node {
    wire::Node { instance: instance.into(), ..record(replica) }
}

#[test]
fn an_acknowledgement_counts_for_the_process_that_sent_it() {
    let fleet = with_a();
    assert!(fleet.grant(&id("a"), 1, later()) && fleet.ack(&id("a"), 1, 6));
    fleet.open_stream(&id("a"), 2, &hello_of("clone"));
    assert!(fleet.ack(&id("a"), 2, 9));
    assert!(!fleet.may_grant(&id("a"), TTL, 99), "the store names the other");
    assert!(matches!(status(&fleet, "a", 6, later()), ApplyStatus::Applied(_)), "both have that");
    assert_eq!(status(&fleet, "a", 9, later()), ApplyStatus::Outstanding);
    assert_eq!((fleet.watermark(9, 0, |r| r), fleet.has_leases(), fleet.are_all_recorded()), (6, true, false));
    let ours = ownership_to_record(&fleet, "a").unwrap();
    assert_eq!(ours.instance, b"clone");
    fleet.ownership_recorded(&id("a"), &ours, 10);
    assert!(fleet.may_grant(&id("a"), TTL, 10));
    fleet.close_stream(&id("a"), 2);
    fleet.lock().nodes.values_mut().for_each(|node| node.lease_ends = BootInstant::now());
    assert!(fleet.departed_nodes(9).is_empty(), "it isn't given back while the other may serve");
    let past = BootInstant::now();
    assert!(matches!(status(&fleet, "a", 9, past), ApplyStatus::Applied(_) | ApplyStatus::LeaseExpired(_)));
}

#[test]
fn a_replica_goes_on_answering_for_a_process_that_a_record_of_another_one_displaces() {
    let fleet = with_a();
    assert!(fleet.grant(&id("a"), 1, later()) && fleet.ack(&id("a"), 1, 6));
    fleet.update_from_store(id("a"), Some(record_of("r2", "clone")), 10);
    assert_eq!(status(&fleet, "a", 9, later()), ApplyStatus::Outstanding);
    assert_eq!(fleet.watermark(10, 0, |r| r), 6);
    // Back to the first process, elsewhere: that replica doesn't know what the one before has.
    fleet.update_from_store(id("a"), Some(record_of("r3", "")), 11);
    assert_eq!(fleet.watermark(11, 0, |r| r), 6);
    assert!(fleet.owns_nodes(&"r2".parse().unwrap()) && fleet.owns_nodes(&"r3".parse().unwrap()));
}

#[test]
fn a_replica_is_held_while_it_may_answer_for_a_process_that_no_record_names() {
    let (r2, r3) = ("r2".parse().unwrap(), "r3".parse().unwrap());
    for (longest, held) in [(TTL, true), (Duration::ZERO, false)] {
        let fleet = Leases::new(vec![(id("a"), record_of("r2", "one"), 3)], longest);
        fleet.update_from_store(id("a"), Some(record_of("r2", "two")), 4);
        fleet.update_from_store(id("a"), Some(record_of("r3", "two")), 5);
        assert_eq!((fleet.owns_nodes(&r2), fleet.owns_nodes(&r3)), (held, true), "{longest:?}");
    }
}

#[test]
fn nothing_is_promised_while_a_record_of_a_process_before_may_arrive() {
    let fleet = fleet();
    fleet.open_stream(&id("a"), 1, &hello_of("one"));
    assert!(fleet.ack(&id("a"), 1, 3));
    let late = ownership_to_record(&fleet, "a").unwrap();
    fleet.open_stream(&id("a"), 2, &hello_of("two"));
    assert!(fleet.ack(&id("a"), 2, 9));
    assert_eq!(fleet.watermark(9, 0, |r| r), 0, "with that we answer for a lease from another");
    fleet.ownership_recorded(&id("a"), &late, 5);
    assert!(!fleet.may_grant(&id("a"), TTL, 99), "it isn't of the process that is here");
    assert_eq!(fleet.watermark(9, 0, |r| r), 0);
    assert_eq!(ownership_to_record(&fleet, "a").unwrap().instance, b"two");
}

#[test]
fn the_next_end_of_a_lease_is_never_late() {
    let fleet = fleet();
    assert_eq!(fleet.next_expiry(), None);
    let soon = |ms| BootInstant::now().plus(Duration::from_millis(ms));
    let (first, second) = (soon(30), soon(60));
    fleet.open_stream(&id("a"), 0, &hello("eu"));
    fleet.open_stream(&id("b"), 1, &hello("eu"));
    assert!(fleet.grant(&id("b"), 1, second));
    assert_eq!(fleet.next_expiry(), Some(second));
    assert!(fleet.grant(&id("a"), 0, first));
    assert_eq!(fleet.next_expiry(), Some(first), "one that ends earlier was granted later");
    while BootInstant::now() <= first {
        std::thread::yield_now();
    }
    assert_eq!(fleet.next_expiry(), Some(second));
    while BootInstant::now() <= second {
        std::thread::yield_now();
    }
    assert_eq!(fleet.next_expiry(), None);
}
