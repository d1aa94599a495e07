//! The runtime's counters in Prometheus' text format (ORCH-3028). Nothing is counted here: each scrape reads the views,
//! so a figure cannot differ from what the views say.

mod devices;
mod objectives;

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::actors::metrics::view::{BUCKETS_MS, Stage, StageView};
use crate::core::pool::lifecycle::{PoolState, ReplicaState};
use crate::core::slo::objectives::Window;
use crate::core::task::Priority;
use crate::core::task::failure::Cause;
use crate::core::text::line::Name;
use crate::orchestrator::Orchestrator;
use crate::views::{PoolView, ReplicaView};

/// The content type of what [`text`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every figure of a runtime, as OpenMetrics text: what a host program answers a scrape with, under [`CONTENT_TYPE`].
/// The names are those of the service's `/metrics`.
///
/// It takes some milliseconds with hundreds of replicas, and waits for nothing.
///
/// # Errors
/// None in practice: writing into memory does not fail.
pub fn text(orchestrator: &Orchestrator) -> Result<String, fmt::Error> {
    encode_text(Collection(orchestrator.clone()))
}

/// The text of one collector.
pub(crate) fn encode_text(collector: impl Collector) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// A runtime as a collector, for host programs that have a registry of `prometheus-client`'s already.
#[derive(Clone, Debug)]
pub struct Collection(pub Orchestrator);

impl Collector for Collection {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        runtime(&mut encoder, &self.0)
    }
}

/// Writes every figure of a runtime.
pub(crate) fn runtime(encoder: &mut DescriptorEncoder<'_>, orchestrator: &Orchestrator) -> fmt::Result {
    let pools = orchestrator.pools();
    task_counters(encoder, &pools)?;
    rejections(encoder, orchestrator, &pools)?;
    replica_series(encoder, &pools)?;
    latencies(encoder, &pools)?;
    devices::encode(encoder, &orchestrator.devices(), &pools)?;
    objectives::encode(encoder, &orchestrator.objectives_of(&pools))?;
    let view = orchestrator.view();
    gauge(encoder, "tasks_open", "Tasks between submission and their end", [(vec![], view.tasks_open as f64)])
}

/// Label sets are pairs: few, bounded by the configuration, never from a request.
pub(crate) type Labels = Vec<(&'static str, String)>;

pub(crate) fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        metric.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
    }
    Ok(())
}

pub(crate) fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, f64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

