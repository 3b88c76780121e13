//! The stages of a request, one file each, and what they share. [`proxy`](crate::proxy) lists the
//! stages in order.
//!
//! | stage | returns | establishes |
//! |---|---|---|
//! | [`admit`] | `Admitted` | method, Host, path and framing are acceptable |
//! | [`lookup`] | `Identified` | exactly one valid token, and the service |
//! | [`authorize`] | `Permitted` | the token grants the service, and policy permits the request |
//! | [`connect`] | `Connected` | a connection to a checked address |
//! | [`inject`] | `Injected` | lease, token and decision still hold; the credential is written |
//! | [`forward`] | `Answered` | the request is sent, the response's head is read |
//! | [`relay`] | the response | the response is scrubbed, and ends with the right to it |
//!
//! Each of these types has a private field, so only its file can make one.

pub(crate) mod admit;
pub(crate) mod approval;
pub(crate) mod audit;
pub(crate) mod authorize;
pub(crate) mod body_buffers;
pub(crate) mod caller;
pub(crate) mod connect;
pub(crate) mod discovery;
pub(crate) mod exchange;
mod form;
pub(crate) mod forward;
mod header_filter;
mod identity;
pub(crate) mod in_flight;
pub(crate) mod inject;
pub(crate) mod inspected_body;
pub(crate) mod limits;
pub(crate) mod lookup;
mod meaning;
pub(crate) mod model_call;
mod needed_approval;
pub(crate) mod origin;
mod policy_pool;
pub(crate) mod prepared;
mod range;
pub(crate) mod received_body;
pub(crate) mod refusal;
pub(crate) mod relay;
pub(crate) mod response_body;
mod rewrite;
pub(crate) mod route;
pub(crate) mod scrub;
mod second_target;
pub(crate) mod shared_limits;
mod signed_url;
mod sigv4;
pub(crate) mod token;
pub(crate) mod upstream_target;
pub(crate) mod usage;
mod vendor_key_hint;
pub(crate) mod websocket;
pub(crate) mod wrong_tokens;
