//! What each client was given in the last minute, for people to look at. Decides nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;

use crate::core::id::ClientId;
use crate::core::slo::rolling::slice_of;
use crate::core::units::Timestamp;

const SLICE: Duration = Duration::from_secs(10);
const SLICES: u64 = 6;
/// Clients that are told apart in one slice; what others got is only in the total.
const CLIENTS_MAX: usize = 256;

/// Weighted tokens by client, and tokens of all, by slices of ten seconds. Oldest first.
#[derive(Clone, Debug, Default)]
pub struct Shares(VecDeque<Slice>);

#[derive(Clone, Debug, Default)]
struct Slice {
    number: u64,
    clients: BTreeMap<ClientId, u64>,
    weighted: u64,
    output: u64,
}

/// What was given in a minute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UsageWindow {
    /// Weighted tokens by client, at most 256 clients a slice.
    pub clients: BTreeMap<ClientId, u64>,
    /// Weighted tokens of all clients.
    pub weighted: u64,
    /// Generated tokens.
    pub output: u64,
}

impl Shares {
    /// Notes what a client was given.
    pub fn note(&mut self, now: Timestamp, client: &ClientId, weighted: u64, output: u32) {
        self.advance(now);
        let number = slice_of(now, SLICE);
        if self.0.back().is_none_or(|slice| slice.number != number) {
            self.0.push_back(Slice { number, ..Slice::default() });
        }
        let Some(slice) = self.0.back_mut() else { return };
        slice.weighted += weighted;
        slice.output += u64::from(output);
        if let Some(known) = slice.clients.get_mut(client) {
            *known += weighted;
        } else if slice.clients.len() < CLIENTS_MAX {
            slice.clients.insert(client.clone(), weighted);
        }
    }

    /// Lets go of what is older than a minute.
    pub fn advance(&mut self, now: Timestamp) {
        let oldest = (slice_of(now, SLICE) + 1).saturating_sub(SLICES);
        while self.0.front().is_some_and(|slice| slice.number < oldest) {
            self.0.pop_front();
        }
    }

    /// Whether nothing was given in the last minute, as of the last call that said the time.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was given in the last minute.
    pub fn given(&self) -> UsageWindow {
        let mut given = UsageWindow::default();
        for slice in &self.0 {
            given.weighted += slice.weighted;
            given.output += slice.output;
            slice
                .clients
                .iter()
                .for_each(|(client, tokens)| *given.clients.entry(client.clone()).or_default() += tokens);
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_remembered_and_strangers_are_bounded() {
        let mut shares = Shares::default();
        let name = |number: usize| ClientId::parse(&format!("c{number}")).expect("valid");
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        (0..1_000).for_each(|number| shares.note(at(1), &name(number), 3, 1));
        let given = shares.given();
        assert_eq!((given.clients.len(), given.weighted, given.output), (CLIENTS_MAX, 3_000, 1_000));
        shares.note(at(61), &name(0), 5, 2);
        assert_eq!(shares.given().clients, BTreeMap::from([(name(0), 5)]));
    }
}
