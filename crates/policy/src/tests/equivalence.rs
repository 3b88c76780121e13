//! Compares slices, folded conditions and native evaluation with Cedar: all policies, the whole
//! request, validated by the schema.

use std::collections::BTreeSet;

use cedar_policy::{
    Authorizer, Context, Decision as Verdict, Entities, Entity, EntityUid, PolicyId as CedarId, PolicySet, Request,
    Response, RestrictedExpression as Value, pst,
};
use proptest::{prelude::*, sample::select};
use seks_service::request;

use super::{super::parse::check_file, *};

const PRINCIPALS: &[&str] = &[
    "principal",
    "principal",
    "principal == Seks::Agent::\"ci\"",
    "principal == Seks::Agent::\"other\"",
    "principal in Seks::Group::\"g\"",
    "principal in Seks::Agent::\"ci\"",
    "principal is Seks::Agent",
    "principal is Seks::Agent in Seks::Group::\"h\"",
];
const ACTIONS: &[&str] = &[
    "action",
    "action",
    "action == Seks::Action::\"GET\"",
    "action == Seks::Action::\"POST\"",
    "action in Seks::Action::\"read\"",
    "action in Seks::Action::\"write\"",
    "action in [Seks::Action::\"read\", Seks::Action::\"POST\"]",
    "action in [Seks::Action::\"DELETE\"]",
];
const RESOURCES: &[&str] = &[
    "resource",
    "resource",
    "resource == Seks::Service::\"openai\"",
    "resource == Seks::Service::\"github\"",
    "resource in Seks::Service::\"openai\"",
    "resource is Seks::Service",
];
const ATOMS: &[&str] = &[
    "true",
    "false",
    "context.path like \"/v1/*\"",
    "context.path like \"/v1/Admin/*\"",
    "context.path like \"/v1/a*\"",
    "context.path like \"/v1/admin/*\"",
    "context.path == \"/v1/a\"",
    "[\"/v1/a@b\", \"/v1/admin/x\"].contains(context.path)",
    "context.query_keys.contains(\"a\") || context.query_keys.contains(\"debug\")",
    "context.path like \"*/a*b*\"",
    "context.path like \"*\"",
    "context.path like \"/v1/%61\"",
    "context.path like \"/v1/\\*\"",
    "context.path == \"/v1/a@b\"",
    "\"/v1/A\" != context.path",
    "[\"/v1/a\", \"/v1/admin/x\"].contains(context.path)",
    "context.query_keys.contains(\"debug\")",
    "context.query_keys.contains(\"Debug\")",
    "context.query_keys.containsAny([\"a\", \"B\"])",
    "context.query_keys.containsAll([\"a\", \"Debug[]\"])",
    "[\"a\", \"x.y\"].containsAny(context.query_keys)",
    "[\"a\", \"debug\", \"Debug\"].containsAll(context.query_keys)",
    "(context.query_keys.contains(\"debug\") == (context.token.age_seconds < 100))",
    "context.query_keys == [\"debug\"]",
    "context.query_keys.isEmpty()",
    "context.token.services.contains(resource)",
    "context.token.services.contains(Seks::Service::\"github\")",
    "context.token.age_seconds < 100",
    "context.token.age_seconds * 9223372036854775807 > 0",
    "context.token.id == \"tok-1\"",
    "context.source.isInRange(ip(\"10.0.0.0/8\"))",
    "context.source.isIpv6()",
    "context.body_inspected",
    "context has body",
    "(context has body && context.body has model && context.body.model == \"Small\")",
    "(context has body && context.body has model && context.body.model like \"*l*\")",
    "(context has body && context.body has stream && context.body.stream)",
    "(context has body && context.body has max_tokens && context.body.max_tokens + 1 > 5)",
    "context has mcp",
    "(context has mcp && context.mcp has name && context.mcp.name like \"get_*\")",
    "(context has mcp && context.mcp.method == \"tools/call\")",
    "principal in Seks::Group::\"g\"",
    "(principal.hasTag(\"t\") && principal.getTag(\"t\") == \"v\")",
    "principal == Seks::Agent::\"ci\"",
    "resource == Seks::Service::\"openai\"",
    "action in Seks::Action::\"read\"",
    "action == Seks::Action::\"POST\"",
];

