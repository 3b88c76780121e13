//! etcd's errors, told apart by code *and* message: one code means several things, and one thing
//! comes under several codes.

use etcd_client::Error;

use crate::store::StoreError;

/// gRPC's status codes, as numbers: the client library doesn't export the type.
mod code {
    pub(super) const CANCELLED: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// What to do about a failed request.
#[derive(Debug)]
pub(super) enum Failure {
    /// Ask again, another endpoint first.
    Retry {
        /// The request may have reached etcd: a write may have been made.
        sent: bool,
        /// For the log.
        reason: String,
    },
    /// The revision asked for is gone.
    Compacted,
    /// Asking again won't help.
    Final(StoreError),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Retry { reason, .. } => Self::Unavailable(reason),
            Failure::Compacted => Self::Unavailable("the revision has been compacted".into()),
            Failure::Final(error) => error,
        }
    }
}

impl Failure {
    pub(super) fn of(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => of_status(status.code() as i32, status.message(), || full_reason(&status)),
            Error::TransportError(e) => Self::Retry { sent: true, reason: chain(&e) },
            Error::IoError(e) => Self::Retry { sent: true, reason: e.to_string() },
            other => Self::Final(StoreError::Unavailable(other.to_string())),
        }
    }
}

fn of_status(code: i32, message: &str, reason: impl Fn() -> String) -> Failure {
    let has = |text: &str| message.contains(text);
    let retry = |sent| Failure::Retry { sent, reason: reason() };
    let denied = || Failure::Final(StoreError::Denied(message.to_owned()));
    match code {
        code::OUT_OF_RANGE if has("compacted") => Failure::Compacted,
        // "future revision": the store was restored from a backup under us; "decoded message
        // length": 4 MiB, or our own limit.
        code::OUT_OF_RANGE => Failure::Final(StoreError::Unavailable(reason())),
        code::RESOURCE_EXHAUSTED if has("database space exceeded") => Failure::Final(StoreError::Full),
        code::RESOURCE_EXHAUSTED if has("too many requests") => retry(false),
        code::RESOURCE_EXHAUSTED => Failure::Final(StoreError::TooLarge), // over gRPC's own 2 MiB
        code::INVALID_ARGUMENT if has("request is too large") || has("too many operations") => {
            Failure::Final(StoreError::TooLarge)
        }
        code::INVALID_ARGUMENT if has("authentication failed") || has("user name") => denied(),
        code::INVALID_ARGUMENT if has("revision of auth store is old") => retry(false),
        code::INVALID_ARGUMENT => Failure::Final(StoreError::Unavailable(reason())),
        code::UNAUTHENTICATED | code::PERMISSION_DENIED | code::FAILED_PRECONDITION => denied(),
        code::UNKNOWN if has("invalid auth token") => denied(),
        // A timeout of ours comes as `Cancelled`, a cut connection as
        // `Unknown "h2 protocol error"`: the write may be made.
        code::CANCELLED | code::UNKNOWN | code::DEADLINE_EXCEEDED => retry(true),
        // `Unavailable` is etcd's "timed out" and "leader changed" too, which may come after the
        // write. These come before it:
        _ => retry(!(has("connect error") || has("no leader") || has("server stopped") || has("not started"))),
    }
}

/// The message and its cause. For a refused certificate only the cause says what is wrong.
fn full_reason(status: &(impl std::error::Error + StatusText)) -> String {
    match status.source() {
        Some(source) => format!("{}: {}", status.text(), chain(source)),
        None => status.text().to_owned(),
    }
}

/// The status' own message, without the code and metadata that its `Display` adds.
trait StatusText {
    fn text(&self) -> &str;
}

impl StatusText for tonic::Status {
    fn text(&self) -> &str {
        self.message()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(code: i32, message: &str) -> String {
        format!("{:?}", of_status(code, message, || "why".into()))
    }

    #[test]
    fn one_code_means_several_things() {
        assert_eq!(class(11, "etcdserver: mvcc: required revision has been compacted"), "Compacted");
        assert_eq!(
            class(11, "etcdserver: mvcc: required revision is a future revision"),
            "Final(Unavailable(\"why\"))"
        );
        assert_eq!(class(8, "etcdserver: mvcc: database space exceeded"), "Final(Full)");
        assert_eq!(class(8, "grpc: received message larger than max"), "Final(TooLarge)");
        assert_eq!(class(3, "etcdserver: request is too large"), "Final(TooLarge)");
        assert!(class(3, "etcdserver: authentication failed, invalid user ID or password").starts_with("Final(Denied"));
    }

    #[test]
    fn a_write_that_may_have_been_made_is_told_from_one_that_was_not() {
        let sent = |code, message| match of_status(code, message, String::new) {
            Failure::Retry { sent, .. } => sent,
            other => panic!("{other:?}"),
        };
        assert!(sent(1, "Timeout expired"));
        assert!(sent(2, "h2 protocol error: error reading a body from connection"));
        assert!(sent(14, "etcdserver: request timed out"));
        assert!(sent(14, "etcdserver: leader changed"));
        assert!(!sent(14, "tcp connect error"));
        assert!(!sent(14, "etcdserver: no leader"));
    }
}
