//! What an engine means when it says no: by its status, and by its words where the status says little or comes inside a
//! stream.
//!
//! Told apart are: a request that is wrong (it would be refused again), an engine that is busy (nothing has happened,
//! later it takes it), a context that is full of several runs, and everything else, which is a lost run.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{DATE, HeaderMap, RETRY_AFTER};
use serde_json::Value;

use crate::core::text::line::Line;
use crate::gpu::engine::EngineError;
use crate::gpu::http::HttpError;

/// Longest part of an engine's error that is passed on, in characters.
const SAID_CHARS_MAX: usize = 280;

/// Longest wait that an engine may ask for; what is beyond it counts as this much.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// Words by which servers call a request wrong, without case and punctuation. Those that begin with `invalid`,
/// `unsupported` or `missing` are others.
const WRONG: [&str; 17] = [
    "badrequest",
    "badrequesterror",
    "contextlengthexceeded",
    "exceedcontextsizeerror",
    "validation",
    "validationerror",
    "stringabovemaxlength",
    "contentpolicyviolation",
    "contentfilter",
    "responsibleaipolicyviolation",
    "insufficientquota",
    "billinghardlimitreached",
    "unprocessableentity",
    "unprocessableentityerror",
    "requesttoolarge",
    "payloadtoolarge",
    "valueerror",
];

/// Words by which servers say that they have too much to do, without case and punctuation.
const BUSY: [&str; 13] = [
    "ratelimitexceeded",
    "ratelimiterror",
    "toomanyrequests",
    "overloaded",
    "overloadederror",
    "serveroverloaded",
    "engineoverloaded",
    "unavailable",
    "unavailableerror",
    "serviceunavailable",
    "serviceunavailableerror",
    "capacityexceeded",
    "slowdown",
];

/// Words for a run that the engine has failed, whatever status they come with.
const FAILED: [&str; 5] = ["generation", "incompletegeneration", "internalservererror", "servererror", "engineerror"];

/// What llama.cpp says to every running stream when the context that its slots share is full.
const CONTEXT_FULL: [&str; 2] = ["context size has been exceeded", "failed to find free space in the kv cache"];

/// What a failed exchange means for the run that it belongs to.
pub(crate) fn lost(error: HttpError) -> EngineError {
    match error {
        HttpError::Connect(text) => EngineError::Unreachable(text.into()),
        HttpError::Broken(text) | HttpError::Timeout(text) => EngineError::Lost(text.into()),
        HttpError::TooLong(_) => EngineError::Refused(error.to_string().into()), // It would be as long again.
        HttpError::Status { status, body, retry_after } => refusal(status, &body, retry_after),
    }
}

/// What an answer without success means: its status, its words, and how long it asks to be left alone.
pub(crate) fn refusal(status: StatusCode, body: &str, retry_after: Option<Duration>) -> EngineError {
    let parsed: Option<Value> = serde_json::from_str(body).ok();
    let words = parsed.as_ref().map(words_of).unwrap_or_default();
    verdict((Some(status.as_u16()), true), &words, said(body).into(), retry_after)
}

/// What an error inside a stream means: the object beside `error`, or the whole event where that is one.
pub(crate) fn error_event(event: &Value) -> EngineError {
    let inner = event.get("error").filter(|error| error.is_object()).unwrap_or(event);
    let code = ["code", "http_status_code", "status_code", "status"].into_iter().find_map(|name| {
        let value = inner.get(name)?;
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
        u16::try_from(number).ok().filter(|code| (400..600).contains(code))
    });
    verdict((code, false), &words_of(event), said_in(event).into(), None)
}

