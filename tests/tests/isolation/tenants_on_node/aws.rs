//! A tenant's service of AWS whose requests' bodies are read whole, and requests to it, well signed
//! or not.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::world::World;

/// What an agent's SDK signs with.
pub struct Pair {
    pub access_key_id: String,
    secret_access_key: String,
}

/// A tenant's `aws-sts`, whose actions stand in the body, and the fake pair of a token for it.
pub fn sts(world: &World, tenant: &str) -> Pair {
    let (cli, origin) = (world.sandbox.cli(), world.hostile_upstream.origin());
    cli.json(&["service", "enable", "aws-sts", "--upstream", &origin, "--allow-private", "--tenant", tenant]);
    let put = ["credential", "put", "aws-sts", "--service", "aws-sts", "--from-stdin", "--tenant", tenant];
    cli.json_with(
        &put,
        r#"{"access_key_id":"AKIAEXAMPLE000000001","secret_access_key":"not-a-real-secret-key-0000000000000000"}"#,
    );
    let token = world.token(tenant, &["aws-sts"]);
    let environment = cli.json(&["env", "--agent", "agent", "--token", &token.secret, "--tenant", tenant]);
    let text = |name: &str| environment[name].as_str().unwrap().to_owned();
    Pair { access_key_id: text("AWS_ACCESS_KEY_ID"), secret_access_key: text("AWS_SECRET_ACCESS_KEY") }
}

/// The head of a request that is signed with a wrong secret. `hash`: what it says of its body.
pub fn forged(access_key_id: &str, hash: Option<&str>, length: usize) -> String {
    let scope = Scope::now();
    let signed = if hash.is_some() { "host;x-amz-content-sha256;x-amz-date" } else { "host;x-amz-date" };
    let header = hash.map(|hash| format!("X-Amz-Content-Sha256: {hash}\r\n")).unwrap_or_default();
    scope.head(access_key_id, (signed, &header), length, &"0".repeat(64))
}

/// The head of a request with `body`, as an SDK signs it: the hash of the body stands in no header.
pub fn signed(pair: &Pair, body: &[u8]) -> String {
    let scope = Scope::now();
    let Scope { date, time } = &scope;
    let canonical = format!(
        "POST\n/\n\nhost:localhost\nx-amz-date:{date}T{time}Z\n\nhost;x-amz-date\n{}",
        hex(&Sha256::digest(body))
    );
    let text = format!(
        "AWS4-HMAC-SHA256\n{date}T{time}Z\n{date}/us-east-1/sts/aws4_request\n{}",
        hex(&Sha256::digest(canonical.as_bytes()))
    );
    let secret = format!("AWS4{}", pair.secret_access_key).into_bytes();
    let key = [date.as_str(), "us-east-1", "sts", "aws4_request"].iter().fold(secret, |key, part| mac(&key, part));
    scope.head(&pair.access_key_id, ("host;x-amz-date", ""), body.len(), &hex(&mac(&key, &text)))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// When a request is signed, in UTC.
struct Scope {
    date: String,
    time: String,
}

impl Scope {
    /// Civil from days (Howard Hinnant).
    fn now() -> Self {
        let unix = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let (days, seconds) = (unix / 86_400 + 719_468, unix % 86_400);
        let (era, doe) = (days / 146_097, days % 146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
        let year = yoe + era * 400 + u64::from(month <= 2);
        let time = format!("{:02}{:02}{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        Self { date: format!("{year:04}{month:02}{day:02}"), time }
    }

    fn head(&self, id: &str, (signed, header): (&str, &str), length: usize, signature: &str) -> String {
        let Self { date, time } = self;
        format!(
            "POST /api/aws-sts/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             X-Amz-Date: {date}T{time}Z\r\n{header}\
             Authorization: AWS4-HMAC-SHA256 Credential={id}/{date}/us-east-1/sts/aws4_request, SignedHeaders={signed}, \
             Signature={signature}\r\nContent-Length: {length}\r\n\r\n"
        )
    }
}
