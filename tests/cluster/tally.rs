//! What runs of a cluster have shown: a simulation without faults proves nothing.

#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    pub accepted: u64,
    pub refused: u64,
    pub completed: u64,
    pub canceled: u64,
    /// Ended by `WORKER_RESET`, `POOL_UNAVAILABLE`, `DECODE_TIMEOUT`.
    pub failed: [u64; 3],
    pub resumed: u64,
    pub guests: u64,
    pub leases_expired: u64,
    pub links: u64,
    pub cuts: u64,
    pub breaks: u64,
    pub kills: u64,
    pub panics: u64,
    pub events: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.completed += other.completed;
        self.canceled += other.canceled;
        (0..3).for_each(|code| self.failed[code] += other.failed[code]);
        self.resumed += other.resumed;
        self.guests += other.guests;
        self.leases_expired += other.leases_expired;
        self.links += other.links;
        self.cuts += other.cuts;
        self.breaks += other.breaks;
        self.kills += other.kills;
        self.panics += other.panics;
        self.events += other.events;
    }
}
