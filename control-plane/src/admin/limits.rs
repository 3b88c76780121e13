//! How much of this replica one tenant may use: a rate of writes, and a number of reads at a time.
//!
//! Revocations and deletes have no limit. Work on policies has its own (`policy_workers`).

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use seks_proto::wire::{Quota, Role};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    auth::{Method, Scope},
    problem::Problem,
};
use crate::rate::{Rate, RateLimits};

/// Reads of one tenant that are worked on at a time. Each may list a thousand records.
const READS: usize = 4;
/// Reads of one tenant that wait for their turn, or are worked on.
const MAX_READS: usize = 128;
/// When a refused read may be tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a call costs others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    /// It lists or reads records.
    Read,
    /// It adds or changes a record.
    Write,
    /// It takes something away, or is limited elsewhere.
    Free,
}

fn cost(method: Method) -> Cost {
    use Method as M;
    match method {
        M::CheckPolicies | M::Simulate | M::ExplainPolicies => Cost::Free, // limited by the policy workers
        M::RevokeToken
        | M::SetAgentDisabled
        | M::DeleteAgent
        | M::DeleteService
        | M::DeleteCredential
        | M::DeletePolicy
        | M::DeleteTrust
        | M::RevokeApproval
        | M::DenyApproval
        | M::DeleteOperator => Cost::Free,
        M::AwsKeyPair => Cost::Read,
        method => match method.rule() {
            (Scope::Tenant, Role::Editor | Role::Owner) => Cost::Write,
            (Scope::Tenant | Scope::Anyone, _) => Cost::Read,
            (Scope::Fleet, _) => Cost::Free, // owners and viewers of everything
        },
    }
}

/// The limits of one replica.
#[derive(Default)]
pub(super) struct Limits {
    writes: RateLimits<String>,
    reads: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A read's turn.
pub(super) struct Turn<'a> {
    limits: &'a Limits,
    key: String,
    permit: Option<OwnedSemaphorePermit>,
}

impl Limits {
    /// Waits for the turn of a read; takes a write from its tenant's rate.
    ///
    /// # Errors
    /// Resource exhausted, with when to try again.
    pub(super) async fn enter(
        &self,
        method: Method,
        (tenant, operator): (&str, &str),
        quota: impl FnOnce() -> Quota,
    ) -> Result<Option<Turn<'_>>, Problem> {
        match cost(method) {
            Cost::Free => Ok(None),
            Cost::Write => self.write(tenant, &quota()).map(|()| None),
            Cost::Read if tenant.is_empty() => self.read(format!("operator `{operator}`")).await.map(Some),
            Cost::Read => self.read(format!("tenant `{tenant}`")).await.map(Some),
        }
    }

    fn write(&self, tenant: &str, quota: &Quota) -> Result<(), Problem> {
        let rate = Rate { per_second: quota.writes_per_second.into(), burst: quota.write_burst.into() };
        self.writes.try_acquire(&tenant.to_owned(), rate).map_err(|wait| {
            let writes = quota.writes_per_second;
            Problem::exhausted("WRITE_RATE", format!("tenant `{tenant}` may write {writes} times a second, and has"))
                .hint(format!(
                    "try again in {}; a fleet owner raises it: seks tenant quota {tenant} --writes-per-second N",
                    seconds(wait)
                ))
                .retry_after(wait)
        })
    }

    async fn read(&self, key: String) -> Result<Turn<'_>, Problem> {
        let semaphore = {
            let mut reads = self.reads.lock();
            reads.entry(key.clone()).or_insert_with(|| Arc::new(Semaphore::new(READS))).clone()
        };
        // Those that wait and those that are worked on hold the semaphore, and so does the map.
        let too_many = Arc::strong_count(&semaphore) > MAX_READS + 1;
        let mut turn = Turn { limits: self, key, permit: None };
        if too_many {
            drop(semaphore);
            let text = format!("{} has {MAX_READS} reads at a time, which is the limit", turn.key);
            drop(turn);
            return Err(Problem::exhausted("READS", text)
                .hint(format!("try again in {}", seconds(RETRY_AFTER)))
                .retry_after(RETRY_AFTER));
        }
        turn.permit = semaphore.acquire_owned().await.ok();
        Ok(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut reads = self.limits.reads.lock();
        if reads.get(&self.key).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            reads.remove(&self.key);
        }
    }
}

/// Whole seconds, at least one.
fn seconds(wait: Duration) -> String {
    format!("{} s", wait.as_secs().saturating_add(1))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn what_takes_away_is_free_and_what_adds_is_a_write() {
        for method in Method::ALL {
            let name = method.name();
            let takes = name.starts_with("Delete") || name.starts_with("Revoke") || *method == Method::SetAgentDisabled;
            let adds = [
                "Enable",
                "Apply",
                "Put",
                "Assign",
                "Rollback",
                "Create",
                "Update",
                "Issue",
                "Rotate",
                "Rebind",
                "Grant",
                "SetApproval",
            ];
            let adds = adds.iter().any(|verb| name.starts_with(verb)) && method.rule().0 == Scope::Tenant;
            assert!(!takes || cost(*method) == Cost::Free, "{name}");
            assert_eq!(adds, cost(*method) == Cost::Write, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_writes_without_end_is_told_when_to_go_on_and_delays_no_other() {
        let limits = Limits::default();
        let quota = || Quota { writes_per_second: 10, write_burst: 5, ..Quota::default() };
        let enter = |tenant: &'static str| limits.enter(Method::IssueToken, (tenant, "op"), quota);
        for _ in 0..5 {
            assert!(enter("hostile").await.is_ok());
        }
        let status = enter("hostile").await.err().unwrap().into_status();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(status.message().contains("`hostile`") && status.message().contains("10"), "{status:?}");
        assert!(tonic_types::StatusExt::get_details_retry_info(&status).unwrap().retry_delay.is_some());
        assert!(enter("acme").await.is_ok());
        assert!(limits.enter(Method::RevokeToken, ("hostile", "op"), quota).await.is_ok(), "never limited");
        tokio::time::advance(Duration::from_millis(150)).await;
        assert!(enter("hostile").await.is_ok());
    }

    #[tokio::test]
    async fn reads_of_a_tenant_wait_for_each_other_and_for_nobody_else() {
        let limits = Limits::default();
        let enter = |tenant: &'static str| limits.enter(Method::ListTokens, (tenant, "op"), Quota::default).boxed();
        let mut held = Vec::new();
        for _ in 0..READS {
            held.push(enter("hostile").await.ok().unwrap());
        }
        let mut waiting: Vec<_> = (0..MAX_READS - READS).map(|_| enter("hostile")).collect();
        assert!(waiting.iter_mut().all(|read| read.now_or_never().is_none()));
        assert!(enter("hostile").await.is_err(), "too many");
        assert!(enter("acme").await.is_ok());
        drop(waiting.pop());
        assert!(enter("hostile").now_or_never().is_none(), "one has left");
        held.pop();
        assert!((&mut waiting[0]).now_or_never().is_some());
        drop((waiting, held));
        assert!(limits.reads.lock().is_empty());
    }
}
