mod approvals;
mod cost;
mod equivalence;
mod explain;
mod fields;
mod paths;

use std::collections::BTreeMap;

use seks_proto::wire;
use seks_service::request::BodyFields;
use seks_types::id::AgentName;

use super::*;

/// Policies from text, one agent with attributes, and short-hands to ask about it.
struct Fixture {
    policies: Policies,
    attributes: BTreeMap<String, String>,
    services: Vec<ServiceName>,
    token: String,
}

impl Fixture {
    fn new(text: &str) -> Self {
        // Whatever it costs.
        let parsed = parse::check_file(text, &BodyFields::default()).unwrap_or_else(|e| panic!("{e:?}"));
        let wire =
            |p: parse::CheckedPolicy| wire::Policy { id: p.id.to_string(), text: p.text, ..wire::Policy::default() };
        let policies: Vec<_> = parsed.into_iter().map(wire).collect();
        Self {
            policies: Policies::compile(&policies).unwrap(),
            attributes: BTreeMap::new(),
            services: vec![ServiceName::try_from("openai").unwrap()],
            token: "tok-1".into(),
        }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }

    fn slice(&self) -> Arc<PolicySlice> {
        let (agent, service) = (AgentName::try_from("ci").unwrap(), ServiceName::try_from("openai").unwrap());
        self.policies.slice_for(&agent, &self.attributes, &service)
    }

    fn call<'a>(&'a self, method: &'a Method, target: &'a str) -> Call<'a> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Call {
            method,
            method_group: MethodGroup::Neither,
            path,
            query,
            token: self.token.as_str(),
            services: &self.services,
            age_seconds: 60,
            source: "10.1.2.3".parse().unwrap(),
            body: Body::Absent,
            mcp: false,
            trust: None,
        }
    }

    fn ask(&self, method: &Method, target: &str) -> Decision {
        self.slice().decide(&self.call(method, target))
    }

    /// The decision on a POST with a body, read as the node does: only if it must be.
    fn post(&self, path: &str, body: &str) -> Decision {
        let facts = BodyFacts::from_json(body.as_bytes());
        let call = self.call(&Method::POST, path);
        let body = match (self.slice().needs_body(&call), &facts) {
            (false, _) => Body::NotRead,
            (true, None) => Body::Opaque,
            (true, Some(facts)) => Body::Inspected(facts),
        };
        self.slice().decide(&Call { body, ..call })
    }
}

fn ids(decision: &Decision) -> Vec<&str> {
    decision.policy_ids.iter().map(PolicyId::as_str).collect()
}

