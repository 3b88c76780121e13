//! Services with signed requests: AWS Signature Version 4.
//!
//! The agent's SDK signs with a fake key pair ([`token::aws`](seks_types::token::aws)). The node
//! verifies that signature and signs again with the real key. Such a service has no injection site,
//! and the credential's fields are fixed.

use seks_proto::wire;

use super::{ServiceError, Upstream, invalid};

/// The credential's fields, named as in AWS. Only temporary credentials have the last one.
pub const FIELDS: [&str; 3] = ["access_key_id", "secret_access_key", "session_token?"];

/// How a service's requests are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigV4 {
    /// The name in the credential scope: `s3`, `dynamodb`, `bedrock`.
    pub service: String,
    /// The region of every signature. `None`: the region that the agent signs for.
    pub region: Option<String>,
    /// Actions that return keys. They are refused whatever the policies say.
    pub denied_actions: Vec<ActionPattern>,
}

/// `AssumeRole*`: an action of the AWS query and JSON protocols. `*` matches any part, at most
/// once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionPattern(String);

impl SigV4 {
    pub(super) fn from_wire(
        wire: &wire::AwsSigV4,
        upstream: &Upstream,
        denied_actions: &[String],
    ) -> Result<Self, ServiceError> {
        let word = |s: &str| {
            !s.is_empty()
                && s.len() <= 63
                && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !word(&wire.service) {
            return Err(invalid("inject", "aws_sigv4.service is a name such as `s3`, of a-z, 0-9 and `-`"));
        }
        if !wire.region.is_empty() && !word(&wire.region) {
            return Err(invalid("inject", "aws_sigv4.region is a name such as `us-east-1`, of a-z, 0-9 and `-`"));
        }
        Ok(Self {
            service: wire.service.clone(),
            region: region(wire, upstream.host()).map(Into::into),
            denied_actions: denied_actions.iter().map(|a| ActionPattern::parse(a)).collect::<Result<_, _>>()?,
        })
    }

    /// Whether the signature covers the path escaped once more. S3 signs the path as it is sent;
    /// all other services escape it again.
    #[must_use]
    pub fn escapes_path_twice(&self) -> bool {
        !matches!(self.service.as_str(), "s3" | "s3-outposts" | "s3-object-lambda" | "s3express")
    }

    /// Whether paths hold keys of objects, which may be any text: S3 and the stores that speak its
    /// protocol.
    #[must_use]
    pub fn has_object_keys(&self) -> bool {
        !self.escapes_path_twice()
    }

    /// Whether requests may leave the body unsigned, or state in `x-amz-content-sha256` which part
    /// of it is signed.
    #[must_use]
    pub fn has_unsigned_payloads(&self) -> bool {
        !self.escapes_path_twice()
    }
}

/// The region in the definition, or in the upstream's AWS host name.
#[must_use]
pub fn region<'a>(wire: &'a wire::AwsSigV4, host: &'a str) -> Option<&'a str> {
    if !wire.region.is_empty() {
        return Some(&wire.region);
    }
    let name =
        [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"].iter().find_map(|suffix| host.strip_suffix(suffix))?;
    name.split('.').rev().find(|label| is_region(label))
}

/// `us-east-1`, `us-gov-west-1`, `ap-southeast-2`.
fn is_region(label: &str) -> bool {
    let parts: Vec<&str> = label.split('-').collect();
    let letters = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase());
    match parts.split_last() {
        Some((number, words)) => {
            words.len() >= 2
                && words.first().is_some_and(|w| w.len() == 2)
                && words.iter().all(letters)
                && !number.is_empty()
                && number.bytes().all(|b| b.is_ascii_digit())
        }
        None => false,
    }
}

impl ActionPattern {
    /// Parses `"AssumeRole*"`.
    ///
    /// # Errors
    /// When the text has another form.
    pub fn parse(text: &str) -> Result<Self, ServiceError> {
        let known = |b: u8| b.is_ascii_alphanumeric() || b == b'*';
        if text.is_empty() || text.len() > 128 || !text.bytes().all(known) || text.matches('*').count() > 1 {
            return Err(invalid(
                "denied_actions",
                "expected the name of an action, with `*` at most once, such as `AssumeRole*`",
            ));
        }
        Ok(Self(text.into()))
    }

    /// Whether the action matches. Case is ignored.
    #[must_use]
    pub fn matches(&self, action: &str) -> bool {
        super::denied_path::matches_segment(&self.0, action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sigv4(service: &str, region: &str, host: &str) -> Result<SigV4, ServiceError> {
        let wire = wire::AwsSigV4 { service: service.into(), region: region.into() };
        SigV4::from_wire(&wire, &Upstream::parse(&format!("https://{host}"), false).unwrap(), &["AssumeRole*".into()])
    }

    #[test]
    fn the_region_is_the_definitions_or_the_hosts_or_the_agents() {
        for (region, host, want) in [
            ("", "s3.eu-central-1.amazonaws.com", Some("eu-central-1")),
            ("", "s3.dualstack.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("", "dynamodb.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("", "lambda.ap-southeast-2.api.aws", Some("ap-southeast-2")),
            ("us-east-1", "sts.amazonaws.com", Some("us-east-1")),
            ("us-east-1", "s3.eu-central-1.amazonaws.com", Some("us-east-1")),
            ("", "sts.amazonaws.com", None),
            ("", "s3.eu-central-1.example.com", None),
        ] {
            assert_eq!(sigv4("s3", region, host).unwrap().region.as_deref(), want, "{host}");
        }
        assert!(sigv4("S3", "", "s3.amazonaws.com").is_err());
        assert!(sigv4("s3", "US East", "s3.amazonaws.com").is_err());
    }

    #[test]
    fn an_action_is_denied_in_any_case() {
        let denied = sigv4("sts", "", "sts.amazonaws.com").unwrap().denied_actions;
        for (action, is) in
            [("AssumeRole", true), ("assumerolewithsaml", true), ("GetCallerIdentity", false), ("Assume", false)]
        {
            assert_eq!(denied[0].matches(action), is, "{action}");
        }
        for bad in ["", "A B", "*a*", "a/b"] {
            assert!(ActionPattern::parse(bad).is_err(), "{bad}");
        }
    }
}
