//! The node of `seks dev`. It joins like any node: once with a join token, then with its own
//! identity.

use seks_control_plane::ControlPlane;
use seks_data_plane::{Node, sync::Identity};
use seks_runtime::telemetry::Telemetry;

use super::{READY_TIMEOUT, config::DevConfig, data_dir::DataDir, start_error};
use crate::{
    error::{CliError, Exit, Result},
    files::write_private,
};

/// The node's name.
const NAME: &str = "dev";
/// Shortest remaining validity of a usable certificate, in seconds.
const MARGIN: i64 = 60;

/// Starts the node and waits for its first table.
///
/// # Errors
/// When it can't be started, or no table comes in time.
pub(super) async fn join(
    control: &ControlPlane,
    config: DevConfig,
    dir: &DataDir,
    telemetry: Telemetry,
) -> Result<Node> {
    let name = enrol(control, dir).await?;
    let node = Node::start(config.node(name, control.distribution_addr(), dir), telemetry).await;
    let _ = std::fs::remove_file(dir.join_token()); // used up, or good for nothing
    let node = node.map_err(|e| start_error(&e))?;
    if tokio::time::timeout(READY_TIMEOUT, node.ready()).await.is_err() {
        node.shutdown().await;
        return Err(CliError::new(Exit::Failed, "node", "no table from the control plane in time"));
    }
    Ok(node)
}

/// The node's name. Writes a join token first if the node needs one.
async fn enrol(control: &ControlPlane, dir: &DataDir) -> Result<String> {
    let known = Identity::load(&dir.node()).map_err(|e| CliError::usage("node", e))?;
    let name = match &known {
        Some(identity) if is_valid(identity) => return Ok(identity.node().into()),
        // A node renews its certificate while it runs; after a rest of more than a day it is
        // enrolled again, as the same node.
        Some(identity) => identity.node().to_owned(),
        None => NAME.into(),
    };
    if known.is_some() {
        forget_identity(&dir.node()).map_err(|e| CliError::file(&dir.node(), &e))?;
    }
    control.forget_node(&name).await.map_err(|e| CliError::new(Exit::Failed, "node", e))?;
    let token = control.join_token("local").await.map_err(|e| CliError::new(Exit::Failed, "join token", e))?;
    write_private(&dir.join_token(), token.text.as_bytes())?;
    Ok(name)
}

/// Removes the files of an identity. Directories stay: the spool has records that no control plane
/// has taken yet.
fn forget_identity(directory: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_valid(identity: &Identity) -> bool {
    identity.validity().is_some_and(|(_, until)| until - MARGIN > crate::duration::unix_now())
}