fn errors(text: &str) -> Vec<String> {
    parse_file(text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_schema_is_the_contracts() {
    assert!(schema::vocabulary().is_some());
}

#[test]
fn further_methods_are_actions() {
    let method = |name: &str| Method::from_bytes(name.as_bytes()).unwrap();
    let f = Fixture::new(
        r#"@id("list") permit (principal, action == Seks::Action::"LIST", resource);
           @id("reads") permit (principal, action in Seks::Action::"read", resource) when { context.path like "/r/*" };
           @id("fetch") permit (principal, action, resource) when { action == Seks::Action::"FETCH" };
           @id("quiet") permit (principal, action, resource) when { action in Seks::Action::"write" && context.path like "/w/*" };
           @id("no-purge") forbid (principal, action in [Seks::Action::"PURGE"], resource);"#,
    );
    for (name, path, want) in [
        ("LIST", "/x", true),
        ("list", "/x", false),
        ("PROPFIND", "/x", false),
        ("PROPFIND", "/r/x", true),
        ("LOCK", "/r/x", false),
        ("LOCK", "/w/x", true),
        ("PURGE", "/w/x", false),
        ("FETCH", "/x", true),
        ("FETCH", "/r/x", true),
        ("OTHER", "/r/x", false),
        ("OTHER", "/w/x", false),
        ("GET", "/r/x", true),
        ("GET", "/x", false),
        ("PUT", "/w/x", true),
    ] {
        assert_eq!(f.ask(&method(name), path).allowed, want, "{name} {path}");
    }
    // What the service says of a method that the schema doesn't know.
    let in_group = |name: &str, path, method_group| {
        let method = method(name);
        f.slice().decide(&Call { method_group, ..f.call(&method, path) }).allowed
    };
    assert!(in_group("OTHER", "/r/x", MethodGroup::Read) && !in_group("OTHER", "/w/x", MethodGroup::Read));
    assert!(in_group("OTHER", "/w/x", MethodGroup::Write) && !in_group("OTHER", "/r/x", MethodGroup::Write));
    assert!(!in_group("LOCK", "/r/x", MethodGroup::Read), "known methods have their group");
    assert!(Fixture::new(GRANTED_SERVICES).ask(&method("ANY"), "/").allowed);

    let typo = "@id(\"a\") permit (principal, action == Seks::Action::\"GTE\", resource);";
    assert_eq!(custom_methods(typo), [(1, "GTE".to_owned())]);
    assert!(custom_methods("@id(\"a\") permit (principal, action == Seks::Action::\"LIST\", resource);").is_empty());
    let lower = "@id(\"a\") permit (principal, action == Seks::Action::\"list\", resource);";
    assert!(errors(lower)[0].contains("list"), "{:?}", errors(lower));
    assert_eq!(
        errors(typo),
        ["line 1: unknown action `GTE`: a method of no service; list it in a service's `methods` first"]
    );
    assert!(parse_file_with(typo, &Declarations { methods: vec!["GTE".into()], ..Declarations::default() }).is_ok());
}

#[test]
fn no_policies_deny() {
    let none = Fixture { policies: Policies::default(), ..Fixture::new("") };
    assert_eq!(none.ask(&Method::GET, "/"), decide::denied());
}

#[test]
fn the_first_policy_of_a_tenant_allows_what_a_token_was_issued_for() {
    let mut f = Fixture::new(GRANTED_SERVICES);
    let decision = f.ask(&Method::POST, "/v1/chat/completions");
    assert_eq!((decision.allowed, ids(&decision)), (true, vec!["granted-services"]));
    assert!(!f.slice().needs_body(&f.call(&Method::POST, "/")));
    f.services = vec![ServiceName::try_from("github").unwrap()];
    assert!(!f.ask(&Method::POST, "/v1/chat/completions").allowed);
}

#[test]
fn a_method_that_is_no_action_is_denied() {
    let f = Fixture::new("@id(\"all\") permit (principal, action, resource);");
    assert!(!f.ask(&Method::TRACE, "/").allowed);
    assert!(!f.ask(&Method::from_bytes(b"get").unwrap(), "/").allowed);
    assert!(f.ask(&Method::OPTIONS, "/").allowed);
}

#[test]
fn forbid_wins_and_is_named() {
    let f = Fixture::new(
        r#"@id("all") permit (principal, action, resource);
           @id("no-delete") forbid (principal, action == Seks::Action::"DELETE", resource);
           @id("no-admin") forbid (principal, action, resource) when { context.path like "/v1/admin/*" };"#,
    );
    assert_eq!(ids(&f.ask(&Method::GET, "/v1/models")), ["all"]);
    assert_eq!(ids(&f.ask(&Method::DELETE, "/v1/models")), ["no-delete"]);
    let denied = f.ask(&Method::GET, "/v1/admin/keys");
    assert_eq!((denied.allowed, ids(&denied)), (false, vec!["no-admin"]));
}

#[test]
fn actions_have_groups_and_so_do_agents() {
    let text =
        r#"@id("readers") permit (principal in Seks::Group::"readers", action in Seks::Action::"read", resource);"#;
    let member = Fixture::new(text).with("group", "writers, readers");
    assert!(member.ask(&Method::GET, "/").allowed);
    assert!(member.ask(&Method::HEAD, "/").allowed);
    assert!(!member.ask(&Method::POST, "/").allowed);
    assert!(!Fixture::new(text).with("group", "reader").ask(&Method::GET, "/").allowed);
    assert!(!Fixture::new(text).ask(&Method::GET, "/").allowed);
    let condition = r#"@id("c") permit (principal, action, resource) when { principal in Seks::Group::"readers" };"#;
    assert!(Fixture::new(condition).with("group", "readers").ask(&Method::GET, "/").allowed);
    assert!(!Fixture::new(condition).ask(&Method::GET, "/").allowed);
}

#[test]
fn attributes_are_tags() {
    let text = r#"@id("t") permit (principal, action, resource)
        when { principal.hasTag("team") && principal.getTag("team") == "billing" };"#;
    assert!(Fixture::new(text).with("team", "billing").ask(&Method::GET, "/").allowed);
    assert!(!Fixture::new(text).with("team", "Billing").ask(&Method::GET, "/").allowed);
    assert!(!Fixture::new(text).ask(&Method::GET, "/").allowed);
}

#[test]
fn a_changed_attribute_is_another_scope() {
    let text = r#"@id("t") permit (principal in Seks::Group::"g", action, resource);"#;
    let f = Fixture::new(text).with("group", "g");
    assert!(f.ask(&Method::GET, "/").allowed);
    let f = f.with("group", "h");
    assert!(!f.ask(&Method::GET, "/").allowed);
}

#[test]
fn the_source_the_token_and_the_query_can_be_asked_about() {
    let f = Fixture::new(
        r#"@id("inside") permit (principal, action, resource) when { context.source.isInRange(ip("10.0.0.0/8")) };
           @id("old") forbid (principal, action, resource) when { context.token.age_seconds > 3600 };
           @id("keys") forbid (principal, action, resource) when { context.query_keys.contains("debug") };"#,
    );
    let call = f.call(&Method::GET, "/");
    assert!(f.slice().decide(&call).allowed);
    assert!(!f.slice().decide(&Call { source: "11.0.0.1".parse().unwrap(), ..call.clone() }).allowed);
    let mapped = "::ffff:10.0.0.1".parse().unwrap();
    assert!(f.slice().decide(&Call { source: mapped, ..call.clone() }).allowed, "a mapped address is what it maps");
    assert_eq!(ids(&f.slice().decide(&Call { age_seconds: 3601, ..call.clone() })), ["old"]);
    for query in ["debug", "a=1&debug=1", "de%62ug=1", "Debug=1", "a;debug"] {
        assert_eq!(ids(&f.slice().decide(&Call { query, ..call.clone() })), ["keys"], "{query}");
    }
    assert!(f.ask(&Method::GET, "/?a=debug&debugger=1").allowed);
}

#[test]
fn every_spelling_of_a_forbidden_path_is_forbidden() {
    let f = Fixture::new(
        r#"@id("v1") permit (principal, action, resource) when { context.path like "/v1/*" };
           @id("no-admin") forbid (principal, action, resource) when { context.path like "/v1/admin/*" };
           @id("no-team") forbid (principal, action, resource) when { context.path == "/v1/Teams/a@b" };"#,
    );
    for path in ["/v1/admin/keys", "/v1/Admin/keys", "/v1/ADMIN/keys", "/v1/aDmin/"] {
        assert_eq!(ids(&f.ask(&Method::GET, path)), ["no-admin"], "{path}");
    }
    for path in ["/v1/Teams/a@b", "/v1/teams/a@b", "/v1/Teams/a%40b", "/v1/TEAMS/A%40B"] {
        assert_eq!(ids(&f.ask(&Method::GET, path)), ["no-team"], "{path}");
    }
    assert!(f.ask(&Method::GET, "/v1/Files/README.md").allowed);
    assert!(!f.ask(&Method::GET, "/V1/files").allowed, "a permit is exact");
}

#[test]
fn what_a_permit_excludes_it_excludes_in_every_spelling() {
    let f = Fixture::new(
        r#"@id("v1") permit (principal, action, resource)
             when { context.path like "/v1/*" } unless { context.path like "/v1/admin/*" };"#,
    );
    assert!(f.ask(&Method::GET, "/v1/Models").allowed);
    assert!(!f.ask(&Method::GET, "/v1/admin/x").allowed);
    assert!(!f.ask(&Method::GET, "/v1/Admin/x").allowed);
    assert!(!f.ask(&Method::GET, "/v1/%41dmin/x").allowed);
}

#[test]
fn a_comparison_without_a_normalized_form_is_refused() {
    for condition in [
        r#"principal.hasTag("p") && context.path == principal.getTag("p")"#,
        r#"(if context.path == "/a" then context.path else "/b") == "/b""#,
        r#"[context.path].contains("/a")"#,
        r#"context has body && context.body == context.body"#,
        r#"context == context"#,
        r#"{p: context.path} == {p: "/a"}"#,
    ] {
        let text = format!("@id(\"x\") forbid (principal, action, resource) when {{ {condition} }};");
        let errors = errors(&text);
        assert!(errors[0].contains("policy `x`") && errors[0].contains("compare `context"), "{condition}: {errors:?}");
    }
    for condition in [
        r#"["/a", "/b"].contains(context.path)"#,
        r#"context.path != "/a""#,
        r#"context.query_keys.containsAny(["a", "b"])"#,
        r#"["a"].containsAll(context.query_keys)"#,
        r#"context.query_keys.isEmpty()"#,
        r#"context.query_keys == ["a"]"#,
        r#"context has body && context.body has model && context.body.model like "gpt-*""#,
        r#"context.path like "*\**""#,
    ] {
        let text = format!("@id(\"x\") forbid (principal, action, resource) when {{ {condition} }};");
        assert!(parse_file(&text).is_ok(), "{condition}: {:?}", parse_file(&text));
    }
}

const SMALL_MODELS: &str = r#"
    @id("all") permit (principal, action, resource);
    @id("small-only") forbid (principal, action == Seks::Action::"POST", resource)
      when { context.path like "/v1/chat/*" }
      unless { context has body && context.body has model && context.body.model == "small" };"#;

#[test]
fn a_body_is_needed_only_where_the_answer_hangs_on_it() {
    let f = Fixture::new(SMALL_MODELS);
    assert!(f.slice().needs_body(&f.call(&Method::POST, "/v1/chat/completions")));
    assert!(!f.slice().needs_body(&f.call(&Method::POST, "/v1/files")), "another path");
    assert!(!f.slice().needs_body(&f.call(&Method::GET, "/v1/chat/completions")), "another method");
    assert!(f.post("/v1/files", "not json").allowed);
}

#[test]
fn a_body_that_can_not_be_inspected_is_denied_where_it_is_needed() {
    let f = Fixture::new(SMALL_MODELS);
    assert!(f.post("/v1/chat/completions", r#"{"model":"small"}"#).allowed);
    for body in [
        r#"{"model":"large"}"#,
        r#"{"\u006dodel":"large"}"#,
        r#"{"model":"small","model":"large"}"#,
        r#"{"model":"small","\u006dodel":"large"}"#,
        r#"{"model":"small","Model":"large"}"#,
        r#"{"model ":"large","model":"small"}"#,
        r#"{"model":"SMALL"}"#,
        "{}",
        "[]",
        "",
    ] {
        let decision = f.post("/v1/chat/completions", body);
        assert_eq!((decision.allowed, ids(&decision)), (false, vec!["small-only"]), "{body}");
    }
    let call = f.call(&Method::POST, "/v1/chat/completions");
    assert!(!f.slice().decide(&Call { body: Body::NotRead, ..call.clone() }).allowed, "a caller that forgot");
    assert!(!f.slice().decide(&Call { body: Body::Absent, ..call }).allowed);
}

const TOOLS: &str = r#"
    @id("setup") permit (principal, action, resource)
      when { context has mcp.method && ["initialize", "tools/list"].contains(context.mcp.method) };
    @id("get") permit (principal, action, resource) when { context has mcp.name && context.mcp.name like "get_*" };
    @id("no-secret") forbid (principal, action, resource) when { context has mcp.name && context.mcp.name == "get_secret" };"#;

#[test]
fn tool_calls_are_decided_by_name_on_mcp_services_only() {
    let f = Fixture::new(TOOLS);
    let message = |method: &str, name: &str| {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"name":"{name}"}}}}"#);
        BodyFacts::from_json(body.as_bytes()).unwrap().with_mcp(body.as_bytes()).unwrap()
    };
    let call = Call { mcp: true, ..f.call(&Method::POST, "/mcp") };
    fn ask(f: &Fixture, call: &Call<'_>, body: Body<'_>) -> Decision {
        f.slice().decide(&Call { body, ..call.clone() })
    }
    for (method, name, by) in [
        ("tools/call", "get_issue", Some("get")),
        ("tools/call", "delete_repo", None),
        ("tools/call", "Get_issue", None),
        ("initialize", "x", Some("setup")),
        ("resources/templates/list", "get_issue", None),
    ] {
        let decision = ask(&f, &call, Body::Inspected(&message(method, name)));
        assert_eq!((decision.allowed, ids(&decision).first().copied()), (by.is_some(), by), "{method} {name}");
    }
    assert_eq!(ids(&ask(&f, &call, Body::Inspected(&message("tools/call", "get_secret")))), ["no-secret"]);
    assert!(f.slice().needs_body(&call));
    assert!([Body::Opaque, Body::NotRead, Body::Absent].iter().all(|body| !ask(&f, &call, *body).allowed));

    // What a policy says of MCP neither reads nor denies a body of another service.
    let f = Fixture::new(&format!("{TOOLS} @id(\"all\") permit (principal, action, resource);"));
    let other = f.call(&Method::POST, "/v1/files");
    assert!(!f.slice().needs_body(&other));
    for body in [Body::Opaque, Body::NotRead, Body::Absent] {
        assert!(f.slice().decide(&Call { body, ..other.clone() }).allowed);
        let decision = f.slice().decide(&Call { body, mcp: true, ..other.clone() });
        assert_eq!(decision.allowed, matches!(body, Body::Absent), "a forbid may depend on it");
    }
}

