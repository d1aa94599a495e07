//! `/metrics`: the runtime's figures and the service's own, in Prometheus' text format (ORCH-3028).

use std::fmt;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use crate::core::task::error::TaskError;
use crate::metrics::{CONTENT_TYPE, encode_text, runtime};
use crate::service::http::app::App;
use crate::service::http::error::ApiError;
use crate::service::telemetry::service_metrics;

/// Figures of the runtime, one line each.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "OpenMetrics text.")))]
pub(crate) async fn scrape(State(app): State<App>) -> Result<Response, ApiError> {
    // Some milliseconds with hundreds of replicas: what waits on this thread goes on elsewhere meanwhile.
    let text = tokio::task::block_in_place(|| encode_text(Views(app)));
    let text = text.map_err(|_| TaskError::new(crate::ErrorCode::Internal, "the metrics cannot be written"))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

struct Views(App);

impl fmt::Debug for Views {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Views")
    }
}

impl Collector for Views {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        runtime(encoder, &self.0.orchestrator)?;
        service_metrics::service(encoder, &self.0)?;
        #[cfg(feature = "cluster")]
        if let Some(node) = &self.0.nodes.node {
            crate::service::telemetry::node_metrics::node(encoder, &node.view())?;
        }
        #[cfg(feature = "cluster")]
        if let Some(rules) = &self.0.nodes.rules {
            crate::service::telemetry::node_metrics::rules(encoder, rules)?;
        }
        service_metrics::process(encoder)
    }
}
