//! A node that changes its replica: each has a part of one chain.

use super::*;

#[test]
fn parts_of_a_chain_in_two_trails_fit_together() {
    let key = key();
    let (disks, mut node) = ((SimulatedDisk::default(), SimulatedDisk::default()), Node::new("a", key.public()));
    let (one, two) = (open(&disks.0, &key), open(&disks.1, &key));
    let hand_in = |node: &mut Node, trail: &Trail, range: std::ops::Range<u64>| {
        node.requests(range.clone(), "ci-bot");
        let arrivals = node.arrivals(trail);
        let new: Vec<Arrival> = arrivals.into_iter().filter(|arrival| arrival.last() > range.start).collect();
        trail.ingest(&new).into_iter().for_each(|result| assert!(result.is_ok()));
    };
    hand_in(&mut node, &one, 0..50);
    hand_in(&mut node, &two, 50..80);
    hand_in(&mut node, &one, 80..130);
    let known = [node.head(unix_micros())];
    // In memory and from a block.
    for trail in [&one, &open(&disks.0, &key)] {
        let verified = trail.verify(&known, unix_micros()).unwrap();
        let problems: Vec<Problem> = verified.findings.into_iter().map(|finding| finding.problem).collect();
        assert_eq!(problems, [Problem::Gap { from: 51, to: 80 }], "nothing behind the gap counts as changed");
        let ranges: Vec<(u64, u64)> = verified.parts.iter().map(|part| (part.first, part.head.sequence)).collect();
        assert_eq!(ranges, [(1, 50), (81, 130)]);
        let other = two.verify(&[], unix_micros()).unwrap().parts;
        assert_eq!((other.len(), other[0].first, other[0].head.sequence), (1, 51, 80));
        assert_eq!(other[0].before, verified.parts[0].head.digest, "they fit");
        assert_eq!(other[0].head.digest, verified.parts[1].before);
        let mut exported = Vec::new();
        trail
            .export_frames(0..u64::MAX, &mut |frame| {
                exported.push((frame.first, frame.before));
                Ok(())
            })
            .unwrap();
        assert!(exported.contains(&(81, verified.parts[1].before)));
    }
}
