//! What must hold after every step of a run, checked on its trace.

use std::collections::BTreeMap;

use orchestrator_core::Priority;
use orchestrator_core::core::trace::{TraceEvent, TraceKind};
use orchestrator_core::core::{ClientId, Epoch, TaskSeq, Timestamp};

/// What a run was told, as far as the rules need it.
pub struct Spec {
    /// Of each pool, most tasks that may wait.
    pub capacity: Vec<u32>,
    /// Most attempts of one task.
    pub attempts_max: u32,
    /// A client that may run one task at a time.
    pub narrow: ClientId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Submitted,
    Waiting,
    Assigned,
    Running,
    /// On its way back to its queue.
    Returning,
    Over,
}

type Lane = (u16, Priority, ClientId);

struct Task {
    phase: Phase,
    epoch: Epoch,
    attempts: u32,
    /// The step at which it last left its queue.
    sent: usize,
    /// Where its newest attempt runs.
    at: (u16, u16),
    /// Tokens of the newest attempt, and of all.
    tokens: [u32; 2],
    lane: Option<Lane>,
    in_session: bool,
    /// Its place in the order in which tasks were queued for the first time.
    arrival: usize,
}

/// Follows a trace, event by event.
pub struct Checker<'a> {
    law: &'a Spec,
    tasks: BTreeMap<TaskSeq, Task>,
    arrivals: usize,
    /// Of each pool, how many may wait: its bound, or more while tasks have come back that were counted when they came.
    room: Vec<usize>,
    /// Which model each pool serves since which step, in order; the first of each since ever.
    served: Vec<(usize, u16, u64)>,
    /// Replicas that attempts have failed on, or that were busy, by pool and position.
    conduct: BTreeMap<(u16, u16), Conduct>,
    /// Steps so far.
    steps: usize,
}

/// What a replica's attempts have said of it.
#[derive(Default)]
struct Conduct {
    /// It gets no task before.
    until: Timestamp,
    /// So many may run at once, until one shows that it works.
    allowed: Option<usize>,
}

impl<'a> Checker<'a> {
    /// Checks a whole trace; the first event that breaks a rule comes back with what it breaks.
    pub fn check(law: &'a Spec, trace: &[TraceEvent]) -> Result<(), (usize, String)> {
        let room = law.capacity.iter().map(|capacity| *capacity as usize).collect();
        let served = (0..law.capacity.len() as u16).map(|pool| (0, pool, 0)).collect();
        let mut checker =
            Checker { law, tasks: BTreeMap::new(), arrivals: 0, room, served, conduct: BTreeMap::new(), steps: 0 };
        for (step, event) in trace.iter().enumerate() {
            checker.steps = step;
            checker.step(event).map_err(|broken| (step, broken))?;
        }
        let open = checker.tasks.iter().find(|(_, task)| task.phase != Phase::Over);
        open.map_or(Ok(()), |(seq, task)| Err((trace.len(), format!("task {} is {:?} for ever", seq.0, task.phase))))
    }

