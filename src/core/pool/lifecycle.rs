//! The lives of replicas and pools (ORCH-3002, ORCH-3010): which states there are, and how a pool's follows from its
//! replicas'. The state of a pool is never stored beside them, so the two cannot disagree.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::units::Timestamp;

/// Where one worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
#[non_exhaustive]
pub enum ReplicaState {
    /// Its engine starts and loads the model.
    Preloading,
    /// It takes tasks.
    Ready,
    /// An attempt lost its engine: no new task until the engine has answered again.
    Suspect,
    /// Its engine is well, and it takes no tasks: a reload is about to replace its model, or has done so and waits for
    /// others.
    Reloading,
    /// It failed, and is started again at this moment.
    Backoff {
        /// When.
        until: Timestamp,
    },
    /// One of its devices has failed: nothing is started there before this moment, and before the device is well.
    DeviceDown {
        /// When, at the earliest.
        until: Timestamp,
    },
    /// It failed too often: its breaker is open, and one probe is made at this moment.
    Broken {
        /// When.
        until: Timestamp,
    },
    /// It has been stopped and stays so.
    Stopped,
}

impl ReplicaState {
    /// Whether a task may be placed here.
    pub const fn is_ready(self) -> bool {
        matches!(self, ReplicaState::Ready)
    }

    /// The state as it is written in JSON and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            ReplicaState::Preloading => "preloading",
            ReplicaState::Ready => "ready",
            ReplicaState::Suspect => "suspect",
            ReplicaState::Reloading => "reloading",
            ReplicaState::Backoff { .. } => "backoff",
            ReplicaState::DeviceDown { .. } => "device_down",
            ReplicaState::Broken { .. } => "broken",
            ReplicaState::Stopped => "stopped",
        }
    }
}

/// What the operator wants of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intent {
    /// It serves.
    #[default]
    Serve,
    /// It takes nothing new and finishes what it has.
    Drain,
    /// It has finished.
    Stop,
}

/// Where a pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PoolState {
    /// Every replica is down and at least one is going to be tried again.
    Unready,
    /// No replica is Ready yet, and at least one loads its model.
    Preloading,
    /// At least one replica is Ready.
    Ready,
    /// It takes nothing new.
    Draining,
    /// Every replica's breaker is open.
    Broken,
    /// It has been drained, and its workers have stopped.
    Stopped,
}

impl PoolState {
    /// Every state.
    pub const ALL: [PoolState; 6] = [
        PoolState::Unready,
        PoolState::Preloading,
        PoolState::Ready,
        PoolState::Draining,
        PoolState::Stopped,
        PoolState::Broken,
    ];

    /// The state that follows from what the operator wants and where the replicas stand: the one function that knows.
    pub fn of(intent: Intent, replicas: impl IntoIterator<Item = ReplicaState>) -> PoolState {
        match intent {
            Intent::Drain => return PoolState::Draining,
            Intent::Stop => return PoolState::Stopped,
            Intent::Serve => {}
        }
        let mut state = PoolState::Broken;
        for replica in replicas {
            let better = match replica {
                ReplicaState::Ready => return PoolState::Ready,
                ReplicaState::Preloading | ReplicaState::Suspect | ReplicaState::Reloading => PoolState::Preloading,
                ReplicaState::Backoff { .. } | ReplicaState::DeviceDown { .. } if state == PoolState::Broken => {
                    PoolState::Unready
                }
                _ => state,
            };
            state = better;
        }
        state
    }

    /// Whether a new task may be queued. A pool that loads its model takes tasks; they wait until it is Ready.
    pub const fn takes_tasks(self) -> bool {
        matches!(self, PoolState::Ready | PoolState::Preloading)
    }

    /// The state as it is written in JSON and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            PoolState::Unready => "unready",
            PoolState::Preloading => "preloading",
            PoolState::Ready => "ready",
            PoolState::Draining => "draining",
            PoolState::Broken => "broken",
            PoolState::Stopped => "stopped",
        }
    }
}

/// How soon a device that is overdue may be back, at the earliest.
const DEVICE_LOOK: Duration = Duration::from_secs(1);

/// How long until the first replica that is down is tried again; `None` when none is going to be.
pub fn next_try(now: Timestamp, replicas: impl IntoIterator<Item = ReplicaState>) -> Option<Duration> {
    let moments = replicas.into_iter().filter_map(|replica| match replica {
        ReplicaState::Backoff { until } | ReplicaState::Broken { until } => Some(until.since(now)),
        // Behind that moment it is looked at again and again.
        ReplicaState::DeviceDown { until } => Some(until.since(now).max(DEVICE_LOOK)),
        _ => None,
    });
    moments.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: ReplicaState = ReplicaState::Backoff { until: Timestamp::from_micros(9) };
    const BROKEN: ReplicaState = ReplicaState::Broken { until: Timestamp::from_micros(7) };

    #[test]
    fn a_pool_is_as_good_as_its_best_replica() {
        use ReplicaState::{Preloading, Ready, Suspect};
        let cases = [
            (vec![BROKEN, BACKOFF, Preloading, Ready], PoolState::Ready),
            (vec![BROKEN, Preloading, BACKOFF], PoolState::Preloading),
            (vec![Suspect, BROKEN], PoolState::Preloading),
            (vec![BROKEN, BACKOFF], PoolState::Unready),
            (vec![BACKOFF, BROKEN], PoolState::Unready),
            (vec![BROKEN, BROKEN], PoolState::Broken),
            (vec![BROKEN, ReplicaState::DeviceDown { until: Timestamp::from_micros(3) }], PoolState::Unready),
        ];
        for (replicas, want) in cases {
            assert_eq!(PoolState::of(Intent::Serve, replicas.clone()), want, "{replicas:?}");
        }
    }

    #[test]
    fn what_the_operator_wants_comes_first() {
        assert_eq!(PoolState::of(Intent::Drain, [ReplicaState::Ready]), PoolState::Draining);
        assert_eq!(PoolState::of(Intent::Stop, [ReplicaState::Ready]), PoolState::Stopped);
        assert!(!PoolState::Draining.takes_tasks());
    }

    #[test]
    fn the_next_try_is_the_soonest() {
        let now = Timestamp::from_micros(2);
        assert_eq!(next_try(now, [BACKOFF, BROKEN]), Some(Duration::from_micros(5)));
        assert_eq!(next_try(now, [ReplicaState::Ready]), None);
    }
}
