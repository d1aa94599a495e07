//! How fast clients may send requests that are no tasks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::core::admission::line_budget::LineBudgets;
use crate::core::admission::rate_limiter::{RateLimiter, Turn};
use crate::core::id::ClientId;
use crate::env::Env;
use crate::service::access::throttle::Throttle;

/// Pages a second for each address, of those that need no key, and how many at once.
const PAGES_PER_S: f64 = 200.0;
const PAGES_BURST: u32 = 400;

/// How fast each client asks for what is no task (twice as much at once as in a second), and how many lines the
/// refusals of a key have had.
pub(crate) struct RequestLimits {
    env: Env,
    /// A short lock for each request.
    rates: Mutex<RateLimiter<ClientId>>,
    /// Of pages for which nobody says who it is, by address.
    pages: Throttle,
    /// A short lock for each refusal that may have a line.
    lines: Mutex<LineBudgets>,
}

impl RequestLimits {
    /// With so many requests a second for each client.
    pub(crate) fn new(env: Env, requests_per_s: f64) -> Arc<Self> {
        Arc::new(RequestLimits {
            env,
            rates: Mutex::new(RateLimiter::new(requests_per_s, 2.0 * requests_per_s)),
            pages: Throttle::new(PAGES_PER_S, PAGES_BURST),
            lines: Mutex::default(),
        })
    }

    /// Takes a line about a refusal of this key's; `None` when it had too many, else how many had none.
    pub(in crate::service) fn line(&self, key_id: &str) -> Option<u64> {
        self.lines.lock().take(key_id, self.env.now())
    }

    /// Waits for the turn of a request that costs so much; returns whether that took any time.
    ///
    /// # Errors
    /// How long to stay away, when there are too many before it.
    pub(in crate::service) async fn wait(&self, client: &ClientId, cost: f64) -> Result<bool, Duration> {
        let turn = self.rates.lock().turn(client, cost, self.env.now());
        match turn {
            Turn::Behind(Duration::ZERO) => Ok(false),
            Turn::Behind(wait) => {
                self.env.sleep_until(self.env.now().after(wait)).await;
                Ok(true)
            }
            Turn::Refused(wait) => Err(wait),
        }
    }

    /// Lets a page through that is the same for everybody. It does not wait: nobody's connection may be held by who
    /// needs no key.
    ///
    /// # Errors
    /// How long to stay away, when there were too many before it.
    pub(in crate::service) fn admit_page(&self, address: IpAddr) -> Result<(), Duration> {
        self.pages.take(address, self.env.now())
    }

    /// Counts what nobody could know before, as one request.
    pub(crate) fn charge(&self, client: &ClientId) {
        self.rates.lock().charge(client, 1.0, self.env.now());
    }
}