fn condition() -> impl Strategy<Value = String> {
    select(ATOMS).prop_map(|atom| format!("({atom})")).prop_recursive(3, 6, 3, |inner| {
        let three = (inner.clone(), inner.clone(), inner.clone());
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            inner.prop_map(|a| format!("!({a})")),
            three.prop_map(|(a, b, c)| format!("(if {a} then {b} else {c})")),
        ]
    })
}

fn policy() -> impl Strategy<Value = String> {
    let head = (select(&["permit", "permit", "forbid"][..]), select(PRINCIPALS), select(ACTIONS), select(RESOURCES));
    let clauses = prop::collection::vec((select(&["when", "unless"][..]), condition()), 0..3);
    (head, clauses).prop_map(|((effect, principal, action, resource), clauses)| {
        let clauses: String = clauses.iter().map(|(word, c)| format!(" {word} {{ {c} }}")).collect();
        format!("{effect} ({principal}, {action}, {resource}){clauses};")
    })
}

/// Half of them begin with a permit for everything: most random requests would be denied otherwise,
/// and show little.
fn file() -> impl Strategy<Value = String> {
    (any::<bool>(), prop::collection::vec(policy(), 1..5)).prop_map(|(open, policies)| {
        let all = if open { "@id(\"all\") permit (principal, action, resource);\n" } else { "" };
        let named = policies.iter().enumerate().map(|(i, p)| format!("@id(\"p{i}\") {p}\n"));
        named.fold(all.to_owned(), |text, policy| text + &policy)
    })
}

#[derive(Clone, Debug)]
struct SampleCall {
    method: Method,
    path: &'static str,
    query: &'static str,
    services: Vec<ServiceName>,
    age_seconds: i64,
    source: &'static str,
    facts: Option<BodyFacts>,
    groups: &'static str,
    tag: &'static str,
}

fn sample_call() -> impl Strategy<Value = SampleCall> {
    let methods = select(&schema::METHODS[..]);
    let paths = &[
        "/v1/a",
        "/v1/A",
        "/v1/admin/x",
        "/v1/ADMIN/ab",
        "/v1/Admin/x",
        "/v1/%61",
        "/v1/a@b",
        "/v1/a%40b",
        "/x/aabb",
        "/",
        "/v1/*",
    ][..];
    let queries = &[
        "",
        "debug",
        "Debug=1&a",
        "b=1",
        "d%65bug",
        "debug[]=1",
        "%20debug",
        "+debug",
        "a&debug.",
        "x[y]",
        "x_y&A[0]",
        "_debug",
    ][..];
    let services = &["openai", "github"][..];
    let body = (
        prop::option::of(select(&["Small", "small", "large", " small"][..])),
        prop::option::of(any::<bool>()),
        prop::option::of(select(&[0, 5, i64::MAX][..])),
        prop::option::of(
            (select(&["tools/call", "ping"][..]), prop::option::of(select(&["get_x", "delete_x"][..])))
                .prop_map(|(method, name)| request::McpCall { method: method.into(), name: name.map(str::to_owned) }),
        ),
    );
    let facts = prop::option::of(body.prop_map(|(model, stream, max_tokens, mcp)| BodyFacts {
        model: model.map(str::to_owned),
        stream,
        max_tokens,
        mcp,
        ..BodyFacts::default()
    }));
    let who = (select(&["", "g", "g,h", "x"][..]), select(&["v", "w"][..]));
    let services = prop::sample::subsequence(services, 0..=2);
    let rest = (select(&[0, 1, 1000][..]), select(&["10.0.0.1", "::1", "192.0.2.1"][..]));
    (methods, select(paths), select(queries), services, rest, facts, who).prop_map(
        |(method, path, query, services, (age_seconds, source), facts, (groups, tag))| SampleCall {
            method,
            path,
            query,
            services: services.into_iter().map(|s| ServiceName::try_from(s).unwrap()).collect(),
            age_seconds,
            source,
            facts,
            groups,
            tag,
        },
    )
}

