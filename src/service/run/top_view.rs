//! What `orchestratord top` draws, from the same overview that the dashboard shows.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table};
use serde_json::Value;

/// What is on the screen.
pub(crate) struct Screen {
    url: String,
    overview: Option<Value>,
    /// The picture is held.
    pub(crate) held: bool,
    /// Why nothing new comes.
    pub(crate) lost: Option<String>,
    /// First pool that is shown.
    first: usize,
}

impl Screen {
    pub(crate) fn new(url: &str) -> Self {
        Screen { url: url.to_owned(), overview: None, held: false, lost: None, first: 0 }
    }

    /// Takes a new overview, unless the picture is held.
    pub(crate) fn take(&mut self, overview: Value) {
        if !self.held || self.overview.is_none() {
            self.overview = Some(overview);
        }
    }

    pub(crate) fn scroll(&mut self, lines: i32) {
        let most = self.overview.as_ref().and_then(|overview| overview["pools"].as_array()).map_or(0, Vec::len);
        self.first = self.first.saturating_add_signed(lines as isize).min(most.saturating_sub(1));
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Milliseconds in four places at most.
fn millis(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}ms"),
        value if value < 1_000.0 => format!("{value:.0}ms"),
        value => format!("{:.1}s", value / 1_000.0),
    }
}

fn state_style(state: &str) -> Style {
    match state {
        "ready" | "healthy" => Style::new().fg(Color::Green),
        "preloading" | "draining" | "reloading" | "suspect" | "backoff" => Style::new().fg(Color::Yellow),
        "stopped" => Style::new().fg(Color::DarkGray),
        _ => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}

/// A sign beside the word, for whoever sees no colours.
fn sign(state: &str) -> &'static str {
    match state {
        "ready" | "healthy" => "●",
        "preloading" | "draining" | "reloading" | "suspect" | "backoff" => "◐",
        "stopped" => "○",
        _ => "✖",
    }
}

/// What a table of percentiles takes, and the least that clients get beside it.
const LATENCY_WIDTH: u16 = 73;
const CLIENTS_WIDTH: u16 = 34;

fn heading() -> Style {
    Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
}

fn block(title: &str) -> Block<'_> {
    Block::new()
        .borders(Borders::TOP)
        .title(Span::styled(format!(" {title} "), Style::new().add_modifier(Modifier::BOLD)))
}

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, screen: &mut Screen) {
    let area = frame.area();
    let Some(overview) = &screen.overview else {
        let why = screen.lost.as_deref().unwrap_or("waiting for the first figures");
        frame.render_widget(Paragraph::new(format!("{}: {why}", screen.url)), area);
        return;
    };
    let pools = list(&overview["pools"]).count() as u16;
    let parts = [
        Constraint::Length(2),
        Constraint::Length(pools.min(area.height / 4) + 2),
        Constraint::Min(4),
        Constraint::Length(5),
        Constraint::Length(6.min(area.height / 6)),
        Constraint::Length(cluster_height(overview, area.height)),
        Constraint::Length(1),
    ];
    let [head, pool_area, middle, objectives, failures, cluster, foot] = Layout::vertical(parts).areas(area);
    draw_head(frame, screen, overview, head);
    draw_pools(frame, overview, screen.first, pool_area);
    let wide = Constraint::Length(LATENCY_WIDTH.min(middle.width.saturating_sub(CLIENTS_WIDTH)));
    let [latency, clients] = Layout::horizontal([wide, Constraint::Min(CLIENTS_WIDTH)]).areas(middle);
    draw_latency(frame, overview, latency);
    draw_clients(frame, overview, clients);
    let [slo, devices] = Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(objectives);
    draw_objectives(frame, overview, slo);
    draw_devices(frame, overview, devices);
    draw_failures(frame, overview, failures);
    draw_cluster(frame, overview, cluster);
    let held = if screen.held { "  HELD" } else { "" };
    frame.render_widget(
        Paragraph::new(format!("q leave  p hold  ↑↓ scroll{held}")).style(Style::new().fg(Color::DarkGray)),
        foot,
    );
}

