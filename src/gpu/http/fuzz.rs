//! Bytes of all kinds into everything that reads an engine's stream: no panic, no standstill, whatever comes.
//! `FUZZ_SECONDS` says for how long each reader is tried.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::gpu::engine::Pieces;
use crate::gpu::http::server::{StreamDecoder, take};
use crate::gpu::http::sse::SseParser;

/// What servers say, in parts that are put together and then spoilt.
const PARTS: [&str; 27] = [
    "data: ",
    "data:",
    "event: error\n",
    "\n\n",
    "\r\n\r\n",
    "\r",
    ": comment\n",
    "[DONE]",
    "{\"choices\":[{\"text\":\"tok\\u00e9n \",\"finish_reason\":null,\"index\":0}]}",
    "{\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":9}}",
    "{\"content\":\"a\",\"stop\":false}",
    "{\"content\":\"\",\"stop\":true,\"tokens_evaluated\":4,\"stop_type\":\"limit\"}",
    "{\"token\":{\"id\":1,\"text\":\"x\",\"special\":false},\"generated_text\":null,\"details\":null}",
    "{\"token\":{\"id\":2,\"text\":\"</s>\",\"special\":true},\"generated_text\":\"x\",\"details\":{\"finish_reason\":\"length\"}}",
    "{\"text_output\":\"y\"}",
    "{\"text_output\":[\"y\"],\"sequence_end\":true}",
    "{\"error\":{\"code\":500,\"message\":\"no\"}}",
    "{\"error\":\"no\",\"error_type\":\"overloaded\"}",
    "{\"a\":[[[[[[[[",
    "\"\\ud800\"",
    "9e999",
    "\u{0}\u{1}\u{fffd}\u{10ffff}",
    "\u{feff}",
    "data\n",
    "{\"choices\":null,\"usage\":{\"prompt_tokens\":null,\"completion_tokens\":1.5e3}}",
    "{\"choices\":[{\"text\":null,\"finish_reason\":\"\",\"index\":1}],\"usage\":{\"completion_tokens\":-4}}",
    "{\"object\":\"error\",\"message\":\"no\",\"code\":\"overloaded\"}",
];

fn drawn(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.usize(1..30) {
        bytes.extend_from_slice(PARTS[random.usize(..PARTS.len())].as_bytes());
    }
    for _ in 0..random.usize(0..8) {
        let at = random.usize(..bytes.len());
        match random.u8(0..4) {
            0 => bytes[at] = random.u8(..),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, random.u8(..)),
            _ => bytes.truncate(at.max(1)),
        }
        if bytes.is_empty() {
            bytes.push(b'\n');
        }
    }
    bytes
}

/// Feeds one reader until the time is over.
#[expect(clippy::disallowed_methods, reason = "it is told for how long in real time")]
pub(in crate::gpu) fn feed(mut reader: impl FnMut(&mut dyn FnMut(&mut dyn StreamDecoder))) {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let (began, mut random, mut runs) = (Instant::now(), fastrand::Rng::with_seed(1), 0_u64);
    while began.elapsed() < Duration::from_secs_f64(seconds) {
        reader(&mut |reading| {
            let (bytes, mut parser, mut out) = (drawn(&mut random), SseParser::default(), Pieces::default());
            let (mut rest, one) = (bytes.as_slice(), Instant::now());
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(random.usize(1..=rest.len()));
                rest = behind;
                let flow = parser.push(piece, |said| match take(said, reading, &mut out) {
                    ControlFlow::Continue(()) => ControlFlow::Continue(()),
                    ControlFlow::Break(_) => ControlFlow::Break(()),
                });
                if !matches!(flow, Ok(ControlFlow::Continue(()))) {
                    break;
                }
            }
            let _ = reading.ended(random.bool());
            assert!(one.elapsed() < Duration::from_secs(1), "{:?}", String::from_utf8_lossy(&bytes));
            runs += 1;
        });
    }
    assert!(runs > 100, "{runs}");
}
