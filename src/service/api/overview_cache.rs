//! The runtime at a glance, as JSON: once, or every second as server-sent events. It is put together once for all who
//! look.

use std::time::Duration;

use axum::body::Bytes;
use parking_lot::Mutex;
use serde::Serialize;

use crate::core::units::Timestamp;
use crate::orchestrator::Orchestrator;
use crate::service::access::Principal;
use crate::service::access::keys::Scope;
use crate::service::run::nodes::Nodes;
use crate::views::OverviewView;

/// How old what is shown may be.
const AGE_MAX: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Glanced {
    /// Milliseconds since 1970.
    at_ms: u64,
    version: &'static str,
    uptime_s: f64,
    #[serde(flatten)]
    overview: OverviewView,
    /// The service as a node of a cluster, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<serde_json::Value>,
}

/// What was put together last: as JSON for operators, and for those who may only look.
struct Picture {
    at: Timestamp,
    whole: Bytes,
    without_words: Bytes,
}

/// What was put together last.
#[derive(Default)]
pub(crate) struct OverviewCache(Mutex<Option<Picture>>);

impl OverviewCache {
    /// The overview as one line of JSON, as of now or half a second ago.
    pub(in crate::service) fn json(
        &self,
        orchestrator: &Orchestrator,
        node: &Nodes,
        (has_keys, principal): (bool, &Principal),
    ) -> Bytes {
        let is_whole = principal.has(Scope::Admin);
        let part = |picture: &Picture| if is_whole { &picture.whole } else { &picture.without_words }.clone();
        // Some milliseconds with hundreds of replicas, and others wait for it: what waits on this thread goes on
        // elsewhere meanwhile.
        tokio::task::block_in_place(|| {
            let mut last = self.0.lock(); // Held meanwhile: who else looks wants the same.
            let now = orchestrator.env().now();
            if let Some(picture) = last.as_ref().filter(|picture| now.since(picture.at) < AGE_MAX) {
                return part(picture);
            }
            let (at_ms, overview) = (orchestrator.env().unix_ms(), orchestrator.overview());
            let uptime_s = overview.uptime_ms as f64 / 1000.0;
            let mut glanced =
                Glanced { at_ms, version: env!("CARGO_PKG_VERSION"), uptime_s, overview, cluster: node.view() };
            let json = |glanced: &Glanced| Bytes::from(serde_json::to_vec(glanced).unwrap_or_default()); // No type refuses.
            let whole = json(&glanced);
            // Without keys everybody is an operator.
            let without_words = if has_keys {
                glanced.overview.hide_words();
                json(&glanced)
            } else {
                whole.clone()
            };
            let picture = Picture { at: now, whole, without_words };
            let json = part(&picture);
            *last = Some(picture);
            json
        })
    }
}