fn verdict(
    (status, is_answer): (Option<u16>, bool),
    words: &[String],
    said: Line,
    retry_after: Option<Duration>,
) -> EngineError {
    let has = |known: &[&str]| words.iter().any(|word| known.contains(&word.as_str()));
    let is_wrong = || {
        let begins = |word: &String| ["invalid", "unsupported", "missing"].iter().any(|begin| word.starts_with(begin));
        has(&WRONG) || words.iter().any(begins)
    };
    let text = said.to_ascii_lowercase();
    let is_failure = status.is_none_or(|status| status >= 500);
    if is_failure && CONTEXT_FULL.iter().any(|words| text.contains(words)) {
        return EngineError::ContextFull { said, tokens: None };
    }
    let lost = |said: Line| match status {
        Some(status) if is_answer => EngineError::Failed(format!("status {status}: {said}").into()),
        Some(_) | None => EngineError::Lost(said),
    };
    match status {
        // Our key, or our path: that is the pool's configuration, or a server that serves another model by now.
        Some(401 | 404) => lost(said),
        // A guard says why; a door says nothing.
        Some(403) if words.is_empty() && !said.starts_with(|c: char| c.is_alphanumeric()) => lost(said),
        Some(429) if is_wrong() => EngineError::Refused(said), // No quota is left: it would not be there in a moment either.
        // It has too much to do, is not ready, or has no use for it at this moment: it has not begun.
        Some(408 | 409 | 425 | 429 | 503 | 529) => EngineError::Busy { said, retry_after },
        _ if has(&FAILED) => lost(said),
        _ if is_wrong() => EngineError::Refused(said),
        _ if has(&BUSY) => EngineError::Busy { said, retry_after },
        Some(400..500) => EngineError::Refused(said),
        _ => lost(said),
    }
}

/// The words by which an error names its kind, without case and punctuation.
fn words_of(event: &Value) -> Vec<String> {
    let inner = event.get("error").filter(|error| error.is_object());
    let places = inner.into_iter().chain([event]);
    let named =
        places.flat_map(|place| ["type", "code", "error_type", "error_code", "status"].map(|name| place.get(name)));
    let words = named.flatten().filter_map(Value::as_str);
    let plain = |word: &str| word.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
    words.map(plain).filter(|word| !word.is_empty()).collect()
}

/// The message inside an engine's error, in whichever of their shapes it comes; else the whole text. Bounded.
pub(crate) fn said(body: &str) -> String {
    match serde_json::from_str::<Value>(body) {
        Ok(parsed) => said_in(&parsed),
        Err(_) => body.chars().take(SAID_CHARS_MAX).collect(),
    }
}

fn said_in(event: &Value) -> String {
    let message =
        ["error", "detail", "message"].into_iter().find_map(|name| event.get(name).filter(|value| !value.is_null()));
    let message = message.unwrap_or(event);
    let message = message.get("message").unwrap_or(message);
    let text = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
    text.chars().take(SAID_CHARS_MAX).collect()
}

