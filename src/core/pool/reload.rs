//! The reload of a pool, step by step (ORCH-3031): the pool serves one model at every moment, and in the end all its
//! replicas have the new one or all have the old one.
//!
//! Replicas are left and replaced one by one while the others serve. When half of them have the goal and are Ready, the
//! pool changes over, in one step; the others are replaced as soon as their last task has ended. A reload that fails is
//! the same walk back. Each step follows from what can be seen now, so whoever asks need not remember how far it was.

/// One replica, as far as a reload is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The model that it has, or is loading.
    pub generation: u64,
    /// Its engine is loaded and well.
    pub is_loaded: bool,
    /// It may be given tasks.
    pub in_service: bool,
    /// Tasks run on it, or are on their way to it.
    pub is_busy: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give this replica no more tasks.
    TakeOut(u16),
    /// Give this one tasks again.
    PutBack(u16),
    /// End this one's worker and engine, and start it with the goal's model.
    Replace(u16),
    /// From now on the pool serves the goal.
    ChangeOver,
    /// Wait until this one's tasks have ended.
    WaitForTasks(u16),
    /// Wait until this one has loaded its model.
    WaitForLoad(u16),
    /// All have the goal.
    Done,
}

/// The next step towards `goal`, of a pool that serves `serving` now. On the way forward it is done when all replicas
/// are loaded; on the way back, when all have their old model again, since what loaded once is the restart rule's to
/// care for.
pub fn next(goal: u64, serving: u64, is_way_back: bool, replicas: &[Seen]) -> Step {
    let numbered = || (0u16..).zip(replicas);
    let at_goal = |seen: &Seen| seen.generation == goal;
    if serving != goal {
        let loaded = replicas.iter().filter(|seen| at_goal(seen) && seen.is_loaded).count();
        if loaded >= replicas.len().div_ceil(2) {
            return Step::ChangeOver;
        }
        if let Some((index, _)) = numbered().find(|(_, seen)| at_goal(seen) && !seen.is_loaded) {
            return Step::WaitForLoad(index);
        }
        // First who is out already: one at a time, those that serve last.
        let left = numbered().filter(|(_, seen)| !at_goal(seen));
        return match left.min_by_key(|(index, seen)| (seen.in_service, seen.is_loaded, *index)) {
            Some((index, seen)) if seen.in_service => Step::TakeOut(index),
            Some((index, seen)) if seen.is_busy => Step::WaitForTasks(index),
            Some((index, _)) => Step::Replace(index),
            None => Step::Done, // Not reached: all at the goal and loaded is more than half.
        };
    }
    if let Some((index, _)) = numbered().find(|(_, seen)| at_goal(seen) && !seen.in_service) {
        return Step::PutBack(index);
    }
    if let Some((index, _)) = numbered().find(|(_, seen)| !at_goal(seen) && !seen.is_busy) {
        return Step::Replace(index);
    }
    if let Some((index, _)) = numbered().find(|(_, seen)| !at_goal(seen)) {
        return Step::WaitForTasks(index);
    }
    match numbered().find(|(_, seen)| !seen.is_loaded) {
        Some((index, _)) if !is_way_back => Step::WaitForLoad(index),
        _ => Step::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: u64 = 1;
    const NEW: u64 = 2;

    /// A pool whose replicas run tasks, load and fail as the dice say.
    struct World {
        replicas: Vec<Seen>,
        serving: u64,
        goal: u64,
        failed: bool,
        /// How likely a load of the new model fails, in percent.
        fails: u64,
    }

    impl World {
        fn in_service(&self) -> usize {
            self.replicas.iter().filter(|seen| seen.in_service && seen.is_loaded).count()
        }

        fn obey(&mut self, step: Step) {
            match step {
                Step::TakeOut(index) => self.replicas[index as usize].in_service = false,
                Step::PutBack(index) => self.replicas[index as usize].in_service = true,
                Step::Replace(index) => {
                    let seen = &mut self.replicas[index as usize];
                    assert!(!seen.is_busy, "no task is ended by a reload");
                    *seen = Seen {
                        generation: self.goal,
                        is_loaded: false,
                        in_service: self.serving == self.goal,
                        is_busy: false,
                    };
                }
                Step::ChangeOver => {
                    self.serving = self.goal;
                    self.replicas.iter_mut().for_each(|seen| seen.in_service = seen.generation == self.goal);
                }
                Step::WaitForTasks(_) | Step::WaitForLoad(_) | Step::Done => {}
            }
        }

        /// Something happens by itself.
        fn live(&mut self, random: &mut fastrand::Rng) {
            let index = random.usize(..self.replicas.len());
            let seen = &mut self.replicas[index];
            if !seen.is_loaded {
                if seen.generation == NEW && !self.failed && random.u64(..100) < self.fails {
                    (self.failed, self.goal) = (true, OLD);
                } else {
                    seen.is_loaded = true;
                }
            } else {
                seen.is_busy = (seen.is_busy || seen.in_service) && random.bool();
            }
        }
    }

    #[test]
    fn every_reload_ends_whole_serves_one_model_at_a_time_and_never_less_than_half() {
        let mut ends = [0; 2];
        for seed in 0..20_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let count = random.usize(1..6);
            let old = Seen { generation: OLD, is_loaded: true, in_service: true, is_busy: false };
            let fails = random.choice([0, 0, 10, 60]).unwrap_or_default();
            let mut world = World { replicas: vec![old; count], serving: OLD, goal: NEW, failed: false, fails };
            let mut steps = 0;
            loop {
                let step = next(world.goal, world.serving, world.failed, &world.replicas);
                if step == Step::Done {
                    break;
                }
                world.obey(step);
                world.live(&mut random);
                let wrong = world.replicas.iter().any(|seen| seen.in_service && seen.generation != world.serving);
                assert!(!wrong, "seed {seed}: a replica serves another model than the pool {:?}", world.replicas);
                if !world.failed {
                    assert!(world.in_service() >= count / 2, "seed {seed}: less than half serve {:?}", world.replicas);
                }
                steps += 1;
                assert!(steps < 1_000, "seed {seed} does not end: {step:?} {:?}", world.replicas);
            }
            let want = if world.failed { OLD } else { NEW };
            assert_eq!(world.serving, want);
            assert!(world.replicas.iter().all(|seen| seen.generation == want && seen.in_service), "seed {seed}");
            ends[usize::from(world.failed)] += 1;
        }
        assert!(ends.iter().all(|count| *count > 1_000), "both ways are walked: {ends:?}");
    }

    #[test]
    fn who_is_down_goes_first_and_who_serves_last() {
        let seen = |is_loaded| Seen { generation: OLD, is_loaded, in_service: true, is_busy: true };
        assert_eq!(next(NEW, OLD, false, &[seen(true), seen(false)]), Step::TakeOut(1));
        let out = Seen { in_service: false, ..seen(true) };
        assert_eq!(next(NEW, OLD, false, &[seen(true), seen(true), out]), Step::WaitForTasks(2));
    }
}
