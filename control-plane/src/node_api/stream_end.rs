//! The reasons why a node's stream ends, and the message that the node gets.

use tonic::Status;

use crate::store::Revision;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamEnd {
    /// The node closed it, or is gone.
    #[error("the node is gone")]
    Gone,
    /// A newer stream speaks for the node.
    #[error("another stream speaks for this node")]
    Fenced,
    /// It has no record any more, or its certificate is of another enrolment.
    #[error("this node is not of the fleet: it was revoked, or enrolled anew")]
    Revoked,
    /// Its certificate has ended.
    #[error("the node's certificate has expired")]
    Expired,
    /// It read too slowly for what is kept.
    #[error("the node has fallen behind; it has to begin again")]
    Behind,
    /// It has read nothing, or said nothing, for too long.
    #[error("the node is stuck")]
    Stuck,
    /// It acknowledged what it can't have.
    #[error("acknowledged revision {acked}, but only {sent} was sent")]
    FalseAck { acked: Revision, sent: Revision },
    /// It took no snapshot.
    #[error("the node rejects what it is sent: {0}")]
    Rejected(String),
    /// What it said is not of the protocol.
    #[error("{0}")]
    Protocol(&'static str),
    /// Its table is of another epoch of the store, or from the future of this one: an old backup
    /// was restored here, or there.
    #[error(
        "the node has epoch `{node_epoch}` at {node_revision}, this store is `{epoch}` at {revision}: a person must decide"
    )]
    Diverged { node_epoch: String, node_revision: Revision, epoch: String, revision: Revision },
    /// The store doesn't answer.
    #[error("this replica can't reach its store")]
    Store,
    /// What it should get is larger than any message may be.
    #[error("a message would be too long")]
    TooLong,
    /// The replica stops.
    #[error("this replica stops")]
    Stopped,
}

impl From<&StreamEnd> for Status {
    fn from(end: &StreamEnd) -> Self {
        let message = end.to_string();
        match end {
            StreamEnd::Gone | StreamEnd::Stuck | StreamEnd::Store => Status::unavailable(message),
            StreamEnd::Fenced | StreamEnd::Behind => Status::aborted(message),
            StreamEnd::FalseAck { .. } | StreamEnd::Revoked => Status::permission_denied(message),
            StreamEnd::Expired => Status::unauthenticated(message),
            StreamEnd::Rejected(_) | StreamEnd::Diverged { .. } => Status::failed_precondition(message),
            StreamEnd::Protocol(_) => Status::invalid_argument(message),
            StreamEnd::TooLong => Status::out_of_range(message),
            StreamEnd::Stopped => Status::ok(""),
        }
    }
}