    fn step(&mut self, event: &TraceEvent) -> Result<(), String> {
        let kind = &event.kind;
        match kind {
            TraceKind::Submitted { seq } => {
                let task = Task {
                    phase: Phase::Submitted,
                    epoch: Epoch(0),
                    attempts: 0,
                    sent: 0,
                    at: (0, 0),
                    tokens: [0; 2],
                    lane: None,
                    in_session: false,
                    arrival: usize::MAX,
                };
                self.tasks.insert(*seq, task).map_or(Ok(()), |_| Err(format!("task {} is submitted twice", seq.0)))
            }
            TraceKind::Queued { seq, pool, class, client, in_session } => {
                self.queued(*seq, (*pool, *class, client.clone()), *in_session)
            }
            TraceKind::Assigned { seq, epoch } => self.assigned(*seq, *epoch),
            TraceKind::Begun { seq, pool, generation, replica } => {
                self.served_while_sent(*seq, *pool, *generation)?;
                self.begins_where_it_may(event.at, *seq, (*pool, *replica))?;
                let most = self.law.attempts_max;
                let task = self.task(*seq, &[Phase::Assigned], kind)?;
                (task.phase, task.tokens[0], task.attempts) = (Phase::Running, 0, task.attempts + 1);
                hold(task.attempts <= most, || format!("task {} has its attempt {}", seq.0, task.attempts))
            }
            TraceKind::Token { seq, index } => {
                let task = self.task(*seq, &[Phase::Running], kind)?;
                let (expected, at) = (task.tokens[0], task.at);
                task.tokens = [index + 1, task.tokens[1].max(index + 1)];
                self.works(at);
                hold(*index == expected, || format!("token {index} of task {} comes where {expected} was due", seq.0))
            }
            TraceKind::Forgiven { seq } => {
                let task = self.task(*seq, &[Phase::Running], kind)?;
                task.attempts = task.attempts.saturating_sub(1);
                Ok(())
            }
            TraceKind::Ejected { pool, replica, until, allowed } => {
                let conduct = self.conduct.entry((*pool, *replica)).or_default();
                conduct.until = conduct.until.max(*until);
                conduct.allowed = Some(conduct.allowed.unwrap_or(usize::MAX).min(*allowed as usize));
                Ok(())
            }
            TraceKind::Returned { seq } => {
                let task = self.task(*seq, &[Phase::Assigned, Phase::Running], kind)?;
                task.phase = Phase::Returning;
                Ok(())
            }
            TraceKind::Ended { seq, .. } | TraceKind::Failed { seq, .. } => {
                if let (TraceKind::Ended { .. }, Some(task)) = (kind, self.tasks.get(seq)) {
                    let at = task.at;
                    self.works(at);
                }
                let live = [Phase::Submitted, Phase::Waiting, Phase::Assigned, Phase::Running, Phase::Returning];
                self.task(*seq, &live, kind)?.phase = Phase::Over;
                Ok(())
            }
            TraceKind::ChangedOver { pool, generation } => {
                self.served.push((self.steps, *pool, *generation));
                Ok(())
            }
            TraceKind::Renewed { pool, replica } => {
                self.conduct.remove(&(*pool, *replica));
                Ok(())
            }
            TraceKind::ActorStarted { .. } | TraceKind::ActorDied { .. } => Ok(()),
        }
    }

    fn task(&mut self, seq: TaskSeq, phases: &[Phase], kind: &TraceKind) -> Result<&mut Task, String> {
        let task = self.tasks.get_mut(&seq).ok_or_else(|| format!("nobody submitted task {}", seq.0))?;
        let phase = task.phase;
        hold(phases.contains(&phase), || format!("task {} is {phase:?} and has {kind:?}", seq.0))?;
        Ok(task)
    }

    /// A task begins on a model that its pool served at some moment since the task left its queue.
    fn served_while_sent(&self, seq: TaskSeq, pool: u16, generation: u64) -> Result<(), String> {
        let sent = self.tasks.get(&seq).map_or(0, |task| task.sent);
        let of_pool: Vec<_> = self.served.iter().filter(|(_, other, _)| *other == pool).collect();
        let until = |index: usize| of_pool.get(index + 1).map_or(usize::MAX, |(next, ..)| *next);
        let served =
            |(index, (_, _, known)): (usize, &&(usize, u16, u64))| *known == generation && until(index) >= sent;
        let is_served = of_pool.iter().enumerate().any(served);
        hold(is_served, || format!("task {} begins on model {generation} of pool {pool}, which serves another", seq.0))
    }

