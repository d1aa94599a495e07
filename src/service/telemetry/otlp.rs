//! Tasks as OpenTelemetry spans, sent to a collector as OTLP over HTTP with JSON: one span for a task, and in it one
//! each for its wait in the queue, for the time to its first token, and for its decoding. The trace is that of the
//! task's `traceparent`, else one of its own.
//!
//! The wire format is a handful of fields, so it is written here; the SDK would bring a second HTTP client or a gRPC
//! stack. Spans wait in a bounded channel: a collector that is slow or away costs spans, never a task.
//!
//! Spec: ORCH-3027.

use std::fmt;
use std::time::{Duration, SystemTime};

use hyper::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::gpu::http::{HttpClient, whole};

/// Where the collector is, as every OpenTelemetry program is told.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// What the service is called there.
const SERVICE: &str = "OTEL_SERVICE_NAME";
/// Ended tasks that wait to be sent; some 500 bytes each.
const WAITING_MAX: usize = 8_192;
/// Most tasks of one request.
const BATCH_MAX: usize = 512;
/// How long a request waits for more, and for its answer.
const GATHER: Duration = Duration::from_millis(500);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// An ended task.
#[derive(Clone, Debug, Default)]
struct Ended {
    traceparent: String,
    span: u64,
    attributes: Vec<(&'static str, String)>,
    outcome: String,
    queue_us: u64,
    first_token_us: u64,
    total_us: u64,
    /// Nanoseconds since 1970.
    end_ns: u64,
}

/// What hears of ended tasks.
pub(crate) struct Spans(Sender<Ended>);

/// A layer for the log and what sends its spans, where the environment names a collector.
///
/// # Errors
/// One line: the collector's address is none that can be used.
pub(crate) fn from_env() -> Result<Option<(Spans, Exporter)>, String> {
    let Some(endpoint) = std::env::var(ENDPOINT).ok().filter(|text| !text.is_empty()) else { return Ok(None) };
    if !endpoint.starts_with("http://") {
        return Err(format!(
            "{ENDPOINT}: {endpoint:?} must begin with http://; TLS is the collector's beside the service"
        ));
    }
    let (sender, waiting) = channel(WAITING_MAX);
    let service = std::env::var(SERVICE).unwrap_or_else(|_| "orchestratord".into());
    Ok(Some((Spans(sender), Exporter { client: HttpClient::new(&endpoint, None), service, waiting })))
}

impl<S: Subscriber> Layer<S> for Spans {
    #[expect(clippy::disallowed_methods, reason = "a collector goes by the wall clock, which decides nothing here")]
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "orchestrator_core::task_span" {
            return;
        }
        let mut ended = Ended::default();
        event.record(&mut ended);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        ended.end_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let _ = self.0.try_send(ended); // Full: the collector is slow, and misses it.
    }
}

