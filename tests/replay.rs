//! An hour of real traffic through the real actors, in virtual time, at 1.2 times what the pool can do; beside plain
//! FIFO and strict priority on the same traffic.
//!
//! `PLOT=replay.svg cargo test --release --test suite_runtime replay:: -- --nocapture` prints the table and draws the
//! plot.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use orchestrator_core::config::{ClassOrder, Config, PoolConfig, RetentionConfig, TimeoutConfig};
use orchestrator_core::core::task::FinishReason;
use orchestrator_core::core::trace::{TraceEvent, TraceKind};
use orchestrator_core::core::{ClientId, Tokens};
use orchestrator_core::gpu::{Engine, EngineError, EngineInfo, Finish, Job, TokenOutput};
use orchestrator_core::{Env, Orchestrator, Priority, TaskRequest};

const SLOTS: u32 = 16;
const CLIENTS: usize = 50;
const LOAD: f64 = 1.2;
/// Real tokens that stand as one here: costs keep their ratios, and the test takes seconds.
const GRAIN: u32 = 8;
/// Pieces in which an engine hands out a task's tokens.
const PIECES: u32 = 4;

#[derive(Clone, Copy)]
struct Request {
    at_ms: u64,
    class: Priority,
    client: usize,
    prompt: u32,
    output: u32,
}

impl Request {
    fn cost(&self) -> u64 {
        u64::from(self.prompt) + 2 * u64::from(self.output)
    }
}

/// The trace, its requests spread over the clients by Zipf's law (the n-th client sends 1/n of the first one's).
fn trace() -> Vec<Request> {
    let mut dice = fastrand::Rng::with_seed(2023);
    let mut bounds = Vec::new();
    for rank in 1..=CLIENTS {
        bounds.push(bounds.last().copied().unwrap_or(0.0) + 1.0 / rank as f64);
    }
    let mut line = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let roll = dice.f64() * bounds[CLIENTS - 1];
        Request {
            at_ms: fields[0].parse().unwrap(),
            class: if fields[1] == "i" { Priority::Interactive } else { Priority::Batch },
            client: bounds.iter().position(|bound| roll < *bound).unwrap(),
            prompt: fields[2].parse::<u32>().unwrap().div_ceil(GRAIN),
            output: fields[3].parse::<u32>().unwrap().div_ceil(GRAIN),
        }
    };
    include_str!("data/azure-llm-2023.csv").lines().skip(1).map(&mut line).collect()
}

/// An engine whose runs take time in proportion to their weighted tokens. The prompt's first word is the length of the
/// answer, which nobody else looks at.
struct Paced {
    us_per_cost: f64,
}

impl Engine for Paced {
    async fn preload(&self) -> Result<EngineInfo, EngineError> {
        Ok(EngineInfo::new("paced-1", "no-model"))
    }

    async fn generate<'a>(&'a self, job: Job<'a>, out: &'a mut dyn TokenOutput) -> Result<Finish, EngineError> {
        let prompt = job.request.prompt.len() as u32 / 2;
        let output: u32 = job.request.prompt.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(1);
        let pause = |cost: u32| tokio::time::sleep(Duration::from_micros((f64::from(cost) * self.us_per_cost) as u64));
        pause(prompt).await;
        let mut written = 0;
        for piece in 1..=PIECES {
            let until = output * piece / PIECES;
            pause(2 * (until - written)).await;
            for _ in written..until {
                out.push(" x")?;
            }
            written = until;
        }
        Ok(Finish { reason: FinishReason::Stop, tokens_in: Some(Tokens(prompt)) })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Scheduler {
    Fair,
    Fifo,
    Strict,
}

impl Scheduler {
    const ALL: [Scheduler; 3] = [Scheduler::Fair, Scheduler::Fifo, Scheduler::Strict];

    fn name(self) -> &'static str {
        match self {
            Scheduler::Fair => "fair, 9:1",
            Scheduler::Fifo => "plain FIFO",
            Scheduler::Strict => "strict priority",
        }
    }

    /// Plain FIFO is one class and one client; strict priority knows classes, and FIFO in each.
    fn request(self, of: &Request) -> TaskRequest {
        let head = format!("{} ", of.output);
        let prompt = head.clone() + &"w".repeat((2 * of.prompt as usize).saturating_sub(head.len()).max(1));
        let client = if self == Scheduler::Fair { format!("client-{:02}", of.client + 1) } else { "all".to_owned() };
        let class = if self == Scheduler::Fifo { Priority::Interactive } else { of.class };
        let request = TaskRequest::completion(prompt).max_tokens(2_048);
        request.client(ClientId::parse(&client).unwrap()).priority(class)
    }
}

