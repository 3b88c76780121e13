//! Rewrites URLs of the upstream in its answers to URLs of the node.
//!
//! An upstream names itself: in `Location`, in `Link`, in the URL of an upload. A client that
//! follows such a URL would leave the node, with the fake token in its headers. [`Urls`] knows how the upstream's origin is
//! written and what the agent has to use instead; `headers` rewrites header fields. URLs of other
//! hosts stay as they are.

mod headers;
mod urls;

pub(crate) use self::{
    headers::{may_hold_urls, rewrite_headers},
    urls::Urls,
};