fn draw_head(frame: &mut Frame<'_>, screen: &Screen, overview: &Value, area: Rect) {
    let ready = list(&overview["pools"]).filter(|pool| text(&pool["state"]) == "ready").count();
    let (pools, tasks) = (list(&overview["pools"]).count(), &overview["tasks"]);
    let sum = |field: &str| list(&overview["pools"]).map(|pool| pool[field].as_f64().unwrap_or(0.0)).sum::<f64>();
    let health = if ready == pools { Color::Green } else { Color::Red };
    let first = Line::from(vec![
        Span::styled(
            format!("orchestratord {}", text(&overview["version"])),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Span::raw(format!("  {}  up {}  ", screen.url, span(overview["uptime_s"].as_f64().unwrap_or(0.0)))),
        Span::styled(format!("{ready} of {pools} pools ready"), Style::new().fg(health)),
        Span::raw(format!("  configuration {}", overview["config"]["generation"])),
    ]);
    let second = match &screen.lost {
        Some(why) => Line::styled(format!("LOST: {why}"), state_style("lost")),
        None => Line::raw(format!(
            "tasks {} of {}  slots {:.0} of {:.0}  {:.0} tokens/s",
            tasks["tasks_open"],
            tasks["tasks_open_max"],
            sum("slots_used"),
            sum("slots_total"),
            sum("tokens_per_s")
        )),
    };
    frame.render_widget(Paragraph::new(vec![first, second]), area);
}

fn span(seconds: f64) -> String {
    let seconds = seconds as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

fn draw_pools(frame: &mut Frame<'_>, overview: &Value, first: usize, area: Rect) {
    let rows = list(&overview["pools"]).skip(first).map(|pool| {
        let state = text(&pool["state"]);
        let restarts: u64 = list(&pool["replicas"]).map(|replica| number(&replica["restarts"])).sum();
        let reason = text(&pool["reason"]);
        let what = if reason.is_empty() {
            format!("{} {}", text(&pool["engine"]), text(&pool["model"]))
        } else {
            reason.to_owned()
        };
        Row::new(vec![
            text(&pool["pool_id"]).to_owned(),
            format!("{} {state}", sign(state)),
            format!("{}/{}", pool["slots_used"], pool["slots_total"]),
            format!("{}+{}/{}", pool["queue_depth"][0], pool["queue_depth"][1], pool["queue_capacity"]),
            format!("{:.0}", pool["tokens_per_s"].as_f64().unwrap_or(0.0)),
            pool["completed"].to_string(),
            list_sum(&pool["failed"]).to_string(),
            restarts.to_string(),
            what,
        ])
        .style(if state == "ready" { Style::new() } else { state_style(state) })
    });
    let widths = [16, 13, 9, 12, 8, 9, 7, 8].map(Constraint::Length);
    let head = Row::new([
        "POOL",
        "STATE",
        "SLOTS",
        "QUEUE I+B",
        "TOK/S",
        "DONE",
        "FAILED",
        "RESTARTS",
        "ENGINE, MODEL, REASON",
    ]);
    let table = Table::new(rows, widths.into_iter().chain([Constraint::Min(10)])).header(head.style(heading()));
    frame.render_widget(table.block(block("Pools")), area);
}

fn list_sum(value: &Value) -> u64 {
    value.as_object().map_or(0, |map| map.values().map(number).sum())
}

fn draw_latency(frame: &mut Frame<'_>, overview: &Value, area: Rect) {
    let rows = list(&overview["pools"]).flat_map(|pool| {
        let of_minute = list(&pool["latency"]).filter(|row| {
            text(&row["window"]) == "1m"
                && ["queue", "first_token", "per_token", "decode", "total"].contains(&text(&row["stage"]))
        });
        of_minute.map(move |row| {
            let at = |name: &str| millis(row[name].as_f64().unwrap_or(0.0));
            Row::new(vec![
                text(&pool["pool_id"]).to_owned(),
                text(&row["priority"]).to_owned(),
                text(&row["stage"]).replace('_', " "),
                at("p50"),
                at("p95"),
                at("p99"),
                row["count"].to_string(),
            ])
        })
    });
    let widths = [14, 11, 11, 8, 8, 8, 6].map(Constraint::Length);
    let head = Row::new(["POOL", "PRIORITY", "STAGE", "P50", "P95", "P99", "TASKS"]).style(heading());
    frame.render_widget(Table::new(rows, widths).header(head).block(block("Latency, last minute")), area);
}

fn draw_clients(frame: &mut Frame<'_>, overview: &Value, area: Rect) {
    let rows = list(&overview["pools"]).flat_map(|pool| {
        list(&pool["clients"]).map(move |client| {
            let share = |name: &str| format!("{:.0}%", client[name].as_f64().unwrap_or(0.0) * 100.0);
            Row::new(vec![
                text(&pool["pool_id"]).to_owned(),
                text(&client["client_id"]).to_owned(),
                format!("{}+{}", client["waiting"][0], client["waiting"][1]),
                client["running"].to_string(),
                share("share"),
                share("fair_share"),
            ])
        })
    });
    let widths = [Constraint::Length(10), Constraint::Min(8)].into_iter().chain([7, 5, 6, 5].map(Constraint::Length));
    let head = Row::new(["POOL", "CLIENT", "WAIT", "RUN", "SHARE", "FAIR"]).style(heading());
    frame.render_widget(Table::new(rows, widths).header(head).block(block("Clients")), area);
}

fn draw_objectives(frame: &mut Frame<'_>, overview: &Value, area: Rect) {
    let rows = list(&overview["slo"]).filter(|view| text(&view["window"]) == "10m").map(|view| {
        let share = |value: &Value| value.as_f64().map_or("-".to_owned(), |share| format!("{:.1}%", share * 100.0));
        let each = list(&view["objectives"])
            .map(|one| format!("{} {}", text(&one["name"]).replace('_', " "), share(&one["attainment"])));
        let burn = view["burn_rate"].as_f64().unwrap_or(0.0);
        let style = if burn > 1.0 { state_style("burning") } else { Style::new() };
        let cells = [
            text(&view["priority"]).to_owned(),
            share(&view["attainment"]),
            share(&view["target"]),
            format!("{burn:.2}"),
            view["tasks"].to_string(),
            each.collect::<Vec<_>>().join(", "),
        ];
        Row::new(cells).style(style)
    });
    let widths = [12, 8, 8, 6, 7].map(Constraint::Length).into_iter().chain([Constraint::Min(10)]);
    let head = Row::new(["PRIORITY", "MET", "TARGET", "BURN", "TASKS", "EACH"]).style(heading());
    frame.render_widget(Table::new(rows, widths).header(head).block(block("Objectives, 10 minutes")), area);
}

fn draw_devices(frame: &mut Frame<'_>, overview: &Value, area: Rect) {
    let rows = list(&overview["devices"]["devices"]).map(|device| {
        let (sample, condition) = (&device["sample"], text(&device["condition"]));
        let used = |name: &str| sample[name].as_u64().map_or("-".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        let percent = sample["utilization_percent"].as_u64().map_or("-".to_owned(), |share| format!("{share}%"));
        let cells =
            [text(&device["id"]).to_owned(), format!("{} {condition}", sign(condition)), percent, used("memory_used")];
        Row::new(cells).style(if condition == "healthy" { Style::new() } else { state_style(condition) })
    });
    let widths = [Constraint::Min(8), Constraint::Length(12), Constraint::Length(6), Constraint::Length(12)];
    let simulated = if text(&overview["devices"]["source"]) == "simulated" { "Devices, simulated" } else { "Devices" };
    let head = Row::new(["DEVICE", "STATE", "BUSY", "MEMORY"]).style(heading());
    frame.render_widget(Table::new(rows, widths).header(head).block(block(simulated)), area);
}

/// Lines for the cluster: a frame, a head and the peers, as far as there is room; none without a cluster.
fn cluster_height(overview: &Value, height: u16) -> u16 {
    let peers = list(&overview["cluster"]["peers"]).count() as u16;
    if overview["cluster"].is_null() { 0 } else { (peers + 3).min(height / 5) }
}

fn draw_cluster(frame: &mut Frame<'_>, overview: &Value, area: Rect) {
    let node = &overview["cluster"];
    let rows = list(&node["peers"]).map(|peer| {
        let link = &peer["link"];
        let state = if link.is_null() { "none" } else { text(&link["state"]) };
        let figure = |name: &str| if link.is_null() { "-".to_owned() } else { number(&link[name]).to_string() };
        let round_trip = link["round_trip_ms"].as_f64().map_or("-".to_owned(), millis);
        let why = if link.is_null() { text(&peer["trouble"]).to_owned() } else { String::new() };
        let cells = [text(&peer["name"]).to_owned(), state.to_owned(), round_trip, figure("lent"), figure("guests")];
        let style = if state == "alive" { Style::new() } else { Style::new().fg(Color::Red) };
        Row::new(cells.into_iter().chain([figure("outbox_bytes"), why])).style(style)
    });
    let widths = [16, 8, 8, 6, 7, 9].map(Constraint::Length).into_iter().chain([Constraint::Min(10)]);
    let head = Row::new(["PEER", "LINK", "RTT", "LENT", "GUESTS", "OUTBOX", ""]).style(heading());
    let draining = if node["is_draining"] == true { ", draining" } else { "" };
    let title = format!("Node {}{draining}", text(&node["name"]));
    frame.render_widget(Table::new(rows, widths).header(head).block(block(&title)), area);
}

fn draw_failures(frame: &mut Frame<'_>, overview: &Value, area: Rect) {
    let mut lines: Vec<Line<'_>> = list(&overview["failures"])
        .map(|failed| {
            let ago = span(number(&failed["ago_ms"]) as f64 / 1_000.0);
            let (code, task) = (text(&failed["code"]), text(&failed["task_id"]));
            Line::raw(format!("{ago} ago  {code}  {task}  {}", text(&failed["message"])))
        })
        .collect();
    if lines.is_empty() {
        lines.push(Line::styled("none", Style::new().fg(Color::DarkGray)));
    }
    frame.render_widget(Paragraph::new(lines).block(block("Last failures")), area);
}
