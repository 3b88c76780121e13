//! `seks env`: the variables that point the common SDKs at the proxy.

mod network;
mod template;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::Args;
use seks_proto::wire;
use seks_service::{INTERCEPTION, client_ca_pem, environment, is_internal};

use super::{change::WaitArgs, token};
use crate::{
    client::Client,
    duration::duration,
    error::{CliError, Exit, Result},
    files::read_text,
    global::Global,
    output::notice,
};

/// The agent, its services and its token.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eval \"$(seks env --agent ci-bot)\"
  seks env --agent ci-bot --service openai --ttl 8h > .env
  seks env --agent ci-bot -o json")]
pub struct EnvArgs {
    /// The agent that uses the variables
    #[arg(long)]
    agent: String,
    /// Which services.
    #[command(flatten)]
    what: ServiceSelection,
    /// An existing token [default: a new one]
    #[arg(long, value_name = "TOKEN", env = "SEKS_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// How long a new token is valid
    #[arg(long, default_value = "24h", value_parser = duration)]
    ttl: Duration,
}

/// The services to grant, and the proxy.
#[derive(Debug, Clone, Args)]
pub struct ServiceSelection {
    /// A service to grant, with the credential if it has several; repeatable [default: all with a
    /// credential]
    #[arg(long, value_name = "SERVICE[=CREDENTIAL]", value_parser = token::grant)]
    service: Vec<wire::Grant>,
    /// The way to it.
    #[command(flatten)]
    proxy: ProxyArgs,
    /// URL for HTTPS_PROXY, which needs a CA (`seks ca create`); "" for none [default: from the
    /// context]
    #[arg(long, value_name = "URL", env = "SEKS_FORWARD_PROXY")]
    forward_proxy: Option<String>,
}

/// The selected services with their grants, and HTTPS_PROXY mode if it is on.
#[derive(Debug)]
pub struct SelectedServices {
    services: Vec<(wire::Service, wire::Grant)>,
    forward: Option<ForwardProxy>,
}

#[derive(Debug)]
struct ForwardProxy {
    /// `http://HOST:PORT`.
    url: String,
    /// The CA with which nodes impersonate the services' hosts.
    ca_pem: String,
}

/// The address of a node for agents, and its roots.
#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    /// Where agents reach the proxy [default: from the control plane or the context]
    #[arg(long, value_name = "URL", env = "SEKS_BASE_URL")]
    proxy: Option<String>,
    /// PEM roots for the proxy in addition to the system's, if its certificate is from a private
    /// authority
    #[arg(long, value_name = "FILE")]
    proxy_ca: Option<PathBuf>,
}

/// Name and value of each variable.
pub type Variables = BTreeMap<String, String>;