/// How long an answer asks to be left alone: seconds, milliseconds where a server says those, or a date beside its own
/// clock's.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number(RETRY_AFTER.as_str()));
    let wait = match seconds {
        Some(seconds) => Duration::from_secs_f64(seconds.min(RETRY_AFTER_MAX.as_secs_f64())),
        None => {
            let moment = |name: &str| httpdate::parse_http_date(text(name)?).ok();
            moment(RETRY_AFTER.as_str())?.duration_since(moment(DATE.as_str())?).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::task::failure::Cause;

    fn cause(status: u16, body: &str) -> Cause {
        refusal(StatusCode::from_u16(status).unwrap(), body, None).cause()
    }

    #[test]
    fn an_engines_refusal_is_understood_in_each_engines_shape() {
        let cases = [
            (
                400,
                r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#,
                Cause::Client,
                "too long",
            ),
            (
                404,
                r#"{"error":{"message":"The model `x` does not exist.","type":"NotFoundError"}}"#,
                Cause::Lost,
                "does not exist",
            ),
            (
                422,
                r#"{"error":"Input validation error: `inputs` must have less than 5 tokens","error_type":"validation"}"#,
                Cause::Client,
                "less than 5",
            ),
            (
                424,
                r#"{"error":"Request failed during generation: CUDA out of memory","error_type":"generation"}"#,
                Cause::OutOfVram,
                "generation",
            ),
            (429, r#"{"error":"Model is overloaded","error_type":"overloaded"}"#, Cause::Busy, "overloaded"),
            (429, r#"{"error":{"message":"no credit","type":"insufficient_quota"}}"#, Cause::Client, "no credit"),
            (
                503,
                r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
                Cause::Busy,
                "Loading",
            ),
            (500, r#"{"error":"in ensemble 'x', Failed to process the request"}"#, Cause::Lost, "ensemble"),
            (500, r#"{"detail":"std::bad_alloc"}"#, Cause::OutOfMemory, "bad_alloc"),
            (500, r#"{"error":{"message":"bad stop","type":"invalid_request_error"}}"#, Cause::Client, "bad stop"),
            (
                500,
                r#"{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}"#,
                Cause::ContextFull,
                "exceeded",
            ),
            (401, r#"{"error":{"message":"Incorrect API key provided"}}"#, Cause::Lost, "Incorrect"),
            (403, r#"{"error":{"message":"blocked by policy"}}"#, Cause::Client, "policy"),
            (403, "<html>", Cause::Lost, "html"),
            (402, r#"{"error":{"message":"no credit"}}"#, Cause::Client, "no credit"),
            (418, "tea", Cause::Client, "tea"),
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
                Cause::Busy,
                "Overloaded",
            ),
        ];
        for (status, body, cause, text) in cases {
            let error = refusal(StatusCode::from_u16(status).unwrap(), body, None);
            assert!(error.cause() == cause && error.to_string().contains(text), "{status} {body}: {error:?}");
        }
    }

    #[test]
    fn each_4xx_ends_once_but_those_that_speak_of_another_moment_or_of_the_pool() {
        for status in 400..500 {
            let want = match status {
                401 | 404 => Cause::Lost,
                408 | 409 | 425 | 429 => Cause::Busy,
                _ => Cause::Client,
            };
            assert_eq!(cause(status, "no"), want, "{status}");
        }
    }

    #[test]
    fn an_error_inside_a_stream_is_understood_by_number_or_word() {
        let cases = [
            (r#"{"error":{"message":"m","code":400}}"#, Cause::Client),
            (r#"{"error":{"message":"m","code":"400"}}"#, Cause::Client),
            (
                r#"{"error":{"message":"m","code":"context_length_exceeded","type":"invalid_request_error"}}"#,
                Cause::Client,
            ),
            (r#"{"error":{"message":"m","code":null,"type":"invalid_request_error"}}"#, Cause::Client),
            (r#"{"error":{"message":"m","type":"BadRequestError"}}"#, Cause::Client),
            (r#"{"error":"m","error_type":"validation"}"#, Cause::Client),
            (r#"{"error":{"message":"m","http_status_code":422}}"#, Cause::Client),
            (r#"{"object":"error","message":"m","code":400}"#, Cause::Client),
            (r#"{"error":{"message":"m","code":"rate_limit_exceeded"}}"#, Cause::Busy),
            (r#"{"error":{"message":"m","type":"overloaded_error"}}"#, Cause::Busy),
            (
                r#"{"error":{"message":"EngineCore encountered an issue","type":"InternalServerError","code":500}}"#,
                Cause::Lost,
            ),
            (r#"{"error":"an error was encountered"}"#, Cause::Lost),
            (r#"{"error":"m","error_type":"generation"}"#, Cause::Lost),
            (
                r#"{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}"#,
                Cause::ContextFull,
            ),
            (r#"{"error":{"message":"CUDA out of memory","code":500}}"#, Cause::OutOfVram),
        ];
        for (event, want) in cases {
            assert_eq!(error_event(&serde_json::from_str(event).unwrap()).cause(), want, "{event}");
        }
    }

    #[test]
    fn how_long_it_asks_to_be_left_alone_is_read_in_each_form_and_bounded() {
        let wait = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            pairs.iter().for_each(|(name, value)| drop(headers.insert(*name, value.parse().unwrap())));
            retry_after(&headers).map(|wait| wait.as_millis())
        };
        assert_eq!(wait(&[("retry-after", "2")]), Some(2_000));
        assert_eq!(wait(&[("retry-after", "0.25")]), Some(250));
        assert_eq!(wait(&[("retry-after-ms", "1500"), ("retry-after", "9")]), Some(1_500));
        let (date, later) = ("Sat, 28 Nov 2026 00:00:00 GMT", "Sat, 28 Nov 2026 00:00:07 GMT");
        assert_eq!(wait(&[("date", date), ("retry-after", later)]), Some(7_000));
        assert_eq!(wait(&[("date", later), ("retry-after", date)]), Some(0), "it is over");
        assert_eq!(wait(&[("retry-after", later)]), None, "beside no clock a date says nothing");
        assert_eq!(wait(&[("retry-after", "1e99")]), Some(600_000));
        assert_eq!((wait(&[("retry-after", "-1")]), wait(&[("retry-after", "soon")]), wait(&[])), (None, None, None));
    }
}