impl Visit for Ended {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "span" => self.span = value,
            "queue_us" => self.queue_us = value,
            "first_token_us" => self.first_token_us = value,
            "total_us" => self.total_us = value,
            name => self.attributes.push((name, value.to_string())),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "traceparent" => self.traceparent = value.to_owned(),
            "outcome" => self.outcome = value.to_owned(),
            name => self.attributes.push((name, value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != "message" {
            self.record_str(field, &format!("{value:?}"));
        }
    }
}

impl Ended {
    /// Its spans: the task's own, then its parts.
    fn spans(&self) -> Vec<Value> {
        let parts: Vec<&str> = self.traceparent.split('-').collect();
        let (trace, parent) = match parts.as_slice() {
            [_, trace, parent, _] => ((*trace).to_owned(), (*parent).to_owned()),
            _ => (format!("{:016x}{:016x}", self.span, self.span.rotate_left(32) | 1), String::new()),
        };
        let begin = self.end_ns.saturating_sub(self.total_us * 1000);
        let id = |part: u64| format!("{:016x}", (self.span ^ part).max(1));
        let span = |name: &str, part: u64, parent: &str, from_us: u64, to_us: u64| {
            json!({
                "traceId": trace, "spanId": id(part), "parentSpanId": parent, "name": name,
                "kind": if part == 0 { 2 } else { 1 },
                "startTimeUnixNano": (begin + from_us * 1000).to_string(),
                "endTimeUnixNano": (begin + to_us.max(from_us) * 1000).to_string(),
            })
        };
        let mut whole = span("task", 0, &parent, 0, self.total_us);
        let attribute = |(name, value): &(&str, String)| json!({ "key": name, "value": { "stringValue": value } });
        whole["attributes"] = self.attributes.iter().map(attribute).collect();
        let failed = !["completed", "canceled"].contains(&self.outcome.as_str());
        whole["status"] = if failed { json!({ "code": 2, "message": self.outcome }) } else { json!({ "code": 1 }) };
        let mut spans = vec![whole, span("queue", 1, &id(0), 0, self.queue_us)];
        if self.first_token_us > 0 {
            spans.push(span("first token", 2, &id(0), self.queue_us, self.first_token_us));
            spans.push(span("decode", 3, &id(0), self.first_token_us, self.total_us));
        }
        spans
    }
}

/// What sends spans to the collector.
pub(crate) struct Exporter {
    client: HttpClient,
    service: String,
    waiting: Receiver<Ended>,
}

impl Exporter {
    /// Sends until nobody makes spans any more.
    pub(crate) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while self.waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
            if batch.len() < BATCH_MAX {
                tokio::time::sleep(GATHER).await;
                while batch.len() < BATCH_MAX
                    && let Ok(ended) = self.waiting.try_recv()
                {
                    batch.push(ended);
                }
            }
            let spans: Vec<Value> = batch.drain(..).flat_map(|ended| ended.spans()).collect();
            if let Err(error) =
                timeout(ANSWER_TIMEOUT, self.send(spans)).await.unwrap_or_else(|_| Err("no answer in time".into()))
            {
                tracing::warn!(%error, "the collector does not take spans");
            }
        }
    }

    async fn send(&self, spans: Vec<Value>) -> Result<(), String> {
        let name = json!({ "key": "service.name", "value": { "stringValue": self.service } });
        let body = json!({ "resourceSpans": [{
            "resource": { "attributes": [name] },
            "scopeSpans": [{ "scope": { "name": "orchestrator-core", "version": env!("CARGO_PKG_VERSION") }, "spans": spans }],
        }] });
        let answer = self.client.send(Method::POST, "/v1/traces", &[], body.to_string().into_bytes()).await;
        whole(answer.map_err(|error| error.to_string())?).await.map(drop).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tasks_parts_lie_in_it_one_behind_the_other() {
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned();
        let (queue_us, first_token_us, total_us, end_ns) = (10, 30, 100, 1_000_000);
        let outcome = "WORKER_RESET".to_owned();
        let ended =
            Ended { traceparent, span: 7, outcome, queue_us, first_token_us, total_us, end_ns, ..Ended::default() };
        let spans = ended.spans();
        assert_eq!(spans.len(), 4);
        assert!(spans.iter().all(|span| span["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!((&spans[0]["parentSpanId"], &spans[0]["status"]["code"]), (&json!("00f067aa0ba902b7"), &json!(2)));
        assert!(spans[1..].iter().all(|span| span["parentSpanId"] == spans[0]["spanId"]));
        let at = |span: usize, field: &str| spans[span][field].as_str().unwrap().parse::<u64>().unwrap();
        assert_eq!([at(0, "startTimeUnixNano"), at(0, "endTimeUnixNano")], [900_000, 1_000_000]);
        assert_eq!(
            (at(1, "endTimeUnixNano"), at(2, "endTimeUnixNano")),
            (at(2, "startTimeUnixNano"), at(3, "startTimeUnixNano"))
        );
        let alone = Ended { span: 7, ..Ended::default() }.spans();
        assert_eq!((alone.len(), alone[0]["traceId"].as_str().map(str::len)), (2, Some(32)));
    }
}
