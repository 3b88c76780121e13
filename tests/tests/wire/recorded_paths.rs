//! A path in which an agent asks for the credential itself is recorded without it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use seks_tests::process::wait_for;

use crate::rig::{KEY, Rig};

#[test]
fn a_credential_in_a_path_is_in_no_record_whether_the_request_is_allowed_or_not() {
    let rig = Rig::start("denied_paths = [\"GET /keys/**\"]");
    let coded = STANDARD.encode(KEY);
    let escaped: String = KEY.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let hex: String = KEY.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut asked = 0;
    for secret in [KEY, &coded, &escaped, &hex] {
        for (place, status) in [("/v1/", 200), ("/keys/", 403)] {
            assert_eq!(rig.get(&format!("{place}{secret}/x")).status, status, "{place}");
            asked += 1;
        }
    }
    let cut = format!("/v1/{}{KEY}", "a".repeat(1024 - "/api/acme/v1/".len() - 20));
    assert_eq!(rig.get(&cut).status, 200);
    asked += 1;
    let found = wait_for("the records", || {
        let found = rig.sandbox.cli().json(&["audit", "search"]);
        Some(found.as_array().unwrap().clone()).filter(|found| found.len() == asked)
    });
    let recorded = format!("{found:?}") + &rig.sandbox.everything_emitted();
    for secret in [&KEY[..20], &coded[4..24], &escaped[..60], &hex[..40]] {
        assert!(!recorded.contains(secret), "{secret}");
    }
    let paths: Vec<&str> = found.iter().map(|record| record["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&format!("/api/acme/keys/{}/x", "*".repeat(KEY.len())).as_str()), "{paths:?}");
}
