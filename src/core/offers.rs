//! How many attempts of another node's a pool takes.

/// What there is in a pool, and what it has of one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Places of Ready replicas.
    pub slots: u32,
    /// Those of them that are free.
    pub free: u32,
    /// Tasks that wait in the pool's queue, guests included.
    pub waiting: u32,
    /// Guests of this gateway that run.
    pub running: u32,
}

/// How many guests this gateway may have: those that run, and as many as there is room for. A full pool takes one more, which waits: so the
/// most deserving task of each gateway stands in the pool's own order, and none is kept from another place for no use. None where nothing
/// is Ready.
pub fn guests_allowed(offer: Offer) -> u32 {
    match offer.slots {
        0 => 0,
        _ => offer.running + offer.free.saturating_sub(offer.waiting).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_takes_what_it_has_room_for_and_one_that_waits() {
        let pool = |free, waiting, running| guests_allowed(Offer { slots: 4, free, waiting, running });
        assert_eq!(pool(4, 0, 0), 4, "an empty pool takes as many as it has places");
        assert_eq!(pool(3, 0, 1), 4);
        assert_eq!(pool(3, 3, 1), 2, "its own tasks are about to take them, and one may wait beside them");
        assert_eq!(pool(0, 0, 2), 3, "a full one takes one more, which waits");
        assert_eq!(pool(0, 100, 3), 4, "however many wait there already");
        assert_eq!(guests_allowed(Offer { slots: 0, free: 0, waiting: 0, running: 0 }), 0, "nothing is Ready");
    }
}
