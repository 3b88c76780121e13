//! Why a WebSocket ends.

use crate::{code::Code, table::CutReason};

/// Read at a time, in each direction.
pub(super) const BUFFER: usize = 16 * 1024;

/// Why a tunnel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// One end has said Close.
    Closed,
    /// Without a Close.
    AgentGone,
    /// Without a Close.
    UpstreamGone,
    /// It sent what isn't a frame.
    AgentBroken,
    /// It sent what isn't a frame.
    UpstreamBroken,
    /// The right to it has ended.
    Cut(CutReason),
    /// The token has expired.
    Expired,
    /// Neither end said anything for long.
    Idle,
    /// The node stops.
    Stopping,
}

impl End {
    /// The close code for the agent (IANA's list) and the reason in the record.
    pub(super) fn goodbye(self) -> Option<(u16, &'static str, Option<Code>)> {
        let broken = Code::UpstreamUnreachable;
        Some(match self {
            Self::Closed | Self::AgentGone => return None,
            Self::AgentBroken => (1002, "request_invalid", Some(Code::RequestInvalid)),
            Self::UpstreamGone | Self::UpstreamBroken => (1014, broken.as_str(), Some(broken)),
            Self::Cut(CutReason::LeaseExpired) => (1013, Code::NodeStale.as_str(), Some(Code::NodeStale)),
            Self::Cut(reason) => (1008, Code::from(reason).as_str(), Some(Code::from(reason))),
            Self::Expired => (1008, Code::TokenExpired.as_str(), Some(Code::TokenExpired)),
            Self::Idle => (1001, "idle", None),
            Self::Stopping => (1001, "the node is stopping", None),
        })
    }
}
