//! The services' variables, from the templates in their definitions.

use seks_proto::wire;

use super::{Variables, host};

/// How a service's requests are signed, if they are.
pub(super) fn signed(service: &wire::Service) -> Option<&wire::AwsSigV4> {
    service.injection.as_ref()?.aws_sigv4.as_ref()
}

/// Every service's variables, and the names of those that two services set differently.
/// `SEKS_TOKEN` and `SEKS_BASE_URL` are always included.
pub(super) fn variables(
    services: &[(wire::Service, wire::Grant)],
    proxy: &str,
    token: &str,
    aws: Option<&wire::AwsKeys>,
) -> (Variables, Vec<String>) {
    let (mut variables, mut clashes) = (Variables::new(), Vec::new());
    for (service, _) in services {
        let base = format!("{proxy}/api/{}", service.name);
        for (name, template) in &service.env {
            let filled = fill(template, &base, token, host(proxy));
            let Some(value) = fill_aws(&filled, service, aws) else { continue };
            let before = variables.insert(name.clone(), value.clone());
            if before.is_some_and(|before| before != value) {
                clashes.push(name.clone());
            }
        }
    }
    variables.insert("SEKS_BASE_URL".into(), proxy.into());
    variables.insert("SEKS_TOKEN".into(), token.into());
    (variables, clashes)
}

fn fill(template: &str, base: &str, token: &str, host: &str) -> String {
    template.replace("{base}", base).replace("{token}", token).replace("{host}", host)
}

/// `None` when a value is unknown, such as the region of a service in all regions.
fn fill_aws(template: &str, service: &wire::Service, aws: Option<&wire::AwsKeys>) -> Option<String> {
    if !template.contains("{aws_") {
        return Some(template.into());
    }
    let host = host(&service.upstream);
    let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let region = signed(service).and_then(|signed| seks_service::sigv4::region(signed, host));
    let mut text = template.to_owned();
    for (name, value) in [
        ("{aws_access_key_id}", aws.map(|keys| keys.access_key_id.as_str())),
        ("{aws_secret_access_key}", aws.map(|keys| keys.secret_access_key.as_str())),
        ("{aws_region}", region),
    ] {
        if text.contains(name) {
            text = text.replace(name, value?);
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled() {
        let mut service = wire::Service { name: "openai".into(), ..Default::default() };
        service.env.insert("OPENAI_BASE_URL".into(), "{base}/v1".into());
        service.env.insert("OPENAI_API_KEY".into(), "{token}".into());
        service.env.insert("GH_HOST".into(), "{host}".into());
        let services = [(service.clone(), wire::Grant::default())];
        let (variables, clashes) = variables(&services, "http://127.0.0.1:8300", "seks_token_x", None);
        assert!(clashes.is_empty());
        assert_eq!(variables["OPENAI_BASE_URL"], "http://127.0.0.1:8300/api/openai/v1");
        assert_eq!(variables["OPENAI_API_KEY"], "seks_token_x");
        assert_eq!(variables["GH_HOST"], "127.0.0.1:8300");
        assert_eq!(variables["SEKS_TOKEN"], "seks_token_x");
        let second = wire::Service { name: "vllm".into(), ..service };
        let both = [services, [(second, wire::Grant::default())]].concat();
        assert_eq!(
            super::variables(&both, "http://h", "t", None).1,
            ["OPENAI_BASE_URL"],
            "the token is the same for both"
        );
    }

    #[test]
    fn an_aws_service_gets_a_key_pair_and_a_region() {
        let signed = wire::AwsSigV4 { service: "s3".into(), ..Default::default() };
        let mut service = wire::Service {
            name: "aws-s3".into(),
            upstream: "https://s3.eu-west-1.amazonaws.com:443".into(),
            injection: Some(wire::Injection { aws_sigv4: Some(signed), ..Default::default() }),
            ..Default::default()
        };
        for (name, template) in
            [("ID", "{aws_access_key_id}"), ("KEY", "{aws_secret_access_key}"), ("AT", "{aws_region}")]
        {
            service.env.insert(name.into(), template.into());
        }
        let keys = wire::AwsKeys { access_key_id: "AKIAX".into(), secret_access_key: "s".into() };
        let filled = |service: &wire::Service| {
            let services = [(service.clone(), wire::Grant::default())];
            variables(&services, "http://h:1", "t", Some(&keys)).0
        };
        let all = filled(&service);
        assert_eq!((all["ID"].as_str(), all["KEY"].as_str(), all["AT"].as_str()), ("AKIAX", "s", "eu-west-1"));
        service.upstream = "https://gateway.example.com".into();
        assert!(!filled(&service).contains_key("AT"), "nobody knows");
    }
}
