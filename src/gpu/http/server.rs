//! What all engines behind HTTP share: a server that is reached or started, waited for, asked, streamed from and
//! watched.

use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Method;
use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::config::{CTX_DEFAULT, PoolConfig};
use crate::core::text::line::Name;
use crate::gpu::engine::{EngineContext, EngineError, Finish, TokenOutput};
use crate::gpu::http::in_flight::Busy;
use crate::gpu::http::refusal::{error_event, lost};
use crate::gpu::http::sse::{EventTooLong, Said, SseParser};
use crate::gpu::http::{HttpClient, HttpError, whole, whole_up_to};
use crate::gpu::process::child::EngineProcess;
use crate::gpu::process::ports::{PORTS, Ports};
use crate::gpu::threads;

/// Time between two looks at a server that is loading.
const HEALTH_PERIOD: Duration = Duration::from_millis(50);
/// How long a small question may take.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long figures may take; less than a probe has.
const FIGURES_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes from which on an answer is parsed off the runtime's threads.
const LARGE_BYTES: usize = 256 * 1024;
/// Refusals that say nothing of whether a server has what it was asked for: it is busy. Any other 4xx, and 501, says
/// that it has none.
const ASK_LATER: [u16; 3] = [408, 425, 429];
/// How long the rest of an answer may take whose run is known to be over: counts that come last, and the end of the
/// body.
const TAIL_TIMEOUT: Duration = Duration::from_secs(2);

/// An engine's server, at the pool's `url` or from its `command`.
pub(crate) struct Server {
    pub(crate) context: EngineContext,
    /// Set by a successful start.
    client: OnceLock<HttpClient>,
    /// What the server said that it is when it was loaded.
    pub(in crate::gpu) known: OnceLock<(Name, Name)>,
    /// The ports that its process was told.
    ports: parking_lot::Mutex<Option<Ports>>,
    /// The process that we started; `None` for a server at a URL. An async lock, since waiting for its end holds it.
    process: Mutex<Option<EngineProcess>>,
}

/// What an engine makes of the events of one streamed answer.
pub(crate) trait StreamDecoder: Send {
    /// Takes the data of one event and hands its text on; the finish, when that was the last event that matters.
    ///
    /// # Errors
    /// [`EngineError`] when the run has failed by this event's word, or it is none of the protocol's.
    fn event(&mut self, data: &[u8], out: &mut dyn TokenOutput) -> Result<Option<Finish>, EngineError>;

    /// Whether the run is known to be over, and what may still come are counts and the end of the answer.
    fn is_over(&self) -> bool {
        false
    }

    /// The answer has ended without a last event. `framed` says whether its end was told, and not only the
    /// connection's.
    ///
    /// # Errors
    /// [`EngineError::Lost`], where that is no end.
    fn ended(&mut self, framed: bool) -> Result<Finish, EngineError> {
        let _ = framed;
        Err(EngineError::Lost("the answer ended without its last event".into()))
    }
}

impl Server {
    pub(crate) fn new(context: &EngineContext) -> Self {
        Server {
            context: context.clone(),
            client: OnceLock::new(),
            known: OnceLock::new(),
            ports: parking_lot::Mutex::new(None),
            process: Mutex::new(None),
        }
    }

    pub(crate) fn pool(&self) -> &PoolConfig {
        &self.context.pool
    }

    /// The client, once the server has been started.
    pub(crate) fn client(&self) -> Result<&HttpClient, EngineError> {
        self.client.get().ok_or_else(|| EngineError::Unreachable("the server has not been started".into()))
    }

    /// Where the server listens, and the process if we start it.
    fn launch(&self) -> Result<(String, Option<(EngineProcess, Ports)>), EngineError> {
        let pool = self.pool();
        if let Some(url) = &pool.url {
            return Ok((url.replace("{index}", &self.context.replica.index.to_string()), None));
        }
        let command = pool.command.as_ref().ok_or_else(|| EngineError::Preload("neither url nor command".into()))?;
        let ports = Ports::free().map_err(|error| EngineError::Preload(format!("no free port: {error}").into()))?;
        let command = filled(command, &self.context, &ports.0);
        let process = EngineProcess::start(&command, &self.context)
            .map_err(|error| EngineError::Preload(format!("{:?} cannot be started: {error}", command[0]).into()))?;
        Ok((format!("http://127.0.0.1:{}", ports.0[0]), Some((process, ports))))
    }

