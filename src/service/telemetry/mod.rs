//! What the service says of itself: metrics, log, spans, and word to the service manager.

pub(in crate::service) mod log_throttle;
pub(in crate::service) mod log_writer;
pub(in crate::service) mod logging;
pub(in crate::service) mod metrics;
pub(in crate::service) mod named_counts;
#[cfg(feature = "cluster")]
pub(in crate::service) mod node_metrics;
pub(in crate::service) mod notify;
#[cfg(feature = "otlp")]
pub(in crate::service) mod otlp;
pub(in crate::service) mod service_metrics;
