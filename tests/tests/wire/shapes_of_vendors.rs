//! Answers in the shapes of many vendors: where a client goes next leads through the node. `UP` is
//! the upstream's origin, `NODE` the service's base URL at the node.

use std::sync::{Arc, OnceLock};

use seks_tests::{
    Sandbox, Upstream,
    raw::{Reply, exchange},
    upstream::Answer,
};

const KEY: &str = "sk-real-wire-key-000000000000000002";
const NODE: &str = "http://localhost/api/acme";

/// What a vendor answers.
struct VendorAnswer {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: &'static str,
}

impl VendorAnswer {
    fn json(body: &'static str) -> Self {
        Self { status: 200, headers: vec![("Content-Type", "application/json")], body }
    }
}

/// A vendor's answer, by the number that the agent asks for. `ESCAPED` in it is the origin in
/// escapes, `COLON` the origin with an escaped colon and slashes.
struct Rig {
    sandbox: Sandbox,
    upstream: Upstream,
    token: String,
}

impl Rig {
    fn new(cases: Vec<VendorAnswer>) -> Self {
        let origin: Arc<OnceLock<String>> = Arc::default();
        let own = origin.clone();
        let upstream = Upstream::start(move |request| {
            let case: usize = request.path().trim_start_matches('/').parse().unwrap();
            let VendorAnswer { status, headers, body } = &cases[case];
            let own = own.get().unwrap();
            let escaped: String = own.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
            let colon = own.replacen("://", "\\u003A\\/\\/", 1);
            let told = |text: &str| text.replace("UP", own).replace("ESCAPED", &escaped).replace("COLON", &colon);
            let headers: Vec<(&str, String)> = headers.iter().map(|(name, value)| (*name, told(value))).collect();
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            Answer::with(*status, &headers, told(body))
        });
        origin.set(upstream.origin()).unwrap();
        let sandbox = Sandbox::start();
        let service = "name = 'acme'\nallow_private = true\ninject = 'bearer'\nrewrite_urls = true\n";
        sandbox.cli().apply_service(&format!("{service}upstream = '{}'\n", upstream.origin()));
        sandbox.cli().put_credential("acme", "acme", KEY);
        let token = sandbox.token("agent", &["acme"]).secret;
        Self { sandbox, upstream, token }
    }

    fn ask(&self, case: usize) -> Reply {
        let head =
            format!("GET /api/acme/{case} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n", self.token);
        exchange(self.sandbox.proxy(), head)
    }

    fn expected(&self, text: &str) -> String {
        text.replace("NODE", NODE).replace("UP", &self.upstream.origin())
    }
}

