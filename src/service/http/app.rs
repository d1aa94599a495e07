//! What the handlers of the HTTP API share.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::FromRef;
use axum::http::{Method, StatusCode};
use parking_lot::Mutex;

use crate::orchestrator::Orchestrator;
use crate::service::access::Access;
use crate::service::api::overview_cache::OverviewCache;
use crate::service::config::config_store::ConfigStore;
use crate::service::http::bodies::Bodies;
use crate::service::http::guard::refusals::Refusals;
use crate::service::http::limits::RequestLimits;
use crate::service::http::listener::connections::Links;
use crate::service::run::nodes::Nodes;
use crate::service::telemetry::named_counts::NamedCounts;

/// What clients may hold a part of, for counting.
pub(crate) const LIMITED: [&str; 4] = ["bodies", "connections", "readers", "requests"];

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) orchestrator: Orchestrator,
    pub(crate) access: Arc<Access>,
    pub(crate) store: Arc<ConfigStore>,
    /// Of each listener.
    pub(crate) links: Vec<Arc<Links>>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) request_limits: Arc<RequestLimits>,
    pub(crate) bodies: Arc<Bodies>,
    /// Those of operators' requests.
    pub(crate) operators_bodies: Arc<Bodies>,
    /// Requests of clients that hold their part already.
    pub(crate) limited: Arc<NamedCounts<{ LIMITED.len() }>>,
    pub(crate) glance: Arc<OverviewCache>,
    pub(crate) nodes: Nodes,
}

impl FromRef<App> for Orchestrator {
    fn from_ref(app: &App) -> Self {
        app.orchestrator.clone()
    }
}

/// Requests by route, method and status: as many as the router knows, whatever is asked for.
#[derive(Default)]
pub(crate) struct Requests(Mutex<BTreeMap<(&'static str, &'static str, u16), u64>>);

impl Requests {
    /// Counts one. A short lock for each request.
    pub(crate) fn count(&self, route: &'static str, method: &Method, status: StatusCode) {
        let known = ["GET", "HEAD", "POST", "DELETE", "OPTIONS"];
        let method = known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other");
        *self.0.lock().entry((route, method, status.as_u16())).or_default() += 1;
    }

    /// All counts.
    pub(crate) fn counts(&self) -> Vec<((&'static str, &'static str, u16), u64)> {
        self.0.lock().iter().map(|(key, count)| (*key, *count)).collect()
    }
}
