//! Policy work: what is too much is refused when it is applied.

use super::world::World;

/// Policies whose `like` Cedar itself evaluates: pattern times path.
fn costly(count: usize, pattern: usize) -> String {
    let policy = |n: usize| {
        let pattern = format!("*{}{n}*", "a".repeat(pattern));
        format!(
            "@id(\"costly-{n}\")\nforbid (principal, action, resource) when {{ [context.path like \"{pattern}\"].contains(true) }};\n"
        )
    };
    (0..count).map(policy).collect()
}

#[test]
fn policies_that_cost_too_much_a_request_are_refused_with_their_cost_and_the_budget() {
    let world = World::start("");
    let names = |p: usize| (0..60).map(move |n| format!("context.query_keys.containsAll([\"k{p}-{n}\"])"));
    let asks = |p: usize| names(p).collect::<Vec<_>>().join(" || ");
    let policy =
        |p: usize| format!("@id(\"costly-{p}\")\nforbid (principal, action, resource) when {{ {} }};\n", asks(p));
    let many_names: String = (0..20).map(policy).collect();
    for (what, cedar) in [("patterns", costly(60, 200)), ("one pattern", costly(1, 8000)), ("query names", many_names)]
    {
        let refused = world.apply("hostile", &cedar);
        assert_eq!(refused.code, Some(2), "{what}: {}{}", refused.stdout, refused.stderr);
        for part in ["`costly-", " µs", "the budget is"] {
            assert!(refused.stderr.contains(part), "{what}: no {part:?} in {}", refused.stderr);
        }
    }
    assert_eq!(world.get(&world.hostile).status, 200, "nothing of it was stored");
}

#[test]
fn ordinary_policies_are_within_the_budget_and_in_force_when_they_are_acknowledged() {
    let world = World::start("");
    let policies: String = (0..20)
        .map(|n| format!("@id(\"no-{n}\") forbid (principal, action, resource) when {{ context.path like \"/v1/admin{n}/*\" }};\n"))
        .collect();
    for round in 0..2 {
        let last = format!(
            "@id(\"last\") forbid (principal, action, resource) when {{ context.path == \"/v1/round{round}\" }};"
        );
        let applied = world.apply("hostile", &format!("{policies}{last}"));
        assert_eq!(applied.code, Some(0), "{}{}", applied.stdout, applied.stderr);
        // Acknowledged is in force, though the node compiles beside the stream: a request waits for
        // it.
        let path = format!("/api/model/v1/round{round}");
        assert_eq!(world.sandbox.get(&path, &world.hostile.secret).code(), "policy_denied", "round {round}");
        assert_eq!(world.get(&world.hostile).status, 200, "what isn't forbidden goes through");
        assert_eq!(world.get(&world.victim).status, 200);
    }
}
