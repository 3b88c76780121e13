//! Explanations, and what an agent can reach.

use super::*;

fn explain(f: &Fixture, method: &Method, target: &str) -> Vec<PolicyTrace> {
    let (agent, service) = (AgentName::try_from("ci").unwrap(), ServiceName::try_from("openai").unwrap());
    f.policies.explain(&agent, &f.attributes, &service, &f.call(method, target))
}

#[test]
fn the_closest_permit_comes_first_and_says_what_failed() {
    let f = Fixture::new(
        r#"@id("elsewhere") permit (principal, action, resource == Seks::Service::"github") when { context.path like "/v1/*" };
        @id("close") permit (principal in Seks::Group::"ops", action, resource == Seks::Service::"openai")
            when { context.path like "/v1/chat/*" && context.token.age_seconds < 30 } unless { context.path like "*admin*" };
        @id("closest") permit (principal, action == Seks::Action::"GET", resource)
            when { context.path like "/V1/*" && principal.hasTag("team") };
        @id("no-deletes") forbid (principal, action == Seks::Action::"DELETE", resource);"#,
    )
    .with("group", "writers");
    let traces = explain(&f, &Method::GET, "/v1/chat/x");
    let order: Vec<_> = traces.iter().map(|t| (t.id.as_str(), t.applies, t.forbids)).collect();
    let want =
        [("closest", false, false), ("close", false, false), ("elsewhere", false, false), ("no-deletes", false, true)];
    assert_eq!(order, want);
    assert_eq!(
        traces[0].unmet,
        [
            "when { context.path like \"/V1/*\" } (the path is `/v1/chat/x`)",
            "when { principal.hasTag(\"team\") } (the agent has group=writers)"
        ]
    );
    assert!(
        traces[1].unmet[0].starts_with("principal in Seks::Group::\"ops\" (agent `ci` is in writers)"),
        "{traces:?}"
    );
    assert!(traces[1].unmet[1].contains("age_seconds < 30") && traces[1].unmet[1].contains("60 s old"), "{traces:?}");
    assert_eq!(traces[1].unmet.len(), 2, "{traces:?}");
    assert!(traces[2].unmet[0].contains("(the service is `openai`)"), "{traces:?}");
}

#[test]
fn what_applies_comes_first() {
    let f = Fixture::new(&format!(
        "{GRANTED_SERVICES} @id(\"admin\") forbid (principal, action, resource) when {{ context.path like \"*/admin/*\" }};"
    ));
    let allowed = explain(&f, &Method::GET, "/v1/models");
    assert!(allowed[0].applies && allowed[0].id.as_str() == "granted-services", "{allowed:?}");
    let denied = explain(&f, &Method::GET, "/v1/ADMIN/keys");
    let admin = denied.iter().find(|t| t.forbids).unwrap();
    assert!(admin.applies, "another spelling is forbidden too: {denied:?}");
    assert!(!f.ask(&Method::GET, "/v1/ADMIN/keys").allowed);
}

#[test]
fn a_condition_on_an_unknown_body_is_undecided() {
    let f = Fixture::new(
        r#"@id("m") permit (principal, action, resource) when { context has body && context.body has model && context.body.model == "a" };"#,
    );
    let (agent, service) = (AgentName::try_from("ci").unwrap(), ServiceName::try_from("openai").unwrap());
    let call = Call { body: Body::Opaque, ..f.call(&Method::POST, "/x") };
    let traces = f.policies.explain(&agent, &f.attributes, &service, &call);
    assert!(traces[0].undecided && traces[0].unmet[0].contains("the body is not known"), "{traces:?}");
}

#[test]
fn reach_is_what_some_request_may_do() {
    let reach = |text: &str, method: Method| {
        let (agent, service) = (AgentName::try_from("ci").unwrap(), ServiceName::try_from("openai").unwrap());
        Fixture::new(text).policies.reach(&agent, &BTreeMap::new(), &service, &method)
    };
    let path =
        r#"@id("p") permit (principal, action == Seks::Action::"GET", resource) when { context.path like "/v1/*" };"#;
    let forbid = r#"@id("f") forbid (principal, action in [Seks::Action::"write"], resource);"#;
    assert_eq!(reach("", Method::GET), Reach::Never);
    assert_eq!(reach(GRANTED_SERVICES, Method::POST), Reach::Always);
    assert_eq!(reach(path, Method::GET), Reach::Sometimes);
    assert_eq!(reach(path, Method::POST), Reach::Never);
    assert_eq!(reach(&format!("{GRANTED_SERVICES}{path}{forbid}"), Method::GET), Reach::Always);
    assert_eq!(reach(&format!("{GRANTED_SERVICES}{path}{forbid}"), Method::POST), Reach::Never);
    let admin = r#"@id("a") forbid (principal, action, resource) when { context.path like "/admin/*" };"#;
    assert_eq!(reach(&format!("{GRANTED_SERVICES}{admin}"), Method::GET), Reach::Sometimes);
    let other = r#"@id("o") permit (principal == Seks::Agent::"other", action, resource);"#;
    assert_eq!(reach(other, Method::GET), Reach::Never);
}