async fn play(scheduler: Scheduler, requests: &[Request]) -> Vec<TraceEvent> {
    let (total, span_s) =
        (requests.iter().map(Request::cost).sum::<u64>(), requests.last().unwrap().at_ms as f64 / 1e3);
    let us_per_cost = LOAD * span_s * 1e6 * f64::from(SLOTS) / total as f64;
    let mut pool = PoolConfig::new("pool", "paced", "none");
    (pool.slots, pool.ctx, pool.bytes_per_token) = (SLOTS, Some(32_768), 2);
    pool.queue.capacity = 100_000;
    pool.timeouts = TimeoutConfig { idle_ms: 300_000, ..TimeoutConfig::default() };
    if scheduler == Scheduler::Strict {
        pool.queue.order = ClassOrder::Strict;
    }
    let config =
        Config { retention: RetentionConfig { tasks: 100, ..RetentionConfig::default() }, ..Config::default() };
    let env = Env::simulated(1);
    let builder = Orchestrator::builder().env(env.clone()).config(config);
    let orchestrator = builder.pool(pool, move |_| Paced { us_per_cost }).start().await.unwrap();
    orchestrator.until_ready().await;
    let begin = tokio::time::Instant::now();
    for request in requests {
        tokio::time::sleep_until(begin + Duration::from_millis(request.at_ms)).await;
        orchestrator.submit(scheduler.request(request)).await.expect("there is room");
    }
    while !crate::support::is_idle(&orchestrator) {
        tokio::time::sleep(Duration::from_secs(1)).await; // Virtual time.
    }
    assert_eq!(orchestrator.pools()[0].completed as usize, requests.len(), "nothing is lost");
    env.recorded().into_iter().filter(|event| !matches!(event.kind, TraceKind::Token { .. })).collect()
}

/// What a run has shown.
struct Outcome {
    /// Queue time of each request, in seconds.
    queue_s: Vec<f64>,
    /// Part of the weighted tokens that batch got while both classes waited.
    batch_share: f64,
    /// Worst difference in service of two clients that both waited, over any interval, in each class; in weighted
    /// tokens.
    gap: [u64; 2],
}

fn judge(requests: &[Request], events: &[TraceEvent]) -> Outcome {
    let mut queue_s = vec![0.0; requests.len()];
    let mut queued_at = vec![0; requests.len()];
    let mut waiting = [[0_u32; CLIENTS]; 2];
    let mut service = [[0_i64; CLIENTS]; 2];
    // Smallest and largest difference of each pair since both have been waiting.
    let mut ranges: [BTreeMap<(usize, usize), (i64, i64)>; 2] = Default::default();
    let (mut share, mut gap) = ([0_u64; 2], [0; 2]);
    for event in events {
        match event.kind {
            TraceKind::Queued { seq, .. } => {
                let request = &requests[seq.0 as usize];
                queued_at[seq.0 as usize] = event.at.as_micros();
                waiting[request.class.index()][request.client] += 1;
            }
            TraceKind::Assigned { seq, .. } => {
                let request = &requests[seq.0 as usize];
                let (class, client) = (request.class.index(), request.client);
                queue_s[seq.0 as usize] = (event.at.as_micros() - queued_at[seq.0 as usize]) as f64 / 1e6;
                if waiting.iter().all(|class| class.iter().any(|count| *count > 0)) {
                    share[class] += request.cost();
                }
                waiting[class][client] -= 1;
                service[class][client] += request.cost() as i64;
                for other in (0..CLIENTS).filter(|other| *other != client) {
                    let pair = (client.min(other), client.max(other));
                    if waiting[class][client] == 0 || waiting[class][other] == 0 {
                        ranges[class].remove(&pair);
                        continue;
                    }
                    let difference = service[class][pair.0] - service[class][pair.1];
                    let range = ranges[class].entry(pair).or_insert((difference, difference));
                    *range = (range.0.min(difference), range.1.max(difference));
                    gap[class] = gap[class].max((range.1 - range.0) as u64);
                }
            }
            _ => {}
        }
    }
    Outcome { queue_s, batch_share: share[1] as f64 / (share[0] + share[1]).max(1) as f64, gap }
}

