//! The chain of admin changes: listed, verified, and refused calls added to it.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use prost::Message as _;
use seks_audit::{
    admin::{Fault, Link, digest, oldest_kept, verify},
    chain::Digest,
};
use seks_proto::wire::{AdminChange, AdminChangeEntry, AdminChangesRequest, AdminChangesResponse, AuditFinding};
use seks_types::id::TenantName;
use tokio::sync::mpsc;
use tonic::Code;

use super::{
    Admin, Answer,
    audit::Call,
    auth::{Caller, Scope},
    parse::name,
    problem::Problem,
};
use crate::{
    rate::{Rate, RateLimits},
    registry::{Actor, AdminHead},
    store::{Revision, key::AdminChainName},
};

/// Archived changes that may wait for who reads them.
const ARCHIVED: usize = 64;
/// Changes on a page: the default, and the maximum.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Clocks of replicas may differ by this much. A chain is in the order of its transactions, not of
/// its times.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
/// Refused calls of one operator that are recorded. Each is a revision of the store.
const REFUSALS: Rate = Rate { per_second: 0.1, burst: 10.0 };

/// How many refusals of an operator are recorded. Further ones are in the log and in the metric.
pub(super) type RefusalLimits = RateLimits<String>;

/// Records that a call was refused to its operator.
pub(super) async fn record_refusal(admin: &Admin, call: &Call, problem: &Problem) {
    let actor = call.actor(admin);
    // A tenant that the operator may not see does not exist for it. That is a refusal, too.
    let is_hidden = !actor.tenant.is_empty() && problem.is_missing("tenant", &actor.tenant);
    if actor.operator.is_empty() || (problem.code() != Code::PermissionDenied && !is_hidden) {
        return;
    }
    if admin.2.try_acquire(&actor.operator, REFUSALS).is_err() {
        return;
    }
    let chain = refusal_chain(admin, call, &actor).await;
    if let Err(error) = admin.registry().record_refusal(&chain, &actor, call.object()).await {
        tracing::warn!(target: "seks.admin", %error, operator = actor.operator, "a refused call cannot be recorded");
    }
}

/// The tenant's chain when the operator has a role there, so that the tenant's owners see it;
/// otherwise the fleet's.
async fn refusal_chain(admin: &Admin, call: &Call, actor: &Actor) -> AdminChainName {
    let (Scope::Tenant, _) = call.method().rule() else { return AdminChainName::Fleet };
    let (Ok(tenant), Ok(operator)) = (TenantName::try_from(actor.tenant.as_str()), actor.operator.parse()) else {
        return AdminChainName::Fleet;
    };
    let has_role = match admin.registry().operator(&operator).await {
        Ok(Some(operator)) => operator.roles.iter().any(|role| role.tenant == tenant.as_str()),
        _ => false,
    };
    if has_role && admin.registry().tenant(&tenant).await.is_ok() {
        AdminChainName::Tenant(tenant)
    } else {
        AdminChainName::Fleet
    }
}

/// One tenant's changes, since it was created. Those of a deleted tenant of the same name are not
/// shown.
pub(super) async fn list(admin: &Admin, _: &Caller, message: AdminChangesRequest) -> Answer<AdminChangesResponse> {
    let tenant: TenantName = name("tenant", &message.tenant)?;
    admin.registry().tenant(&tenant).await?;
    let mut listing = Listing::new(&message)?;
    listing.read(admin, &AdminChainName::Tenant(tenant), Until::Creation).await?;
    Ok(listing.into_page(admin))
}

/// Everybody's changes, and those of the fleet.
pub(super) async fn list_fleet(
    admin: &Admin,
    _: &Caller,
    message: AdminChangesRequest,
) -> Answer<AdminChangesResponse> {
    let mut listing = Listing::new(&message)?;
    for (chain, head) in admin.registry().admin_heads().await? {
        if head.at_us >= listing.oldest_us() {
            listing.read(admin, &chain, Until::End).await?;
        }
    }
    Ok(listing.into_page(admin))
}

/// How far back a chain is read.
#[derive(Clone, Copy, PartialEq)]
enum Until {
    /// To the change that created the tenant.
    Creation,
    End,
}