#[test]
fn headers_lead_through_the_node() {
    let cases = [
        ("GitLab, pages by key", 200, "Link", r#"<UP/api/v4/projects?cursor=eyJpZCI6IjMifQ&per_page=2>; rel="next""#),
        (
            "Shopify",
            200,
            "Link",
            r#"<UP/admin/api/p.json?page_info=a>; rel="previous", <UP/b?page_info=c>; rel="next""#,
        ),
        ("Okta", 200, "Link", r#"<UP/api/v1/users?after=1&limit=2>; rel="self""#),
        ("Azure, long-running operation", 202, "Operation-Location", "UP/formrecognizer/operations/1?api-version=7"),
        ("Azure Resource Manager", 202, "Azure-AsyncOperation", "UP/subscriptions/1/operationStatuses/2"),
        (
            "Cloud Storage, resumable upload",
            200,
            "Location",
            "UP/upload/storage/v1/b/x/o?uploadType=resumable&upload_id=a",
        ),
        ("tus", 201, "Location", "UP/files/24e533e"),
        ("Registry, blob upload", 202, "Location", "UP/v2/x/blobs/uploads/1?_state=a"),
        (
            "Registry, challenge",
            401,
            "WWW-Authenticate",
            r#"Bearer realm="UP/v2/token",service="x",scope="repository:a:pull""#,
        ),
        (
            "MCP, challenge",
            401,
            "WWW-Authenticate",
            r#"Bearer resource_metadata="UP/.well-known/oauth-protected-resource""#,
        ),
        ("Terraform, module", 204, "X-Terraform-Get", "UP/v1/modules/a/b.tgz?archive=tar.gz"),
        ("Terraform, module from git", 204, "X-Terraform-Get", "git::UP/a/b.git?ref=v1"),
        ("ASP.NET", 200, "X-Pagination", r#"{"totalPages":3,"nextPageLink":"UP/api/x?page=2"}"#),
        ("JSON:API", 201, "Content-Location", "UP/articles/1"),
        ("RFC 8594", 200, "Link", r#"<UP/sunset>; rel="sunset"; type="text/html"; anchor="UP/v1""#),
        ("a queue", 202, "Location", "UP/queue/item/7/"),
    ];
    let told = |(_, status, name, value): &(_, u16, &'static str, &'static str)| VendorAnswer {
        status: *status,
        headers: vec![(*name, *value)],
        body: "",
    };
    let rig = Rig::new(cases.iter().map(told).collect());
    for (case, (what, status, name, value)) in cases.iter().enumerate() {
        let reply = rig.ask(case);
        assert_eq!(reply.status, *status, "{what}");
        assert_eq!(reply.header(name), Some(&*rig.expected(&value.replace("UP", "NODE"))), "{what}");
    }
}

#[test]
fn paths_of_headers_lead_through_the_node_and_other_values_stay() {
    let cases = [
        (
            "Registry, catalogue",
            "Link",
            "</v2/_catalog?last=b&n=2>; rel=\"next\"",
            "</api/acme/v2/_catalog?last=b&n=2>; rel=\"next\"",
        ),
        ("Registry, blob upload", "Location", "/v2/x/blobs/uploads/1", "/api/acme/v2/x/blobs/uploads/1"),
        ("Terraform, module", "X-Terraform-Get", "/v1/a.tgz", "/api/acme/v1/a.tgz"),
        ("Terraform, beside", "X-Terraform-Get", "./a.tgz", "./a.tgz"),
        ("anchor", "Link", "</a>; rel=x; anchor=\"/b\"", "</api/acme/a>; rel=x; anchor=\"/api/acme/b\""),
        ("title", "Link", "</a>; title=\"<b>, </c>\"", "</api/acme/a>; title=\"<b>, </c>\""),
        ("Refresh", "Refresh", "0,/x", "0,/api/acme/x"),
        ("Refresh, spaced", "Refresh", "0; Url = \"/a\"", "0; Url =\"/api/acme/a\""),
        ("Cosmos DB", "x-ms-continuation", "UP/opaque", "UP/opaque"),
        ("ETag", "ETag", "\"UP/a\"", "\"UP/a\""),
        ("signatures", "Signature-Input", "a=();keyid=\"UP/keys/1\"", "a=();keyid=\"UP/keys/1\""),
        ("an origin", "Timing-Allow-Origin", "UP", "UP"),
        ("another host", "Location", "https://other.test/?next=UP/x", "https://other.test/?next=UP/x"),
        ("beside the present path", "Location", "../b?c", "../b?c"),
    ];
    let told = |(_, name, value, _): &(_, &'static str, &'static str, _)| VendorAnswer {
        status: 200,
        headers: vec![(*name, *value)],
        body: "",
    };
    let rig = Rig::new(cases.iter().map(told).collect());
    for (case, (what, name, _, want)) in cases.iter().enumerate() {
        assert_eq!(rig.ask(case).header(name), Some(&*rig.expected(want)), "{what}");
    }
}

#[test]
fn bodies_lead_through_the_node() {
    const JSON: &str = "application/json";
    let cases = [
        ("Jira", JSON, r#"{"self":"UP/rest/api/2/x?startAt=0","nextPage":"UP/rest/api/2/x?startAt=50","values":[]}"#),
        (
            "Microsoft Graph",
            JSON,
            r#"{"@odata.context":"UP/v1.0/$metadata#users","@odata.nextLink":"UP/v1.0/users?$skiptoken=x"}"#,
        ),
        ("HubSpot", JSON, r#"{"paging":{"next":{"after":"1","link":"UP/crm/v3/x?after=1"}}}"#),
        ("Zendesk", JSON, r#"{"links":{"next":"UP/api/v2/x.json?page[after]=1","prev":null}}"#),
        ("Django", JSON, r#"{"count":3,"next":"UP/items/?page=2","previous":null}"#),
        (
            "HAL",
            "application/hal+json",
            r#"{"_links":{"self":{"href":"UP/orders"},"find":{"href":"UP/orders{?id}","templated":true}}}"#,
        ),
        ("JSON:API", "application/vnd.api+json", r#"{"links":{"self":"UP/a?page[number]=3"},"data":[]}"#),
        (
            "git-lfs",
            "application/vnd.git-lfs+json",
            r#"{"objects":[{"oid":"1","actions":{"download":{"href":"UP/o/1","expires_in":10}}}]}"#,
        ),
        ("npm", JSON, r#"{"versions":{"1.0.0":{"dist":{"tarball":"UP/a/-/a-1.0.0.tgz"}}}}"#),
        (
            "pip, JSON",
            "application/vnd.pypi.simple.v1+json",
            r#"{"files":[{"filename":"a.whl","url":"UP/packages/a.whl#sha256=1"}]}"#,
        ),
        ("pip, HTML", "application/vnd.pypi.simple.v1+html", r#"<a href="UP/packages/a.whl#sha256=1">a.whl</a>"#),
        ("NuGet", JSON, r#"{"resources":[{"@id":"UP/v3/query","@type":"SearchQueryService"}]}"#),
        ("OpenID", JSON, r#"{"issuer":"UP","token_endpoint":"UP/token"}"#),
        ("Helm, Terraform", JSON, r#"{"download_url":"UP/a.zip","shasums_url":"UP/SHA256SUMS"}"#),
        ("fal", JSON, "{\"status_url\": \"UP/requests/1/status\",\n \"response_url\": \"UP/requests/1\"}"),
        ("Python's json", JSON, "{\"next\": \"UP/a\", \"all\": [\"UP/b\", \"UP/c\"]}"),
        ("text/json", "text/json; charset=utf-8", r#"["UP"]"#),
        ("lines", "application/x-ndjson", "{\"url\":\"UP/a\"}\n{\"url\":\"UP/b\"}\n"),
        ("events, CR alone", "text/event-stream", "\u{feff}retry: 10\rdata: UP/a\r\rdata: {\"next\":\"UP/b\"}\r\r"),
    ];
    let told = |(_, kind, body): &(_, &'static str, &'static str)| VendorAnswer {
        status: 200,
        headers: vec![("Content-Type", *kind)],
        body,
    };
    let rig = Rig::new(cases.iter().map(told).collect());
    for (case, (what, _, body)) in cases.iter().enumerate() {
        let reply = rig.ask(case);
        assert_eq!(reply.text(), rig.expected(&body.replace("UP", "NODE")), "{what}");
        assert!(reply.complete, "{what}");
    }
}

#[test]
fn escapes_are_urls_and_names_of_members_are_not() {
    let rig = Rig::new(vec![
        VendorAnswer::json(r#"{"UP/rels/a":{"href":"UP/a"},"UP/rels/b" : "UP/b"}"#),
        VendorAnswer::json(r#"["ESCAPED\u002fa","COLON\/b","ESCAPED"]"#),
        VendorAnswer { headers: vec![("Content-Type", "text/plain")], ..VendorAnswer::json(r#"{"a":"UP/a"}"#) },
    ]);
    assert_eq!(rig.ask(0).text(), rig.expected(r#"{"UP/rels/a":{"href":"NODE/a"},"UP/rels/b" : "NODE/b"}"#));
    let [one, two] = ["\\u002f", "\\/"].map(|slash| NODE.replace('/', slash));
    assert_eq!(rig.ask(1).text(), format!(r#"["{one}\u002fa","{two}\/b","{one}"]"#));
    assert_eq!(rig.ask(2).text(), rig.expected(r#"{"a":"UP/a"}"#));
}
