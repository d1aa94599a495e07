//! A client's limit, divided over the nodes through which it comes: shares that together never exceed the whole, and
//! follow the demand.
//!
//! Every node that is known has an even part. Those that are linked put their parts together and divide them by what
//! the client asked of each in the last second, a tenth of it evenly; a node that is not linked keeps its part. A share
//! falls at once and rises late: only behind five seconds in which nothing spoke against it, all others having heard of
//! it, and four in which nobody came or went, longer than it takes until a dead link is noticed on both sides. So no
//! two nodes have one part at a time, and in any interval of T seconds a limit of R a second with a burst of B lets
//! through no more than `R·T + B`, and one task of each node, which is never denied a burst of one.

use std::collections::VecDeque;

/// The whole of a limit.
pub const WHOLE: u32 = 1_000_000;
/// Looks without a change of who is linked, before a share may rise.
const CALM_LOOKS: u32 = 4;
/// The last divisions of which the least counts. Nodes divide by demands that are up to two looks apart: with four
/// divisions random demands came to 1.14 times the whole, with five never to more than the whole, with six to 0.98.
const LOOKS: usize = 6;
/// One in so many parts is divided evenly, so that whoever comes to a node is not turned away for a second.
const EVEN_SHARE: u64 = 10;

/// The part of one node among `known`, when nothing is known of the demand.
pub fn even(known: usize) -> u32 {
    WHOLE / known.max(1) as u32
}

/// One node's share, by what the client asked of it and of each of the `others` that are linked.
fn divide(own: u32, others: &[u32], known: usize) -> u32 {
    let linked = others.len() as u64 + 1;
    let together = u64::from(even(known)) * linked;
    let sum = u64::from(own) + others.iter().map(|demand| u64::from(*demand)).sum::<u64>();
    let evenly = together / EVEN_SHARE;
    // Of no demand at all, each has as much as the others.
    let by_demand = ((together - evenly) * u64::from(own)).checked_div(sum).unwrap_or((together - evenly) / linked);
    (evenly / linked + by_demand) as u32
}

/// One client's share at one node, from look to look.
#[derive(Clone, Debug, Default)]
pub struct Share {
    last: VecDeque<u32>,
    in_force: Option<u32>,
}

impl Share {
    /// A second has passed: the share that is in force from now on. `calm` counts the looks since somebody came or
    /// went.
    pub fn look(&mut self, own: u32, others: &[u32], known: usize, calm: u32) -> u32 {
        let now = divide(own, others, known);
        self.last.push_back(now);
        if self.last.len() > LOOKS {
            self.last.pop_front();
        }
        let least = self.last.iter().copied().min().unwrap_or(now);
        let before = self.in_force.unwrap_or_else(|| even(known));
        let is_calm = calm >= CALM_LOOKS && self.last.len() == LOOKS;
        let share = if is_calm { least } else { before.min(now) };
        self.in_force = Some(share);
        share
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_share_follows_the_demand_and_rises_late() {
        let mut share = Share::default();
        let looks: Vec<u32> = (0..7).map(|look| share.look(90, &[10, 0], 3, look + 2)).collect();
        assert_eq!(looks, [333_333, 333_333, 333_333, 333_333, 333_333, 843_333, 843_333]);
        assert_eq!(share.look(0, &[10, 90], 3, 10), 33_333, "and falls at once");
        assert_eq!(share.look(90, &[10, 0], 3, 11), 33_333);
        assert_eq!(Share::default().look(5, &[], 3, 0), 333_333, "alone it keeps its own part and no more");
    }

    proptest! {
        /// Nodes that look at different moments, with demands that are up to two looks old, and links that come and go,
        /// noticed by each side up to three looks apart: the shares never exceed the whole.
        #[test]
        fn together_no_more_than_the_whole(
            demands in prop::collection::vec([0_u32..100, 0_u32..100, 0_u32..100], 40),
            cuts in prop::collection::vec((0_usize..40, 0_usize..3, 1_usize..12), 0..4),
            late in prop::collection::vec(0_usize..3, 3),
            old in prop::collection::vec(1_usize..3, 3),
        ) {
            let is_cut = |look: usize, node: usize, delay: usize| cuts.iter().any(|(from, cut, long)| {
                *cut == node && look >= from + delay && look < from + long.max(&4) + delay
            });
            let mut shares = [Share::default(), Share::default(), Share::default()];
            let mut calm = [0_u32; 3];
            let mut linked_before = [vec![], vec![], vec![]];
            for look in 2..40 {
                let mut sum = 0_u64;
                for node in 0..3 {
                    // A node that is cut off is linked with nobody; the others notice it when they do.
                    let alone = is_cut(look, node, late[node]);
                    let linked: Vec<usize> =
                        (0..3).filter(|other| *other != node && !alone && !is_cut(look, *other, late[node])).collect();
                    calm[node] = if linked == linked_before[node] { calm[node] + 1 } else { 0 };
                    let others: Vec<u32> = linked.iter().map(|other| demands[look - old[node]][*other]).collect();
                    linked_before[node] = linked;
                    sum += u64::from(shares[node].look(demands[look - 1][node], &others, 3, calm[node]));
                }
                prop_assert!(sum <= u64::from(WHOLE), "look {look}: {sum}");
            }
        }
    }
}
