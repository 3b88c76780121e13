//! Policies that ask for approval, and what lifts them.

use seks_proto::wire;
use seks_service::request::{BodyFacts, BodyFormat};

use crate::{
    Approvals, Body, Call, Decision, GRANTED_SERVICES, GrantText, Policies, approval_scope, grant_text, parse_file,
    request_digest, sha256_of,
};

const ASKS: &str = "@id(\"ask\") @approval(\"payments\") forbid (principal, action, resource) when { context.path like \"/v1/refunds*\" };";

fn record(id: &str, text: impl Into<String>) -> wire::Policy {
    wire::Policy { id: id.into(), text: text.into(), ..wire::Policy::default() }
}

fn grant(change: impl FnOnce(&mut GrantText<'_>)) -> wire::Policy {
    let (id, lifts, sha256) = ("apr-1".parse().unwrap(), "ask".parse().unwrap(), sha256_of(ASKS));
    let mut text = GrantText {
        id: &id,
        lifts: &lifts,
        sha256: &sha256,
        expires_at: 100,
        uses: 0,
        agent: "bot",
        method: "POST",
        service: "api",
        path: "/v1/refunds/1",
        mcp: ("", ""),
        token: "",
    };
    change(&mut text);
    wire::Policy { approval_grant: true, ..record("apr-1", grant_text(&text)) }
}

fn with_call<T>(
    (method, path, query): (&http::Method, &str, &str),
    body: Body<'_>,
    run: impl FnOnce(&Call<'_>) -> T,
) -> T {
    let service = "api".parse().unwrap();
    run(&Call {
        method,
        method_group: crate::MethodGroup::Neither,
        path,
        query,
        token: "tok-1",
        services: std::slice::from_ref(&service),
        age_seconds: 0,
        source: [127, 0, 0, 1].into(),
        body,
        mcp: matches!(body, Body::Inspected(facts) if facts.mcp.is_some()),
        trust: None,
    })
}

fn decide(policies: &[wire::Policy], method: &http::Method, path: &str) -> Decision {
    let policies = Policies::compile(policies).unwrap();
    let slice = policies.slice_for(&"bot".parse().unwrap(), &Default::default(), &"api".parse().unwrap());
    with_call((method, path, ""), Body::Absent, |call| slice.decide(call))
}

fn is_approved(decision: &Decision, query: &str, now: i64) -> bool {
    let is_granted = |approvals: &std::sync::Arc<Approvals>| {
        with_call((&http::Method::POST, "", query), Body::Absent, |call| approvals.are_granted(call, now))
    };
    decision.allowed && decision.approvals.as_ref().is_none_or(is_granted)
}

#[test]
fn what_is_not_approved_is_named_and_other_policies_decide_as_always() {
    let policies = [record("granted-services", GRANTED_SERVICES), record("ask", ASKS)];
    let (post, get) = (http::Method::POST, http::Method::GET);
    let decision = decide(&policies, &post, "/v1/refunds/1");
    let approvals = decision.approvals.clone().unwrap();
    assert!(decision.allowed && approvals.grants.is_empty());
    assert_eq!((approvals.required[0].policy.as_str(), &*approvals.required[0].scope), ("ask", "payments"));
    assert!(!is_approved(&decision, "", 0));
    assert_eq!(decide(&policies, &get, "/v1/charges").approvals, None);
    // Another spelling of the path needs it as well.
    for path in ["/v1/Refunds/1", "/v1/%72efunds/1", "/v1//refunds/1", "/v1;a/refunds"] {
        assert!(!is_approved(&decide(&policies, &get, path), "", 0), "{path}");
    }
    let without_permit = [record("ask", ASKS), grant(|_| {})];
    assert!(!decide(&without_permit, &post, "/v1/refunds/1").allowed, "a grant permits nothing by itself");
    let forbid = record("stop", "@id(\"stop\") forbid (principal, action, resource);");
    let forbidden = [record("granted-services", GRANTED_SERVICES), record("ask", ASKS), grant(|_| {}), forbid];
    assert!(!decide(&forbidden, &post, "/v1/refunds/1").allowed);
    let audit = record("ask", ASKS.replace("@approval", "@mode(\"audit\") @approval"));
    let audited = decide(&[record("granted-services", GRANTED_SERVICES), audit], &post, "/v1/refunds/1");
    assert!(audited.approvals.is_none() && audited.audited[0].as_str() == "ask");
}

#[test]
fn a_grant_lifts_exactly_what_it_names() {
    let with = |grant: wire::Policy| [record("granted-services", GRANTED_SERVICES), record("ask", ASKS), grant];
    let (post, put) = (http::Method::POST, http::Method::PUT);
    let decision = decide(&with(grant(|_| {})), &post, "/v1/refunds/1");
    assert!(is_approved(&decision, "", 99) && is_approved(&decision, "a=b", 99));
    assert!(!is_approved(&decision, "", 100), "it has ended");
    for path in ["/v1/refunds/2", "/v1/refunds", "/v1/refunds/1/", "/v1/Refunds/1", "/v1/refunds/%31", "/v1//refunds/1"]
    {
        assert!(!is_approved(&decide(&with(grant(|_| {})), &post, path), "", 0), "{path}");
    }
    assert!(!is_approved(&decide(&with(grant(|_| {})), &put, "/v1/refunds/1"), "", 0));
    let hex = |text: &str| data_encoding::HEXLOWER.encode(&sha256_of(text));
    let wrong = [
        grant(|text| text.agent = "other"),
        grant(|text| text.service = "other"),
        grant(|text| text.token = "tok-2"),
        record("apr-1", grant(|_| {}).text.replace("@grant(\"ask\")", "@grant(\"other\")")),
        record("apr-1", grant(|_| {}).text.replace(&hex(ASKS), &hex("another text"))),
    ];
    for policy in wrong {
        let text = policy.text.clone();
        assert!(!is_approved(&decide(&with(policy), &post, "/v1/refunds/1"), "", 0), "{text}");
    }
    let own = decide(&with(grant(|text| text.token = "tok-1")), &post, "/v1/refunds/1");
    assert!(is_approved(&own, "", 0));
    let digest = with_call((&post, "", "a=1"), Body::Absent, request_digest);
    let for_query = wire::Policy { request_sha256: digest.to_vec(), ..grant(|_| {}) };
    let decision = decide(&with(for_query), &post, "/v1/refunds/1");
    assert!(is_approved(&decision, "a=1", 0) && !is_approved(&decision, "a=2", 0) && !is_approved(&decision, "", 0));
}

#[test]
fn grants_without_a_count_are_used_first() {
    let counted = wire::Policy {
        id: "apr-2".into(),
        text: grant(|text| text.uses = 3).text.replace("apr-1", "apr-2"),
        ..Default::default()
    };
    let policies = [record("granted-services", GRANTED_SERVICES), record("ask", ASKS), counted, grant(|_| {})];
    let approvals: Approvals = (*decide(&policies, &http::Method::POST, "/v1/refunds/1").approvals.unwrap()).clone();
    let order: Vec<bool> = with_call((&http::Method::POST, "", ""), Body::Absent, |call| {
        approvals.grants_for(&approvals.required[0], call, 0).iter().map(|grant| grant.is_counted).collect()
    });
    assert_eq!(order, [false, true]);
}

#[test]
fn files_ask_for_approval_and_grant_none() {
    let asks = parse_file(ASKS).unwrap();
    assert_eq!(approval_scope(&asks[0].1).as_deref(), Some("payments"));
    assert_eq!(approval_scope("@id(\"a\") // @approval(\"x\")\npermit (principal, action, resource);"), None);
    assert_eq!(approval_scope("@id(\"@approval(\\\"x\\\")\") permit (principal, action, resource);"), None);
    assert_eq!(
        approval_scope("@id(\"a\")\n@ approval ( \"ops: deploy\" ) forbid (principal, action, resource);").as_deref(),
        Some("ops: deploy")
    );
    let wrong = [
        ("@id(\"a\") @approval(\"x\") permit (principal, action, resource);", "belongs to a forbid"),
        ("@id(\"a\") @approval forbid (principal, action, resource);", "a label of"),
        ("@id(\"a\") @approval(\"\") forbid (principal, action, resource);", "a label of"),
        ("@id(\"a\") @approval(\"<b>\") forbid (principal, action, resource);", "a label of"),
        ("@id(\"a\") @approval(\"x\") @limit(\"1 requests/day\") forbid (principal, action, resource);", "exclude"),
        ("@id(\"a\") @until(\"1\") permit (principal, action, resource);", "belongs to a grant"),
        ("@id(\"a\") @uses(\"1\") permit (principal, action, resource);", "belongs to a grant"),
        ("@id(\"a\") @grant(\"ask\") permit (principal, action, resource);", "is not one that an approval wrote"),
        (&grant(|_| {}).text, "is written by `seks approval approve` alone"),
        (&grant(|_| {}).text.replace("permit", "forbid"), "is not one that an approval wrote"),
    ];
    for (text, why) in wrong {
        let errors = parse_file(text).unwrap_err();
        assert!(errors[0].reason.contains(why), "{text}: {errors:?}");
    }
}

#[test]
fn a_grants_text_holds_whatever_a_path_does() {
    for path in ["/a\"b", "/a\\b", "/a*b", "/a'b", "/a$b{c}|d"] {
        let asks = ASKS.replace("/v1/refunds", "/");
        let hex = |text: &str| data_encoding::HEXLOWER.encode(&sha256_of(text));
        let granted = grant(|text| text.path = path).text.replace(&hex(ASKS), &hex(&asks));
        let policies = [record("granted-services", GRANTED_SERVICES), record("apr-1", granted), record("ask", asks)];
        assert!(is_approved(&decide(&policies, &http::Method::POST, path), "", 0), "{path}");
        assert!(!is_approved(&decide(&policies, &http::Method::POST, "/aXb"), "", 0), "{path}");
    }
}

#[test]
fn a_digest_tells_queries_and_bodies_apart_and_nothing_that_was_not_read() {
    let facts = |json: &str| {
        let fields = std::sync::Arc::new(seks_service::request::BodyFields::parse([("amount", "Long")]).unwrap());
        BodyFacts::read(BodyFormat::Json, json.as_bytes(), &fields).unwrap()
    };
    let digest = |query: &str, body: Body<'_>| with_call((&http::Method::POST, "/", query), body, request_digest);
    let bodies = [
        r#"{"amount":1}"#,
        r#"{"amount":2}"#,
        "{}",
        r#"{"model":"1"}"#,
        r#"{"model":"a","stream":true}"#,
        r#"{"max_tokens":1}"#,
    ];
    let mut seen: Vec<_> = bodies.iter().map(|body| digest("", Body::Inspected(&facts(body)))).collect();
    seen.extend(["a=1", "a=2", "amount=1"].map(|query| digest(query, Body::Absent)));
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count);
    assert_eq!(digest("", Body::NotRead), digest("", Body::Absent));
    assert_eq!(
        digest("", Body::Inspected(&facts(r#"{"amount":1,"x":2}"#))),
        digest("", Body::Inspected(&facts(bodies[0])))
    );
}

#[test]
fn an_approved_mcp_call_is_for_its_tool() {
    let asks = "@id(\"ask\") @approval(\"tools\") forbid (principal, action, resource) when { context has mcp && context.mcp.method == \"tools/call\" };";
    let hex = |text: &str| data_encoding::HEXLOWER.encode(&sha256_of(text));
    let granted =
        grant(|text| (text.path, text.mcp) = ("/mcp", ("tools/call", "delete"))).text.replace(&hex(ASKS), &hex(asks));
    let policies = [record("granted-services", GRANTED_SERVICES), record("ask", asks), record("apr-1", granted)];
    let policies = Policies::compile(&policies).unwrap();
    let slice = policies.slice_for(&"bot".parse().unwrap(), &Default::default(), &"api".parse().unwrap());
    for (tool, approved) in [("delete", true), ("delete_all", false), ("", false)] {
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}"}}}}"#);
        let facts = BodyFacts::read(BodyFormat::Json, message.as_bytes(), &Default::default()).unwrap();
        let Some(facts) = facts.with_mcp(message.as_bytes()) else {
            assert!(!approved);
            continue;
        };
        let is_granted = with_call((&http::Method::POST, "/mcp", ""), Body::Inspected(&facts), |call| {
            let decision = slice.decide(call);
            decision.allowed && decision.approvals.is_none_or(|approvals| approvals.are_granted(call, 0))
        });
        assert_eq!(is_granted, approved, "{tool}");
    }
}
