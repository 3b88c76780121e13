//! Costs: the bound at `policy apply`, and the cached decisions.

use std::time::Duration;

use super::*;

fn costly(id: &str, head: &str) -> String {
    let pattern = "a".repeat(400);
    format!("@id(\"{id}\") forbid ({head}) when {{ [context.path like \"*{pattern}{id}*\"].contains(true) }};\n")
}

const ANY: &str = "principal, action, resource";

#[test]
fn the_sum_over_what_can_apply_to_one_request_counts() {
    let of = |heads: &[String]| {
        parse_file(&heads.iter().enumerate().map(|(n, head)| costly(&format!("p{n}"), head)).collect::<String>())
    };
    assert!(of(&[ANY.into()]).is_err(), "one is too much");
    let small = |id: usize, head: &str| {
        format!("@id(\"p{id}\") forbid ({head}) when {{ [context.path like \"*ab{id}*\"].contains(true) }};\n")
    };
    let file = |head: &dyn Fn(usize) -> String| (0..40).map(|n| small(n, &head(n))).collect::<String>();
    let refused = parse_file(&file(&|_| ANY.into())).unwrap_err();
    assert!(refused[0].reason.starts_with("policy `p"), "{refused:?}");
    for apart in [
        &(|n| format!("principal, action, resource == Seks::Service::\"s{n}\"")) as &dyn Fn(usize) -> String,
        &|n| format!("principal == Seks::Agent::\"a{n}\", action, resource"),
        &|n| format!("principal == Seks::Agent::\"a{n}\", action, resource == Seks::Service::\"s{n}\""),
    ] {
        assert!(parse_file(&file(apart)).is_ok(), "{}", apart(0));
    }
    assert!(
        parse_file(&file(&|n| format!("principal in Seks::Group::\"g{n}\", action, resource"))).is_err(),
        "an agent can be in all"
    );
    let mixed = |n: usize| match n % 2 {
        0 => "principal == Seks::Agent::\"a\", action, resource".to_owned(),
        _ => "principal, action, resource == Seks::Service::\"s\"".to_owned(),
    };
    assert!(parse_file(&file(&mixed)).is_err(), "agent `a` at service `s`");
}

#[test]
fn conditions_constant_for_an_agent_cost_a_request_nothing() {
    let tags: String = (0..200)
        .map(|n| format!("@id(\"p{n}\") forbid ({ANY}) when {{ principal.hasTag(\"t{n}\") && principal.getTag(\"t{n}\") like \"*{}*\" }};\n", "ab".repeat(50)))
        .collect();
    assert!(parse_file(&tags).is_ok());
}

#[test]
fn a_long_decision_is_not_made_here_unless_it_is_known() {
    let policies = Fixture::new(&format!("{}{GRANTED_SERVICES}", costly("costly", ANY)));
    let limit = Duration::from_micros(100);
    let (short, long) = ("/v1/x".to_owned(), format!("/v1/{}", "a".repeat(4000)));
    let slice = policies.slice();
    assert!(slice.decide(&policies.call(&Method::GET, &short)).allowed, "makes the plan");
    assert!(slice.decide_within(limit, &policies.call(&Method::GET, &short)).is_some(), "short for a short path");
    let call = policies.call(&Method::GET, &long);
    assert_eq!(slice.decide_within(limit, &call), None);
    assert_eq!(slice.needs_body_within(limit, &call), Some(false), "no policy looks at a body");
    let decided = slice.decide(&call);
    assert_eq!(slice.decide_within(limit, &call), Some(decided), "it was decided before");
    let other = format!("{long}b");
    assert_eq!(
        slice.decide_within(limit, &policies.call(&Method::GET, &other)),
        None,
        "another path is another question"
    );
}

#[test]
fn nothing_is_kept_that_depends_on_more_than_its_key() {
    let pattern = "a".repeat(60);
    let text = format!(
        "{GRANTED_SERVICES}\n@id(\"old\") forbid ({ANY}) when {{ context.token.age_seconds > 100 && [context.path like \"*{pattern}*\"].contains(false) }};"
    );
    let f = Fixture::new(&text);
    let (slice, path) = (f.slice(), format!("/v1/{}", "b".repeat(4000)));
    let young = f.call(&Method::GET, &path);
    assert!(slice.decide(&young).allowed);
    assert!(!slice.decide(&Call { age_seconds: 101, ..young.clone() }).allowed);
    assert!(slice.decide(&young).allowed);

    let text = format!(
        "{GRANTED_SERVICES}\n@id(\"inside\") forbid ({ANY}) when {{ context.source.isInRange(ip(\"10.0.0.0/8\")) && [context.path like \"*{pattern}*\"].contains(false) }};\n\
         @id(\"large\") forbid ({ANY}) when {{ context has body && context.body has model && context.body.model == \"large\" }};\n\
         @id(\"debug\") forbid ({ANY}) when {{ context.query_keys.contains(\"debug\") }};"
    );
    let f = Fixture::new(&text);
    let slice = f.slice();
    let outside = Call { source: "192.0.2.1".parse().unwrap(), ..f.call(&Method::POST, &path) };
    let (large, small) = (facts("large"), facts("small"));
    for _ in 0..2 {
        let ask = |call: &Call<'_>| slice.decide(call).allowed;
        assert!(ask(&outside) && ask(&Call { body: Body::Inspected(&small), ..outside.clone() }));
        assert!(!ask(&Call { body: Body::Inspected(&large), ..outside.clone() }));
        assert!(!ask(&Call { body: Body::Opaque, ..outside.clone() }));
        assert!(!ask(&Call { query: "debug", ..outside.clone() }));
        assert!(!ask(&Call { source: "10.0.0.1".parse().unwrap(), ..outside.clone() }));
    }
    let services = [ServiceName::try_from("github").unwrap()];
    assert!(!slice.decide(&Call { services: &services, ..outside.clone() }).allowed, "not granted");
}

fn facts(model: &str) -> BodyFacts {
    BodyFacts { model: Some(model.into()), ..BodyFacts::default() }
}

#[test]
fn what_a_tenant_keeps_is_bounded() {
    let f = Fixture::new(&format!("{}{GRANTED_SERVICES}", costly("costly", ANY)));
    let slice = f.slice();
    for n in 0..2000 {
        let path = format!("/{n}/{}", "b".repeat(1000));
        assert!(slice.decide(&f.call(&Method::GET, &path)).allowed);
    }
    assert!(slice.cached_bytes() <= 1024 * 1024, "{}", slice.cached_bytes());
}