#[test]
fn a_forbidden_model_is_forbidden_in_every_spelling() {
    let f = Fixture::new(
        r#"@id("all") permit (principal, action, resource);
           @id("no-large") forbid (principal, action, resource)
             when { context has body && context.body has model && context.body.model like "Large*" };"#,
    );
    for model in ["Large-1", "large-1", "LARGE", " large"] {
        assert_eq!(ids(&f.post("/", &format!(r#"{{"model":"{model}"}}"#))), ["no-large"], "{model}");
    }
    assert!(f.post("/", r#"{"model":"small"}"#).allowed);
}

#[test]
fn an_error_denies_and_names_the_policy() {
    let f = Fixture::new(
        r#"@id("all") permit (principal, action, resource);
           @id("sum") forbid (principal, action, resource)
             when { context has body && context.body has max_tokens && context.body.max_tokens * 1000000000000 > 5 };"#,
    );
    assert!(f.post("/", r#"{"max_tokens":0}"#).allowed);
    let decision = f.post("/", r#"{"max_tokens":9223372036854775807}"#);
    assert!(!decision.allowed);
    let error = decision.error.unwrap().to_string();
    assert_eq!(error, "cannot evaluate policy `sum`", "nothing of the request");
}

#[test]
fn an_audit_policy_reports_and_does_not_decide() {
    let f = Fixture::new(
        r#"@id("all") permit (principal, action, resource);
           @id("watch") @mode("audit") forbid (principal, action, resource) when { context.path like "/v1/admin/*" };
           @id("watch-body") @mode("audit") forbid (principal, action, resource)
             when { context has body && context.body has model && context.body.model == "large" };
           @id("broken") @mode("audit") forbid (principal, action, resource)
             when { context.token.age_seconds * 9223372036854775807 > 0 };"#,
    );
    let decision = f.ask(&Method::GET, "/v1/admin/keys");
    assert!(decision.allowed);
    assert_eq!(decision.audited.iter().map(PolicyId::as_str).collect::<Vec<_>>(), ["watch"]);
    assert_eq!((decision.error, decision.audit_error.unwrap().0.as_str()), (None, "broken"));
    assert!(f.post("/", "not json").allowed);
    assert_eq!(f.post("/", r#"{"model":"large"}"#).audited.len(), 1);
    assert!(
        !Fixture::new(r#"@id("a") @mode("audit") permit (principal, action, resource);"#)
            .ask(&Method::GET, "/")
            .allowed
    );
}

#[test]
fn a_limit_is_reported_and_does_not_decide() {
    let f = Fixture::new(
        r#"@id("all") permit (principal, action, resource);
           @id("rate") @limit("100 requests/minute") forbid (principal, action, resource);
           @id("admin") @limit("1 requests/day") @mode("shadow") forbid (principal, action, resource)
             when { context.path like "/v1/admin/*" };
           @id("large") @limit("5 concurrent requests each agent") forbid (principal, action, resource)
             when { context has body && context.body has model && context.body.model == "large" };"#,
    );
    let limits = |decision: Decision| -> Vec<(String, bool)> {
        assert!(decision.allowed);
        decision.limits.iter().flat_map(|all| all.iter()).map(|one| (one.id.to_string(), one.shadow)).collect()
    };
    let (rate, admin, large) = (("rate".into(), false), ("admin".into(), true), ("large".into(), false));
    assert_eq!(limits(f.ask(&Method::GET, "/v1/models")), std::slice::from_ref(&rate));
    assert_eq!(limits(f.ask(&Method::GET, "/v1/admin/keys")), [rate.clone(), admin.clone()]);
    assert_eq!(limits(f.ask(&Method::GET, "/V1/Admin/keys")), [rate.clone(), admin.clone()], "another spelling counts");
    assert_eq!(limits(f.ask(&Method::GET, "/v1//admin;x/keys")), [rate.clone(), admin], "and a folded form");
    assert_eq!(limits(f.post("/", r#"{"model":"large"}"#)), [rate.clone(), large.clone()]);
    assert_eq!(limits(f.post("/", r#"{"model":"small"}"#)), std::slice::from_ref(&rate));
    assert_eq!(limits(f.post("/", "not json")), [rate, large], "a body that cannot be read counts");
}

#[test]
fn without_limits_a_decision_has_none_and_a_limit_alone_permits_nothing() {
    let f = Fixture::new(r#"@id("all") permit (principal, action, resource);"#);
    assert_eq!(f.ask(&Method::GET, "/").limits, None);
    let f = Fixture::new(r#"@id("rate") @limit("1 requests/day") forbid (principal, action, resource);"#);
    assert!(!f.ask(&Method::GET, "/").allowed);
}

#[test]
fn what_is_no_limit_is_refused() {
    let reason = |text: &str| parse_file(text).unwrap_err().remove(0).reason;
    let permit = reason(r#"@id("a") @limit("1 requests/day") permit (principal, action, resource);"#);
    assert!(permit.contains("@limit belongs to a forbid"), "{permit}");
    let text = reason(r#"@id("a") @limit("many") forbid (principal, action, resource);"#);
    assert!(text.contains("policy `a`: @limit: `many` is no limit: write \"100 requests/minute\""), "{text}");
    let shadow = reason(r#"@id("a") @mode("shadow") forbid (principal, action, resource);"#);
    assert!(shadow.contains("@mode is"), "{shadow}");
}

#[test]
fn a_file_is_taken_apart_and_its_policies_keep_their_text() {
    let text = "// first; a comment\n@id(\"a\")\npermit (principal, action, resource)\nwhen { context.path == \"/;//\\\"\" }; // tail\n\n@id(\"b\") forbid (principal, action, resource);";
    let policies = parse_file(text).unwrap();
    assert_eq!(policies.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(policies[0].1.starts_with("@id(\"a\")\npermit") && policies[0].1.ends_with("};"));
    assert_eq!(parse_file(" \n// nothing\n").unwrap(), []);
}

#[test]
fn all_errors_of_a_file_are_given_with_their_lines() {
    let errors = errors(
        "permit (principal, action, resource);\n\
         @id(\"Bad Name\") permit (principal, action, resource);\n\
         @id(\"a\") permit (principal, action, resource);\n\
         @id(\"a\") permit (principal, action, resource);\n\
         @id(\"b\") permit (principal, action == Seks::Action::\"STEAL\", resource);\n\
         @id(\"c\") permit (principal, action, resource)\n\
           when { context.nope == 1 };\n\
         @id(\"d\") permit (principal == ?principal, action, resource);\n\
         @id(\"e\") @mode(\"off\") permit (principal, action, resource);\n\
         @id(\"f\") @mod(\"audit\") permit (principal, action, resource);\n\
         @id(\"g\") permit (principal action, resource);\n\
         @id(\"h\") permit (principal, action, resource)",
    );
    let starts = [
        "line 1: a policy without @id",
        "line 2: @id: a policy name is",
        "line 4: @id(\"a\") is used twice",
        "line 5: ",
        "line 7: ",
        "line 8: a template",
        "line 9: policy `e`: @mode",
        "line 10: policy `f`: @mod is none of",
        "line 11: ",
        "line 12: ",
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:#?}");
    for (error, start) in errors.iter().zip(starts) {
        assert!(error.starts_with(start), "{error} is not {start}");
        assert!(!error.contains('\n') && !error.contains("policy0"), "{error}");
    }
}

#[test]
fn a_policy_that_can_never_apply_is_warned_about() {
    let warned =
        warnings(r#"@id("never") permit (principal, action, resource) when { 1 == 2 };"#, &Declarations::default());
    assert!(warned.len() == 1 && warned[0].reason.contains("never"), "{warned:?}");
    assert!(warnings(GRANTED_SERVICES, &Declarations::default()).is_empty());
}

#[test]
fn nothing_overflows_the_stack() {
    for (open, close) in [("(", ")"), ("!", ""), ("-", ""), ("[", "]"), ("if true then ", " else true")] {
        let n = 15_000 / (open.len() + close.len());
        let text = format!(
            "@id(\"x\") permit (principal, action, resource) when {{ {}1 == 1{} }};",
            open.repeat(n),
            close.repeat(n)
        );
        let _ = parse_file(&text);
    }
    let chain = vec!["true"; 2600].join("&&");
    let text = format!("@id(\"x\") permit (principal, action, resource) when {{ {chain} }};");
    assert!(errors(&text)[0].contains("too many operators"), "{:?}", errors(&text));
    assert!(errors(&"x".repeat(20_000))[0].contains("more than"));
}

#[test]
fn a_record_that_is_not_its_policy_is_not_compiled() {
    let record = |id: &str, text: &str| wire::Policy { id: id.into(), text: text.into(), ..wire::Policy::default() };
    assert!(Policies::compile(&[record("granted-services", GRANTED_SERVICES)]).is_ok());
    assert!(Policies::compile(&[record("other", GRANTED_SERVICES)]).is_err());
    assert!(Policies::compile(&[record("granted-services", "")]).is_err());
    let twice = [record("granted-services", GRANTED_SERVICES), record("granted-services", GRANTED_SERVICES)];
    assert!(Policies::compile(&twice).is_err());
}
