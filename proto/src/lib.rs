//! The wire contract: the gRPC messages, clients and servers that the `.proto` files define
//! ([`wire`]).

pub mod wire;
