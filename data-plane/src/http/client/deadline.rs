//! The time that an answer has to begin.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::{UpstreamError, reusable_timer::ReusableTimer, upload::UploadState};

/// Interim answers (1xx) to one request. Each gives the upstream the whole time again, so their
/// number is bounded.
const MAX_INTERIM: u32 = 128;

/// The time that an answer has to begin. It starts again with every interim answer, and while the
/// request is still being sent.
pub(super) struct Deadline {
    timer: ReusableTimer,
    limit: Duration,
    upload: Option<Arc<UploadState>>,
    interim: u32,
}

impl Deadline {
    /// Begins now. `upload`: a body that is passed on as it comes.
    pub(super) fn begin(mut timer: ReusableTimer, limit: Duration, upload: Option<Arc<UploadState>>) -> Self {
        timer.begin(limit);
        Self { timer, limit, upload, interim: 0 }
    }

    /// An interim answer has come: the upstream is at work.
    pub(super) fn interim(&mut self) -> Result<(), UpstreamError> {
        self.interim += 1;
        self.timer.begin(self.limit);
        if self.interim > MAX_INTERIM { Err(UpstreamError::TooManyInterim) } else { Ok(()) }
    }

    /// Ready once the time is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<UpstreamError> {
        while self.timer.poll(cx).is_ready() {
            if self.upload.as_ref().is_none_or(|upload| upload.is_done()) {
                return Poll::Ready(UpstreamError::FirstByteTimeout);
            }
            self.timer.begin(self.limit);
        }
        Poll::Pending
    }

    /// The timer, for the connection's next request.
    pub(super) fn into_timer(self) -> ReusableTimer {
        self.timer
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_is_silent_is_given_up() {
        let mut timer = ReusableTimer::default();
        for seconds in [100, 1, 10] {
            let begun = Instant::now();
            let mut deadline = Deadline::begin(timer, Duration::from_secs(seconds), None);
            let error = poll_fn(|cx| deadline.poll(cx)).await;
            assert_eq!(
                (error, begun.elapsed().as_secs()),
                (UpstreamError::FirstByteTimeout, seconds),
                "with one timer"
            );
            timer = deadline.into_timer();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_interim_answer_gives_the_whole_time_again_and_their_number_is_bounded() {
        let begun = Instant::now();
        let mut deadline = Deadline::begin(ReusableTimer::default(), Duration::from_secs(10), None);
        for _ in 0..9 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            deadline.interim().unwrap();
        }
        poll_fn(|cx| deadline.poll(cx)).await;
        assert_eq!(begun.elapsed().as_secs(), 91);
        assert_eq!((0..MAX_INTERIM).find_map(|_| deadline.interim().err()), Some(UpstreamError::TooManyInterim));
    }
}
