//! The first operator, and the context with which `seks` finds this control plane.

use seks_control_plane::ControlPlane;
use seks_types::id::OperatorName;

use super::Ready;
use crate::{
    context::{Context, ContextFile},
    error::{CliError, Exit, Result},
};

/// The name of the operator and of its context.
const NAME: &str = "dev";

/// The operator's name.
///
/// # Errors
/// Never: the name is a valid one.
pub(super) fn name() -> Result<OperatorName> {
    OperatorName::try_from(NAME).map_err(|e| CliError::new(Exit::Failed, "first operator", e))
}

/// Writes the context with the current addresses. Only this file holds the operator's key. When the
/// file is lost, or its certificate is about to expire, the operator gets a new key.
///
/// # Errors
/// When the file cannot be written, or an existing file cannot be read.
pub(super) async fn write_context(control: &ControlPlane, ready: &Ready) -> Result<()> {
    let path = &ready.context_file;
    let mut file = if path.exists() { ContextFile::read(path)? } else { ContextFile::default() };
    let known = file.contexts.remove(NAME);
    let context = match known {
        Some(known) if known.ca == control.ca_pem() && crate::client::is_fresh(&known.certificate) => {
            let (endpoint, proxy) = (ready.admin.clone(), Some(ready.proxy.clone()));
            Context { endpoint, endpoints: Vec::new(), proxy, forward_proxy: ready.forward_proxy.clone(), ..known }
        }
        _ => identity(control, ready).await?,
    };
    file.contexts.insert(NAME.into(), context);
    if file.current.is_empty() {
        file.current = NAME.into();
    }
    file.write(path)
}

async fn identity(control: &ControlPlane, ready: &Ready) -> Result<Context> {
    let failed = |e: &dyn std::fmt::Display| CliError::new(Exit::Failed, "first operator", e);
    let name = name()?;
    let first = control.bootstrap_operator(&name).await.map_err(|e| failed(&e))?;
    let identity = match first {
        Some(identity) => identity,
        None => control.renew_operator(&name).await.map_err(|e| failed(&e))?,
    };
    Ok(Context {
        endpoint: ready.admin.clone(),
        endpoints: Vec::new(),
        proxy: Some(ready.proxy.clone()),
        forward_proxy: ready.forward_proxy.clone(),
        tenant: None,
        ca: control.ca_pem(),
        certificate: identity.cert_pem.clone(),
        key: identity.key_pem.to_string(),
    })
}
