//! Figures of objectives.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use crate::core::slo::objectives::{SloView, Window};
use crate::metrics::{gauge, labels_of as labels};

/// How far the objectives are met (ORCH-3041). Without a task there is nothing to say, and no series.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, slo: &[SloView]) -> fmt::Result {
    let long = slo.iter().filter(|view| view.window == Window::TenMinutes);
    let met = long.filter_map(|view| Some((labels(&[("priority", view.priority.as_str())]), view.attainment?)));
    gauge(encoder, "slo_attainment_ratio", "Share of tasks of the last 10 minutes that met their objectives", met)?;
    let each = slo.iter().flat_map(|view| {
        let pairs =
            move |name| [("priority", view.priority.as_str()), ("objective", name), ("window", view.window.as_str())];
        view.objectives.iter().filter_map(move |one| Some((labels(&pairs(one.name)), one.attainment?)))
    });
    gauge(encoder, "slo_objective_attainment_ratio", "Share of tasks that met an objective", each)?;
    let by_window = |view: &SloView| labels(&[("priority", view.priority.as_str()), ("window", view.window.as_str())]);
    let burn = slo.iter().map(|view| (by_window(view), view.burn_rate));
    gauge(encoder, "slo_burn_rate", "Share that missed over the share that may; the worst objective's", burn)?;
    let tasks = slo.iter().map(|view| (by_window(view), view.tasks as f64));
    gauge(encoder, "slo_tasks", "Tasks that the objectives' figures rest on", tasks)
}
