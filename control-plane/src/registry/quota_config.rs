//! `[quota]`: how much a tenant may have and do, where its record says nothing else.

use serde::Deserialize;

use super::limits;

/// `[quota]`: for each tenant, where `seks tenant quota` has set nothing else for it. 0 is none at
/// all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaConfig {
    /// Tokens, expired ones included until they are forgotten after a week. Default: 100,000.
    pub tokens: u64,
    /// Agents. Default: 10,000.
    pub agents: u64,
    /// Services. Default: 1,000.
    pub services: u64,
    /// Credentials. Default: 10,000.
    pub credentials: u64,
    /// Policies; all of them together are 1 MiB at most. Default: 1,000.
    pub policies: u64,
    /// Operators with a role in it. Default: 1,000.
    pub operators: u64,
    /// Writes a second in the long run, at each replica; revocations and deletes don't count.
    /// Default: 100.
    pub writes_per_second: u32,
    /// Writes at once, after a rest. Default: 1,000.
    pub write_burst: u32,
}

impl Default for QuotaConfig {
    fn default() -> Self {
        Self {
            tokens: limits::TOKENS as u64,
            agents: limits::AGENTS as u64,
            services: limits::SERVICES as u64,
            credentials: limits::CREDENTIALS as u64,
            policies: limits::POLICIES as u64,
            operators: limits::TENANT_OPERATORS as u64,
            writes_per_second: limits::WRITES_PER_SECOND,
            write_burst: limits::WRITE_BURST,
        }
    }
}
