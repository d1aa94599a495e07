//! How often an address may do what needs no key: send a wrong one, or ask for a page.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;

use crate::core::admission::rate_limiter::RateLimiter;
use crate::core::units::Timestamp;

/// Buckets by address. A short lock for each time.
pub(crate) struct Throttle(Mutex<RateLimiter<IpAddr>>);

impl Throttle {
    pub(crate) fn new(per_s: f64, burst: u32) -> Self {
        Throttle(Mutex::new(RateLimiter::new(per_s, burst.into())))
    }

    /// Lets it once.
    ///
    /// # Errors
    /// How long to stay away, when it was too often.
    pub(crate) fn take(&self, address: IpAddr, now: Timestamp) -> Result<(), Duration> {
        self.0.lock().take(&network(address), now)
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
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
    use crate::core::admission::rate_limiter::ASKERS_MAX;

    #[test]
    fn a_burst_passes_and_then_one_a_second() {
        let throttle = Throttle::new(1.0, 3);
        let (address, at) = (IpAddr::from([10, 0, 0, 1]), |ms: u64| Timestamp::from_micros(ms * 1000));
        assert!((0..3).all(|_| throttle.take(address, at(0)).is_ok()));
        assert_eq!(throttle.take(address, at(500)), Err(Duration::from_millis(500)));
        assert_eq!(throttle.take(address, at(1000)), Ok(()));
        assert!(throttle.take(IpAddr::from([10, 0, 0, 2]), at(1000)).is_ok(), "another address");
    }

    #[test]
    fn addresses_are_bounded_and_a_network_is_one() {
        let throttle = Throttle::new(1.0, 1);
        for number in 0..40_000_u32 {
            let _ = throttle.take(IpAddr::from(number.to_be_bytes()), Timestamp::from_micros(1));
            assert!(throttle.0.lock().len() <= ASKERS_MAX);
        }
        let v6 = |last: u16| IpAddr::V6(Ipv6Addr::new(1, 2, 3, 4, 0, 0, 0, last));
        let throttle = Throttle::new(1.0, 1);
        assert!(throttle.take(v6(1), Timestamp::from_micros(2)).is_ok());
        assert!(throttle.take(v6(2), Timestamp::from_micros(2)).is_err());
    }
}