/// The order of a listing: by time, then by chain and sequence.
type Place = (u64, String, u64);

/// A page while it is read.
struct Listing<'a> {
    wanted: &'a AdminChangesRequest,
    limit: usize,
    /// Only changes before this one are listed.
    before: Option<Place>,
    found: Vec<(Reverse<Place>, AdminChangeEntry)>,
    /// Replicas that have older changes than could be read here.
    longer_archives: BTreeSet<String>,
}

impl<'a> Listing<'a> {
    fn new(wanted: &'a AdminChangesRequest) -> Result<Self, Problem> {
        let limit = if wanted.page_size == 0 { PAGE } else { (wanted.page_size as usize).min(MAX_PAGE) };
        let before = match wanted.page_token.as_str() {
            "" => None,
            token => Some(place(token).ok_or_else(|| Problem::invalid("page_token", "not of an earlier page"))?),
        };
        Ok(Self { wanted, limit, before, found: Vec::new(), longer_archives: BTreeSet::new() })
    }

    /// A chain whose newest change is older than this has none that is listed.
    fn oldest_us(&self) -> u64 {
        self.wanted.since_us.saturating_sub(u64::try_from(CLOCK_SKEW.as_micros()).unwrap_or(u64::MAX))
    }

    async fn read(&mut self, admin: &Admin, chain: &AdminChainName, until: Until) -> Answer<()> {
        let (text, oldest_us) = (chain.to_string(), self.oldest_us());
        let mut missing_before = None;
        let each = |encoded: bytes::Bytes, revision: Revision| {
            let Ok(change) = AdminChange::decode(encoded.clone()) else { return true }; // `verify` names it
            let is_creation = change.objects.iter().any(|object| object.kind == "tenant" && object.before.is_empty());
            let goes_on = change.at_us >= oldest_us && !(until == Until::Creation && is_creation);
            self.take(&text, &change, &encoded, revision);
            missing_before = Some(change.sequence).filter(|sequence| goes_on && *sequence > 1);
            goes_on
        };
        read_chain(admin, chain, each).await?;
        if let Some(oldest) = missing_before {
            let archive = admin.registry().admin_archive(chain).await?.unwrap_or_default();
            let longer =
                archive.holders.into_iter().filter(|holder| holder.first < oldest && holder.first <= holder.last);
            self.longer_archives.extend(longer.map(|holder| holder.replica).filter(|name| *name != admin.0.replica));
        }
        Ok(())
    }

    fn take(&mut self, chain: &str, change: &AdminChange, encoded: &[u8], revision: Revision) {
        let place = (change.at_us, chain.to_owned(), change.sequence);
        if !self.is_wanted(change) || self.before.as_ref().is_some_and(|before| place >= *before) {
            return;
        }
        let entry = AdminChangeEntry { chain: chain.into(), change: encoded.to_vec(), revision };
        self.found.push((Reverse(place), entry));
        if self.found.len() > 2 * self.limit {
            self.cut();
        }
    }

    fn is_wanted(&self, change: &AdminChange) -> bool {
        let AdminChangesRequest { operator, verb, object, since_us, until_us, .. } = self.wanted;
        let is_in_time = change.at_us >= *since_us && (*until_us == 0 || change.at_us < *until_us);
        let equals = |wanted: &String, value: &String| wanted.is_empty() || wanted == value;
        let names = |wanted: &String| wanted.is_empty() || change.objects.iter().any(|object| object.name == *wanted);
        is_in_time && equals(operator, &change.operator) && equals(verb, &change.verb) && names(object)
    }

    /// Keeps one more than the page, by which it is known that there is another page.
    fn cut(&mut self) {
        self.found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        self.found.truncate(self.limit + 1);
    }

    fn into_page(mut self, admin: &Admin) -> AdminChangesResponse {
        self.cut();
        let is_last = self.found.len() <= self.limit;
        self.found.truncate(self.limit);
        let last = self.found.last().filter(|_| !is_last);
        let next = last.map(|(Reverse((at_us, chain, sequence)), _)| format!("{at_us}.{chain}.{sequence}"));
        let longer_archives = if is_last { self.longer_archives.into_iter().collect() } else { Vec::new() };
        let entries = self.found.into_iter().map(|(_, entry)| entry).collect();
        let replica = admin.0.replica.clone();
        AdminChangesResponse { entries, next_page_token: next.unwrap_or_default(), replica, longer_archives }
    }
}