/// Prints the variables.
///
/// # Errors
/// See [`crate::error`].
pub async fn run(global: &Global, args: EnvArgs) -> Result<()> {
    let client = global.connect().await?;
    let chosen = args.what.services(&client).await?;
    let variables = match args.token {
        Some(token) => {
            seks_types::token::parse(token.as_bytes())
                .map_err(|_| CliError::usage("--token", "not a token of ours, or mistyped"))?;
            let base = args.what.proxy.base(&client, "")?;
            let aws = aws_keys(&client, &chosen.services, &token).await?;
            args.what.variables(&chosen, &base, &token, aws.as_ref())?
        }
        None => args.what.issue(&client, args.agent, &chosen, args.ttl).await?.variables,
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

impl ServiceSelection {
    /// The requested services, each with its grant.
    ///
    /// # Errors
    /// When one doesn't exist, or there is none.
    pub async fn services(&self, client: &Client) -> Result<SelectedServices> {
        let all = client.list_all("services", async |mut rpc, page| rpc.list_services(page).await).await?;
        let ca = all.iter().find(|service| service.name == INTERCEPTION);
        let forward = self.forward(client, ca)?;
        let services = if self.service.is_empty() {
            with_a_credential(client, all.into_iter().filter(|s| !is_internal(&s.name))).await?
        } else {
            self.service.iter().map(|grant| named(&all, grant)).collect::<Result<_>>()?
        };
        for (service, _) in &services {
            check_environment(service)?;
        }
        Ok(SelectedServices { services, forward })
    }

    fn forward(&self, client: &Client, ca: Option<&wire::Service>) -> Result<Option<ForwardProxy>> {
        let Some(url) = self.forward_proxy.as_deref().or(client.forward_proxy()).filter(|url| !url.is_empty()) else {
            return Ok(None);
        };
        let url = url.trim_end_matches('/');
        if !url.starts_with("http://") || host(url).is_empty() {
            return Err(CliError::usage("--forward-proxy", "a forward proxy is http://HOST:PORT"));
        }
        match ca {
            Some(ca) => Ok(Some(ForwardProxy { url: url.into(), ca_pem: client_ca_pem(ca).to_owned() })),
            None if self.forward_proxy.is_none() => Ok(None), // it is offered, and the tenant doesn't use it
            None => Err(CliError::new(Exit::NotFound, "--forward-proxy", "the tenant has no CA for it")
                .hint("`seks ca create` makes one")),
        }
    }

    /// Issues a token for the services.
    ///
    /// # Errors
    /// See [`crate::error`].
    pub async fn issue(
        &self,
        client: &Client,
        agent: String,
        chosen: &SelectedServices,
        ttl: Duration,
    ) -> Result<Issued> {
        let mut grants: Vec<_> = chosen.services.iter().map(|(_, grant)| grant.clone()).collect();
        if chosen.forward.is_some() && grants.iter().all(|grant| grant.service != INTERCEPTION) {
            grants.push(wire::Grant { service: INTERCEPTION.into(), credential: String::new() });
        }
        let request = token::request(client, agent, grants, ttl, WaitArgs::default())?;
        let issued = token::issue(client, request).await?;
        let base = self.proxy.base(client, &issued.base_url)?;
        let variables = self.variables(chosen, &base, &issued.secret, issued.aws.as_ref())?;
        Ok(Issued { id: issued.token.unwrap_or_default().id, variables })
    }

    /// The services' variables, and those that clients need to reach the proxy.
    fn variables(
        &self,
        chosen: &SelectedServices,
        base: &str,
        token: &str,
        aws: Option<&wire::AwsKeys>,
    ) -> Result<Variables> {
        let (mut variables, clashes) = template::variables(&chosen.services, base, token, aws);
        for name in clashes {
            notice(&format!("warning: {name} is set by several of the services; --service chooses one"));
        }
        if let Some(forward) = &chosen.forward {
            variables.extend(network::https_proxy_variables(&forward.url, token));
        }
        let set = |name: &str| variables.get(name).cloned().or_else(|| std::env::var(name).ok());
        let direct = network::no_proxy_variables(host(base), set);
        variables.extend(direct);
        let roots = self.proxy.ca_pem()?.into_iter().chain(chosen.forward.iter().map(|f| f.ca_pem.clone()));
        let roots: Vec<_> = roots.collect();
        if !roots.is_empty() {
            variables.extend(network::root_variables(&roots.join("\n"), chosen.forward.is_some())?);
        }
        Ok(variables)
    }
}

impl ProxyArgs {
    /// The node's base URL, without a final `/`.
    ///
    /// # Errors
    /// When it is unknown, or is no URL.
    pub fn base(&self, client: &Client, issued: &str) -> Result<String> {
        let base = self.proxy.clone().or_else(|| token::base_url(client, issued)).ok_or_else(|| {
            CliError::usage("proxy", "its address is unknown").hint("pass it with --proxy http://NODE:8300")
        })?;
        let base = base.trim_end_matches('/');
        if host(base).is_empty() {
            return Err(CliError::usage("--proxy", "a proxy is http://HOST:PORT or https://HOST:PORT"));
        }
        Ok(base.into())
    }

    /// The additional roots for the proxy.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn ca_pem(&self) -> Result<Option<String>> {
        self.proxy_ca.as_deref().map(read_text).transpose()
    }
}

/// Refuses variables that could run a program in the user's shell. The control plane refuses them
/// too, but an older one may have stored some, and the CLI does not rely on it.
fn check_environment(service: &wire::Service) -> Result<()> {
    environment::check(&service.env).map_err(|error| {
        CliError::new(Exit::Failed, format!("service `{}`", service.name), error.to_string())
            .hint("apply the service with other variables: `seks service apply -f FILE`")
    })
}

/// A service by its name in a grant.
fn named(services: &[wire::Service], grant: &wire::Grant) -> Result<(wire::Service, wire::Grant)> {
    let service = services.iter().find(|s| s.name == grant.service).ok_or_else(|| {
        CliError::new(Exit::NotFound, format!("service `{}`", grant.service), "there is none of this name")
    })?;
    Ok((service.clone(), grant.clone()))
}

/// All services that have one credential.
async fn with_a_credential(
    client: &Client,
    services: impl Iterator<Item = wire::Service>,
) -> Result<Vec<(wire::Service, wire::Grant)>> {
    let credentials = client.list_all("credentials", async |mut rpc, page| rpc.list_credentials(page).await).await?;
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

/// The key pair of a token that was issued before, if a service wants requests signed with one.
async fn aws_keys(
    client: &Client,
    services: &[(wire::Service, wire::Grant)],
    token: &str,
) -> Result<Option<wire::AwsKeys>> {
    if !services.iter().any(|(service, _)| template::signed(service).is_some()) {
        return Ok(None);
    }
    let request = wire::AwsKeyPairRequest { tenant: client.tenant(), token: token.into() };
    client.call("the token's AWS key pair", client.rpc().aws_key_pair(request)).await.map(Some)
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
    fn a_proxy_is_an_http_url() {
        assert_eq!(host("https://h:1/x"), "h:1");
        for bad in ["h:1", "ftp://h", "", "http://"] {
            assert_eq!(host(bad), "", "{bad}");
        }
    }
}
