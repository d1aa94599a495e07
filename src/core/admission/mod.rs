//! Who may come in, and to which pool: the checks that need no queue (ORCH-3014, ORCH-3015, ORCH-3018).
//!
//! Every refusal says what is wrong, where, and what would be right.

#[doc(hidden)]
pub mod kept;
#[doc(hidden)]
pub mod limits;
#[doc(hidden)]
pub mod line_budget;
#[doc(hidden)]
pub mod offers;
#[doc(hidden)]
pub mod partition;
#[doc(hidden)]
pub mod rate_limiter;
#[doc(hidden)]
pub mod share;
#[doc(hidden)]
pub mod waiting_room;

use std::sync::Arc;
use std::time::Duration;

use crate::core::admission::limits::Exceeded;
use crate::core::id::PoolId;
use crate::core::pool::lifecycle::PoolState;
use crate::core::pool::model::ModelSpec;
use crate::core::task::error::{ErrorCode, TaskError};
use crate::core::task::seed::SEED_MAX;
use crate::core::task::{INPUTS_MAX, STOP_TEXT_BYTES_MAX, STOP_TEXTS_MAX, Sampling, TaskRequest, Workload};
use crate::core::text::line::{Message, quoted};
use crate::core::units::{Tokens, millis_ceil};

/// What admission knows of one pool, as of now.
#[derive(Clone, Debug)]
pub struct PoolFacts<'a> {
    /// Its name.
    pub id: &'a PoolId,
    /// Its engine's name.
    pub engine: &'a str,
    /// What it serves now.
    pub spec: Arc<ModelSpec>,
    /// Longest context of one task, prompt and generation together.
    pub ctx: Tokens,
    /// What it serves.
    pub workloads: &'a [Workload],
    /// Bytes of prompt that make one token, on average, for the estimate of a prompt's length.
    pub bytes_per_token: u32,
    /// Where it stands.
    pub state: PoolState,
    /// Whether its queue could take a task of this class in, or would make room for it.
    pub room: bool,
    /// Other names by which its model may be asked for.
    pub aliases: &'a [String],
    /// A rollout sends this task to another pool.
    pub aside: bool,
    /// Whether the client may use it.
    pub allowed: bool,
    /// How long a new task of this class would wait.
    pub wait: Duration,
    /// When to come back if it is refused: as long as the wait, as far as that is more than a guess.
    pub advice: Duration,
    /// When a pool that is down is tried again, if it is.
    pub next_try: Option<Duration>,
}

/// Where a task goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Position of the pool in the list that was given.
    pub pool: usize,
    /// Estimated length of the prompt.
    pub prompt_tokens: Tokens,
}

fn invalid(message: impl Into<Message>) -> TaskError {
    TaskError::new(ErrorCode::InvalidParams, message)
}

/// Estimated tokens of a text: at least one, rounded up. The engine has the last word.
pub fn estimate_tokens(text: &str, bytes_per_token: u32) -> Tokens {
    let tokens = text.len().div_ceil(bytes_per_token.max(1) as usize).max(1);
    Tokens(u32::try_from(tokens).unwrap_or(u32::MAX))
}

