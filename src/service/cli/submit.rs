//! `orchestratord submit`: a prompt goes in, its tokens come out on the terminal.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Response};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::core::text::line::Line;
use crate::gpu::http::sse::{Said, SseParser};
use crate::service::cli::arguments::SubmitArguments;
use crate::service::cli::output;
use crate::service::cli::output::tell;
use crate::service::cli::plain_text::for_terminal;
use crate::service::cli::remote::refusal;

/// How often the waiting line is written anew.
const TICK: Duration = Duration::from_millis(200);

/// Submits, streams, and fails when the task does.
pub(crate) async fn run(arguments: SubmitArguments) -> Result<(), String> {
    let body = json!({
        "prompt": arguments.prompt,
        "max_tokens": arguments.max_tokens,
        "seed": arguments.seed,
        "model_ref": arguments.model,
        "priority": arguments.priority.as_deref().unwrap_or("interactive"),
    });
    let mut headers = vec![("accept", "text/event-stream")];
    headers.extend(arguments.client.as_deref().map(|client| ("x-client-id", client)));
    let answer = arguments.remote.send(Method::POST, "/v1/tasks", &headers, body.to_string().into_bytes()).await?;
    if !answer.status().is_success() {
        return Err(refusal(answer).await);
    }
    Terminal::new(&answer).show(answer.into_body()).await
}

/// What is on the terminal: the waiting line on standard error, then tokens on standard output.
struct Terminal {
    position: String,
    predicted_ms: String,
    waited: Duration,
    begun: bool,
    /// The waiting line is only for people.
    animate: bool,
    /// Tokens are read by a terminal.
    is_terminal: bool,
    outcome: Option<Result<(), String>>,
}

impl Terminal {
    fn new(answer: &Response<Incoming>) -> Self {
        let header = |name: &str| {
            let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or("?").to_owned()
        };
        let animate = std::io::stderr().is_terminal();
        let (position, predicted_ms) = (header("x-queue-position"), header("x-predicted-start-ms"));
        tell(&format!("task {}: {position} ahead, about {predicted_ms} ms to wait", header("x-task-id")));
        Terminal {
            position,
            predicted_ms,
            waited: Duration::ZERO,
            begun: false,
            animate,
            is_terminal: std::io::stdout().is_terminal(),
            outcome: None,
        }
    }

    async fn show(mut self, mut body: Incoming) -> Result<(), String> {
        let mut parser = SseParser::default();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                frame = body.frame() => {
                    let Some(frame) = frame else { break };
                    let frame = frame.map_err(|error| format!("the stream broke: {error}"))?;
                    let Ok(bytes) = frame.into_data() else { continue };
                    let show = |said: Said<'_>| {
                        if let Said::Event { data, .. } = said {
                            self.event(data);
                        }
                        ControlFlow::<()>::Continue(())
                    };
                    let _ = parser.push(&bytes, show).map_err(|error| error.to_string())?; // It never breaks.
                    if output::is_lost() {
                        return Ok(()); // Nobody reads on: the service hears of it by the connection.
                    }
                }
                _ = tick.tick(), if !self.begun => self.wait(),
            }
        }
        self.outcome.unwrap_or_else(|| Err("the stream ended without an end of the task".into()))
    }

    /// A token as standard output gets it: on a terminal it controls nothing, a pipe gets it as it is.
    fn shown<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.is_terminal { for_terminal(text) } else { Cow::Borrowed(text) }
    }

    fn wait(&mut self) {
        self.waited += TICK;
        if self.animate {
            let (position, predicted) = (&self.position, &self.predicted_ms);
            let line = format!("\rwaiting {:.1?}, {position} ahead, about {predicted} ms ", self.waited);
            let mut terminal = std::io::stderr();
            let _ = terminal.write_all(line.as_bytes()).and_then(|()| terminal.flush()); // A closed one waits for nothing.
        }
    }

    /// Events are told apart by their fields: each type has one that no other has.
    fn event(&mut self, data: &[u8]) {
        let event: Value = serde_json::from_slice(data).unwrap_or_default();
        if let Some(text) = event["t"].as_str() {
            output::print(&self.shown(text));
        } else if let Some(replica) = event["replica_id"].as_str() {
            self.begun = true;
            let replica = Line::<300>::new(replica);
            let line = format!("started on {replica}, seed {}, attempt {}", event["seed"], event["attempt"]);
            if self.animate {
                let _ = std::io::stderr().write_all(b"\r\x1b[K"); // The waiting line goes; a closed one has none.
            }
            tell(&line);
        } else if let Some(code) = event["code"].as_str() {
            let message = event["message"].as_str().unwrap_or_default();
            let (code, message) = (Line::<64>::new(code), Line::<2000>::new(message));
            self.outcome = Some(Err(format!("\n{code}: {message}")));
        } else if let Some(tokens) = event["tokens_out"].as_u64() {
            let first = event["first_token_ms"].as_f64().unwrap_or_default();
            let decode = event["decode_ms"].as_f64().unwrap_or_default();
            output::print("\n");
            tell(&format!(
                "{tokens} tokens, first after {first:.0} ms, all in {:.0} ms, {}",
                first + decode,
                event["finish_reason"]
            ));
            self.outcome = Some(Ok(()));
        }
    }
}
