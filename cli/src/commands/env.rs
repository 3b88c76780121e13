//! `seks env`: the variables that point the common SDKs at the proxy.

mod network;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::Args;
use seks_proto::wire;

use super::{change::Waiting, token};
use crate::{
    args::{Global, duration},
    client::Client,
    error::{CliError, Exit, Result},
    files::read_text,
    output::notice,
};

/// For whom.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eval \"$(seks env --agent ci-bot)\"
  seks env --agent ci-bot --service openai --ttl 8h > .env
  seks env --agent ci-bot -o json")]
pub struct EnvArgs {
    /// The agent that will call
    #[arg(long)]
    agent: String,
    /// Which services.
    #[command(flatten)]
    what: Wanted,
    /// A token that was issued already [default: a new one]
    #[arg(long, value_name = "TOKEN", env = "SEKS_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// How long a new token is valid
    #[arg(long, default_value = "24h", value_parser = duration)]
    ttl: Duration,
}

/// Which services, through which proxy.
#[derive(Debug, Clone, Args)]
pub struct Wanted {
    /// A service to grant, with the credential to use where there are several; repeatable [default: all with a credential]
    #[arg(long, value_name = "SERVICE[=CREDENTIAL]", value_parser = token::grant)]
    service: Vec<wire::Grant>,
    /// The way to it.
    #[command(flatten)]
    proxy: ProxyArgs,
}

/// Where a node is for agents, and by what it is known.
#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    /// Where agents reach the proxy [default: what the control plane or the context says]
    #[arg(long, value_name = "URL", env = "SEKS_BASE_URL")]
    proxy: Option<String>,
    /// PEM roots to trust for it beside the machine's, where its certificate is from a private authority
    #[arg(long, value_name = "FILE")]
    proxy_ca: Option<PathBuf>,
}

/// Name and value of each variable.
pub type Variables = BTreeMap<String, String>;

/// Prints them.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, args: EnvArgs) -> Result<()> {
    let client = global.connect().await?;
    let services = args.what.services(&client).await?;
    let variables = match args.token {
        Some(token) => {
            seks_proto::token::parse(token.as_bytes())
                .map_err(|_| CliError::usage("--token", "not a token of ours, or mistyped"))?;
            let base = args.what.proxy.base(&client, "")?;
            let aws = aws_keys(&client, &services, &token).await?;
            args.what.variables(&services, &base, &token, aws.as_ref())?
        }
        None => args.what.issue(&client, args.agent, &services, args.ttl).await?.variables,
    };
    let output = global.output();
    if !output.is_table() {
        return output.data(&variables);
    }
    let lines: Vec<_> = variables.iter().map(|(name, value)| format!("export {name}={}", quote(value))).collect();
    output.text(&lines.join("\n"))
}

/// A token issued for these variables.
#[derive(Debug)]
pub struct Issued {
    /// The token's id.
    pub id: String,
    /// The variables that hold it.
    pub variables: Variables,
}

impl Wanted {
    /// The services that are asked for, each with its grant.
    ///
    /// # Errors
    /// When one doesn't exist, or there is none.
    pub async fn services(&self, client: &Client) -> Result<Vec<(wire::Service, wire::Grant)>> {
        let mut services = client.call("services", client.rpc().list_services(client.list())).await?.services;
        if !self.service.is_empty() {
            let find = |grant: &wire::Grant| {
                let at = services.iter().position(|s| s.name == grant.service).ok_or_else(|| {
                    CliError::new(Exit::NotFound, format!("service `{}`", grant.service), "there is none of this name")
                })?;
                Ok((services.swap_remove(at), grant.clone()))
            };
            return self.service.iter().map(find).collect();
        }
        let credentials = client.call("credentials", client.rpc().list_credentials(client.list())).await?.credentials;
        let mut wanted = Vec::new();
        for service in services {
            let mut own = credentials.iter().filter(|c| c.service == service.name);
            match (own.next(), own.next()) {
                (None, _) => {}
                (Some(_), None) => {
                    let grant = wire::Grant { service: service.name.clone(), credential: String::new() };
                    wanted.push((service, grant));
                }
                (Some(_), Some(_)) => {
                    let what = format!("service `{}`", service.name);
                    return Err(CliError::usage(what, "it has several credentials")
                        .hint(format!("say which services with --service, this one as {}=CREDENTIAL", service.name)));
                }
            }
        }
        if wanted.is_empty() {
            return Err(CliError::new(Exit::NotFound, "services", "no service has a credential")
                .hint("`seks service enable NAME`, then `seks credential put KEY --service NAME`"));
        }
        Ok(wanted)
    }

