//! Figures of the service itself for `/metrics`: requests, access, configuration, process.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use crate::metrics::{counter, gauge, labels_of as labels};
use crate::service::http::app::App;
use crate::service::http::listener::connections::CLOSED;
use crate::service::telemetry::log_writer;

/// Requests, connections, keys, configurations.
pub(in crate::service) fn service(encoder: &mut DescriptorEncoder<'_>, app: &App) -> fmt::Result {
    let requests = app.requests.counts().into_iter().map(|((route, method, status), count)| {
        (labels(&[("method", method), ("route", route), ("status", &status.to_string())]), count)
    });
    counter(encoder, "http_requests", "Requests, by route and status", requests)?;
    gauge(
        encoder,
        "http_connections",
        "Connections there are",
        [(vec![], app.links.iter().map(|links| links.open()).sum::<usize>() as f64)],
    )?;
    let reasons = |counts: &[(&'static str, u64)], name| {
        counts.iter().map(move |(reason, count)| (labels(&[(name, reason)]), *count)).collect::<Vec<_>>()
    };
    let mut closed = [("", 0); CLOSED.len()];
    for links in &app.links {
        for (sum, (reason, count)) in closed.iter_mut().zip(links.closed.all()) {
            *sum = (reason, sum.1 + count);
        }
    }
    let closed = reasons(&closed, "reason");
    counter(encoder, "http_connections_closed", "Connections that the service closed or did not take", closed)?;
    counter(encoder, "auth_failures", "Requests that were not let in", reasons(&app.access.denied.all(), "reason"))?;
    let refused = reasons(&app.refusals.counts.all(), "reason");
    counter(encoder, "http_requests_refused", "Requests that are refused whoever sends them", refused)?;
    let limited = reasons(&app.limited.all(), "limit");
    counter(
        encoder,
        "http_requests_limited",
        "Requests of clients that held their part of something already",
        limited,
    )?;
    let bodies = [(vec![], app.bodies.used() as f64)];
    gauge(encoder, "http_bodies_bytes", "Bytes that are set aside for bodies under way", bodies)?;
    let generation = app.orchestrator.config_generation() as f64;
    gauge(encoder, "config_generation", "Number of the configuration that is in force", [(vec![], generation)])?;
    let reloads = reasons(&app.store.counts.all(), "outcome");
    counter(encoder, "config_reloads", "Configurations that were offered", reloads)?;
    let leaving = app.orchestrator.leaving().len() as f64;
    gauge(encoder, "pools_leaving", "Pools that left the configuration and finish what they have", [(vec![], leaving)])
}

/// The process and the program.
pub(in crate::service) fn process(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    let resident = resident.map(|kib| (vec![], kib * 1024.0));
    gauge(encoder, "process_resident_memory_bytes", "Memory of the service itself", resident)?;
    let files = std::fs::read_dir("/proc/self/fd").ok().map(|files| (vec![], files.count() as f64));
    gauge(encoder, "process_open_fds", "Files that are open", files)?;
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    gauge(encoder, "process_max_fds", "Files that may be open", most.map(|most| (vec![], most as f64)))?;
    gauge(
        encoder,
        "process_start_time_seconds",
        "When the process began, since 1970",
        started_at().map(|at| (vec![], at)),
    )?;
    let lost = [(vec![], log_writer::lost())];
    counter(encoder, "log_lines_lost", "Lines of the log that were not read in time, or could not be written", lost)?;
    let version = labels(&[("version", env!("CARGO_PKG_VERSION"))]);
    gauge(encoder, "orchestrator_build_info", "The program; always 1", [(version, 1.0)])
}

/// When this process began, in seconds since 1970; `None` where the system does not say.
fn started_at() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let ticks: f64 = stat.rsplit(") ").next()?.split(' ').nth(19)?.parse().ok()?;
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + ticks / rustix::param::clock_ticks_per_second() as f64)
}