/// `engine`, `engine_version`, `pool_id` of a pool, and what else is given. Without a Ready replica the version is not
/// known, and says so.
fn pool_labels(pool: &PoolView, more: &[(&'static str, &str)]) -> Labels {
    let version = pool.replicas.iter().find_map(|replica| replica.engine_version.clone());
    labels(pool, version, more)
}

fn replica_labels(pool: &PoolView, replica: &ReplicaView, more: &[(&'static str, &str)]) -> Labels {
    let mut labels = labels(pool, replica.engine_version.clone(), more);
    labels.push(("replica_id", replica.replica_id.to_string()));
    labels
}

/// Labels of these names.
pub(crate) fn labels_of(pairs: &[(&'static str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

fn labels(pool: &PoolView, version: Option<Name>, more: &[(&'static str, &str)]) -> Labels {
    let mut labels = Vec::with_capacity(8); // All that any series has.
    labels.extend([
        ("engine", pool.engine.clone()),
        ("engine_version", version.map_or_else(|| "unknown".into(), String::from)),
        ("pool_id", pool.pool_id.to_string()),
    ]);
    labels.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    labels
}

fn by_class<'a, T: Copy + 'a>(
    pools: &'a [PoolView],
    of: fn(&PoolView) -> [T; 2],
) -> impl Iterator<Item = (Labels, T)> + 'a {
    pools.iter().flat_map(move |pool| {
        let values = of(pool);
        Priority::ALL.map(|class| (pool_labels(pool, &[("priority", class.as_str())]), values[class.index()]))
    })
}

fn by_replica<'a, T: 'a>(
    pools: &'a [PoolView],
    of: impl Fn(&ReplicaView) -> T + Copy + 'a,
) -> impl Iterator<Item = (Labels, T)> + 'a {
    pools.iter().flat_map(move |pool| {
        pool.replicas.iter().map(move |replica| (replica_labels(pool, replica, &[]), of(replica)))
    })
}

fn task_counters(encoder: &mut DescriptorEncoder<'_>, pools: &[PoolView]) -> fmt::Result {
    // A queued task has no replica yet: the label is there, and empty.
    let enqueued = by_class(pools, |pool| pool.enqueued).map(|(mut labels, value)| {
        labels.push(("replica_id", String::new()));
        (labels, value)
    });
    counter(encoder, "tasks_enqueued", "Tasks that a queue took in", enqueued)?;
    let started = pools.iter().flat_map(|pool| {
        pool.replicas.iter().flat_map(move |replica| {
            Priority::ALL.map(|class| {
                let labels = replica_labels(pool, replica, &[("priority", class.as_str())]);
                (labels, replica.started[class.index()])
            })
        })
    });
    counter(encoder, "tasks_started", "Attempts that a worker began", started)?;
    let canceled = pools.iter().flat_map(|pool| {
        let labels = |reason| {
            let mut labels = pool_labels(pool, &[("reason", reason)]);
            labels.push(("replica_id", String::new()));
            labels
        };
        let by_client = pool.canceled.saturating_sub(pool.deserted);
        [(labels("client"), by_client), (labels("disconnect"), pool.deserted)]
    });
    counter(encoder, "tasks_canceled", "Tasks that were ended by request", canceled)?;
    let completed = pools.iter().map(|pool| (pool_labels(pool, &[]), pool.completed));
    let evicted = pools.iter().map(|pool| (pool_labels(pool, &[("policy", &pool.full_policy)]), pool.evicted));
    counter(encoder, "tasks_evicted", "Waiting tasks that made room for others", evicted)?;
    let taken_over = pools.iter().map(|pool| (pool_labels(pool, &[]), pool.taken_over));
    counter(encoder, "tasks_taken_over", "Tasks of peers' queues that ran here", taken_over)?;
    let stalls = pools.iter().map(|pool| (pool_labels(pool, &[]), pool.stalls));
    counter(encoder, "queue_stalls", "Times that tasks waited beside free slots for a second", stalls)?;
    let resumed = pools.iter().map(|pool| (pool_labels(pool, &[]), pool.resumed));
    counter(encoder, "tasks_resumed", "Attempts that were lost and whose tasks ran again", resumed)?;
    let reloads = pools.iter().flat_map(|pool| {
        let outcomes = ["done", "undone"].into_iter().zip(pool.reloads);
        outcomes.map(|(outcome, count)| (pool_labels(pool, &[("outcome", outcome)]), count))
    });
    counter(encoder, "pool_reloads", "Reloads that were completed or undone", reloads)?;
    let diverged = pools.iter().map(|pool| (pool_labels(pool, &[]), pool.diverged));
    counter(encoder, "tasks_diverged", "Tasks whose second attempt gave other tokens than the first", diverged)?;
    counter(encoder, "tasks_completed", "Tasks that ended as they should", completed)?;
    let failed = pools.iter().flat_map(|pool| {
        pool.failed.iter().map(move |(code, count)| (pool_labels(pool, &[("reason", code.as_str())]), *count))
    });
    counter(encoder, "tasks_failed", "Accepted tasks that failed", failed)?;
    let lost = pools.iter().map(|pool| (pool_labels(pool, &[]), pool.samples_lost));
    counter(encoder, "latency_samples_lost", "Tasks whose durations were not counted; must stay 0", lost)?;
    let states = pools.iter().flat_map(|pool| {
        PoolState::ALL
            .map(|state| (pool_labels(pool, &[("state", state.as_str())]), f64::from(u8::from(pool.state == state))))
    });
    gauge(encoder, "pool_state", "1 for the state that a pool is in", states)?;
    let capacity = pools.iter().map(|pool| (pool_labels(pool, &[]), f64::from(pool.queue_capacity)));
    gauge(encoder, "queue_capacity", "Most tasks that may wait", capacity)?;
    gauge(encoder, "queue_depth", "Waiting tasks", by_class(pools, |pool| pool.queue_depth.map(f64::from)))
}

fn rejections(encoder: &mut DescriptorEncoder<'_>, orchestrator: &Orchestrator, pools: &[PoolView]) -> fmt::Result {
    let view = orchestrator.view();
    // Most refusals come before an engine is chosen; with one engine it is that one.
    let mut engines: Vec<&str> = pools.iter().map(|pool| pool.engine.as_str()).collect();
    engines.dedup();
    let engine = if let [only] = engines.as_slice() { (*only).to_owned() } else { String::new() };
    let reasons = view.rejected.iter();
    let series = reasons.map(|(code, count)| (vec![("engine", engine.clone()), ("reason", code.to_string())], *count));
    counter(encoder, "tasks_rejected", "Submissions that were refused", series)?;
    let limits = view.limited.iter();
    let limits =
        limits.map(|(policy, count)| (vec![("engine", engine.clone()), ("policy", (*policy).to_owned())], *count));
    let mut policies: Vec<(Labels, u64)> = limits.collect();
    for pool in pools {
        let labels = vec![("engine", pool.engine.clone()), ("policy", pool.full_policy.clone())];
        match policies.iter_mut().find(|(known, _)| *known == labels) {
            Some((_, count)) => *count += pool.refused_full + pool.evicted,
            None => policies.push((labels, pool.refused_full + pool.evicted)),
        }
    }
    counter(encoder, "admission_backpressure_events", "Tasks that a limit or a full queue refused or evicted", policies)
}

fn replica_series(encoder: &mut DescriptorEncoder<'_>, pools: &[PoolView]) -> fmt::Result {
    counter(encoder, "tokens_in", "Prompt tokens", by_replica(pools, |replica| replica.tokens_in))?;
    counter(encoder, "tokens_out", "Generated tokens", by_replica(pools, |replica| replica.tokens_out))?;
    counter(encoder, "worker_restarts", "Workers that died", by_replica(pools, |replica| replica.restarts))?;
    let of_causes = |of: fn(&ReplicaView) -> &BTreeMap<Cause, u64>| {
        pools.iter().flat_map(move |pool| {
            pool.replicas.iter().flat_map(move |replica| {
                let labels = |cause: &Cause| replica_labels(pool, replica, &[("cause", cause.as_str())]);
                of(replica).iter().map(move |(cause, count)| (labels(cause), *count))
            })
        })
    };
    counter(encoder, "worker_deaths", "Workers that died, by cause", of_causes(|replica| &replica.deaths))?;
    let out_of_memory = pools.iter().flat_map(|pool| {
        pool.replicas.iter().flat_map(move |replica| {
            [("host", Cause::OutOfMemory), ("device", Cause::OutOfVram)].map(|(memory, cause)| {
                let count =
                    [&replica.deaths, &replica.attempts_failed].map(|counts| counts.get(&cause).copied().unwrap_or(0));
                (replica_labels(pool, replica, &[("memory", memory)]), count.iter().sum())
            })
        })
    });
    counter(encoder, "oom_events", "Workers and attempts that were lost to want of memory", out_of_memory)?;
    let failed = of_causes(|replica| &replica.attempts_failed);
    counter(encoder, "attempts_failed", "Attempts that failed, by cause; most tasks ran again", failed)?;
    counter(
        encoder,
        "slot_stop_timeouts",
        "Stops that an engine did not confirm in time",
        by_replica(pools, |replica| replica.stop_timeouts),
    )?;
    let leaks = by_replica(pools, |replica| replica.slot_leaks);
    counter(encoder, "slot_leaks", "Slots that were busy for no task of ours; must stay 0", leaks)?;
    let preloads = pools.iter().flat_map(|pool| {
        pool.replicas.iter().flat_map(move |replica| {
            let outcome = |name, count| (replica_labels(pool, replica, &[("outcome", name)]), count);
            [outcome("success", replica.preload_successes), outcome("failure", replica.preload_failures)]
        })
    });
    counter(encoder, "preloads", "Loads of a model", preloads)?;
    let kv = by_replica(pools, |replica| replica.kv_usage).filter_map(|(labels, usage)| Some((labels, usage?)));
    gauge(encoder, "kv_cache_usage_ratio", "Share of the KV cache that is used", kv)?;
    let reserved =
        by_replica(pools, |replica| replica.kv_tokens.map(|tokens| replica.kv_reserved as f64 / tokens.max(1) as f64));
    let reserved = reserved.filter_map(|(labels, share)| Some((labels, share?)));
    gauge(encoder, "kv_reserved_ratio", "Share of the KV cache that is set aside for running tasks", reserved)?;
    let ram =
        by_replica(pools, |replica| replica.ram_used_bytes).filter_map(|(labels, ram)| Some((labels, ram? as f64)));
    gauge(encoder, "ram_used_bytes", "Resident memory of an engine's processes", ram)?;
    let broken = by_replica(pools, |replica| f64::from(u8::from(matches!(replica.state, ReplicaState::Broken { .. }))));
    gauge(encoder, "breaker_open", "Whether a worker failed too often and is left alone", broken)?;
    gauge(
        encoder,
        "slots_usable",
        "Slots that may be taken",
        by_replica(pools, |replica| f64::from(replica.slots_usable)),
    )?;
    let quarantined = by_replica(pools, |replica| f64::from(replica.slots_quarantined));
    gauge(encoder, "slots_quarantined", "Slots that their engine has not left behind a stop", quarantined)?;
    gauge(encoder, "slots_used", "Slots that are taken", by_replica(pools, |replica| f64::from(replica.slots_used)))?;
    gauge(encoder, "slots_total", "Slots there are", by_replica(pools, |replica| f64::from(replica.slots_total)))?;
    let ready = by_replica(pools, |replica| f64::from(u8::from(replica.state.is_ready())));
    gauge(encoder, "replica_ready", "Whether the worker is Ready", ready)
}

fn latencies(encoder: &mut DescriptorEncoder<'_>, pools: &[PoolView]) -> fmt::Result {
    for (name, stage) in [("latency_first_token_ms", Stage::FirstToken), ("latency_decode_ms", Stage::Decode)] {
        let help = "Milliseconds, of tasks that ran to an end";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, view) in stages(pools, stage) {
            let (sum, count) = (view.quantiles.sum, view.quantiles.count);
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets(view), None)?;
        }
    }
    for stage in Stage::ALL {
        let series = stages(pools, stage).flat_map(|(labels, view)| {
            let windows = Window::ALL.iter().map(|window| window.as_str()).zip(view.windows);
            let windows = windows.chain([("all", view.quantiles)]).filter(|(_, quantiles)| quantiles.count > 0);
            windows.flat_map(move |(window, quantiles)| {
                let labels = labels.clone();
                [("0.5", quantiles.p50), ("0.95", quantiles.p95), ("0.99", quantiles.p99)].map(|(name, value)| {
                    let mut labels = labels.clone();
                    labels.extend([("window", window.to_owned()), ("quantile", name.to_owned())]);
                    (labels, value)
                })
            })
        });
        let name = format!("latency_{}_quantile_ms", stage.as_str());
        gauge(encoder, &name, "Percentile in milliseconds, of tasks that ran to an end", series)?;
    }
    Ok(())
}

fn stages(pools: &[PoolView], stage: Stage) -> impl Iterator<Item = (Labels, &StageView)> {
    pools.iter().flat_map(move |pool| {
        Priority::ALL.map(|class| (pool_labels(pool, &[("priority", class.as_str())]), pool.latency.of(class, stage)))
    })
}

/// The buckets as the encoder takes them: each with its own count, the last one open.
fn buckets(view: &StageView) -> Vec<(f64, u64)> {
    let mut below = 0;
    let mut buckets: Vec<(f64, u64)> = Vec::with_capacity(BUCKETS_MS.len() + 1);
    for (bound, cumulative) in BUCKETS_MS.iter().zip(view.buckets) {
        buckets.push((*bound as f64, cumulative - below));
        below = cumulative;
    }
    buckets.push((f64::INFINITY, view.quantiles.count - below));
    buckets
}

#[cfg(test)]
mod tests {
    use crate::Orchestrator;
    use crate::config::PoolConfig;
    use crate::core::task::TaskRequest;
    use crate::env::Env;
    use crate::gpu::SimEngine;

    #[tokio::test(start_paused = true)]
    async fn a_host_program_gets_the_figures_without_the_service() {
        let builder = Orchestrator::builder().pool(PoolConfig::new("a", "sim", "m"), SimEngine::new);
        let orchestrator = builder.env(Env::simulated(1)).start().await.expect("it starts");
        let submitted = orchestrator.submit(TaskRequest::completion("x").max_tokens(2)).await.expect("accepted");
        let _ = submitted.stream().collect().await;
        let text = super::text(&orchestrator).expect("written");
        let completed = text.lines().find(|line| line.starts_with("tasks_completed_total")).expect("counted");
        assert!(completed.contains("pool_id=\"a\"") && completed.ends_with(" 1"), "{completed}");
        assert!(text.ends_with("# EOF\n"));
    }
}