    /// Issues a token for them.
    ///
    /// # Errors
    /// See [`crate::error`].
    pub async fn issue(
        &self,
        client: &Client,
        agent: String,
        services: &[(wire::Service, wire::Grant)],
        ttl: Duration,
    ) -> Result<Issued> {
        let grants = services.iter().map(|(_, grant)| grant.clone()).collect();
        let request = token::request(client, agent, grants, ttl, Waiting::default())?;
        let issued = token::issue(client, request).await?;
        let base = self.proxy.base(client, &issued.base_url)?;
        let variables = self.variables(services, &base, &issued.secret, issued.aws.as_ref())?;
        Ok(Issued { id: issued.token.unwrap_or_default().id, variables })
    }

    /// The services' own variables, and those that make the way to the proxy passable.
    fn variables(
        &self,
        services: &[(wire::Service, wire::Grant)],
        base: &str,
        token: &str,
        aws: Option<&wire::AwsKeys>,
    ) -> Result<Variables> {
        let (mut variables, clashes) = variables(services, base, token, aws);
        for name in clashes {
            notice(&format!("warning: {name} is set by several of the services; --service chooses one"));
        }
        variables.extend(network::without_another_proxy(host(base), |name| std::env::var(name).ok()));
        if let Some(pem) = self.proxy.ca_pem()? {
            variables.extend(network::trusting(&pem)?);
        }
        Ok(variables)
    }
}

impl ProxyArgs {
    /// The node's base URL, without a final `/`.
    ///
    /// # Errors
    /// When nobody knows it, or what was said is no URL.
    pub fn base(&self, client: &Client, issued: &str) -> Result<String> {
        let base = self.proxy.clone().or_else(|| token::base_url(client, issued)).ok_or_else(|| {
            CliError::usage("proxy", "where agents reach it is not known").hint("say it with --proxy http://NODE:8300")
        })?;
        let base = base.trim_end_matches('/');
        if host(base).is_empty() {
            return Err(CliError::usage("--proxy", "a proxy is http://HOST:PORT or https://HOST:PORT"));
        }
        Ok(base.into())
    }

    /// The roots to trust for it beside the machine's.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn ca_pem(&self) -> Result<Option<String>> {
        self.proxy_ca.as_deref().map(read_text).transpose()
    }
}

/// The key pair of a token that was issued before, if a service wants requests signed with one.
async fn aws_keys(
    client: &Client,
    services: &[(wire::Service, wire::Grant)],
    token: &str,
) -> Result<Option<wire::AwsKeys>> {
    if !services.iter().any(|(service, _)| signed(service).is_some()) {
        return Ok(None);
    }
    let request = wire::AwsKeyPairRequest { tenant: client.tenant(), token: token.into() };
    client.call("the token's AWS key pair", client.rpc().aws_key_pair(request)).await.map(Some)
}

fn signed(service: &wire::Service) -> Option<&wire::AwsSigV4> {
    service.injection.as_ref()?.aws_sigv4.as_ref()
}

/// Every service's variables, and the names of those that two services set differently. `SEKS_TOKEN` and `SEKS_BASE_URL` are
/// always there.
fn variables(
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

/// `None`: the variable says what isn't known, such as the region of a service that has them all.
fn fill_aws(template: &str, service: &wire::Service, aws: Option<&wire::AwsKeys>) -> Option<String> {
    if !template.contains("{aws_") {
        return Some(template.into());
    }
    let host = host(&service.upstream);
    let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let region = signed(service).and_then(|signed| seks_proto::service::sigv4::region(signed, host));
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

/// `HOST:PORT` of a base URL.
fn host(base: &str) -> &str {
    let rest = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://")).unwrap_or_default();
    rest.split('/').next().unwrap_or_default()
}

/// A word that every POSIX shell reads as exactly this text.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_exactly_what_was_quoted() {
        for value in ["", "plain", "it's", "a b;$(x)`y`\\\"!", "'", "new\nline", "é*?[~#"] {
            let script = format!("X={}; printf %s \"$X\"", quote(value));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
        }
    }

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

    #[test]
    fn a_proxy_is_an_http_url() {
        assert_eq!(host("https://h:1/x"), "h:1");
        for bad in ["h:1", "ftp://h", "", "http://"] {
            assert_eq!(host(bad), "", "{bad}");
        }
    }
}
