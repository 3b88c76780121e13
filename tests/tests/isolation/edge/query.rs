//! Policies on query keys hold in every spelling that common servers read as the key.

use seks_tests::{Upstream, sandbox::Sandbox};

fn sandbox(policies: &str) -> (Sandbox, Upstream, String) {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, "sk-real-query-0123456789");
    let token = sandbox.token("bot", &["openai"]).secret;
    sandbox.cli().apply_policies(policies);
    (sandbox, upstream, token)
}

#[test]
fn a_forbidden_query_key_is_forbidden_in_every_reading() {
    let (sandbox, upstream, token) = sandbox(
        "@id(\"no-scope\") forbid (principal, action, resource) when { context.query_keys.contains(\"scope\") };\n\
         @id(\"no-filter\") forbid (principal, action, resource) when { context.query_keys.containsAny([\"$filter\", \"user.name\"]) };",
    );
    let ask = |query: &str| sandbox.get(&format!("/api/openai/v1/models?{query}"), &token);
    for query in [
        "scope=admin",
        "scope[]=admin",
        "scope%5B%5D=admin",
        "scope[0]=admin",
        "scope[a][b]=admin",
        "%20scope=admin",
        "+scope=admin",
        "scope+=admin",
        "scope.=admin",
        "scope.x=admin",
        "SCOPE=admin",
        "%53cope=admin",
        "%2573cope=admin",
        "[scope]=admin",
        "scope]=admin",
        "scope[=admin",
        "_scope=admin",
        "a=1&scope=admin",
        "a=1;scope=admin",
        "scope",
        "scope=1&scope=2",
        "?scope=admin",
        "%EF%BB%BFscope=admin",
        "%C2%A0scope=admin",
        "a%26scope%3Dadmin=1",
        "filter=x",
        "$FILTER=x",
        "user_name=x",
        "user[name]=x",
        "user%20name=x",
    ] {
        let reply = ask(query);
        assert_eq!((reply.status, reply.code().as_str()), (403, "policy_denied"), "{query}: {}", reply.text());
    }
    for query in ["scope%00=admin", "scope%00x=1", "%0ascope=1", "scope\u{1}=1"] {
        assert_eq!(ask(query).status, 400, "{query}");
    }
    assert!(upstream.requests().is_empty());
    for query in ["scopes=1", "my_scope=1", "state=scope", "a[scope]=1", "page=2", "user=x", "username=x"] {
        assert_eq!(ask(query).status, 200, "{query}");
    }
}

#[test]
fn a_permit_on_query_keys_takes_the_exact_spelling() {
    let (sandbox, upstream, token) = sandbox(
        "@id(\"granted-services\") permit (principal, action, resource)\n\
         when { [\"page\", \"user.name\"].containsAll(context.query_keys) }\n\
         unless { context.query_keys.contains(\"admin\") };",
    );
    let status = |query: &str| sandbox.get(&format!("/api/openai/v1/models?{query}"), &token).status;
    for query in ["page=1", "user.name=x", "page=1&user.name=x"] {
        assert_eq!(status(query), 200, "{query}");
    }
    let seen = upstream.requests().len();
    for query in ["page[]=1", "user_name=x", "Page=1", "other=1", "page=1&admin[]=1"] {
        assert_eq!(status(query), 403, "{query}");
    }
    assert_eq!(upstream.requests().len(), seen);
}