/// What Cedar says to all policies at once, in one reading.
struct Reference {
    as_sent: PolicySet,
    normalized: PolicySet,
}

impl Reference {
    fn new(text: &str) -> Self {
        let (mut as_sent, mut normalized) = (PolicySet::new(), PolicySet::new());
        for policy in check_file(text, &BodyFields::default()).unwrap() {
            let id = CedarId::new(policy.id.as_str());
            as_sent.add(policy.policy.new_id(id.clone())).unwrap();
            let pst::Policy::Static(tree) = policy.policy.to_pst().unwrap() else { panic!("a template") };
            let clauses = tree.body().clauses().iter().map(|clause| match clause {
                pst::Clause::When(e) => pst::Clause::When(normalize::normalize_expression(e).unwrap().into()),
                pst::Clause::Unless(e) => pst::Clause::Unless(normalize::normalize_expression(e).unwrap().into()),
            });
            let tree = tree.body().clone().try_with_clauses(clauses.collect::<Vec<_>>()).unwrap();
            let rebuilt = cedar_policy::Policy::from_pst(pst::Policy::Static(tree.try_into().unwrap())).unwrap();
            normalized.add(rebuilt.new_id(id)).unwrap();
        }
        Self { as_sent, normalized }
    }

    fn ask(&self, asked: &SampleCall, normalized: bool) -> Response {
        let v = schema::vocabulary().unwrap();
        let agent = v.agent("ci");
        let groups: Vec<EntityUid> = asked.groups.split(',').filter(|g| !g.is_empty()).map(|g| v.group(g)).collect();
        let tags = [("group", asked.groups), ("t", asked.tag)].map(|(k, v)| (k.into(), Value::new_string(v.into())));
        let principal = Entity::new_with_tags(agent.clone(), [], groups.clone(), tags).unwrap();
        let others = groups.into_iter().chain([v.service("openai"), v.service("github")]).map(Entity::with_uid);
        let entities = Entities::from_entities(others.chain([principal]), Some(v.schema())).unwrap();
        let action: EntityUid = format!("Seks::Action::\"{}\"", asked.method).parse().unwrap();
        let request = Request::new(
            agent,
            action,
            v.service("openai"),
            context(asked, normalized),
            (!normalized).then(|| v.schema()),
        )
        .unwrap();
        Authorizer::new().is_authorized(&request, if normalized { &self.normalized } else { &self.as_sent }, &entities)
    }
}

fn context(asked: &SampleCall, normalized: bool) -> Context {
    let v = schema::vocabulary().unwrap();
    let names =
        request::query_names(asked.query).map(|n| if normalized { n.to_ascii_lowercase() } else { n.into_owned() });
    let path = if normalized {
        asked.path.to_ascii_lowercase().replace("%40", "@").replace("%61", "a")
    } else {
        asked.path.into()
    };
    let services = asked.services.iter().map(|s| Value::new_entity_uid(v.service(s.as_str())));
    let token = [
        ("id".into(), Value::new_string("tok-1".into())),
        ("services".into(), Value::new_set(services)),
        ("age_seconds".into(), Value::new_long(asked.age_seconds)),
    ];
    let mut pairs = vec![
        ("path".to_owned(), Value::new_string(path)),
        ("query_keys".into(), Value::new_set(names.map(Value::new_string))),
        ("token".into(), Value::new_record(token).unwrap()),
        ("source".into(), Value::new_ip(asked.source)),
        ("body_inspected".into(), Value::new_bool(true)),
    ];
    if normalized {
        // Written out by hand: what servers make of the names above.
        let interpretations: &[&str] = match asked.query {
            "" => &[],
            "debug" | "d%65bug" | "debug[]=1" | "%20debug" | "+debug" | "_debug" => &["debug"],
            "Debug=1&a" | "a&debug." => &["a", "debug"],
            "b=1" => &["b"],
            "x[y]" => &["x", "x.y"],
            "x_y&A[0]" => &["x_y", "x.y", "a"],
            other => panic!("{other}"),
        };
        let interpretations = interpretations.iter().map(|r| Value::new_string((*r).to_owned()));
        pairs.push((mentions::QUERY_INTERPRETATIONS.into(), Value::new_set(interpretations)));
    }
    if let Some(facts) = &asked.facts {
        let model = |m: String| if normalized { m.trim().to_ascii_lowercase() } else { m };
        let fields = [
            facts.model.clone().map(|m| ("model".to_owned(), Value::new_string(model(m)))),
            facts.stream.map(|s| ("stream".to_owned(), Value::new_bool(s))),
            facts.max_tokens.map(|n| ("max_tokens".to_owned(), Value::new_long(n))),
        ];
        pairs.push(("body".into(), Value::new_record(fields.into_iter().flatten()).unwrap()));
        if let Some(mcp) = &facts.mcp {
            let name = mcp.name.clone().map(|name| ("name".to_owned(), Value::new_string(name)));
            let fields = [("method".to_owned(), Value::new_string(mcp.method.clone()))].into_iter().chain(name);
            pairs.push(("mcp".into(), Value::new_record(fields).unwrap()));
        }
    }
    Context::from_pairs(pairs).unwrap()
}

