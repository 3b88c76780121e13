//! What the protocol rests on. Breaking any one of them must make the check fail: that is a test
//! each.

/// A guard that a [`Protocol`](crate::protocol::Protocol) can be without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// A lease counts from when the node asked, not from when the answer came.
    CountsFromAsking,
    /// A node lets its lease end early, by what its clock may be slow.
    AllowsForSkew,
    /// A grant is rooted in a barrier, not in the replica's own opinion that it is up to date.
    RootedInBarrier,
    /// A barrier counts once the replica has taken in what the store had.
    BarrierIsReached,
    /// A node takes a grant only when it has applied what the grant vouches for.
    AppliedBeforeTaking,
    /// The first grant to a node that has started since its last is rooted after it came.
    RootedAfterBeginning,
    /// A change is applied only where the one before it is.
    FollowsOn,
    /// A snapshot doesn't take a table back.
    NeverBackwards,
    /// Requests in flight are cut before the change is acknowledged.
    CutBeforeAck,
    /// A request registers for being cut before its last check.
    RegisteredBeforeCheck,
    /// What was decided before a request waited is decided again when it is sent.
    DecidedAgain,
    /// An answer is cut whether its agent reads or not.
    CutUnread,
    /// Requests in flight end with the lease.
    CutWithLease,
    /// A lease is checked at all.
    LeaseIsChecked,
    /// The store says that a replica answers for a node, before the replica grants it a lease.
    NamedBeforeGrant,
    /// A replica comes to answer for a node when that has applied what the replica has promised of
    /// all its nodes.
    CaughtUpBeforeAnswering,
    /// Who comes to answer for a node assumes that it holds a lease: another may just have granted
    /// it.
    TakesOverLeases,
    /// That it is about to answer for a node counts until the store has it, however long that
    /// takes.
    HeldWhileWriting,
    /// A replica is registered before it answers for anybody.
    RegisteredBeforeAnswering,
    /// A node that is given back is recorded anew before it is granted anything.
    RecordedAnew,
    /// A node is given back only if its record is still the one that was looked at.
    ReleasedAsSeen,
    /// What a process acknowledges doesn't count for another that showed the same certificate
    /// before.
    AcksAreProcesses,
    /// Who answers for a process goes on with it when a record names another process, elsewhere.
    ForgetsNoOther,
    /// A replica is waited for that a record of another process has displaced.
    DisplacedCount,
    /// The watermark counts nodes that are gone, until their leases have ended.
    DepartedCount,
    /// A node of a replica is done when *it* has acknowledged, not when the replica has taken the
    /// change in.
    AcksAreNodes,
    /// Other replicas' watermarks are waited for.
    OthersCount,
    /// Who waits for leases to end waits for all of them.
    WaitsOutLeases,
}

impl Guard {
    /// Each.
    pub const ALL: [Self; 28] = [
        Self::CountsFromAsking,
        Self::AllowsForSkew,
        Self::RootedInBarrier,
        Self::BarrierIsReached,
        Self::AppliedBeforeTaking,
        Self::RootedAfterBeginning,
        Self::FollowsOn,
        Self::NeverBackwards,
        Self::CutBeforeAck,
        Self::RegisteredBeforeCheck,
        Self::DecidedAgain,
        Self::CutUnread,
        Self::CutWithLease,
        Self::LeaseIsChecked,
        Self::NamedBeforeGrant,
        Self::CaughtUpBeforeAnswering,
        Self::TakesOverLeases,
        Self::HeldWhileWriting,
        Self::RegisteredBeforeAnswering,
        Self::RecordedAnew,
        Self::ReleasedAsSeen,
        Self::AcksAreProcesses,
        Self::ForgetsNoOther,
        Self::DisplacedCount,
        Self::DepartedCount,
        Self::AcksAreNodes,
        Self::OthersCount,
        Self::WaitsOutLeases,
    ];
}
