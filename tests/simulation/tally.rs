//! What runs have shown.

/// What one run has shown, for the report that keeps the test honest: a simulation without faults proves nothing.
#[derive(Default, Debug)]
pub struct Tally {
    pub accepted: u64,
    pub refused: u64,
    pub completed: u64,
    pub canceled: u64,
    pub resets: u64,
    pub resumed: u64,
    pub deserted: u64,
    pub timeouts: u64,
    pub evicted: u64,
    pub turned_out: u64,
    pub panics: u64,
    pub engine_panics: u64,
    pub reloaded: u64,
    pub reloads_undone: u64,
    pub stuck: u64,
    pub device_failures: u64,
    pub events: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.completed += other.completed;
        self.canceled += other.canceled;
        self.resets += other.resets;
        self.resumed += other.resumed;
        self.deserted += other.deserted;
        self.timeouts += other.timeouts;
        self.evicted += other.evicted;
        self.turned_out += other.turned_out;
        self.panics += other.panics;
        self.engine_panics += other.engine_panics;
        self.reloaded += other.reloaded;
        self.reloads_undone += other.reloads_undone;
        self.stuck += other.stuck;
        self.device_failures += other.device_failures;
        self.events += other.events;
    }
}