    /// Starts the server, if it is ours to start, and waits until `ready` is answered with success. Returns its
    /// process.
    ///
    /// # Errors
    /// [`EngineError`] when it cannot be started, or has ended.
    pub(crate) async fn start(&self, ready: &str) -> Result<Option<u32>, EngineError> {
        let (base, launched) = self.launch()?;
        let (process, ports) = launched.unzip();
        *self.ports.lock() = ports;
        let client = HttpClient::new(&base, api_key(self.pool())?);
        let process_id = process.as_ref().and_then(EngineProcess::id);
        let mut place = self.process.lock().await;
        *place = process;
        // One future for all looks: its end takes a moment to be told whole.
        let ended = async {
            match place.as_mut() {
                Some(process) => process.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(ended);
        while let Err(error) = client.get(ready, ASK_TIMEOUT).await {
            // Whatever it is, a server that starts may get over it; nobody should have to wait to hear of it.
            self.context.site.hear(&self.context.replica, format!("{ready}: {error}"));
            tokio::select! {
                biased;
                ended = &mut ended => return Err(ended),
                () = sleep(HEALTH_PERIOD) => {}
            }
        }
        self.context.site.hear_nothing();
        self.client.set(client).map_err(|_| EngineError::Preload("loaded twice".into()))?;
        Ok(process_id)
    }

    /// Returns when the server's process has ended; never for one that we did not start.
    pub(crate) async fn failure(&self) -> EngineError {
        let mut place = self.process.lock().await;
        match place.as_mut() {
            Some(process) => process.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Asks for JSON.
    ///
    /// # Errors
    /// [`EngineError`] when it does not answer, or with something else.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, EngineError> {
        let body = self.client()?.get(path, ASK_TIMEOUT).await.map_err(lost)?;
        serde_json::from_slice(&body).map_err(|error| EngineError::Garbled(format!("{path}: {error}").into()))
    }

    /// Asks for JSON that not every server has.
    ///
    /// # Errors
    /// [`EngineError`] when it does not answer, or with something else; not when it says that there is no such thing.
    pub(crate) async fn ask_if_any<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, EngineError> {
        match self.client()?.get(path, ASK_TIMEOUT).await {
            Err(HttpError::Status { status, .. }) if has_none(status.as_u16()) => Ok(None),
            Ok(body) => Ok(serde_json::from_slice(&body).ok()),
            Err(error) => Err(lost(error)),
        }
    }

    /// Its figures in Prometheus' text format; `None` when it does not give them in time.
    pub(crate) async fn figures(&self, path: &str) -> Option<String> {
        let text = self.client().ok()?.get(path, FIGURES_TIMEOUT).await.ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// How many runs it computes by its own figures, which `read` takes from their text; a server that has none gives
    /// an empty one.
    pub(crate) async fn busy(&self, read: impl Fn(&str) -> Option<u32>) -> Busy {
        let Ok(client) = self.client() else { return Busy::Gone };
        let runs = match client.get("/metrics", FIGURES_TIMEOUT).await {
            Ok(text) => read(&String::from_utf8_lossy(&text)),
            Err(HttpError::Status { status, .. }) if has_none(status.as_u16()) => read(""),
            Err(HttpError::Connect(_)) => return Busy::Gone,
            Err(_) => None,
        };
        runs.map_or(Busy::Unknown, Busy::InFlight)
    }

    /// Sends a request and reads its streamed answer to its end. `answered` is called when the answer has begun;
    /// `signs`, which is given the count of what was heard so far, returns with each sign of life that the server gives
    /// elsewhere.
    ///
    /// # Errors
    /// [`EngineError`] when the run did not come to its end.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(crate) async fn stream<F: Future<Output = ()>>(
        &self,
        (path, trace): (&str, Option<String>),
        body: &impl serde::Serialize,
        (answered, signs): (impl FnOnce(), impl Fn() -> F),
        reading: &mut dyn StreamDecoder,
        out: &mut dyn TokenOutput,
    ) -> Result<Finish, EngineError> {
        let body = serde_json::to_vec(body).map_err(|error| EngineError::Refused(error.to_string().into()))?;
        let header = trace.as_deref().map(|trace| ("traceparent", trace));
        let mut sign = pin!(signs());
        let answer = self.client()?.send(Method::POST, path, header.as_slice(), body);
        let answer = beside(answer, sign.as_mut(), &signs, out).await.map_err(lost)?;
        answered();
        if !answer.status().is_success() {
            return Err(whole(answer).await.map_or_else(lost, |_| EngineError::Garbled("an empty refusal".into())));
        }
        let headers = answer.headers();
        let framed = headers.contains_key(TRANSFER_ENCODING) || headers.contains_key(CONTENT_LENGTH);
        let mut body = answer.into_body();
        let (mut parser, mut over) = (SseParser::default(), None);
        loop {
            let frame = match reading.is_over() {
                false => beside(body.frame(), sign.as_mut(), &signs, out).await,
                // What it said suffices; a server that keeps its connection open has no more to say.
                true => {
                    let env = &self.context.env;
                    let end = *over.get_or_insert_with(|| env.now().after(TAIL_TIMEOUT));
                    tokio::select! {
                        biased;
                        frame = body.frame() => frame,
                        () = env.sleep_until(end) => return reading.ended(false),
                    }
                }
            };
            let too_long = |error: EventTooLong| EngineError::Garbled(error.to_string().into());
            let flow = match frame {
                // Several events may come in one piece; the first that ends or fails the run decides.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => parser.push(&bytes, |said| take(said, reading, out)).map_err(too_long)?,
                    Err(_) => continue,
                },
                // Whoever has said that the run is over has said it.
                Some(Err(error)) => {
                    return reading.ended(false).map_err(|_| EngineError::Lost(error.to_string().into()));
                }
                None if framed => match parser.finish(|said| take(said, reading, out)).map_err(too_long)? {
                    ControlFlow::Break(result) => ControlFlow::Break(result),
                    ControlFlow::Continue(()) => return reading.ended(true),
                },
                None => return reading.ended(false),
            };
            if let ControlFlow::Break(result) = flow {
                return result;
            }
        }
    }

    /// Sends a request and reads its whole JSON answer, of at most `bytes_max`. A large one is read off the runtime's
    /// threads.
    ///
    /// # Errors
    /// [`EngineError`] when there is no good one.
    pub(crate) async fn post<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
        bytes_max: usize,
    ) -> Result<T, EngineError> {
        let body = serde_json::to_vec(body).map_err(|error| EngineError::Refused(error.to_string().into()))?;
        let answer = self.client()?.send(Method::POST, path, &[], body).await.map_err(lost)?;
        let body = whole_up_to(answer, bytes_max).await.map_err(lost)?;
        let is_large = body.len() > LARGE_BYTES;
        let parse = move || serde_json::from_slice(&body).map_err(|error| error.to_string());
        let no_thread = || Err("it could not be parsed on a thread of its own".to_owned());
        let parsed = if is_large { threads::run("answer", parse).await.unwrap_or_else(no_thread) } else { parse() };
        parsed.map_err(|error| EngineError::Garbled(format!("{path}: {error}").into()))
    }
}

/// Waits for `work`, and shows each sign of life that comes meanwhile.
async fn beside<T, F: Future<Output = ()>>(
    work: impl Future<Output = T>,
    mut sign: Pin<&mut F>,
    signs: &impl Fn() -> F,
    out: &mut dyn TokenOutput,
) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = work.as_mut() => return done,
            () = sign.as_mut() => {
                out.is_alive();
                sign.set(signs());
            }
        }
    }
}