    /// A replica that was left out gets nothing before its time, and then as many as it may have.
    fn begins_where_it_may(&mut self, now: Timestamp, seq: TaskSeq, at: (u16, u16)) -> Result<(), String> {
        let running = self.tasks.values().filter(|task| task.phase == Phase::Running && task.at == at).count();
        if let Some(conduct) = self.conduct.get(&at) {
            hold(now >= conduct.until, || format!("task {} begins at {at:?}, which is left out", seq.0))?;
            let allowed = conduct.allowed.unwrap_or(usize::MAX);
            hold(running < allowed, || format!("task {} begins at {at:?} beside {running}, of {allowed}", seq.0))?;
        }
        if let Some(task) = self.tasks.get_mut(&seq) {
            task.at = at;
        }
        Ok(())
    }

    /// A replica has shown that it works.
    fn works(&mut self, at: (u16, u16)) {
        if let Some(conduct) = self.conduct.get_mut(&at) {
            conduct.allowed = None;
        }
    }

    fn waiting(&self) -> impl Iterator<Item = (&TaskSeq, &Task)> {
        self.tasks.iter().filter(|(_, task)| task.phase == Phase::Waiting)
    }

    fn queued(&mut self, seq: TaskSeq, lane: Lane, in_session: bool) -> Result<(), String> {
        let arrivals = self.arrivals;
        self.arrivals += 1;
        let task = self.tasks.get_mut(&seq).ok_or_else(|| format!("nobody submitted task {}", seq.0))?;
        let is_new = task.phase == Phase::Submitted;
        let may_wait = matches!(task.phase, Phase::Submitted | Phase::Waiting | Phase::Returning);
        hold(may_wait, || format!("task {} is {:?} and queued", seq.0, task.phase))?;
        task.arrival = task.arrival.min(arrivals);
        (task.phase, task.in_session) = (Phase::Waiting, in_session);
        let pool = lane.0;
        task.lane = Some(lane);
        let (waiting, room) = (self.waiting_in(pool), self.room[pool as usize]);
        if !is_new {
            self.room[pool as usize] = room.max(waiting); // It was counted when it came.
        }
        hold(!is_new || waiting <= room, || format!("{waiting} tasks wait in pool {pool} that has room for {room}"))
    }

    fn waiting_in(&self, pool: u16) -> usize {
        let in_pool = |task: &Task| task.lane.as_ref().is_some_and(|(other, ..)| *other == pool);
        self.waiting().filter(|(_, task)| in_pool(task)).count()
    }

    fn assigned(&mut self, seq: TaskSeq, epoch: Epoch) -> Result<(), String> {
        let kind = TraceKind::Assigned { seq, epoch };
        let steps = self.steps;
        let task = self.task(seq, &[Phase::Waiting], &kind)?;
        task.sent = steps;
        let expected = Epoch(task.epoch.0 + 1);
        (task.phase, task.epoch) = (Phase::Assigned, epoch);
        hold(epoch == expected, || format!("task {} is in epoch {} and not {}", seq.0, epoch.0, expected.0))?;
        let pool = self.tasks[&seq].lane.as_ref().map_or(0, |(pool, ..)| *pool);
        let bound = self.law.capacity[pool as usize] as usize;
        self.room[pool as usize] = self.room[pool as usize].min(self.waiting_in(pool)).max(bound);
        let task = &self.tasks[&seq];
        // First in, first out, in a lane: who has a smaller number and came sooner goes first. Conversations step
        // aside.
        let overtaken = self.waiting().find(|(other_seq, other)| {
            let before = **other_seq < seq && other.arrival < task.arrival;
            before && other.lane == task.lane && !other.in_session && !task.in_session
        });
        if let Some((other, _)) = overtaken {
            return Err(format!("task {} overtakes task {} in its lane", seq.0, other.0));
        }
        let out = self.tasks.values().filter(|task| matches!(task.phase, Phase::Assigned | Phase::Running));
        let of_narrow = out.filter(|task| task.lane.as_ref().is_some_and(|(.., client)| *client == self.law.narrow));
        let of_narrow = of_narrow.count();
        hold(of_narrow <= 1, || format!("{of_narrow} tasks run of a client that may run one"))
    }
}

fn hold(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
