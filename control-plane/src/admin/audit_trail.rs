//! Searches in the audit trail, and its verification.

use prost::Message as _;
use seks_audit::{
    record::{Decision, field},
    trail::{Entry, Finding, Page, Position, Problem as Found, Query, Test, Verification, VerifiedPart},
};
use seks_network::address::canonical_network;
use seks_proto::wire::{
    AuditChainPart, AuditEntry, AuditFinding, AuditRecord, Role, SearchAuditRequest, SearchAuditResponse,
    VerifyAuditRequest, VerifyAuditResponse,
};
use seks_types::id::TenantName;

use super::{Admin, Answer, auth::Caller, parse::name, problem::Problem};
use crate::trail::{SearchError, Trail};

/// Records on a page: the default, and the maximum.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Microseconds of a second.
const MICROS: u64 = 1_000_000;

/// One tenant's records.
///
/// A deleted tenant's name can be used again. Its earlier records are shown only to those who may
/// see every tenant.
pub(super) async fn search(
    admin: &Admin,
    caller: &Caller,
    mut message: SearchAuditRequest,
) -> Answer<SearchAuditResponse> {
    let scope = of_tenant(&message.tenant)?;
    message.since_us = message.since_us.max(visible_since(admin, caller, &message.tenant).await?);
    find(admin, message, Some(scope)).await
}

/// From when on a caller sees a tenant's records, in Unix microseconds: since the tenant was
/// created, or always.
///
/// # Errors
/// Not found.
pub(super) async fn visible_since(admin: &Admin, caller: &Caller, tenant: &str) -> Answer<u64> {
    let tenant: TenantName = name("tenant", tenant)?;
    let created_at = u64::try_from(admin.registry().tenant(&tenant).await?.created_at).unwrap_or(0);
    Ok(if caller.fleet_role() < Role::Viewer { created_at.saturating_mul(MICROS) } else { 0 })
}

/// Only records of this tenant.
pub(super) fn of_tenant(tenant: &str) -> Answer<Test> {
    let tenant: TenantName = name("tenant", tenant)?;
    Ok(Test::Text(field::TENANT, tenant.to_string()))
}

/// Everybody's records, and those of requests whose tenant is not known.
pub(super) async fn search_fleet(
    admin: &Admin,
    _: &Caller,
    message: SearchAuditRequest,
) -> Answer<SearchAuditResponse> {
    find(admin, message, None).await
}

/// One page of what is looked for. `scope` is a condition beside those of the message.
pub(super) async fn find(
    admin: &Admin,
    message: SearchAuditRequest,
    scope: Option<Test>,
) -> Answer<SearchAuditResponse> {
    let trail = trail(admin)?;
    let mut query = query(&message)?;
    query.tests.extend(scope);
    let end = position_token(trail.blocks().end());
    let Page { entries, next, unreadable } = trail.search(query).await.map_err(unavailable)?;
    let entries = entries.into_iter().map(to_wire).collect::<Result<_, _>>()?;
    Ok(SearchAuditResponse {
        entries,
        next_page_token: next.map(position_token).unwrap_or_default(),
        end_token: end,
        replica: admin.0.replica.clone(),
        other_replicas: others(admin),
        unreadable_blocks: unreadable,
        trail: trail.id().into(),
    })
}

/// Names of the replicas whose nodes hand their records in there.
pub(super) fn others(admin: &Admin) -> Vec<String> {
    let mut names: Vec<String> = admin.0.distribution.replicas().into_iter().map(|replica| replica.name).collect();
    names.retain(|name| *name != admin.0.replica);
    names.sort();
    names.dedup();
    names
}

fn query(message: &SearchAuditRequest) -> Result<Query, Problem> {
    let mut tests = Vec::new();
    for (number, text) in [
        (field::AGENT, &message.agent),
        (field::SERVICE, &message.service),
        (field::TOKEN_ID, &message.token),
        (field::CREDENTIAL, &message.credential),
        (field::REASON, &message.reason),
        (field::POLICIES, &message.policy),
        (field::METHOD, &message.method),
    ] {
        if !text.is_empty() {
            tests.push(Test::Text(number, text.clone()));
        }
    }
    match message.decision.as_str() {
        "" => {}
        "allow" => tests.push(Test::Number(field::DECISION, Decision::Allow as u64)),
        "deny" => tests.push(Test::Number(field::DECISION, Decision::Deny as u64)),
        _ => return Err(Problem::invalid("decision", "`allow` or `deny`")),
    }
    if !message.source.is_empty() {
        let network =
            message.source.parse().or_else(|_| message.source.parse().map(|address: std::net::IpAddr| address.into()));
        let network = network.map_err(|_| Problem::invalid("source", "an address or a network, such as 10.0.0.0/8"))?;
        tests.push(Test::Source(canonical_network(network)));
    }
    let after = match message.page_token.as_str() {
        "" => None,
        token => Some(position(token).ok_or_else(|| Problem::invalid("page_token", "not of an earlier page"))?),
    };
    let limit = if message.page_size == 0 { PAGE } else { (message.page_size as usize).min(MAX_PAGE) };
    let until_us = if message.until_us == 0 { u64::MAX } else { message.until_us };
    let node = Some(message.node.clone()).filter(|node| !node.is_empty());
    let (since_us, newest_first) = (message.since_us, !message.oldest_first);
    Ok(Query { tests, since_us, until_us, node, newest_first, after, limit, ..Query::default() })
}

