//! `orchestratord top`: a running service in the terminal, live. `q` leaves, `p` holds the picture, arrows scroll.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::gpu::http::sse::{Said, SseParser};
use crate::service::cli::output::say;
use crate::service::cli::remote::{Remote, refusal};
use crate::service::run::top_view::{Screen, draw};

/// How often the keyboard is looked at.
const KEYS_PERIOD: Duration = Duration::from_millis(50);
/// Wait before a lost service is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Where to look, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct TopArguments {
    #[command(flatten)]
    remote: Remote,
    /// Print one picture and leave.
    #[arg(long)]
    once: bool,
    /// Width of that picture.
    #[arg(long, default_value_t = 120, requires = "once", value_parser = clap::value_parser!(u16).range(40..=400))]
    width: u16,
    /// Height of that picture.
    #[arg(long, default_value_t = 40, requires = "once", value_parser = clap::value_parser!(u16).range(10..=400))]
    height: u16,
}

/// Shows the service until somebody leaves.
///
/// # Errors
/// One line: the service cannot be reached or refuses, or the terminal is none.
pub(crate) async fn run(arguments: TopArguments) -> Result<(), String> {
    let remote = arguments.remote;
    if arguments.once {
        let overview = remote.json(Method::GET, "/v1/overview", Vec::new()).await?;
        return print(&overview, &remote.url, (arguments.width, arguments.height));
    }
    if !std::io::stdout().is_terminal() {
        return Err("standard output is no terminal; for one picture say --once".into());
    }
    let mut body = Some(watch(&remote).await?); // Before the screen is taken: what is wrong is said plainly.
    let mut terminal = ratatui::try_init().map_err(|error| format!("the terminal cannot be used: {error}"))?;
    let outcome = show(&mut terminal, &remote, &mut body).await;
    let _ = ratatui::try_restore(); // A terminal that is gone needs none.
    outcome
}

/// One picture as text.
fn print(overview: &Value, url: &str, (width, height): (u16, u16)) -> Result<(), String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).map_err(|error| error.to_string())?;
    let mut screen = Screen::new(url);
    screen.take(overview.clone());
    terminal.draw(|frame| draw(frame, &mut screen)).map_err(|error| error.to_string())?;
    let buffer = terminal.backend().buffer();
    for y in 0..height {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        say(line.trim_end());
    }
    Ok(())
}

/// Begins to follow the service's events.
async fn watch(remote: &Remote) -> Result<Incoming, String> {
    let answer = remote.send(Method::GET, "/v1/events", &[("accept", "text/event-stream")], Vec::new()).await?;
    if answer.status().is_success() { Ok(answer.into_body()) } else { Err(refusal(answer).await) }
}

async fn show(
    terminal: &mut ratatui::DefaultTerminal,
    remote: &Remote,
    body: &mut Option<Incoming>,
) -> Result<(), String> {
    let (mut screen, mut parser) = (Screen::new(&remote.url), SseParser::default());
    let mut keys = interval(KEYS_PERIOD);
    keys.set_missed_tick_behavior(MissedTickBehavior::Skip);
    terminal.draw(|frame| draw(frame, &mut screen)).map_err(|error| error.to_string())?;
    loop {
        let next = async {
            match body {
                Some(body) => body.frame().await,
                None => {
                    sleep(AGAIN).await;
                    None
                }
            }
        };
        tokio::select! {
            biased;
            _ = keys.tick() => match key()? {
                Key::None => continue,
                Key::Leave => return Ok(()),
                Key::Hold => screen.held = !screen.held,
                Key::Scroll(lines) => screen.scroll(lines),
                Key::Redraw => {}
            },
            frame = next => match frame {
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    let take = |said: Said<'_>| {
                        if let Said::Event { data, .. } = said
                            && let Ok(overview) = serde_json::from_slice(data)
                        {
                            screen.take(overview);
                        }
                        ControlFlow::<()>::Continue(())
                    };
                    let _ = parser.push(&bytes, take).map_err(|error| error.to_string())?; // It never breaks.
                }
                _ => {
                    parser = SseParser::default();
                    *body = match watch(remote).await {
                        Ok(body) => {
                            screen.lost = None;
                            Some(body)
                        }
                        Err(why) => {
                            screen.lost = Some(why);
                            None
                        }
                    };
                }
            }
        }
        terminal.draw(|frame| draw(frame, &mut screen)).map_err(|error| error.to_string())?;
    }
}

enum Key {
    None,
    Leave,
    Hold,
    Redraw,
    Scroll(i32),
}

/// The next key, if one was pressed. Never waits.
fn key() -> Result<Key, String> {
    if !event::poll(Duration::ZERO).map_err(|error| error.to_string())? {
        return Ok(Key::None);
    }
    Ok(match event::read().map_err(|error| error.to_string())? {
        Event::Key(key) if key.kind == KeyEventKind::Release => Key::None,
        Event::Key(key) => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Key::Leave,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Leave,
            KeyCode::Char('p') => Key::Hold,
            KeyCode::Down | KeyCode::Char('j') => Key::Scroll(1),
            KeyCode::Up | KeyCode::Char('k') => Key::Scroll(-1),
            KeyCode::PageDown => Key::Scroll(10),
            KeyCode::PageUp => Key::Scroll(-10),
            _ => Key::None,
        },
        Event::Resize(_, _) => Key::Redraw,
        _ => Key::None,
    })
}
