//! HTTPS_PROXY mode with one service behind it: a stand-in that hears what came, the tenant's CA,
//! and a token.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use seks_tests::{
    Sandbox, Upstream, oracle,
    process::{Finished, binary, run},
    sandbox::{Cli, Options, Token},
};

/// The real one.
pub(super) const KEY: &str = "ghp_RealForwardedKey00000000000000001";

pub(super) struct InterceptingSandbox {
    pub(super) sandbox: Sandbox,
    pub(super) upstream: Upstream,
    pub(super) token: Token,
    /// What the upstream may hear, and has to, in each request's `Authorization`.
    credential: String,
    ca: PathBuf,
    files: tempfile::TempDir,
}

impl InterceptingSandbox {
    /// A service `code` that takes `Authorization: Bearer KEY`. `forward`: more of
    /// `[forward_proxy]`.
    pub(super) fn bearer(forward: &str, upstream: Upstream) -> Self {
        Self::bearer_in(Options { config: forward.into(), ..Options::default() }, upstream)
    }

    /// The same with all options.
    pub(super) fn bearer_in(options: Options, upstream: Upstream) -> Self {
        Self::in_sandbox(options, upstream, format!("Bearer {KEY}"), |cli, upstream| {
            apply(cli, upstream, "inject = 'bearer'\nslots = ['bearer', 'basic']\n");
        })
    }

    /// A service `code` as `make` makes it, whose upstream is to hear `credential`.
    pub(super) fn with(
        forward: &str,
        upstream: Upstream,
        credential: String,
        make: impl FnOnce(&Cli, &Upstream),
    ) -> Self {
        Self::in_sandbox(Options { config: forward.into(), ..Options::default() }, upstream, credential, make)
    }

    /// The same with all options; their `config` is more of `[forward_proxy]`.
    pub(super) fn in_sandbox(
        options: Options,
        upstream: Upstream,
        credential: String,
        make: impl FnOnce(&Cli, &Upstream),
    ) -> Self {
        let config = format!("[forward_proxy]\nlisten = \"127.0.0.1:0\"\n{}", options.config);
        let sandbox = Sandbox::with(Options { config, ..options });
        let cli = sandbox.cli();
        make(cli, &upstream);
        cli.put_credential("code", "code", KEY);
        let made = cli.run(&["ca", "create"], "");
        assert_eq!(made.code, Some(0), "{}", made.stderr);
        let shown = cli.run(&["ca", "show"], "");
        assert!(shown.stdout.starts_with("-----BEGIN CERTIFICATE-----"), "{} {}", shown.stdout, shown.stderr);
        let files = tempfile::tempdir().unwrap();
        let ca = files.path().join("seks-ca.pem");
        fs::write(&ca, &shown.stdout).unwrap();
        let token = sandbox.token("agent", &["code", "seks-interception"]);
        Self { sandbox, upstream, token, credential, ca, files }
    }

    /// The service's own.
    pub(super) fn origin(&self) -> String {
        self.upstream.origin()
    }

    /// `HOST:PORT` of it.
    pub(super) fn authority(&self) -> String {
        self.origin().replace("https://", "")
    }

    /// The node as a proxy, without a token.
    pub(super) fn node(&self) -> String {
        format!("http://{}", self.sandbox.forward_proxy().unwrap())
    }

    /// As it stands in `HTTPS_PROXY`.
    pub(super) fn proxy(&self) -> String {
        self.node().replace("http://", &format!("http://agent:{}@", self.token.secret))
    }

    /// The tenant's CA.
    pub(super) fn ca(&self) -> &str {
        self.ca.to_str().unwrap()
    }

    /// A folder for this test alone.
    pub(super) fn folder(&self) -> &Path {
        self.files.path()
    }

    /// `seks run -- CMD` in that folder and with it as the home, by a user whose other settings are
    /// nothing special.
    pub(super) fn seks_run(&self, command: &[&str]) -> Finished {
        let mut seks = Command::new(binary("seks"));
        seks.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.folder());
        seks.current_dir(self.folder()).arg("--context-file").arg(self.sandbox.data_dir().join("context.toml"));
        run(seks.args(["run", "--agent", "agent", "--"]).args(command), b"")
    }

    /// The client got what it asked for, the upstream heard the key alone, and the client nothing
    /// of it.
    pub(super) fn check(&self, finished: &Finished, says: &str, path: &str) {
        let said = format!("{}{}", finished.stdout, finished.stderr);
        let asked = self.upstream.requests();
        assert!(finished.code == Some(0) && finished.stdout.contains(says), "{said} {asked:?}");
        assert!(asked.iter().any(|r| r.path() == path), "{asked:?}");
        self.check_secrets(&said);
    }

    /// The second half of it.
    pub(super) fn check_secrets(&self, said: &str) {
        assert_eq!(oracle::find(said.as_bytes(), KEY), None, "the client has seen the key: {said}");
        assert!(!oracle::contains(&self.upstream.received(), b"seks_token_"), "a token reached the upstream");
        for request in self.upstream.requests() {
            assert_eq!(request.headers("authorization"), [self.credential.as_str()], "{request:?}");
        }
    }
}

/// Defines `code` at an upstream. `how`: its `inject` and `slots`.
pub(super) fn apply(cli: &Cli, upstream: &Upstream, how: &str) {
    cli.apply_service(&format!(
        "name = 'code'\nupstream = '{}'\nallow_private = true\n{how}upstream_ca_pem = '''\n{}'''\n",
        upstream.origin(),
        upstream.ca_pem().unwrap()
    ));
}

/// A program that finds no proxy in the environment.
pub(super) fn client(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    for name in
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"]
    {
        command.env_remove(name);
    }
    command
}
