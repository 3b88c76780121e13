//! What a retry cannot help is not retried: each refusal costs an SDK one request.

use seks_tests::{
    Sandbox, Upstream,
    process::{installed, run},
    upstream::{Answer, answer::Step},
};

use crate::client;

/// One call with the SDK's own number of retries.
const OPENAI: &str = "import sys, openai\n\
                      client = openai.OpenAI(api_key=sys.argv[1], base_url=sys.argv[2] + '/api/openai')\n\
                      try: client.models.list()\n\
                      except openai.APIStatusError as error: print(error.status_code)\n";
const STS: &str = "import boto3, botocore\n\
                   try: boto3.client('sts').get_caller_identity()\n\
                   except botocore.exceptions.ClientError as error: print(error.response['Error']['Code'])\n";

/// Calls that a vendor charges for, with the SDK's own number of retries: OpenAI's, Anthropic's and
/// Stripe's.
const PAID: [(&str, &str); 3] = [
    (
        "openai",
        "import sys, openai\n\
         client = openai.OpenAI(api_key=sys.argv[1], base_url=sys.argv[2] + '/api/openai')\n\
         try: client.chat.completions.create(model='m', messages=[{'role': 'user', 'content': 'x'}])\n\
         except openai.APIStatusError as error: print(error.status_code)\n",
    ),
    (
        "anthropic",
        "import sys, anthropic\n\
         client = anthropic.Anthropic(api_key=sys.argv[1], base_url=sys.argv[2] + '/api/anthropic')\n\
         try: client.messages.create(model='m', max_tokens=9, messages=[{'role': 'user', 'content': 'x'}])\n\
         except anthropic.APIStatusError as error: print(error.status_code)\n",
    ),
    (
        "stripe",
        "import sys, stripe\n\
         client = stripe.StripeClient(sys.argv[1], base_addresses={'api': sys.argv[2] + '/api/stripe'}, max_network_retries=2)\n\
         try: client.customers.create(params={'name': 'x'})\n\
         except stripe.APIError as error: print(error.http_status)\n",
    ),
];

/// What a paid call printed.
fn pay(sandbox: &Sandbox, token: &str, script: &str) -> String {
    let mut command = client(&installed("python/bin/python"));
    command.args(["-c", script, token, sandbox.proxy_url()]);
    let finished = run(&mut command, b"");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished.stdout.trim().to_owned()
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn a_paid_call_is_made_once_where_the_upstream_may_have_begun_and_again_where_it_has_not() {
    for (service, script) in PAID {
        let sandbox = Sandbox::start();
        let upstream = Upstream::start(|request| match request.body_length {
            0 => Answer::json(200, "{}"),
            _ => Answer::raw(""), // reads the request and goes: it may have done the work
        });
        sandbox.service(service, &upstream, "sk-real-key-for-retries-0000002");
        let token = sandbox.token("agent", &[service]).secret;
        assert_eq!(pay(&sandbox, &token, script), "502", "{service}");
        assert_eq!(upstream.complete(), 1, "{service}: a paid call was made more than once");
        // Nobody listens: nothing can be paid for, and the SDK tries as often as it does by itself.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let origin = format!("http://{closed}");
        sandbox.cli().json(&["service", "enable", service, "--upstream", &origin, "--allow-private"]);
        sandbox.cli().put_credential(service, service, "sk-real-key-for-retries-0000002");
        assert_eq!(pay(&sandbox, &token, script), "502", "{service}");
        let page = sandbox.metrics_page();
        let failed = page
            .lines()
            .filter(|line| line.contains("reason=\"upstream_unreachable\""))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap());
        assert_eq!(failed.sum::<u32>(), 1 + 3, "{service}: {page}");
    }
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn a_model_that_is_silent_for_too_long_is_asked_once() {
    let sandbox = Sandbox::start();
    let upstream = Upstream::start(|_| Answer::steps(vec![Step::Stall]));
    sandbox.cli().apply_service(&format!(
        "name = 'openai'\nupstream = '{}'\nallow_private = true\ninject = 'bearer'\nfirst_byte_timeout = '1s'\n",
        upstream.origin()
    ));
    sandbox.cli().put_credential("openai", "openai", "sk-real-key-for-retries-0000003");
    let token = sandbox.token("agent", &["openai"]).secret;
    assert_eq!(pay(&sandbox, &token, PAID[0].1), "504");
    assert_eq!(upstream.complete(), 1);
}

/// What the call printed, and how many requests it took.
fn ask(sandbox: &Sandbox, token: &str, reason: &str) -> (String, f64) {
    let counted = || {
        let page = sandbox.metrics_page();
        let lines = page.lines().filter(|line| line.starts_with("seks_proxy_requests_total{"));
        let of_reason = lines.filter(|line| line.contains(&format!("reason=\"{reason}\"")));
        of_reason.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    let before = counted();
    let mut command = client(&installed("python/bin/python"));
    command.args(["-c", OPENAI, token, sandbox.proxy_url()]);
    let finished = run(&mut command, b"");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    (finished.stdout.trim().to_owned(), counted() - before)
}

#[test]
#[cfg_attr(not(has = "python-sdks"), ignore = "needs python-sdks")]
fn an_sdk_does_not_retry_what_a_retry_cannot_help() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::start_tls(|_| panic!("nothing is sent")));
    let enable = |origin: &str| {
        sandbox.cli().json(&["service", "enable", "openai", "--upstream", origin, "--allow-private"]);
    };
    enable(&upstream.origin());
    sandbox.cli().put_credential("openai", "openai", "sk-real-key-for-retries-0000001");
    let token = sandbox.token("agent", &["openai"]).secret;
    // Its CA is nobody's here.
    assert_eq!(ask(&sandbox, &token, "upstream_tls"), ("502".into(), 1.0));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    enable(&format!("http://{closed}"));
    assert_eq!(ask(&sandbox, &token, "credential_unbound"), ("403".into(), 1.0));
    // The control: here a retry may help, and the SDK tries three times.
    sandbox.cli().put_credential("openai", "openai", "sk-real-key-for-retries-0000001");
    assert_eq!(ask(&sandbox, &token, "upstream_unreachable"), ("502".into(), 3.0));
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn an_aws_sdk_does_not_retry_an_unbound_credential() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    let enable = |origin: &str| {
        sandbox.cli().json(&["service", "enable", "aws-sts", "--upstream", origin, "--allow-private"]);
    };
    enable(&upstream.origin());
    let real =
        r#"{"access_key_id":"AKIAEXAMPLE000000001","secret_access_key":"not-a-real-secret-key-0000000000000000"}"#;
    sandbox.cli().json_with(&["credential", "put", "aws-sts", "--service", "aws-sts", "--from-stdin"], real);
    let token = sandbox.token("agent", &["aws-sts"]);
    let environment = sandbox.cli().json(&["env", "--agent", "agent", "--token", &token.secret]);
    enable(&upstream.origin().replace("127.0.0.1", "localhost"));
    let mut command = client(&installed("aws/bin/python"));
    command.args(["-c", STS]).env("AWS_DEFAULT_REGION", "us-east-1");
    command
        .envs(environment.as_object().unwrap().iter().map(|(name, value)| (name, value.as_str().unwrap_or_default())));
    let finished = run(&mut command, b"");
    assert_eq!((finished.code, finished.stdout.trim()), (Some(0), "credential_unbound"), "{}", finished.stderr);
    let page = sandbox.metrics_page();
    let line =
        page.lines().find(|line| line.contains("reason=\"credential_unbound\"")).unwrap_or_else(|| panic!("{page}"));
    assert!(line.ends_with(" 1"), "{line}");
}
