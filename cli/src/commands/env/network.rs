//! Variables for the connection to the node: proxies that must not be used, and roots that must be
//! trusted.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::PathBuf,
};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::Variables;
use crate::{
    error::{CliError, Result},
    files::{read_text, write_public},
    user::cache_dir,
};

/// Variables that make HTTP clients use a proxy.
const PROXY_VARIABLES: [&str; 6] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
/// Variables with the hosts that need no proxy. Clients differ in the case that they read.
const NO_PROXY_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Variables with the roots of clients: OpenSSL, Go and httpx, Python's requests, curl, Node (in
/// addition to its own), AWS, git, pip (before its own configuration).
const ROOT_VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
];
/// Where npm reads its roots before its own configuration, which may name a company's: in place of
/// all others. Like its proxy for HTTPS_PROXY mode, where everything is reached through the node.
const NPM_ROOT_VARIABLE: &str = "npm_config_cafile";
const NPM_PROXY_VARIABLE: &str = "npm_config_https_proxy";
/// Root files of systems: Debian and Alpine, Fedora, macOS and BSD, SUSE.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// Variables for HTTPS_PROXY mode at `proxy`, with the token as its password.
pub(super) fn https_proxy_variables(proxy: &str, token: &str) -> Variables {
    let url = proxy.replacen("://", &format!("://agent:{token}@"), 1);
    ["HTTPS_PROXY", "https_proxy", NPM_PROXY_VARIABLE].iter().map(|name| ((*name).to_owned(), url.clone())).collect()
}

/// Excludes the node at `authority` (`HOST[:PORT]`) from the environment's proxy, which would
/// otherwise receive the token.
pub(super) fn no_proxy_variables(authority: &str, environment: impl Fn(&str) -> Option<String>) -> Variables {
    let set = |name: &&str| environment(name).is_some_and(|value| !value.is_empty());
    if !PROXY_VARIABLES.iter().any(&set) {
        return Variables::new();
    }
    let known = NO_PROXY_VARIABLES.iter().find(|name| set(name)).and_then(|name| environment(name)).unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_matches(['[', ']']);
    let listed = known.split(',').any(|entry| entry.trim() == host);
    let hosts = match known.as_str() {
        "" => host.to_owned(),
        known if listed => known.to_owned(),
        known => format!("{known},{host}"),
    };
    NO_PROXY_VARIABLES.iter().map(|name| ((*name).to_owned(), hosts.clone())).collect()
}

/// Variables that name one file with the system's roots and these, because most clients replace
/// their roots by that file. `npm` includes npm's variables.
///
/// # Errors
/// When these are no certificates, or the file can't be written.
pub(super) fn root_variables(pem: &str, npm: bool) -> Result<Variables> {
    let mut certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).peekable();
    if certificates.peek().is_none() || certificates.any(|c| c.is_err()) {
        return Err(CliError::usage("--proxy-ca", "holds no certificates in PEM"));
    }
    let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let machine = own.into_iter().chain(SYSTEM_ROOTS.iter().map(PathBuf::from)).find(|path| path.is_file());
    let roots = machine.as_deref().map(read_text).transpose()?.unwrap_or_default();
    let file = write_once(&format!("{}\n{pem}", roots.trim_end()))?;
    let names = ROOT_VARIABLES.into_iter().chain(npm.then_some(NPM_ROOT_VARIABLE));
    Ok(names.map(|name| (name.to_owned(), file.display().to_string())).collect())
}

/// Writes the text to a file of the user's cache that is named by its hash. The write is atomic.
fn write_once(text: &str) -> Result<PathBuf> {
    let folder = cache_dir().unwrap_or_else(|| std::env::temp_dir().join("seks"));
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let file = folder.join(format!("roots-{:016x}.pem", hasher.finish()));
    if fs::read(&file).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(file);
    }
    fs::create_dir_all(&folder).map_err(|e| CliError::file(&folder, &e))?;
    write_public(&file, text.as_bytes())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_proxy(authority: &str, environment: &[(&str, &str)]) -> Option<String> {
        let get = |name: &str| Some((*environment.iter().find(|(n, _)| *n == name)?.1).to_owned());
        let variables = no_proxy_variables(authority, get);
        assert_eq!(variables.get("NO_PROXY"), variables.get("no_proxy"));
        variables.get("NO_PROXY").cloned()
    }

    #[test]
    fn a_proxy_of_the_environment_never_gets_the_token() {
        let proxy = ("HTTPS_PROXY", "http://proxy.corp:3128");
        assert_eq!(no_proxy("127.0.0.1:8300", &[]), None);
        assert_eq!(no_proxy("127.0.0.1:8300", &[("https_proxy", "")]), None);
        assert_eq!(no_proxy("127.0.0.1:8300", &[proxy]).unwrap(), "127.0.0.1");
        assert_eq!(no_proxy("broker.example", &[("all_proxy", "socks5://x")]).unwrap(), "broker.example");
        assert_eq!(no_proxy("[::1]:8300", &[proxy, ("no_proxy", "corp, 10.0.0.1")]).unwrap(), "corp, 10.0.0.1,::1");
        assert_eq!(no_proxy("h:1", &[proxy, ("NO_PROXY", "a, h")]).unwrap(), "a, h", "once is enough");
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            assert!(root_variables(bad, false).is_err(), "{bad}");
        }
    }
}
