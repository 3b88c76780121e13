//! Whoever can write to the store can neither redirect a credential nor bring a revoked token back.

mod binding;
mod table;
mod whole;