/// What becomes of a run by one thing that its stream says.
pub(crate) fn take(
    said: Said<'_>,
    reading: &mut dyn StreamDecoder,
    out: &mut dyn TokenOutput,
) -> ControlFlow<Result<Finish, EngineError>> {
    let result = match said {
        Said::Comment => {
            out.is_alive();
            return ControlFlow::Continue(());
        }
        Said::Event { name: b"error", data } => Err(match serde_json::from_slice(data) {
            Ok(error) => error_event(&error),
            Err(_) => EngineError::Lost(crate::gpu::http::refusal::said(&String::from_utf8_lossy(data)).into()),
        }),
        Said::Event { data, .. } => reading.event(data, out),
    };
    match result {
        Ok(None) => ControlFlow::Continue(()),
        Ok(Some(finish)) => ControlFlow::Break(Ok(finish)),
        Err(error) => ControlFlow::Break(Err(error)),
    }
}

/// Whether a server that answers a question for figures, or for its version, with this status has none.
fn has_none(status: u16) -> bool {
    (400..500).contains(&status) && !ASK_LATER.contains(&status) || status == 501
}

/// The key that the pool's engine wants, from the environment variable that the pool names.
pub(crate) fn api_key(pool: &PoolConfig) -> Result<Option<String>, EngineError> {
    let Some(name) = &pool.api_key_env else { return Ok(None) };
    let missing = |_| EngineError::Preload(format!("api_key_env: the environment has no variable {name}").into());
    let key = std::env::var(name).map_err(missing)?;
    match key.chars().position(|c| !c.is_ascii() || c.is_ascii_control()) {
        None => Ok(Some(key)),
        Some(at) => Err(EngineError::Preload(format!(
            "api_key_env: character {} of the key in {name} cannot stand in a header; a line feed at its end is a usual cause",
            at + 1
        ).into())),
    }
}