/// Chooses the pool of a task: among those that serve what it asks for, take tasks and have room, the one that is
/// predicted to start it first; the one configured first when equal. Allocates only to refuse.
///
/// # Errors
/// `INVALID_PARAMS` when the request is wrong, nothing serves it or its client may not use what does. `POOL_UNREADY`
/// when what serves it has not loaded its model and will try again; `POOL_UNAVAILABLE` when it drains, is stopped or
/// broken; `REPLICA_EXHAUSTED` when of several pools each is full or out. A pool that is alone and full is chosen all
/// the same: its queue knows best what to say.
pub fn route(request: &TaskRequest, pools: &[PoolFacts<'_>]) -> Result<Route, TaskError> {
    check_request(request)?;
    let mut refused = None;
    let mut best: Option<Route> = None;
    let mut model: Option<&ModelSpec> = None;
    let (mut fitting, mut is_closed) = (0, false);
    for (position, pool) in pools.iter().enumerate().filter(|(_, pool)| serves(request, pool) && !pool.aside) {
        if !pool.allowed {
            is_closed = true;
            continue;
        }
        if model.get_or_insert(&pool.spec).model != pool.spec.model {
            if request.model_ref.is_some() {
                continue; // An alias that several models have: it is the first one's.
            }
            return Err(ambiguous(request, pools));
        }
        match check_budget(request, pool) {
            Err(error) => refused = refused.or(Some(error)),
            Ok(prompt_tokens) => {
                fitting += 1;
                let key = |pool: &PoolFacts<'_>| (!pool.room, pool.wait);
                if !pool.state.takes_tasks() {
                    refused = Some(sooner(refused, out_of_service(pool)));
                } else if best.is_none_or(|best| key(pool) < key(&pools[best.pool])) {
                    best = Some(Route { pool: position, prompt_tokens });
                }
            }
        }
    }
    match best {
        Some(route) if pools[route.pool].room || fitting == 1 => Ok(route),
        Some(route) => Err(exhausted(request, pools, &pools[route.pool])),
        None if is_closed && refused.is_none() => Err(not_allowed(request)),
        None => Err(refused.unwrap_or_else(|| nobody_serves(request, pools))),
    }
}

/// Of two refusals the one that says to come back sooner; one that says so at all.
fn sooner(known: Option<TaskError>, other: TaskError) -> TaskError {
    let when = |error: &TaskError| error.retry_after_ms.unwrap_or(u64::MAX);
    match known {
        Some(known) if when(&known) <= when(&other) => known,
        _ => other,
    }
}

/// Why this pool could not take the task now, in one line; `None` when it could.
pub fn why_not(request: &TaskRequest, pool: &PoolFacts<'_>) -> Option<Message> {
    if !serves(request, pool) {
        return Some(nobody_serves(request, std::slice::from_ref(pool)).message);
    }
    if !pool.allowed {
        return Some(not_allowed(request).message);
    }
    if let Err(error) = check_budget(request, pool) {
        return Some(error.message);
    }
    if !pool.state.takes_tasks() {
        return Some(out_of_service(pool).message);
    }
    (!pool.room).then(|| "its queue is full".into())
}

/// The refusal of a client that may not use any pool that would serve it.
fn not_allowed(request: &TaskRequest) -> TaskError {
    invalid(format!("client {} may not use a pool that serves this", request.client_id)).policy(NOT_ALLOWED)
}

/// The policy that is named when a client may not use the pools that would serve it.
pub const NOT_ALLOWED: &str = "allowed-pools";

/// The refusal when of several pools each is full or out; `first` would have room first.
fn exhausted(request: &TaskRequest, pools: &[PoolFacts<'_>], first: &PoolFacts<'_>) -> TaskError {
    let concerned = pools.iter().filter(|pool| pool.allowed && serves(request, pool));
    let each = concerned
        .map(|pool| format!("{} is {}", pool.id, if pool.state.takes_tasks() { "full" } else { pool.state.as_str() }));
    let text = format!("no pool has room: {}", each.collect::<Vec<_>>().join(", "));
    TaskError::new(ErrorCode::ReplicaExhausted, text).engine(first.engine).retry_after(first.advice)
}

/// Whether the pool has all that the request names.
fn serves(request: &TaskRequest, pool: &PoolFacts<'_>) -> bool {
    let named = FIELDS.iter().all(|field| wanted_fits(field, request, pool));
    named && pool.workloads.contains(&request.workload)
}

/// Whether a pool has what the request names in one field, if anything.
fn wanted_fits((name, wanted, have): &Choice, request: &TaskRequest, pool: &PoolFacts<'_>) -> bool {
    let is_alias = |wanted: &str| *name == "model_ref" && pool.aliases.iter().any(|alias| alias == wanted);
    wanted(request).is_none_or(|wanted| wanted == have(pool) || is_alias(wanted))
}

/// One field by which a request chooses pools: its name, what the request wants, what a pool has.
type Choice = (&'static str, fn(&TaskRequest) -> Option<&str>, for<'a> fn(&'a PoolFacts<'_>) -> &'a str);

/// The fields by which a request chooses, in the order in which they narrow the choice.
const FIELDS: [Choice; 3] = [
    ("engine", |request| request.engine.as_deref(), |pool| pool.engine),
    ("model_ref", |request| request.model_ref.as_deref(), |pool| &pool.spec.model),
    (
        "sampler_profile_version",
        |request| request.sampler_profile_version.as_deref(),
        |pool| &pool.spec.sampler_profile_version,
    ),
];

/// The refusal that names the first field for which nothing is left, with what there would have been.
fn nobody_serves(request: &TaskRequest, pools: &[PoolFacts<'_>]) -> TaskError {
    let mut left: Vec<&PoolFacts<'_>> = pools.iter().collect();
    for choice in FIELDS {
        let (field, wanted, have) = choice;
        let Some(wanted) = wanted(request) else { continue };
        let known = choices(left.iter().filter(|pool| pool.allowed).map(|pool| have(pool)).collect());
        left.retain(|pool| wanted_fits(&choice, request, pool));
        if left.is_empty() {
            return invalid(format!("field '{field}': nothing serves {}; {known}", quoted(wanted)));
        }
    }
    if left.is_empty() {
        return TaskError::new(ErrorCode::PoolUnavailable, "no pool is configured");
    }
    let known = choices(
        left.iter()
            .filter(|pool| pool.allowed)
            .flat_map(|pool| pool.workloads)
            .map(|workload| workload.as_str())
            .collect(),
    );
    invalid(format!("field 'workload': nothing serves {:?}; {known}", request.workload.as_str()))
}

/// The refusal of a request that leaves the model out where several are served.
fn ambiguous(request: &TaskRequest, pools: &[PoolFacts<'_>]) -> TaskError {
    let models = choices(
        pools.iter().filter(|pool| pool.allowed && serves(request, pool)).map(|pool| &*pool.spec.model).collect(),
    );
    invalid(format!("field 'model_ref': several models are served; {models}"))
}

fn choices(mut names: Vec<&str>) -> String {
    names.sort_unstable();
    names.dedup();
    match names.is_empty() {
        true => "there is nothing that this client may use".into(),
        false => format!("there is {}", names.join(", ")),
    }
}

/// The request by itself: shapes and ranges.
fn check_request(request: &TaskRequest) -> Result<(), TaskError> {
    if request.prompt.is_empty() && request.workload != Workload::Embedding {
        return Err(invalid("field 'prompt': it must not be empty"));
    }
    match (request.workload, request.inputs.len()) {
        (Workload::Completion, 0) => {}
        (Workload::Completion, _) => {
            return Err(invalid("field 'inputs': only for workload \"embedding\" or \"rerank\"; send a 'prompt'"));
        }
        (_, 1..=INPUTS_MAX) if request.inputs.iter().all(|input| !input.is_empty()) => {}
        (_, count) => {
            return Err(invalid(format!("field 'inputs': 1 to {INPUTS_MAX} texts, none empty, not {count}")));
        }
    }
    if request.max_tokens.0 == 0 {
        return Err(invalid("field 'max_tokens': it must be at least 1"));
    }
    if request.seed.is_some_and(|seed| seed > SEED_MAX) {
        return Err(invalid(format!("field 'seed': it must be at most {SEED_MAX}")));
    }
    if request.deadline.is_some_and(|deadline| deadline.is_zero()) {
        return Err(invalid("field 'deadline_ms': it must be at least 1"));
    }
    check_sampling(&request.parameters)
}

fn check_sampling(sampling: &Sampling) -> Result<(), TaskError> {
    // (name, value, lowest, whether the lowest itself is allowed, highest)
    let ranges = [
        ("temperature", sampling.temperature, 0.0, true, 10.0),
        ("top_p", sampling.top_p, 0.0, false, 1.0),
        ("min_p", sampling.min_p, 0.0, true, 1.0),
        ("repeat_penalty", sampling.repeat_penalty, 0.0, false, 10.0),
    ];
    for (name, value, low, low_allowed, high) in ranges {
        let Some(value) = value else { continue };
        let above_low = value > low || (low_allowed && value == low);
        if !(above_low && value <= high) {
            let from = if low_allowed { "from" } else { "above" };
            return Err(invalid(format!("field 'parameters.{name}': it must be {from} {low} to {high}, not {value}")));
        }
    }
    if sampling.stop.len() > STOP_TEXTS_MAX {
        let count = sampling.stop.len();
        return Err(invalid(format!("field 'parameters.stop': at most {STOP_TEXTS_MAX} texts, not {count}")));
    }
    let usable = |text: &String| !text.is_empty() && text.len() <= STOP_TEXT_BYTES_MAX;
    if !sampling.stop.iter().all(usable) {
        return Err(invalid(format!("field 'parameters.stop': each text has 1 to {STOP_TEXT_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// Context and token budget (ORCH-3014, ORCH-3015), with the estimated length of the prompt.
fn check_budget(request: &TaskRequest, pool: &PoolFacts<'_>) -> Result<Tokens, TaskError> {
    let (id, ctx) = (pool.id, pool.ctx);
    if request.ctx.is_some_and(|wanted| wanted > ctx) {
        let wanted = request.ctx.unwrap_or_default();
        return Err(invalid(format!("field 'ctx': pool {id} has a context of {ctx} tokens, not {wanted}")));
    }
    let prompt = estimate_tokens(&request.prompt, pool.bytes_per_token);
    if request.workload != Workload::Completion {
        return check_inputs(request, pool, if request.prompt.is_empty() { Tokens(0) } else { prompt });
    }
    if prompt >= ctx {
        let text = format!("field 'prompt': about {prompt} tokens do not fit pool {id}'s context of {ctx} tokens");
        return Err(invalid(text));
    }
    let budget = prompt + request.max_tokens;
    if budget > ctx {
        let room = ctx.0 - prompt.0;
        let text = format!("field 'max_tokens': about {prompt} tokens of prompt leave {room} in pool {id}'s context");
        return Err(invalid(text));
    }
    Ok(prompt)
}

/// The same for texts that are embedded or ranked: each has the context to itself, beside the query.
fn check_inputs(request: &TaskRequest, pool: &PoolFacts<'_>, query: Tokens) -> Result<Tokens, TaskError> {
    let mut all = Tokens(0);
    for (index, input) in request.inputs.iter().enumerate() {
        let tokens = estimate_tokens(input, pool.bytes_per_token) + query;
        if tokens > pool.ctx {
            let (id, ctx) = (pool.id, pool.ctx);
            let text = format!(
                "field 'inputs[{index}]': about {tokens} tokens do not fit pool {id}'s context of {ctx} tokens"
            );
            return Err(invalid(text));
        }
        all = all + tokens;
    }
    Ok(all)
}

/// The refusal of a task that would exceed one of its client's limits. `next_start` is the predicted time until one of
/// the client's tasks leaves the queue.
pub fn over_limit(request: &TaskRequest, exceeded: Exceeded, next_start: Duration) -> TaskError {
    let client = &request.client_id;
    let reject = |text: String| TaskError::new(ErrorCode::AdmissionReject, text);
    match exceeded {
        Exceeded::Requests(wait) => reject(format!("client {client} sends more tasks a second than its limit"))
            .policy(RATE_LIMIT)
            .retry_after(wait),
        Exceeded::Tokens(wait) => reject(format!("client {client} asks for more tokens a second than its limit"))
            .policy(RATE_LIMIT)
            .retry_after(wait),
        Exceeded::Queued(most) => {
            let text = format!("client {client} has {most} tasks waiting, which is its quota");
            reject(text).policy(QUOTA).retry_after(next_start)
        }
        Exceeded::QueuedHere(part, most) => {
            let text = format!(
                "client {client} has {part} tasks waiting here, which is this node's part of its quota of {most}"
            );
            reject(text).policy(QUOTA).retry_after(next_start)
        }
        Exceeded::Memory(most) => {
            let text = format!("the task would need more device memory than client {client}'s quota of {most} bytes");
            invalid(text).policy(QUOTA)
        }
    }
}

/// The policy that is named when a client sends too fast.
pub const RATE_LIMIT: &str = "rate-limit";
/// The policy that is named when a client has too much at once.
pub const QUOTA: &str = "quota";
/// The policy that is named when a task could not start before its deadline.
pub const DEADLINE: &str = "deadline";

/// The refusal of a task that is predicted to start behind its deadline; `None` when it may come in time. One comes
/// back when the wait has shrunk to the deadline.
pub fn too_late(deadline: Duration, predicted: Duration) -> Option<TaskError> {
    let late = predicted.checked_sub(deadline).filter(|late| !late.is_zero())?;
    let (predicted, deadline) = (millis_ceil(predicted), millis_ceil(deadline));
    let text = format!("the task is predicted to start in {predicted} ms, behind its deadline of {deadline} ms");
    Some(TaskError::new(ErrorCode::AdmissionReject, text).policy(DEADLINE).retry_after(late))
}

/// The refusal of a pool that takes no tasks, telling apart what comes back by itself and what does not.
fn out_of_service(pool: &PoolFacts<'_>) -> TaskError {
    let code = match pool.state {
        PoolState::Unready => ErrorCode::PoolUnready,
        _ => ErrorCode::PoolUnavailable,
    };
    let error = TaskError::new(code, format!("pool {} is {}", pool.id, pool.state.as_str())).engine(pool.engine);
    match pool.next_try {
        Some(wait) => error.retry_after(wait + pool.advice),
        None => error.retry_after(pool.advice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(model: &str) -> Arc<ModelSpec> {
        let (model, quant, profile) = (model.to_owned(), "none".to_owned(), "1".to_owned());
        Arc::new(ModelSpec { model, quant, ctx: None, sampler_profile_version: profile })
    }

    fn pool(id: &PoolId) -> PoolFacts<'_> {
        PoolFacts {
            id,
            engine: "sim",
            spec: spec("m"),
            ctx: Tokens(100),
            workloads: &[Workload::Completion],
            bytes_per_token: 4,
            state: PoolState::Ready,
            room: true,
            aliases: &[],
            aside: false,
            allowed: true,
            wait: Duration::from_millis(5),
            advice: Duration::from_millis(5),
            next_try: None,
        }
    }

    fn id(name: &str) -> PoolId {
        PoolId::parse(name).expect("valid")
    }

    fn check(change: impl FnOnce(&mut TaskRequest), code: ErrorCode, part: &str) {
        let mut request = TaskRequest::completion("hello").max_tokens(8);
        change(&mut request);
        let error = route(&request, &[pool(&id("p"))]).expect_err(part);
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(part), "{error} does not say {part:?}");
    }

    #[test]
    fn texts_are_embedded_where_that_is_served_and_each_has_the_context_to_itself() {
        let id = id("p");
        let serves = PoolFacts { workloads: &[Workload::Embedding, Workload::Rerank], ..pool(&id) };
        let of = |bytes: usize| TaskRequest::embedding(vec!["x".repeat(bytes); 3]);
        assert_eq!(route(&of(400), std::slice::from_ref(&serves)).unwrap().prompt_tokens, Tokens(300), "all of them");
        let error = route(&of(404), std::slice::from_ref(&serves)).expect_err("too long");
        assert!(error.message.starts_with("field 'inputs[0]': about 101 tokens"), "{error}");
        let error = route(&TaskRequest::completion("x"), &[serves]).expect_err("not served");
        assert!(error.message.contains("nothing serves \"completion\"; there is embedding, rerank"), "{error}");
    }

    #[test]
    fn each_wrong_field_is_named() {
        use ErrorCode::InvalidParams as Invalid;
        check(|r| r.prompt.clear(), Invalid, "'prompt'");
        check(|r| r.max_tokens = Tokens(0), Invalid, "'max_tokens'");
        let texts = || vec!["a".to_owned(), "b".to_owned()];
        check(
            |r| *r = TaskRequest::embedding(texts()),
            Invalid,
            "'workload': nothing serves \"embedding\"; there is completion",
        );
        check(|r| r.inputs = texts(), Invalid, "'inputs': only for");
        check(|r| *r = TaskRequest::rerank("q", Vec::new()), Invalid, "'inputs': 1 to 2048 texts");
        check(|r| *r = TaskRequest::embedding(vec![String::new()]), Invalid, "none empty");
        check(|r| r.seed = Some(u64::from(u32::MAX)), Invalid, "'seed'");
        check(|r| r.deadline = Some(Duration::ZERO), Invalid, "'deadline_ms'");
        check(|r| r.parameters.temperature = Some(-0.1), Invalid, "'parameters.temperature'");
        check(|r| r.parameters.top_p = Some(0.0), Invalid, "'parameters.top_p'");
        check(|r| r.parameters.min_p = Some(f32::NAN), Invalid, "'parameters.min_p'");
        check(|r| r.parameters.repeat_penalty = Some(f32::INFINITY), Invalid, "'parameters.repeat_penalty'");
        check(|r| r.parameters.stop = vec![String::new()], Invalid, "'parameters.stop'");
        check(|r| r.parameters.stop = vec!["x".into(); 17], Invalid, "'parameters.stop'");
        check(|r| r.parameters.stop = vec!["x".repeat(STOP_TEXT_BYTES_MAX + 1)], Invalid, "'parameters.stop'");
        check(|r| r.parameters.temperature = Some(10.1), Invalid, "from 0 to 10");
        check(|r| r.parameters.top_p = Some(1.1), Invalid, "above 0 to 1");
    }

    #[test]
    fn what_is_just_inside_a_range_is_taken() {
        let mut request = TaskRequest::completion("hello").max_tokens(8);
        request.seed = Some(SEED_MAX);
        request.ctx = Some(Tokens(100));
        request.deadline = Some(Duration::from_millis(1));
        let stop = vec!["x".repeat(STOP_TEXT_BYTES_MAX); STOP_TEXTS_MAX];
        for (temperature, top_p) in [(0.0, 0.01), (10.0, 1.0)] {
            let (temperature, top_p) = (Some(temperature), Some(top_p));
            request.parameters = Sampling { temperature, top_p, stop: stop.clone(), ..Sampling::default() };
            assert_eq!(route(&request, &[pool(&id("p"))]).map(|route| route.pool), Ok(0));
        }
    }

    #[test]
    fn what_nobody_serves_is_refused_with_the_choices() {
        check(|r| r.model_ref = Some("other".into()), ErrorCode::InvalidParams, "there is m");
        check(|r| r.engine = Some("vllm".into()), ErrorCode::InvalidParams, "there is sim");
        check(|r| r.sampler_profile_version = Some("2".into()), ErrorCode::InvalidParams, "there is 1");
    }

    #[test]
    fn a_context_or_budget_that_cannot_fit_never_reaches_the_queue() {
        check(|r| r.ctx = Some(Tokens(101)), ErrorCode::InvalidParams, "'ctx'");
        check(|r| r.prompt = "x".repeat(400), ErrorCode::InvalidParams, "'prompt'");
        check(|r| r.max_tokens = Tokens(99), ErrorCode::InvalidParams, "leave 98");
        let fits = TaskRequest::completion("hello").max_tokens(98);
        assert_eq!(route(&fits, &[pool(&id("p"))]).expect("fits").prompt_tokens, Tokens(2));
    }

    #[test]
    fn takes_the_pool_that_starts_it_first_and_the_first_when_equal() {
        let (a, b, c) = (id("a"), id("b"), id("c"));
        let slow = PoolFacts { wait: Duration::from_secs(1), ..pool(&a) };
        let request = TaskRequest::completion("hello");
        let request = TaskRequest { max_tokens: Tokens(8), ..request };
        assert_eq!(route(&request, &[slow, pool(&b), pool(&c)]).expect("routed").pool, 1);
    }

    #[test]
    fn a_pool_that_comes_back_and_one_that_does_not_are_told_apart() {
        let name = id("p");
        let request = TaskRequest::completion("hello").max_tokens(8);
        let waiting = PoolFacts {
            state: PoolState::Unready,
            next_try: Some(Duration::from_millis(700)),
            wait: Duration::from_millis(50),
            advice: Duration::from_millis(50),
            ..pool(&name)
        };
        let error = route(&request, std::slice::from_ref(&waiting)).expect_err("unready");
        assert_eq!((error.code, error.retry_after_ms), (ErrorCode::PoolUnready, Some(750)));
        for state in [PoolState::Draining, PoolState::Stopped, PoolState::Broken] {
            let out = PoolFacts { state, ..waiting.clone() };
            assert_eq!(route(&request, &[out]).expect_err("out").code, ErrorCode::PoolUnavailable);
        }
    }

    #[test]
    fn of_several_pools_that_are_out_the_one_that_comes_back_first_speaks() {
        let (a, b) = (id("a"), id("b"));
        let request = TaskRequest::completion("hello").max_tokens(8);
        let out = |name, millis| PoolFacts {
            state: PoolState::Unready,
            next_try: Some(Duration::from_millis(millis)),
            wait: Duration::ZERO,
            advice: Duration::ZERO,
            ..pool(name)
        };
        for (of_a, of_b, said, by) in [(700, 100, 100, "pool b"), (100, 700, 100, "pool a"), (5, 5, 5, "pool a")] {
            let error = route(&request, &[out(&a, of_a), out(&b, of_b)]).expect_err("both are out");
            assert_eq!(error.retry_after_ms, Some(said));
            assert!(error.message.contains(by), "{error}");
        }
        // One that may not be used says nothing of when, while another does.
        let forbidden = PoolFacts { allowed: false, ..pool(&a) };
        let error = route(&request, &[forbidden, out(&b, 9)]).expect_err("out");
        assert_eq!(error.code, ErrorCode::PoolUnready);
    }

    #[test]
    fn why_a_pool_does_not_take_a_task_is_said_in_the_order_of_what_could_be_changed() {
        let a = id("a");
        let request = TaskRequest { model_ref: Some("m".into()), ..TaskRequest::completion("hello").max_tokens(8) };
        let full = PoolFacts { room: false, ..pool(&a) };
        let out = PoolFacts { state: PoolState::Draining, ..full.clone() };
        let small = PoolFacts { ctx: Tokens(5), ..out.clone() };
        let forbidden = PoolFacts { allowed: false, ..small.clone() };
        let other = PoolFacts { spec: spec("n"), ..forbidden.clone() };
        for (facts, said) in [
            (pool(&a), None),
            (full, Some("its queue is full")),
            (out, Some("pool a is draining")),
            (small, Some("'max_tokens'")),
            (forbidden, Some("may not use a pool")),
            (other, Some("'model_ref'")),
        ] {
            let why = why_not(&request, &facts);
            assert_eq!(why.is_some(), said.is_some(), "{why:?}");
            assert!(said.is_none_or(|said| why.as_ref().is_some_and(|why| why.contains(said))), "{why:?}: {said:?}");
        }
    }

    #[test]
    fn full_and_lost_replicas_are_told_apart_from_one_full_queue() {
        let (a, b) = (id("a"), id("b"));
        let request = TaskRequest::completion("hello").max_tokens(8);
        let full =
            PoolFacts { room: false, wait: Duration::from_millis(30), advice: Duration::from_millis(30), ..pool(&a) };
        assert_eq!(route(&request, std::slice::from_ref(&full)).expect("its queue decides").pool, 0);
        let peer = PoolFacts { wait: Duration::from_secs(9), ..pool(&b) };
        assert_eq!(route(&request, &[full.clone(), peer.clone()]).expect("it has room").pool, 1);
        let out = PoolFacts { state: PoolState::Broken, ..peer };
        let error = route(&request, &[full, out]).expect_err("exhausted");
        assert_eq!((error.code, error.retry_after_ms), (ErrorCode::ReplicaExhausted, Some(30)));
        assert!(error.message.contains("a is full, b is broken"), "{error}");
    }

    #[test]
    fn an_exhausted_set_names_only_the_pools_that_could_have_served() {
        let (a, b, c, d) = (id("a"), id("b"), id("c"), id("d"));
        let request = TaskRequest { engine: Some("sim".into()), ..TaskRequest::completion("hello").max_tokens(8) };
        let full = |name| PoolFacts { room: false, ..pool(name) };
        let forbidden = PoolFacts { allowed: false, ..full(&c) };
        let other = PoolFacts { engine: "vllm", ..full(&d) };
        let error = route(&request, &[full(&a), full(&b), forbidden, other]).expect_err("exhausted");
        assert!(error.message.ends_with("no pool has room: a is full, b is full"), "{error}");
    }

    #[test]
    fn every_refusal_of_a_limit_says_when_to_come_back_or_that_it_is_final() {
        let request = TaskRequest::completion("hello");
        let wait = Duration::from_millis(7);
        let refuse = |exceeded| over_limit(&request, exceeded, Duration::from_millis(9));
        for (exceeded, policy, after) in [
            (Exceeded::Requests(wait), RATE_LIMIT, Some(7)),
            (Exceeded::Tokens(wait), RATE_LIMIT, Some(7)),
            (Exceeded::Queued(3), QUOTA, Some(9)),
            (Exceeded::Memory(3), QUOTA, None),
        ] {
            let error = refuse(exceeded);
            assert_eq!(
                (error.policy.as_deref(), error.retry_after_ms, error.retriable),
                (Some(policy), after, after.is_some())
            );
        }
    }

    #[test]
    fn a_task_that_cannot_start_in_time_is_refused_with_the_prediction() {
        let millis = Duration::from_millis;
        assert!(too_late(millis(100), millis(100)).is_none());
        let error = too_late(millis(100), millis(130)).expect("late");
        assert_eq!((error.policy.as_deref(), error.retry_after_ms), (Some(DEADLINE), Some(30)));
        assert!(error.message.contains("130 ms"), "{error}");
    }

    #[test]
    fn a_client_uses_only_the_pools_that_it_may() {
        let (a, b) = (id("a"), id("b"));
        let request = TaskRequest::completion("hello").max_tokens(8);
        let forbidden = PoolFacts { allowed: false, ..pool(&a) };
        assert_eq!(route(&request, &[forbidden.clone(), pool(&b)]).expect("the other").pool, 1);
        let error = route(&request, &[forbidden]).expect_err("none is left");
        assert_eq!((error.code, error.policy.as_deref()), (ErrorCode::InvalidParams, Some(NOT_ALLOWED)));
        assert!(error.message.contains("client anonymous may not use a pool"), "{error}");
    }

    #[test]
    fn the_model_may_be_left_out_only_where_one_is_served() {
        let (a, b) = (id("a"), id("b"));
        let other = PoolFacts { spec: spec("n"), ..pool(&b) };
        let request = TaskRequest::completion("hello").max_tokens(8);
        let error = route(&request, &[pool(&a), other.clone()]).expect_err("ambiguous");
        assert!(error.message.contains("there is m, n"), "{error}");
        let named = TaskRequest { model_ref: Some("n".into()), ..request };
        assert_eq!(route(&named, &[pool(&a), other]).expect("named").pool, 1);
    }
}
