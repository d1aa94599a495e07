//! Streams as servers send them, each with what it means, cut at every byte: `tests/data/streams` says where they come
//! from.

#![expect(clippy::print_stdout, reason = "a test that says how much it looked at")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use crate::core::task::FinishReason;
use crate::core::task::failure::Cause;
use crate::core::units::Tokens;
use crate::gpu::engine::{EngineError, Finish, Pieces};
use crate::gpu::engines::llamacpp_api;
use crate::gpu::engines::openai_api;
use crate::gpu::engines::tgi;
use crate::gpu::engines::triton;
use crate::gpu::http::in_flight::tests::runs;
use crate::gpu::http::server::{StreamDecoder, take};
use crate::gpu::http::sse::{Said, SseParser};

#[derive(Deserialize)]
struct Stream {
    name: String,
    reader: String,
    server: String,
    max_tokens: u32,
    stream: String,
    framed: bool,
    expect: Expected,
    #[serde(default)]
    comments: usize,
}

#[derive(Deserialize)]
struct Expected {
    text: String,
    tokens_out: Option<u32>,
    tokens_in: Option<u32>,
    end: Option<String>,
    error: Option<String>,
}

/// What came of a stream: its text, the engine's count, its comments, and its end.
struct Heard {
    text: String,
    counted: u32,
    comments: usize,
    end: Result<Finish, EngineError>,
}

fn hear(reading: &mut dyn StreamDecoder, pieces: &[&[u8]], framed: bool) -> Heard {
    let (mut parser, mut out, mut comments) = (SseParser::default(), Pieces::default(), 0);
    let mut end = None;
    for piece in pieces.iter().map(Some).chain([None]) {
        let each = |said: Said<'_>| {
            comments += usize::from(said == Said::Comment);
            take(said, reading, &mut out)
        };
        let flow = match piece {
            Some(piece) => parser.push(piece, each),
            None if framed => parser.finish(each),
            None => Ok(ControlFlow::Continue(())),
        };
        if let ControlFlow::Break(result) = flow.expect("short") {
            end = Some(result);
            break;
        }
    }
    let end = end.unwrap_or_else(|| reading.ended(framed));
    Heard { text: out.0.concat(), counted: out.1, comments, end }
}

fn hear_as(stream: &Stream, pieces: &[&[u8]]) -> Heard {
    let (runs, tells) = (runs(1), AtomicBool::new(false));
    let (run, max_tokens) = (runs.begin(0), Tokens(stream.max_tokens));
    match stream.reader.as_str() {
        "openai" | "vllm" => {
            hear(&mut openai_api::CompletionDecoder::new((&run, &tells), max_tokens), pieces, stream.framed)
        }
        "llamacpp" => hear(&mut llamacpp_api::CompletionDecoder::default(), pieces, stream.framed),
        "tgi" => hear(&mut tgi::Generating::new(&run, max_tokens), pieces, stream.framed),
        "triton" => hear(&mut triton::Generating::new(&run, max_tokens), pieces, stream.framed),
        other => panic!("{}: no reader is called {other}", stream.name),
    }
}

fn reason(word: &str) -> FinishReason {
    match word {
        "context" => FinishReason::Context,
        other => FinishReason::of_word(other).unwrap_or_else(|| panic!("{other} is no reason")),
    }
}

fn cause(word: &str) -> Cause {
    match word {
        "refused" => Cause::Client,
        other => *Cause::ALL.iter().find(|cause| cause.as_str() == other).unwrap_or_else(|| panic!("{other}")),
    }
}

/// What is wrong with what was heard of a stream, if anything.
fn fault(stream: &Stream, heard: &Heard) -> Option<String> {
    let want = &stream.expect;
    if heard.text != want.text {
        return Some(format!("the text is {:?} and not {:?}", heard.text, want.text));
    }
    if heard.comments != stream.comments {
        return Some(format!("{} comments instead of {}", heard.comments, stream.comments));
    }
    match (&heard.end, &want.end, &want.error) {
        (Ok(finish), Some(end), None) => {
            let (tokens_in, counted) =
                (finish.tokens_in.map(|tokens| tokens.0), Some(heard.counted).filter(|n| *n > 0));
            let is_right = finish.reason == reason(end) && counted == want.tokens_out && tokens_in == want.tokens_in;
            (!is_right).then(|| {
                format!("{finish:?} with {counted:?} tokens, not {end}, {:?}, {:?}", want.tokens_out, want.tokens_in)
            })
        }
        (Err(error), None, Some(word)) => {
            (error.cause() != cause(word)).then(|| format!("{error:?} is {}, not {word}", error.cause().as_str()))
        }
        (end, ..) => Some(format!("{end:?} instead of {:?}, {:?}", want.end, want.error)),
    }
}

#[test]
fn streams_of_known_servers_are_understood_wherever_they_are_cut() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/streams");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let (mut streams, mut servers, mut faults) = (0, std::collections::BTreeSet::new(), Vec::new());
    for file in files {
        let all: Vec<Stream> = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        for stream in all {
            let bytes = stream.stream.as_bytes();
            let each: Vec<&[u8]> = bytes.chunks(1).collect();
            let cuts = (0..=bytes.len()).map(|at| vec![&bytes[..at], &bytes[at..]]).chain([each]);
            let wrong = cuts.enumerate().find_map(|(at, pieces)| {
                fault(&stream, &hear_as(&stream, &pieces)).map(|fault| format!("{} cut at {at}: {fault}", stream.name))
            });
            faults.extend(wrong);
            streams += 1;
            servers.insert(stream.server);
        }
    }
    println!("{streams} streams of {} servers: {servers:?}", servers.len());
    assert!(faults.is_empty(), "{} of {streams}:\n{}", faults.len(), faults.join("\n"));
    assert!(streams >= 60 && servers.len() >= 10, "{streams} streams of {} servers", servers.len());
}
