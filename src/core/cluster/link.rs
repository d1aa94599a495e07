//! One side of the connection between two nodes: what may be sent, what must have come, and whether the other side
//! lives.
//!
//! The bytes below are a stream that neither loses nor reorders, and whose own buffers have no bound. So nothing is
//! ever sent again here: numbers find a peer that errs, acknowledgements bound what is under way, and a clock finds a
//! peer that has stopped.
//!
//! Spec: ORCH-3044. The bounds are those of a slow receiver: `flying + waiting <= window + outbox`, in bytes and in
//! messages.

use std::collections::VecDeque;
use std::time::Duration;

use crate::core::check;
use crate::core::units::Timestamp;

/// The bounds of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkPolicy {
    /// Longest time without a message of ours.
    pub beat: Duration,
    /// Silence after which the other side gets nothing new.
    pub suspect_after: Duration,
    /// Silence after which the other side is dead.
    pub dead_after: Duration,
    /// Most bytes that are sent and not acknowledged; one message may exceed it.
    pub window_bytes: usize,
    /// Most messages that are sent and not acknowledged.
    pub window_messages: usize,
    /// Most bytes that wait to be sent.
    pub outbox_bytes: usize,
    /// Most messages that wait to be sent.
    pub outbox_messages: usize,
}

impl Default for LinkPolicy {
    /// A dead peer is known 3 s after its last word, 15 beats. A megabyte under way keeps a connection of 10 Gbit/s and
    /// 0.8 ms busy.
    fn default() -> Self {
        LinkPolicy {
            beat: Duration::from_millis(200),
            suspect_after: Duration::from_secs(1),
            dead_after: Duration::from_secs(3),
            window_bytes: 1024 * 1024,
            window_messages: 4096,
            outbox_bytes: 8 * 1024 * 1024,
            outbox_messages: 16_384,
        }
    }
}

/// Whether the other side lives, by its silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// It has spoken lately.
    Alive,
    /// It has been silent for long: nothing new is given to it.
    Suspect,
    /// It counts as gone: what it had is lost, and what it still says is void.
    Dead,
}

