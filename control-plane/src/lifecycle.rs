//! How a replica's distribution stops: first its nodes are asked to move, then every task and
//! stream ends.

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The two signals of a stop, and the tasks that wait for them. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Lifecycle {
    /// The replica is about to stop: its nodes are to move.
    pub(crate) leaving: CancellationToken,
    /// The replica stops: every task and stream ends.
    pub(crate) stop: CancellationToken,
    /// Tasks and streams that haven't ended yet.
    pub(crate) tasks: TaskTracker,
}

impl Lifecycle {
    /// Runs `task` until it ends or the replica stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Stops everything at once, and waits until it has ended.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
