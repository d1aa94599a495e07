//! Bugs that can be switched on to see whether the simulation finds them. Only in builds with the feature
//! `planted-bugs`; in all others the switch is the constant `false`.
//!
//! A bug is planted for one thread, since a simulated world lives in one.

/// Whether this bug is planted here.
macro_rules! seeded_bug {
    ($bug:ident) => {{
        #[cfg(feature = "planted-bugs")]
        let planted = $crate::planted::is_planted($crate::planted::Bug::$bug);
        #[cfg(not(feature = "planted-bugs"))]
        let planted = false;
        planted
    }};
}

pub(crate) use seeded_bug;

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
    static CHANCES: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Plants a bug in this thread, and no other with it; `None` removes it.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
    CHANCES.set(0);
}

/// Whether this bug is planted, and strikes: those that would strike all the time do so now and then.
#[cfg(feature = "planted-bugs")]
pub(crate) fn is_planted(bug: Bug) -> bool {
    let rare = match bug {
        Bug::SlotTwice => 64,
        Bug::LostWake | Bug::LoseTokens | Bug::SayTwice => 16,
        _ => 1,
    };
    PLANTED.get() == Some(bug) && {
        CHANCES.set(CHANCES.get() + 1);
        CHANCES.get().is_multiple_of(rare)
    }
}

/// A bug that somebody could make. Each breaks one promise.
#[cfg(feature = "planted-bugs")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A cancelled task's slot is never given back.
    LeakSlot,
    /// A slot is given back twice.
    SlotTwice,
    /// A place at the gate is kept by a task that has ended.
    LeakPermit,
    /// A log takes tokens behind its end.
    AppendAfterSeal,
    /// A task is ended again by whoever comes late.
    EndTwice,
    /// What a lost attempt still says is taken.
    StaleEpoch,
    /// A repeated token is appended and not compared.
    SpliceReplay,
    /// A new queue does not look at the ledger.
    LoseQueue,
    /// A task that comes back is not taken in again.
    LoseReturned,
    /// A task that comes back waits behind the others of its lane.
    ReturnedGoLast,
    /// A queue takes in one more than its bounds allow.
    RoomForOneMore,
    /// What ended tasks were charged is never corrected.
    ForgetSettlement,
    /// Readers are not woken.
    LostWake,
    /// Nobody hears that a slot is free.
    LostNudge,
    /// Tasks are placed on replicas that are not Ready.
    PlaceUnready,
    /// Quotas do not hold anybody back.
    IgnoreQuota,
    /// A task that kills engines is tried for ever.
    NoAttemptBound,
    /// Attempts live on when their worker has died.
    OrphanAttempts,
    /// A slot counts as free before its engine has left it.
    FreeUnconfirmed,
    /// A reload leaves replicas with the old model in service.
    TwoModels,
    /// A reload ends when it has changed over.
    HalfReload,
    /// A task that has tokens is run again by another model.
    ResumeAnywhere,
    /// A task runs on a model that it did not ask for.
    RunMisfits,
    /// A replica whose attempts fail is given more at once.
    NeverEject,
    /// How long an engine asks to be left alone is not kept.
    IgnoreRetryAfter,
    /// To be turned away costs an attempt.
    BusyCosts,
    /// A replica that was left out gets as many tasks as it has slots when it comes back.
    NoSlowStart,
    /// A health page that is late ends an engine that gives tokens.
    LateProbeKills,
    /// A panic of an engine's code is lost without a word.
    LosePanic,
    /// An engine that says that it was stopped is believed.
    TrustStop,
    // ---- between nodes
    /// An owner goes on with what a silent gateway has sent.
    KeepLease,
    /// A link with a node that is silent for long stays.
    KeepDeadLink,
    /// What comes late of an attempt that is over is another's.
    LateGuest,
    /// Tokens are lost on their way.
    LoseTokens,
    /// Tokens are sent twice.
    SayTwice,
    /// What a gateway has taken up is not counted.
    ForgetCredit,
    /// An owner goes on with what its gateway has stopped.
    RunStopped,
}

#[cfg(feature = "planted-bugs")]
impl Bug {
    /// Every bug between nodes.
    pub const NODES: [Bug; 7] = [
        Bug::KeepLease,
        Bug::KeepDeadLink,
        Bug::LateGuest,
        Bug::LoseTokens,
        Bug::SayTwice,
        Bug::ForgetCredit,
        Bug::RunStopped,
    ];
    /// Every bug of outlier detection.
    pub const OUTLIERS: [Bug; 5] =
        [Bug::NeverEject, Bug::IgnoreRetryAfter, Bug::BusyCosts, Bug::NoSlowStart, Bug::LateProbeKills];
    /// Every bug of one node.
    pub const ALL: [Bug; 25] = [
        Bug::LeakSlot,
        Bug::SlotTwice,
        Bug::LeakPermit,
        Bug::AppendAfterSeal,
        Bug::EndTwice,
        Bug::StaleEpoch,
        Bug::SpliceReplay,
        Bug::LoseQueue,
        Bug::LoseReturned,
        Bug::ReturnedGoLast,
        Bug::RoomForOneMore,
        Bug::ForgetSettlement,
        Bug::LostWake,
        Bug::LostNudge,
        Bug::PlaceUnready,
        Bug::IgnoreQuota,
        Bug::NoAttemptBound,
        Bug::OrphanAttempts,
        Bug::FreeUnconfirmed,
        Bug::TwoModels,
        Bug::HalfReload,
        Bug::ResumeAnywhere,
        Bug::RunMisfits,
        Bug::LosePanic,
        Bug::TrustStop,
    ];
}