/// A command with its placeholders filled in.
fn filled(command: &[String], context: &EngineContext, ports: &[u16]) -> Vec<String> {
    let pool = &context.pool;
    let shares = pool.replicas.get(usize::from(context.replica.index)).map(|replica| replica.shares());
    let split: Vec<String> = shares.iter().flatten().map(ToString::to_string).collect();
    let mut values: Vec<(&str, String)> =
        PORTS.into_iter().zip(ports).map(|(name, port)| (name, port.to_string())).collect();
    values.extend([
        ("{slots}", context.slots.to_string()),
        ("{ctx}", u64::from(pool.ctx.unwrap_or(CTX_DEFAULT)).saturating_mul(context.slots.into()).to_string()),
        ("{ctx_one}", pool.ctx.unwrap_or(CTX_DEFAULT).to_string()),
        ("{model}", pool.model.clone()),
        ("{index}", context.replica.index.to_string()),
        ("{tensor_split}", split.join(",")),
    ]);
    command.iter().map(|part| filled_part(part, &values)).collect()
}

/// One argument, read once from its begin to its end: what is filled in is not looked through again.
fn filled_part(part: &str, values: &[(&str, String)]) -> String {
    let (mut filled, mut rest) = (String::with_capacity(part.len()), part);
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        filled.push_str(before);
        let named = values.iter().find_map(|(name, value)| Some((from.strip_prefix(name)?, value.as_str())));
        // A brace that begins no name of ours is a part of the argument.
        let (behind, value) = named.unwrap_or((&from[1..], "{"));
        filled.push_str(value);
        rest = behind;
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A server that gives one answer to everything, and ours that speaks to it.
    async fn answering(answer: &'static str) -> Server {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        to(&base)
    }

    fn to(base: &str) -> Server {
        let server = Server::new(&crate::gpu::http::in_flight::tests::context(1));
        assert!(server.client.set(HttpClient::new(base, None)).is_ok());
        server
    }

    #[test]
    fn each_argument_is_filled_once_whatever_is_filled_in() {
        let values = [
            ("{port}", "80".to_owned()),
            ("{model}", "{slots} {model} {port}{".to_owned()),
            ("{slots}", "4".to_owned()),
        ];
        let cases = [
            ("{model}", "{slots} {model} {port}{"),
            ("--x={slots},{slots}", "--x=4,4"),
            ("{{port}}", "{80}"),
            ("{port", "{port"),
            ("{other} {} {slots}", "{other} {} 4"),
            ("{\u{e9}}{port}", "{\u{e9}}80"),
            ("{", "{"),
            ("", ""),
        ];
        for (part, wanted) in cases {
            assert_eq!(filled_part(part, &values), wanted, "{part}");
        }
        let mut context = crate::gpu::http::in_flight::tests::context(3);
        context.pool = std::sync::Arc::new(PoolConfig { model: "{slots}-{index}".into(), ..(*context.pool).clone() });
        let command = ["{model}", "{port}", "{port3}", "{slots}", "{index}"].map(str::to_owned);
        assert_eq!(filled(&command, &context, &[1, 2, 3]), ["{slots}-{index}", "1", "3", "3", "0"]);
    }

    #[tokio::test]
    async fn a_server_whose_figures_fail_for_a_moment_is_not_taken_for_one_that_computes_nothing() {
        let read = |text: &str| Some(text.len() as u32);
        let busy = async |answer| answering(answer).await.busy(read).await;
        let given = busy("HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc").await;
        assert!(matches!(given, Busy::InFlight(3)));
        let none = busy("HTTP/1.1 404 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        assert!(matches!(none, Busy::InFlight(0)), "it has none");
        let failed = busy("HTTP/1.1 500 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        assert!(matches!(failed, Busy::Unknown), "it has some, and they cannot be had now");
        let gone = to("http://127.0.0.1:1").busy(read).await;
        assert!(matches!(gone, Busy::Gone));
    }
}
