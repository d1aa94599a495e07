//! How many attempts of another node's may wait in a pool.

/// What there is in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Places of Ready replicas.
    pub slots: u32,
    /// Those of them that are free.
    pub free: u32,
    /// Tasks that wait in the pool's queue, those of other nodes included.
    pub waiting: u32,
    /// Whether the queue would take one in.
    pub has_room: bool,
}

/// How many attempts each gateway may have here that have not begun: as many as there is room for. A full pool takes
/// one, which waits: so the most deserving task of each gateway stands in the pool's own order, and no other is kept
/// from another place for no use. None where nothing is Ready or the queue is full.
pub fn attempts_allowed(offer: Offer) -> u32 {
    match offer {
        Offer { slots: 0, .. } | Offer { has_room: false, .. } => 0,
        Offer { free, waiting, .. } => free.saturating_sub(waiting).max(1),
    }
}

/// Whether an attempt that comes now would wait: every place is taken, or about to be.
pub fn would_wait(offer: Offer) -> bool {
    offer.free <= offer.waiting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_takes_what_it_has_room_for_and_one_that_waits() {
        let pool = |free, waiting| attempts_allowed(Offer { slots: 4, free, waiting, has_room: true });
        assert_eq!(pool(4, 0), 4, "an empty pool takes as many as it has places");
        assert_eq!(pool(3, 0), 3);
        assert_eq!(pool(3, 3), 1, "its own tasks are about to take them, and one may wait beside them");
        assert_eq!((pool(0, 0), pool(0, 100)), (1, 1), "a full one takes one, which waits, however many wait there");
        assert_eq!(attempts_allowed(Offer { slots: 0, free: 0, waiting: 0, has_room: true }), 0, "nothing is Ready");
        assert_eq!(attempts_allowed(Offer { slots: 4, free: 0, waiting: 9, has_room: false }), 0, "its queue is full");
        let waits = |free, waiting| would_wait(Offer { slots: 4, free, waiting, has_room: true });
        assert_eq!([waits(4, 0), waits(2, 1), waits(2, 2), waits(0, 0)], [false, false, true, true]);
    }
}
