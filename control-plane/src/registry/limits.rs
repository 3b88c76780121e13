//! How large things may be. A tenant's operator is not trusted with the memory of the others.

/// Attributes of an agent.
pub const ATTRIBUTES: usize = 64;
/// Bytes of an attribute's name.
pub const ATTRIBUTE_NAME_BYTES: usize = 63;
/// Bytes of an attribute's value.
pub const ATTRIBUTE_VALUE_BYTES: usize = 256;
/// Services that one token may be granted.
pub const GRANTS: usize = 64;
/// Trusts of a tenant: the keys of each are fetched every few minutes.
pub const TRUSTS: usize = 100;
/// Approvals of a tenant, those that ended in the last day included.
pub const APPROVALS: usize = 1_000;
/// Requests of a tenant that wait for approval at the same time.
pub const WAITING_APPROVALS: usize = 100;
/// The same of one agent.
pub const WAITING_APPROVALS_OF_AGENT: usize = 10;
/// Seconds for which a request waits for approval: 24 h.
pub const APPROVAL_WAITS_SECONDS: i64 = 24 * 60 * 60;
/// Seconds for which an approval or a denial holds: 1 s to 7 days.
pub const MIN_APPROVAL_SECONDS: u64 = 1;
/// See [`MIN_APPROVAL_SECONDS`].
pub const MAX_APPROVAL_SECONDS: u64 = 7 * 24 * 60 * 60;
/// Seconds for which an approval is shown after its end: 24 h.
pub const ENDED_APPROVAL_SECONDS: i64 = 24 * 60 * 60;
/// Bytes of a path that can be approved.
pub const APPROVAL_PATH_BYTES: usize = 1024;
/// Parameters of a query that can be approved.
pub const APPROVAL_QUERY_NAMES: usize = 32;
/// Bytes of the name of an MCP tool, prompt or resource that can be approved.
pub const APPROVAL_MCP_NAME_BYTES: usize = 256;
/// Bytes of an operator's reason.
pub const APPROVAL_REASON_BYTES: usize = 500;
/// Networks that one token may be bound to.
pub const CIDRS: usize = 64;
/// Default lifetime of a token in seconds: 24 h.
pub const TOKEN_TTL_SECONDS: u64 = 24 * 60 * 60;
/// Most seconds that a token may live: 366 days.
pub const MAX_TOKEN_TTL_SECONDS: u64 = 366 * 24 * 60 * 60;
/// Longest time for which a rotated token works beside the new one: 7 days.
pub const ROTATION_GRACE: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 60 * 60);
/// Seconds after which a token that has expired is forgotten: 7 days, in which a node says
/// `token_expired`.
pub const EXPIRED_TOKEN_SECONDS: i64 = 7 * 24 * 60 * 60;
/// Seconds for which a request id is remembered: 24 h.
pub const REQUEST_SECONDS: i64 = 24 * 60 * 60;
/// Bytes of a request id.
pub const REQUEST_ID_BYTES: usize = 64;
/// Versions of a credential that are kept to roll back to.
pub const CREDENTIAL_VERSIONS: usize = 10;
/// Bytes of an encoded service, its CA certificates included.
pub const SERVICE_BYTES: usize = 64 * 1024;
/// Bytes of all policies of a tenant, and of a file of them.
pub const POLICY_BYTES: usize = 1024 * 1024;
/// Bytes of one policy.
pub const ONE_POLICY_BYTES: usize = 32 * 1024;
/// Policies of one `apply`: all of them are one transaction.
pub const POLICIES_PER_APPLY: usize = 100;
/// Default lifetime of a join token in seconds: 10 min.
pub const JOIN_TTL_SECONDS: u64 = 10 * 60;
/// Most seconds that a join token may live: 24 h.
pub const MAX_JOIN_TTL_SECONDS: u64 = 24 * 60 * 60;
/// Seconds within which a node that has used its join token may ask for the same answer again: 10
/// min.
pub const ENROLMENT_RETRY_SECONDS: i64 = 10 * 60;
/// Tenants that a node may be limited to.
pub const NODE_TENANTS: usize = 256;
/// Pools that a node belongs to, or that a credential is assigned to.
pub const POOLS: usize = 64;
/// Roles of an operator.
pub const ROLES: usize = 64;

/// Quota of tenants.
pub const TENANTS: usize = 10_000;
/// Quota of operators.
pub const OPERATORS: usize = 10_000;
/// Quota of tokens in a tenant, expired ones included until they are forgotten.
pub const TOKENS: usize = 100_000;
/// Quota of operators with a role in a tenant.
pub const TENANT_OPERATORS: usize = 1_000;
/// Writes a second of a tenant in the long run, at each replica, and at once after a rest.
/// Revocations and deletes don't count.
pub const WRITES_PER_SECOND: u32 = 100;
/// See [`WRITES_PER_SECOND`].
pub const WRITE_BURST: u32 = 1_000;
/// Quota of agents in a tenant.
pub const AGENTS: usize = 10_000;
/// Quota of services in a tenant.
pub const SERVICES: usize = 1_000;
/// Quota of credentials in a tenant.
pub const CREDENTIALS: usize = 10_000;
/// Quota of policies in a tenant.
pub const POLICIES: usize = 1_000;