fn quantile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(((values.len() as f64 * part) as usize).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

impl Outcome {
    fn queue(&self, requests: &[Request], wanted: impl Fn(&Request) -> bool) -> Vec<f64> {
        requests.iter().zip(&self.queue_s).filter(|(request, _)| wanted(request)).map(|(_, queue)| *queue).collect()
    }
}

#[test]
fn an_hour_of_real_traffic_at_more_than_the_pool_can_do() {
    let requests = trace();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let outcomes: Vec<Outcome> =
        Scheduler::ALL.map(|scheduler| judge(&requests, &runtime().block_on(play(scheduler, &requests)))).into();
    let of_class =
        |outcome: &Outcome, class, part| quantile(outcome.queue(&requests, |request| request.class == class), part);
    let cost_max = |class| requests.iter().filter(|request| request.class == class).map(Request::cost).max().unwrap();
    // What is delivered differs by 2(K+1) of the largest task; what is dispatched, as here, by no more.
    let bound = |class| 2 * (u64::from(SLOTS) + 1) * cost_max(class);
    let of_clients = |outcome: &Outcome, class| {
        let of_client = |client| outcome.queue(&requests, |request| request.client == client && request.class == class);
        quantile((0..CLIENTS).map(|client| quantile(of_client(client), 0.99)).collect(), 0.5)
    };
    println!(
        "| | interactive p50 | p99 | p99 of the median client | batch p50 | p99 | p99 of the median client \
         | batch share while both wait | gap, interactive | gap, batch |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (scheduler, outcome) in Scheduler::ALL.iter().zip(&outcomes) {
        use Priority::{Batch, Interactive};
        println!(
            "| {} | {:.2} s | {:.1} s | {:.1} s | {:.0} s | {:.0} s | {:.0} s | {:.3} | {:.3} of the bound | {:.3} of the bound |",
            scheduler.name(),
            of_class(outcome, Interactive, 0.5),
            of_class(outcome, Interactive, 0.99),
            of_clients(outcome, Interactive),
            of_class(outcome, Batch, 0.5),
            of_class(outcome, Batch, 0.99),
            of_clients(outcome, Batch),
            outcome.batch_share,
            outcome.gap[0] as f64 / bound(Interactive) as f64,
            outcome.gap[1] as f64 / bound(Batch) as f64,
        );
    }
    println!(
        "\n| client | tasks | weighted tokens | interactive p99: fair | FIFO | strict | batch p99: fair | FIFO | strict |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for client in [0, 1, 4, 9, 24, 49] {
        let own = |request: &&Request| request.client == client;
        let tasks = requests.iter().filter(own).count();
        let cost: u64 = requests.iter().filter(own).map(Request::cost).sum();
        let mut row = format!("| {} | {tasks} | {:.2} M |", client + 1, (u64::from(GRAIN) * cost) as f64 / 1e6);
        for class in Priority::ALL {
            for outcome in &outcomes {
                let queue = outcome.queue(&requests, |request| request.client == client && request.class == class);
                let _ = write!(row, " {:.1} s |", quantile(queue, 0.99));
            }
        }
        println!("{row}");
    }
    if let Ok(path) = std::env::var("PLOT") {
        std::fs::write(path, plot(&requests, &outcomes)).unwrap();
    }
    let [fair, fifo, strict] = [0, 1, 2].map(|at| &outcomes[at]);
    let median = |outcome| of_class(outcome, Priority::Interactive, 0.5);
    assert!(median(fair) < median(fifo) / 100.0, "interactive tasks are spared what FIFO makes them wait");
    let typical = |outcome| of_clients(outcome, Priority::Interactive);
    assert!(
        typical(fair) < typical(strict) / 2.0,
        "and most clients what strict priority does: the largest wait for themselves"
    );
    assert!(fair.batch_share > 0.095, "and batch has its share: {}", fair.batch_share);
    assert!(strict.batch_share < 0.02, "which strict priority does not give it: {}", strict.batch_share);
    for class in Priority::ALL {
        assert!(fair.gap[class.index()] <= bound(class), "the fairness bound of {class:?}");
    }
}

/// The p99 of the queue time in each two minutes, on a logarithmic scale.
fn plot(requests: &[Request], outcomes: &[Outcome]) -> String {
    let (width, height, left, top) = (860.0, 420.0, 60.0, 40.0);
    const WINDOW_MS: u64 = 120_000;
    let colors = ["#1a7f37", "#9a6700", "#cf222e"];
    let windows = requests.last().unwrap().at_ms / WINDOW_MS + 1;
    let x = |window: u64| left + (window as f64 + 0.5) / windows as f64 * (width - left - 20.0);
    let y = |seconds: f64| top + (3.0 - seconds.max(0.01).log10()) / 5.0 * (height - top - 40.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n"
    );
    let _ = writeln!(svg, "<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>");
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"18\">p99 of queue time by arrival (two-minute windows): an hour of real traffic at 1.2 x capacity</text>"
    );
    for (power, label) in [(-2, "10 ms"), (-1, "100 ms"), (0, "1 s"), (1, "10 s"), (2, "100 s"), (3, "1000 s")] {
        let at = y(10_f64.powi(power));
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {at:.1}H{}\" stroke=\"#ddd\"/><text x=\"4\" y=\"{:.1}\">{label}</text>",
            width - 20.0,
            at + 4.0
        );
    }
    for minute in (0..60).step_by(10) {
        let at = left + minute as f64 * 60_000.0 / (windows * WINDOW_MS) as f64 * (width - left - 20.0);
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{}\">{minute} min</text>", height - 18.0);
    }
    for (index, (outcome, color)) in outcomes.iter().zip(colors).enumerate() {
        for class in Priority::ALL {
            let mut path = String::new();
            for window in 0..windows {
                let inside = |request: &Request| request.class == class && request.at_ms / WINDOW_MS == window;
                let p99 = quantile(outcome.queue(requests, inside), 0.99);
                let _ = write!(path, "{}{:.1} {:.1}", if window == 0 { 'M' } else { 'L' }, x(window), y(p99));
            }
            let dash = if class == Priority::Batch { " stroke-dasharray=\"5 4\"" } else { "" };
            let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"{dash}/>");
        }
        let (at, name) = (left + 10.0 + 270.0 * index as f64, Scheduler::ALL[index].name());
        let _ = writeln!(
            svg,
            "<text x=\"{at}\" y=\"34\" fill=\"{color}\">{name}: interactive (line), batch (dashes)</text>"
        );
    }
    svg + "</svg>\n"
}