/// Why a link cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// The other side takes too little.
    #[error("{messages} messages of {bytes} bytes wait for a peer that does not take them")]
    Full {
        /// Messages that wait.
        messages: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// A message is missing, or came twice.
    #[error("message {found} came where {expected} was due")]
    Gap {
        /// The number that was due.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// Something is acknowledged that was never sent.
    #[error("message {found} is acknowledged, and the last one sent was {sent}")]
    Unsent {
        /// The number that is acknowledged.
        found: u64,
        /// The last number that was sent.
        sent: u64,
    },
}

/// One side of a link. Numbers begin at 1; 0 acknowledges nothing.
#[derive(Debug)]
pub struct Link<T> {
    policy: LinkPolicy,
    /// What waits to be sent, in order, with its bytes.
    waiting: VecDeque<(usize, T)>,
    waiting_bytes: usize,
    /// The bytes of what was sent and is not acknowledged; the last one is of number `sent`.
    flying: VecDeque<usize>,
    flying_bytes: usize,
    sent: u64,
    sent_at: Timestamp,
    received: u64,
    /// Bytes and messages that came since the last acknowledgement of ours.
    owed: (usize, usize),
    heard_at: Timestamp,
}

impl<T> Link<T> {
    /// A link whose other side has just spoken.
    pub fn new(policy: LinkPolicy, now: Timestamp) -> Self {
        Link {
            policy,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            flying: VecDeque::new(),
            flying_bytes: 0,
            sent: 0,
            sent_at: now,
            received: 0,
            owed: (0, 0),
            heard_at: now,
        }
    }

    /// Takes a message of so many bytes to be sent.
    ///
    /// # Errors
    /// [`LinkFault::Full`] when too much waits: the message is not taken, and the link is to be given up.
    pub fn push(&mut self, bytes: usize, message: T) -> Result<(), LinkFault> {
        let (messages, total) = (self.waiting.len() + 1, self.waiting_bytes + bytes);
        if messages > self.policy.outbox_messages || total > self.policy.outbox_bytes {
            return Err(LinkFault::Full { messages, bytes: total });
        }
        self.waiting.push_back((bytes, message));
        self.waiting_bytes = total;
        check(self.load().0, || self.invariants());
        Ok(())
    }

    /// The next message that may be sent now, with its number.
    pub fn next(&mut self, now: Timestamp) -> Option<(u64, T)> {
        let room = self.flying.len() < self.policy.window_messages;
        let fits = |bytes: usize| self.flying.is_empty() || self.flying_bytes + bytes <= self.policy.window_bytes;
        if !room || !self.waiting.front().is_some_and(|(bytes, _)| fits(*bytes)) {
            return None;
        }
        let (bytes, message) = self.waiting.pop_front()?;
        self.waiting_bytes -= bytes;
        self.flying.push_back(bytes);
        self.flying_bytes += bytes;
        self.sent += 1;
        self.note_sent(now);
        check(self.load().0, || self.invariants());
        Some((self.sent, message))
    }

    /// Something without a number was sent: a beat. Everything that goes out acknowledges [`Link::received`].
    pub fn note_sent(&mut self, now: Timestamp) {
        self.sent_at = now;
        self.owed = (0, 0);
    }

    /// A message came; a beat has no number. Returns whether an acknowledgement must not wait for the next beat.
    ///
    /// # Errors
    /// [`LinkFault::Gap`] and [`LinkFault::Unsent`]: the other side errs, and the link is to be given up.
    pub fn take(&mut self, now: Timestamp, seq: Option<u64>, ack: u64, bytes: usize) -> Result<bool, LinkFault> {
        if let Some(found) = seq {
            let expected = self.received + 1;
            if found != expected {
                return Err(LinkFault::Gap { expected, found });
            }
            self.received = found;
            self.owed = (self.owed.0 + bytes, self.owed.1 + 1);
        }
        if ack > self.sent {
            return Err(LinkFault::Unsent { found: ack, sent: self.sent });
        }
        // Acknowledgements are of all that came before, too; an older one than the last says nothing.
        while !self.flying.is_empty() && self.sent - (self.flying.len() as u64) < ack {
            self.flying_bytes -= self.flying.pop_front().unwrap_or(0);
        }
        self.heard_at = now;
        check(self.load().0, || self.invariants());
        Ok(self.owed.0 > self.policy.window_bytes / 4 || self.owed.1 > self.policy.window_messages / 4)
    }

    /// How long nothing has been heard of the other side.
    pub fn silence(&self, now: Timestamp) -> Duration {
        now.since(self.heard_at)
    }

    /// Whether something came that nothing of ours has acknowledged.
    pub fn owes(&self) -> bool {
        self.owed.1 > 0
    }

    /// The last number that came.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether a beat is due.
    pub fn is_beat_due(&self, now: Timestamp) -> bool {
        now.since(self.sent_at) >= self.policy.beat
    }

    /// Whether the other side lives.
    pub fn liveness(&self, now: Timestamp) -> Liveness {
        match self.silence(now) {
            silence if silence >= self.policy.dead_after => Liveness::Dead,
            silence if silence >= self.policy.suspect_after => Liveness::Suspect,
            _ => Liveness::Alive,
        }
    }

    /// Checks what must always hold, by a full scan. For tests and debug builds.
    ///
    /// # Panics
    /// When something does not hold.
    pub(crate) fn invariants(&self) {
        let policy = &self.policy;
        assert_eq!(self.waiting_bytes, self.waiting.iter().map(|(bytes, _)| bytes).sum::<usize>(), "what waits");
        assert!(
            self.waiting.len() <= policy.outbox_messages && self.waiting_bytes <= policy.outbox_bytes,
            "the outbox"
        );
        assert_eq!(self.flying_bytes, self.flying.iter().sum::<usize>(), "what is under way");
        assert!(self.flying.len() <= policy.window_messages, "the window, in messages");
        assert!(self.flying.len() <= 1 || self.flying_bytes <= policy.window_bytes, "the window, in bytes");
        assert!(self.flying.len() as u64 <= self.sent, "only what was sent is under way");
        assert!(self.owed.1 as u64 <= self.received, "only what came is owed an acknowledgement");
    }

    /// Messages and bytes that wait or are under way.
    pub fn load(&self) -> (usize, usize) {
        (self.waiting.len() + self.flying.len(), self.waiting_bytes + self.flying_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1000)
    }

    fn small() -> LinkPolicy {
        let (window_bytes, window_messages, outbox_bytes, outbox_messages) = (100, 4, 300, 6);
        LinkPolicy { window_bytes, window_messages, outbox_bytes, outbox_messages, ..LinkPolicy::default() }
    }

    #[test]
    fn a_silent_peer_is_suspected_and_then_dead_and_a_word_of_it_is_enough() {
        let mut link = Link::<()>::new(LinkPolicy::default(), at(0));
        assert_eq!(link.liveness(at(999)), Liveness::Alive);
        assert_eq!((link.liveness(at(1000)), link.liveness(at(2999))), (Liveness::Suspect, Liveness::Suspect));
        assert_eq!(link.take(at(2500), None, 0, 10), Ok(false));
        assert_eq!((link.liveness(at(3000)), link.liveness(at(5500))), (Liveness::Alive, Liveness::Dead));
    }

    #[test]
    fn a_beat_is_due_only_when_nothing_else_was_sent() {
        let mut link = Link::new(LinkPolicy::default(), at(0));
        assert!(!link.is_beat_due(at(199)) && link.is_beat_due(at(200)));
        assert_eq!(link.push(1, ()), Ok(()));
        assert_eq!(link.next(at(150)), Some((1, ())));
        assert!(!link.is_beat_due(at(349)) && link.is_beat_due(at(350)));
    }

    #[test]
    fn a_peer_that_takes_nothing_costs_bounded_memory_and_then_the_link() {
        let mut link = Link::new(small(), at(0));
        let mut taken = 0;
        while link.push(50, ()).is_ok() {
            let _ = link.next(at(1));
            taken += 1;
        }
        assert_eq!((taken, link.load()), (8, (8, 400)), "two are under way, six wait");
        assert_eq!(link.push(50, ()), Err(LinkFault::Full { messages: 7, bytes: 350 }));
    }

    #[test]
    fn a_message_larger_than_the_window_goes_alone() {
        let mut link = Link::new(small(), at(0));
        assert!(link.push(10, 'a').is_ok() && link.push(250, 'b').is_ok());
        assert_eq!((link.next(at(0)), link.next(at(0))), (Some((1, 'a')), None));
        assert_eq!(link.take(at(0), None, 1, 0), Ok(false));
        assert_eq!(link.next(at(0)), Some((2, 'b')));
    }

    #[test]
    fn a_peer_that_errs_is_found() {
        let mut link = Link::<()>::new(small(), at(0));
        assert_eq!(link.take(at(0), Some(2), 0, 1), Err(LinkFault::Gap { expected: 1, found: 2 }));
        assert_eq!(link.take(at(0), Some(1), 0, 1), Ok(false));
        assert_eq!(link.take(at(0), Some(1), 0, 1), Err(LinkFault::Gap { expected: 2, found: 1 }));
        assert_eq!(link.take(at(0), None, 1, 0), Err(LinkFault::Unsent { found: 1, sent: 0 }));
    }

    proptest! {
        /// Two sides over a wire that neither loses nor reorders: all arrives once and in order, within the bounds, and
        /// whoever is blocked is freed by an acknowledgement that the other side owes.
        #[test]
        fn what_is_pushed_arrives_once_in_order_and_within_the_window(sizes in prop::collection::vec(0_usize..120, 1..80), steps in prop::collection::vec(0_u8..3, 1..400)) {
            let (mut near, mut far) = (Link::new(small(), at(0)), Link::<usize>::new(small(), at(0)));
            let (mut to_push, mut wire, mut arrived) = (sizes.iter().copied().enumerate(), VecDeque::new(), Vec::new());
            let mut next_push = to_push.next();
            for step in steps.into_iter().chain(std::iter::repeat_n([0, 1, 2], 400).flatten()) {
                match (step, next_push) {
                    (0, Some((index, bytes))) if near.push(bytes, index).is_ok() => next_push = to_push.next(),
                    (1, _) => while let Some((seq, index)) = near.next(at(0)) { wire.push_back((seq, index)) },
                    (2, _) => if let Some((seq, index)) = wire.pop_front() {
                        let due = far.take(at(0), Some(seq), 0, sizes[index]);
                        arrived.push(index);
                        if due.unwrap_or_else(|fault| panic!("{fault}")) || wire.is_empty() {
                            far.note_sent(at(0));
                            prop_assert!(near.take(at(0), None, far.received(), 0).is_ok());
                        }
                    },
                    _ => {}
                }
                prop_assert!(near.flying.len() <= 4 && (near.flying_bytes <= 100 || near.flying.len() == 1));
                prop_assert_eq!(near.flying.iter().sum::<usize>(), near.flying_bytes);
            }
            prop_assert_eq!(arrived, (0..sizes.len()).collect::<Vec<_>>());
            prop_assert_eq!(near.load(), (0, 0));
        }
    }
}