pub(super) fn to_wire(entry: Entry) -> Result<AuditEntry, Problem> {
    let record = AuditRecord::decode(entry.record.as_slice());
    Ok(AuditEntry {
        record: Some(record.map_err(|_| Problem::internal("a record of the trail is not readable"))?),
        node: entry.node,
        chain: entry.chain.to_string(),
        sequence: entry.sequence,
        token: position_token(entry.position),
    })
}

fn position_token(position: Position) -> String {
    format!("{}.{}", position.block, position.row)
}

fn position(token: &str) -> Option<Position> {
    let (block, row) = token.split_once('.')?;
    Some(Position { block: block.parse().ok()?, row: row.parse().ok()? })
}

/// Recomputes the chains of everything that this replica holds.
pub(super) async fn verify(admin: &Admin, _: &Caller, message: VerifyAuditRequest) -> Answer<VerifyAuditResponse> {
    let verified = match admin.0.distribution.trail() {
        Some(trail) => trail.verify().await.map_err(unavailable)?,
        None => Verification::default(),
    };
    let parts = if message.with_parts { verified.parts.iter().map(part).collect() } else { Vec::new() };
    let mut findings: Vec<AuditFinding> = verified.findings.into_iter().map(finding).collect();
    let admin_changes = super::admin_changes::verify_chains(admin, &mut findings).await?;
    Ok(VerifyAuditResponse {
        findings,
        admin_changes,
        no_trail: admin.0.distribution.trail().is_none(),
        records: verified.records,
        chains: verified.chains,
        blocks: verified.blocks,
        open_intents: verified.open_intents,
        replica: admin.0.replica.clone(),
        other_replicas: others(admin),
        parts,
        trail: admin.0.distribution.trail().map(|trail| trail.id().to_owned()).unwrap_or_default(),
    })
}

fn part(part: &VerifiedPart) -> AuditChainPart {
    AuditChainPart {
        node: part.node.clone(),
        chain: part.head.chain.0.to_vec(),
        after: part.after.map(|after| after.0.to_vec()).unwrap_or_default(),
        first: part.first,
        last: part.head.sequence,
        before: part.before.0.to_vec(),
        digest: part.head.digest.0.to_vec(),
    }
}

fn finding(finding: Finding) -> AuditFinding {
    let chain = finding.chain.map(|chain| chain.to_string()).unwrap_or_default();
    let found = AuditFinding { node: finding.node, chain, ..AuditFinding::default() };
    match finding.problem {
        Found::Gap { from, to } => AuditFinding { kind: "gap".into(), from, to, ..found },
        Found::Changed { from, to } => AuditFinding { kind: "changed".into(), from, to, ..found },
        Found::CutTail { from, to } => AuditFinding { kind: "cut_tail".into(), from, to, ..found },
        Found::Silent { from, to, since_us } => AuditFinding { kind: "silent".into(), from, to, since_us, ..found },
        Found::Cloned { other } => AuditFinding { kind: "cloned".into(), detail: other.to_string(), ..found },
        Found::ClockSetBack { sequence, by_us } => {
            let detail = format!("{:.1} s", by_us as f64 / 1e6);
            AuditFinding { kind: "clock_set_back".into(), from: sequence, to: sequence, detail, ..found }
        }
        Found::BlockMissing { block } => AuditFinding { kind: "block_missing".into(), block, ..found },
        Found::BlockDamaged { block, why } => {
            AuditFinding { kind: "block_damaged".into(), block, detail: why, ..found }
        }
    }
}

pub(super) fn trail(admin: &Admin) -> Result<&Trail, Problem> {
    admin.0.distribution.trail().ok_or_else(|| {
        Problem::precondition("NO_TRAIL", "this replica keeps no audit trail")
            .hint("set audit.dir in control-plane.toml")
    })
}

pub(super) fn unavailable(error: SearchError) -> Problem {
    tracing::error!(%error, "the audit trail cannot be read");
    Problem::unavailable("TRAIL", "the audit trail cannot be read")
}
