//! boto3, the SDK for Node and the AWS CLI against moto.

use std::{fs, path::Path};

use seks_tests::process::run;

use crate::moto::MotoBroker;

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn boto3_reads_and_writes_objects() {
    let broker = MotoBroker::start();
    let seen = broker.check(&["s3_objects", "s3_payloads"]);
    assert_eq!(
        seen["s3_objects"],
        serde_json::json!(["a(b)'c!", "empty", "plain", "with space/and+plus=equals~tilde"]),
        "{seen}"
    );
    assert_eq!(seen["s3_payloads"].as_array().unwrap().len(), 6);
    broker.assert_nothing_leaked(&seen.to_string());
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn a_presigned_url_is_good_for_what_it_was_made_for() {
    let broker = MotoBroker::with(false);
    let seen = broker.check(&["s3_objects", "s3_presigned"]);
    assert_eq!(seen["s3_presigned"]["got"], "by url");
    for forged in ["other", "as_put"] {
        let answer = seen["s3_presigned"][forged].as_str().unwrap();
        assert!(answer.starts_with("401:") && answer.contains("signature does not match"), "{forged}: {answer}");
    }
    broker.assert_nothing_leaked(&seen.to_string());
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn boto3_uses_a_table_and_is_given_no_fresh_key() {
    let broker = MotoBroker::start();
    let seen = broker.check(&["dynamodb", "sts"]);
    assert_eq!(seen["dynamodb"], "größer");
    assert!(seen["sts"]["who"].as_str().unwrap().ends_with(":user/broker"), "{seen}");
    for minting in ["role", "session", "federation"] {
        let answer = seen["sts"][minting].as_str().unwrap();
        assert_eq!(answer, "policy_denied: the service refuses actions that hand out keys", "{minting}");
    }
    broker.assert_nothing_leaked(&seen.to_string());
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn a_refusal_is_an_error_that_boto3_shows() {
    let broker = MotoBroker::start();
    broker.sandbox.cli().apply_policies("@id(\"read-only\")\nforbid (principal, action == Seks::Action::\"POST\", resource);\n@id(\"no-deletes\")\nforbid (principal, action == Seks::Action::\"DELETE\", resource);");
    let seen = broker.check(&["denied", "wrong_secret"]);
    assert_eq!(seen["denied"]["json"], "policy_denied: denied by `read-only`");
    assert_eq!(seen["denied"]["xml"], "policy_denied: denied by `no-deletes`");
    assert_eq!(seen["wrong_secret"], "token_malformed: the request's signature does not match");
    broker.sandbox.cli().revoke(&broker.token.id);
    let seen = broker.check(&["denied"]);
    assert_eq!(seen["denied"]["xml"], "token_revoked: the token was revoked");
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
#[cfg_attr(all(has = "aws-sdks", not(has = "node-sdks")), ignore = "needs node-sdks")]
fn the_sdk_for_node_reads_writes_streams_and_shows_a_refusal() {
    let broker = MotoBroker::start();
    broker
        .sandbox
        .cli()
        .apply_policies("@id(\"no-deletes\")\nforbid (principal, action == Seks::Action::\"DELETE\", resource);");
    let seen = broker.check_node(&["objects", "tables", "denied"]);
    assert_eq!(seen["objects"], serde_json::json!({ "with space/and+plus": 5, "large": 3 << 20, "stream": 3 << 20 }));
    assert_eq!(seen["tables"], serde_json::json!([]));
    assert_eq!(seen["denied"], "policy_denied: denied by `no-deletes`");
    broker.assert_nothing_leaked(&seen.to_string());
}

#[test]
#[cfg_attr(not(has = "aws-sdks"), ignore = "needs aws-sdks")]
fn the_aws_command_line_works_as_it_is() {
    let broker = MotoBroker::start();
    let aws = |arguments: &[&str], input: &str| {
        let finished = run(broker.agent("aws").args(arguments), input.as_bytes());
        assert_eq!(finished.code, Some(0), "aws {arguments:?}: {}{}", finished.stdout, finished.stderr);
        finished.stdout
    };
    aws(&["s3", "mb", "s3://bucket"], "");
    aws(&["s3", "cp", "-", "s3://bucket/from/the/command line"], "written by the command line");
    assert_eq!(aws(&["s3", "cp", "s3://bucket/from/the/command line", "-"], ""), "written by the command line");
    assert!(aws(&["s3", "ls", "--recursive", "s3://bucket"], "").contains("from/the/command line"));
    assert!(aws(&["sts", "get-caller-identity"], "").contains("user/broker"));
    assert!(aws(&["dynamodb", "list-tables"], "").contains("TableNames"));
    let minted = run(broker.agent("aws").args(["sts", "get-session-token"]), b"");
    assert_ne!(minted.code, Some(0));
    assert!(minted.stderr.contains("(policy_denied)"), "{}", minted.stderr);
}

#[test]
fn the_readmes_matrix_names_what_is_tested_here() {
    let read = |name: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let (readme, python, node) =
        (read("../README.md"), read("sdk/requirements-aws.txt"), read("sdk/node/package.json"));
    let pinned = |name: &str| python.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("==")).unwrap();
    let node: serde_json::Value = serde_json::from_str(&node).unwrap();
    let (boto3, cli, s3) =
        (pinned("boto3"), pinned("awscli"), node["dependencies"]["@aws-sdk/client-s3"].as_str().unwrap());
    for wanted in [format!("| boto3 {boto3} | @aws-sdk/client-s3 {s3} |"), format!("CLI {cli}; moto")] {
        assert!(readme.contains(&wanted), "the README lacks {wanted}");
    }
}
