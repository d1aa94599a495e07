//! Who guesses keys is slowed down: a bucket of failures for each address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::Mutex;

use crate::core::units::Timestamp;

/// Addresses that are remembered. Beyond them all whose buckets are full again are forgotten, and then everybody.
const ADDRESSES_MAX: usize = 16_384;

/// Failures by address.
pub(crate) struct Throttle {
    per_s: f64,
    burst: f64,
    /// Failures that are left, and as of when. A short lock, taken when a request fails.
    left: Mutex<HashMap<IpAddr, (f64, Timestamp)>>,
}

impl Throttle {
    pub(crate) fn new(per_s: f64, burst: u32) -> Self {
        Throttle { per_s, burst: burst.into(), left: Mutex::default() }
    }

    /// Notes a failure; returns the seconds to wait when there were too many.
    pub(crate) fn fail(&self, address: IpAddr, now: Timestamp) -> Option<f64> {
        let address = network(address);
        let mut left = self.left.lock();
        if left.len() >= ADDRESSES_MAX && !left.contains_key(&address) {
            let (per_s, burst) = (self.per_s, self.burst);
            left.retain(|_, (count, since)| *count + now.since(*since).as_secs_f64() * per_s < burst);
            if left.len() >= ADDRESSES_MAX {
                left.clear();
            }
        }
        let (count, since) = left.entry(address).or_insert((self.burst, now));
        *count = (*count + now.since(*since).as_secs_f64() * self.per_s).min(self.burst);
        *since = now;
        if *count >= 1.0 {
            *count -= 1.0;
            return None;
        }
        Some((1.0 - *count) / self.per_s)
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_a_second() {
        let throttle = Throttle::new(1.0, 3);
        let (address, at) = (IpAddr::from([10, 0, 0, 1]), |ms: u64| Timestamp::from_micros(ms * 1000));
        assert!((0..3).all(|_| throttle.fail(address, at(0)).is_none()));
        assert_eq!(throttle.fail(address, at(500)), Some(0.5));
        assert_eq!(throttle.fail(address, at(1000)), None);
        assert!(throttle.fail(IpAddr::from([10, 0, 0, 2]), at(1000)).is_none(), "another address");
    }

    #[test]
    fn addresses_are_bounded_and_a_network_is_one() {
        let throttle = Throttle::new(1.0, 1);
        for number in 0..40_000_u32 {
            throttle.fail(IpAddr::from(number.to_be_bytes()), Timestamp::from_micros(1));
            assert!(throttle.left.lock().len() <= ADDRESSES_MAX);
        }
        let v6 = |last: u16| IpAddr::V6(Ipv6Addr::new(1, 2, 3, 4, 0, 0, 0, last));
        throttle.left.lock().clear();
        throttle.fail(v6(1), Timestamp::from_micros(2));
        assert!(throttle.fail(v6(2), Timestamp::from_micros(2)).is_some());
    }
}
