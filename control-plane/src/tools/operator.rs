//! Makes the first operator, and the context with which `seks` is that operator.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use seks_control_plane::{Components, Config, OperatorIdentity, registry::fresh_enrolment};
use seks_runtime::{Exit, private_file::give_to_owner_of};
use seks_types::id::OperatorName;
use toml::{Table, Value};
use zeroize::Zeroizing;

use crate::Failure;

const CA: &str = "ca.pem";
const CERTIFICATE: &str = "operator.pem";
const KEY: &str = "operator.key";
const CONTEXT: &str = "context.toml";
/// The context's name in the file.
const CONTEXT_NAME: &str = "seks";

/// What `bootstrap-operator` was asked for.
pub(crate) struct NewOperator<'a> {
    /// The operator's name.
    pub(crate) name: &'a str,
    /// Where its files are written.
    pub(crate) out: &'a Path,
    /// How it reaches the control planes; empty: as the configuration says.
    pub(crate) endpoints: Vec<String>,
}

/// `--out -`: the context alone, with the PEM texts in it, to standard output.
const STDOUT: &str = "-";

/// Makes the first operator and writes `ca.pem`, `operator.pem`, `operator.key` and `context.toml`
/// (mode 0600). The files are written before the operator is: one whose key is lost can't be made a
/// second time.
pub(crate) async fn bootstrap_operator(config: &Config, new: NewOperator<'_>) -> Result<(), Failure> {
    let name = OperatorName::try_from(new.name).map_err(|e| Failure::usage(&format!("--name: {e}")))?;
    let to_stdout = new.out == Path::new(STDOUT);
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::usage(&"--out: `-` prints a key: redirect it to a file that nobody else can read"));
    }
    let context = context(config, new.endpoints)?;
    let failed = |e: io::Error| Failure::usage(&format!("--out: `{}`: {e}", new.out.display()));
    if let Some(there) = [CA, CERTIFICATE, KEY, CONTEXT].iter().find(|file| new.out.join(file).exists()) {
        let why = format!("--out: `{}` is there already and is not replaced", new.out.join(there).display());
        return Err(Failure::usage(&why));
    }
    let foundation = Components::open(config).await?;
    let enrolment = fresh_enrolment().map_err(|e| Failure::new(Exit::Failed, &e))?;
    let operator = foundation.operator_identity(&name, &enrolment).map_err(|e| Failure::new(Exit::Failed, &e))?;
    let ca = foundation.authority.ca_pem();
    let files = Files { operator: &operator, ca: &ca, context: &context };
    let written = match to_stdout {
        true => io::stdout().write_all(files.inline()?.as_bytes()),
        false => files.write(new.out),
    };
    let made = match written {
        Ok(()) => {
            let made = foundation.registry.create_first_operator(&name, &enrolment).await;
            made.map_err(|e| Failure::new(Exit::Failed, &e))
        }
        Err(error) => Err(failed(error)),
    };
    let refusal = match made {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => {
            let why = "there is an operator already: an owner makes others with `seks operator create`";
            Failure::new(Exit::Conflict, &why)
        }
        Err(failure) => failure,
    };
    for file in [CA, CERTIFICATE, KEY, CONTEXT].into_iter().filter(|_| !to_stdout) {
        if let Err(error) = fs::remove_file(new.out.join(file))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file, "cannot remove what was written");
        }
    }
    let _ = fs::remove_dir(new.out); // only if nothing else is in it
    Err(refusal)
}

/// The text of the files.
struct Files<'a> {
    operator: &'a OperatorIdentity,
    ca: &'a str,
    context: &'a str,
}

impl Files<'_> {
    /// The context with the PEM texts in place of the names of files.
    fn inline(&self) -> Result<Zeroizing<String>, Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure::new(Exit::Failed, e);
        let mut text = Zeroizing::new(self.context.to_owned());
        for (file, pem) in
            [(CA, self.ca), (CERTIFICATE, &self.operator.cert_pem), (KEY, self.operator.key_pem.as_str())]
        {
            let quoted = |text: &str| toml::Value::from(text).to_string();
            if !text.contains(&quoted(file)) {
                return Err(failed(&format!("`{file}` is not in the context")));
            }
            *text = text.replace(&quoted(file), &Zeroizing::new(format!("{pem:?}")));
        }
        Ok(text)
    }

    fn write(&self, out: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(out)?;
        for (name, text) in [
            (CA, self.ca),
            (CERTIFICATE, self.operator.cert_pem.as_str()),
            (KEY, self.operator.key_pem.as_str()),
            (CONTEXT, self.context),
        ] {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out.join(name))?;
            give_to_owner_of(out, &file)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
        }
        Ok(())
    }
}

/// `context.toml`, with the names of the files beside it.
fn context(config: &Config, mut endpoints: Vec<String>) -> Result<String, Failure> {
    if let Some(bad) = endpoints.iter().find(|url| !url.starts_with("https://")) {
        return Err(Failure::usage(&format!("--endpoint: `{bad}` is not of the form https://HOST:PORT")));
    }
    if endpoints.is_empty() {
        endpoints.push(default_endpoint(config));
    }
    let mut context = Table::new();
    let first = endpoints.remove(0);
    context.insert("endpoint".into(), first.into());
    if !endpoints.is_empty() {
        context.insert("endpoints".into(), endpoints.into_iter().map(Value::from).collect::<Vec<_>>().into());
    }
    if !config.admin.proxy_url.is_empty() {
        context.insert("proxy".into(), config.admin.proxy_url.clone().into());
    }
    for (key, file) in [("ca", CA), ("certificate", CERTIFICATE), ("key", KEY)] {
        context.insert(key.into(), file.into());
    }
    let contexts = Table::from_iter([(CONTEXT_NAME.to_owned(), Value::Table(context))]);
    let file = Table::from_iter([
        ("current".to_owned(), Value::from(CONTEXT_NAME)),
        ("contexts".to_owned(), Value::Table(contexts)),
    ]);
    toml::to_string(&file).map_err(|e| Failure::new(Exit::Failed, &e))
}

/// A name of the certificate at the admin listener's port.
fn default_endpoint(config: &Config) -> String {
    let listen = config.admin.listen;
    let host = match config.admin.names.first() {
        Some(name) => name.clone(),
        None if listen.ip().is_unspecified() => "localhost".into(),
        None if listen.is_ipv6() => format!("[{}]", listen.ip()),
        None => listen.ip().to_string(),
    };
    format!("https://{host}:{}", listen.port())
}