fn place(token: &str) -> Option<Place> {
    let mut parts = token.splitn(3, '.');
    let (at_us, chain, sequence) = (parts.next()?, parts.next()?, parts.next()?);
    Some((at_us.parse().ok()?, chain.into(), sequence.parse().ok()?))
}

/// Calls `each` with the changes of a chain, encoded, the newest first, and the revision of each,
/// until it returns `false`: those that the store has, and then those of this replica's archive.
pub(super) async fn read_chain(
    admin: &Admin,
    chain: &AdminChainName,
    mut each: impl FnMut(bytes::Bytes, Revision) -> bool,
) -> Answer<()> {
    let (mut oldest, mut goes_on) = (u64::MAX, true);
    let of_store = |sequence, encoded, revision| {
        oldest = sequence;
        goes_on = each(encoded, revision);
        goes_on
    };
    admin.registry().admin_changes(chain, of_store).await?;
    let Some(trail) = admin.0.distribution.trail().filter(|_| goes_on && oldest > 1) else { return Ok(()) };
    let (archive, name) = (trail.archive().clone(), chain.to_string());
    let (changes, mut archived) = mpsc::channel(ARCHIVED);
    let reading = tokio::task::spawn_blocking(move || {
        archive.read(&name, oldest, &mut |change| changes.blocking_send(change).is_ok())
    });
    while let Some(change) = archived.recv().await {
        if !each(change.encoded.into(), change.revision) {
            break;
        }
    }
    drop(archived);
    match reading.await {
        Ok(Err(error)) => {
            tracing::error!(%error, "the archive of admin changes cannot be read");
            Err(Problem::unavailable("TRAIL", "the archive of admin changes cannot be read"))
        }
        Ok(Ok(())) | Err(_) => Ok(()), // a panic in there has been reported
    }
}

/// Recomputes all chains. Returns how many changes there are.
pub(super) async fn verify_chains(admin: &Admin, findings: &mut Vec<AuditFinding>) -> Answer<u64> {
    let mut changes = 0;
    for (chain, head) in admin.registry().admin_heads().await? {
        let links = links(admin, &chain, &head).await?;
        changes += links.len() as u64;
        let end = Digest(head.digest.as_slice().try_into().unwrap_or([0; 32]));
        // Read behind the changes: what has left the store meanwhile is in an archive.
        let archive = admin.registry().admin_archive(&chain).await?;
        let oldest = archive.map_or(oldest_kept(head.sequence), |archive| archive.oldest_at(&admin.0.replica));
        findings.extend(verify(&links, oldest, head.sequence, end).into_iter().map(|fault| finding(&chain, fault)));
    }
    Ok(changes)
}

/// A chain up to its end as it was read, the oldest change first. What was written since belongs to
/// the next verification.
async fn links(admin: &Admin, chain: &AdminChainName, head: &AdminHead) -> Answer<Vec<Link>> {
    let mut links = Vec::new();
    let each = |encoded: bytes::Bytes, _| {
        // One that does not decode has the sequence 0, and is missed where it should be.
        let change = AdminChange::decode(encoded.clone()).unwrap_or_default();
        if (1..=head.sequence).contains(&change.sequence) {
            links.push(Link { sequence: change.sequence, previous: change.previous, digest: digest(&encoded) });
        }
        true
    };
    read_chain(admin, chain, each).await?;
    links.reverse();
    Ok(links)
}

fn finding(chain: &AdminChainName, fault: Fault) -> AuditFinding {
    let (kind, from, to) = match fault {
        Fault::Gap { from, to } => ("gap", from, to),
        Fault::Changed { sequence } => ("changed", sequence, sequence),
        Fault::CutTail { from, to } => ("cut_tail", from, to),
    };
    AuditFinding { chain: format!("admin/{chain}"), kind: kind.into(), from, to, ..AuditFinding::default() }
}
