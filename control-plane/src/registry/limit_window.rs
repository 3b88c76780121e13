//! How much of a limit's window replicas have taken: one record for each limit, and where each
//! agent has its own budget one for each agent.

use prost::Message;
use seks_limits::{Span, Window, WindowRecord};
use seks_types::id::{AgentName, PolicyId, TenantName};

use super::{Change, Registry, RegistryError, change::retry_on_conflict};
use crate::store::Key;

/// Whose budget of which limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// The tenant of both.
    pub tenant: TenantName,
    /// The limit: the id of its policy.
    pub limit: PolicyId,
    /// The agent; `None`: all that the policy is about share it.
    pub agent: Option<AgentName>,
}

impl Budget {
    fn key(&self) -> Key {
        Key::LimitWindow(self.tenant.clone(), self.limit.clone(), self.agent.clone())
    }
}

/// What the store says of a window.
#[derive(Clone, PartialEq, Message)]
struct StoredWindow {
    /// Its first millisecond, in Unix time.
    #[prost(uint64, tag = "1")]
    start: u64,
    /// What replicas have taken of it.
    #[prost(uint64, tag = "2")]
    taken: u64,
}

/// A part of a window's budget that a replica may give to its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The window.
    pub span: Span,
    /// How much; 0: nothing is left.
    pub amount: u64,
}

impl Registry {
    /// Takes a step of at least `wanted` of the window at `now`, in Unix milliseconds, if so much
    /// is left of `amount`. It is spent once this returns, whatever becomes of the caller.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] for the tenant; of the store.
    pub async fn take_limit_step(
        &self,
        budget: &Budget,
        (amount, window): (u64, Window),
        now: u64,
        wanted: u64,
    ) -> Result<Step, RegistryError> {
        retry_on_conflict(|| async {
            let tenant = self.active_tenant(&budget.tenant).await?;
            let stored = self.load::<StoredWindow>(budget.key()).await?;
            let mut record = stored.as_ref().map_or(WindowRecord::default(), |stored| WindowRecord {
                start: stored.value.start,
                taken: stored.value.taken,
            });
            let span = record.span(window, now);
            let taken = record.take(amount, span, wanted);
            if taken > 0 {
                let value = StoredWindow { start: record.start, taken: record.taken };
                let modified = stored.map_or(0, |stored| stored.modified);
                let change = Change::new().check(&tenant).check_at(budget.key(), modified);
                self.commit(change.put(budget.key(), &value)).await?;
            }
            Ok(Step { span, amount: taken })
        })
        .await
    }
}
