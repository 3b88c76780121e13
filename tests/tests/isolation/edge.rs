//! The edge of the data plane: private networks, malformed definitions, loose readings, one host a
//! tunnel, wrong tokens, and what an upstream sends back.

mod answers;
mod definitions;
mod hosts;
mod networks;
mod query;
mod wrong_tokens;
