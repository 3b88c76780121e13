//! MCP servers: the `endpoint` event leads through the node, and policies hold tool calls by name.

use seks_tests::{
    Sandbox, Upstream,
    raw::{Connection, Reply},
    upstream::Answer,
};

const KEY: &str = "real-mcp-key-CANARY-00000000000001";

const TOOLS: &str = r#"
@id("setup") permit (principal, action, resource) when { context has mcp.method && ["initialize", "tools/list"].contains(context.mcp.method) };
@id("get") permit (principal, action, resource) when { context has mcp.name && context.mcp.name like "get_*" };
"#;

fn call(name: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{name}","arguments":{{}}}}}}"#)
}

struct Rig {
    sandbox: Sandbox,
    upstream: Upstream,
    token: String,
}

impl Rig {
    fn new(options: &str) -> Self {
        let upstream = Upstream::start(|_| Answer::json(200, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#));
        let sandbox = Sandbox::start();
        sandbox.cli().apply_service(&format!(
            "name = 'tools'\nupstream = '{}'\nallow_private = true\ninject = 'bearer'\n{options}\n",
            upstream.origin()
        ));
        sandbox.cli().put_credential("tools", "tools", KEY);
        let token = sandbox.token("agent", &["tools"]).secret;
        sandbox.cli().json(&["policy", "delete", "granted-services", "--yes"]);
        sandbox.cli().apply_policies(TOOLS);
        Self { sandbox, upstream, token }
    }

    fn post(&self, lines: &str, body: &str) -> Reply {
        let mut client = Connection::open(self.sandbox.proxy());
        client.send(format!(
            "POST /api/tools/mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\n{lines}Content-Length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        ));
        client.read_reply(false)
    }
}

const GET: &str = "Mcp-Method: tools/call\r\nMcp-Name: get_issue\r\n";

#[test]
fn a_tool_call_is_permitted_by_its_name_where_headers_and_body_agree() {
    let rig = Rig::new("mcp = true");
    assert_eq!(rig.post(GET, &call("get_issue")).status, 200);
    assert_eq!(rig.post("Mcp-Method: tools/list\r\n", r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#).status, 200);
    let passed = rig.upstream.complete();
    for (lines, body) in [
        ("Mcp-Method: tools/call\r\nMcp-Name: delete_repo\r\n", call("delete_repo")),
        (GET, call("delete_repo")),
        ("Mcp-Method: tools/call\r\nMcp-Name: delete_repo\r\n", call("get_issue")),
        ("Mcp-Method: tools/list\r\n", call("get_issue")),
        ("", call("get_issue")),
        ("Mcp-Method: tools/call\r\n", call("get_issue")),
        ("Mcp-Method: tools/call\r\nMcp-Name: get_issue\r\nMcp-Name: delete_repo\r\n", call("get_issue")),
        (GET, format!("[{}]", call("get_issue"))),
        (GET, format!("[{},{}]", call("get_issue"), call("delete_repo"))),
        (GET, call("get_issue").replace("\"arguments\"", "\"name\":\"delete_repo\",\"arguments\"")),
        (GET, call("get_issue").replace("\"params\"", "\"Params\":{\"name\":\"delete_repo\"},\"params\"")),
        (GET, "not json".into()),
        (GET, String::new()),
    ] {
        let reply = rig.post(lines, &body);
        assert_eq!(reply.status, 403, "{lines}{body}: {}", reply.text());
    }
    assert_eq!(rig.upstream.complete(), passed, "nothing more reached the server");
}

#[test]
fn a_service_may_accept_clients_that_send_no_headers() {
    let rig = Rig::new("mcp = true\nmcp_without_headers = true");
    assert_eq!(rig.post("", &call("get_issue")).status, 200);
    assert_eq!(rig.post("", &call("delete_repo")).status, 403);
    assert_eq!(rig.post(GET, &call("delete_repo")).status, 403, "where there are headers they must agree");
}

#[test]
fn a_refusal_is_a_json_rpc_error_for_mcp_clients_and_a_problem_for_others() {
    let rig = Rig::new("mcp = true");
    let reply = rig.post("", &call("get_issue"));
    let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((reply.header("content-type"), &body["jsonrpc"]), (Some("application/json"), &"2.0".into()));
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("Mcp-Method") && body["error"]["code"].is_i64(), "{body}");
    assert_eq!(body["error"]["data"]["code"], "policy_denied");
    let plain = rig.sandbox.post("/api/tools/mcp", &rig.token, &call("delete_repo"));
    assert_eq!(
        (plain.code().as_str(), plain.header("content-type")),
        ("policy_denied", Some("application/problem+json"))
    );
}

#[test]
fn a_simulation_decides_as_a_node_does() {
    let rig = Rig::new("mcp = true");
    let simulate = |name: &str| {
        let arguments = [
            "policy",
            "simulate",
            "--agent",
            "agent",
            "--service",
            "tools",
            "--method",
            "POST",
            "--path",
            "/mcp",
            "--body",
            "-",
        ];
        rig.sandbox.cli().json_with(&arguments, &call(name))["decision"].as_str().unwrap().to_owned()
    };
    assert_eq!((simulate("get_issue").as_str(), simulate("delete_repo").as_str()), ("allow", "deny"));
}

#[test]
fn the_endpoint_event_leads_through_the_node() {
    for (url, expect) in [
        ("/messages/?session_id=1", "/api/tools/messages/?session_id=1"),
        ("http://other.test/messages", "http://other.test/messages"),
        ("messages?x", "messages?x"),
    ] {
        let upstream = Upstream::start(move |_| {
            let text = format!(
                "event: endpoint\r\ndata: {url}\r\n\r\nevent: message\r\ndata: {{\"a\":\"/messages\"}}\r\n\r\n"
            );
            Answer::with(200, &[("Content-Type", "text/event-stream")], text)
        });
        let sandbox = Sandbox::start();
        let origin = upstream.origin();
        sandbox.cli().apply_service(&format!(
            "name = 'tools'\nupstream = '{origin}'\nallow_private = true\ninject = 'bearer'\nmcp = true\n"
        ));
        sandbox.cli().put_credential("tools", "tools", KEY);
        let token = sandbox.token("agent", &["tools"]).secret;
        let text = sandbox.get("/api/tools/sse", &token).text();
        assert_eq!(
            text,
            format!("event: endpoint\r\ndata: {expect}\r\n\r\nevent: message\r\ndata: {{\"a\":\"/messages\"}}\r\n\r\n")
        );
    }
}