fn names(response: &Response) -> BTreeSet<String> {
    response.diagnostics().reason().map(ToString::to_string).collect()
}

fn allows(response: &Response) -> bool {
    response.decision() == Verdict::Allow && response.diagnostics().errors().next().is_none()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_decision_is_cedars_in_both_readings(text in file(), calls in prop::collection::vec(sample_call(), 48)) {
        let reference = Reference::new(&text);
        let mut fixture = Fixture::new(&text);
        for asked in calls {
            fixture = fixture.with("group", asked.groups).with("t", asked.tag);
            let slice = fixture.slice();
            let body = asked.facts.as_ref().map_or(Body::Absent, Body::Inspected);
            let call = Call {
                query: asked.query,
                services: &asked.services,
                age_seconds: asked.age_seconds,
                source: asked.source.parse().unwrap(),
                body,
                mcp: true,
                ..fixture.call(&asked.method, asked.path)
            };
            let (as_sent, normalized) = (reference.ask(&asked, false), reference.ask(&asked, true));
            let decision = slice.decide(&call);
            prop_assert_eq!(decision.allowed, allows(&as_sent) && allows(&normalized), "{:?}\n{}", asked, text);

            let ids: BTreeSet<String> = decision.policy_ids.iter().map(ToString::to_string).collect();
            if decision.allowed {
                prop_assert_eq!(&ids, &names(&as_sent));
            } else {
                let determining = if as_sent.decision() == Verdict::Deny { names(&as_sent) } else { names(&normalized) };
                prop_assert!(ids.is_subset(&determining), "{:?} {:?}\n{}", ids, determining, text);
                prop_assert!(decision.error.is_some() || ids.is_empty() == determining.is_empty(), "{}", text);
            }

            let blind = slice.decide(&Call { body: Body::Opaque, ..call.clone() });
            if blind.allowed || !slice.needs_body(&call) {
                prop_assert_eq!(blind.allowed, decision.allowed, "the body mattered: {:?}\n{}", asked, text);
            }
        }
    }

    #[test]
    fn a_pattern_matches_what_cedars_does(text in "[/ab*]{0,12}", pattern in "[/ab*]{0,8}") {
        let literal = pattern.replace('/', "\\*"); // `/` stands for a literal star
        let expression = format!("\"{text}\" like \"{literal}\"");
        let request = Request::new(
            "A::\"a\"".parse().unwrap(), "A::\"a\"".parse().unwrap(), "A::\"a\"".parse().unwrap(), Context::empty(), None,
        ).unwrap();
        let cedars = cedar_policy::eval_expression(&request, &Entities::empty(), &expression.parse().unwrap()).unwrap();
        let elements = pattern.chars().map(|c| match c {
            '*' => pst::PatternElem::Wildcard,
            '/' => pst::PatternElem::Char('*'),
            c => pst::PatternElem::Char(c),
        });
        let ours = pattern::Pattern::new(&elements.collect::<Vec<_>>()).matches(&text);
        prop_assert_eq!(cedar_policy::EvalResult::Bool(ours), cedars, "{}", expression);
    }
}
