//! Server-sent events, as engines send them: bytes in, events and comments out, by the WHATWG's definition of event
//! streams.
//!
//! A byte order mark may come first; lines may end in LF, CR or CRLF, wherever the chunks are cut; a field may lack its
//! colon. Comments are told, since servers send them to show that they live. Memory is bounded by [`EVENT_BYTES_MAX`].

use std::ops::ControlFlow;

/// Longest `data` of one event, in bytes. Engines repeat the prompt in their last event, so this is above the largest
/// prompt's usual size; what is longer is refused.
pub(crate) const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// An event is longer than [`EVENT_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
pub(crate) struct EventTooLong;

/// What a stream has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    /// An event: its type, empty where none was given, and its data.
    Event { name: &'a [u8], data: &'a [u8] },
    /// A comment, which means nothing but that the server lives.
    Comment,
}

/// What some servers put in front of UTF-8.
const MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// Longest type of an event that is kept, in bytes; no server has one that is longer.
const NAME_BYTES_MAX: usize = 64;

/// A parser for one response.
#[derive(Debug, Default)]
pub(crate) struct SseParser {
    /// The unfinished line.
    line: Vec<u8>,
    /// `data` lines of the unfinished event, joined by line feeds.
    data: Vec<u8>,
    has_data: bool,
    /// The type of the unfinished event.
    name: Vec<u8>,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
    /// The first line is over, before which a mark may stand.
    has_begun: bool,
}

impl SseParser {
    /// Takes the next bytes and calls `event` with each event and comment that they complete, until it breaks: then
    /// nothing more is parsed.
    ///
    /// # Errors
    /// [`EventTooLong`]; nothing more can be parsed then.
    pub(crate) fn push<B>(
        &mut self,
        mut bytes: &[u8],
        mut event: impl FnMut(Said<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, EventTooLong> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) else {
                self.keep(bytes)?;
                break;
            };
            let (piece, rest) = bytes.split_at(end);
            self.after_cr = rest[0] == b'\r';
            bytes = &rest[1..];
            let flow = if self.line.is_empty() {
                self.end_line(piece, &mut event)? // Whole lines, which most are, are not copied.
            } else {
                self.keep(piece)?;
                let line = std::mem::take(&mut self.line);
                let flow = self.end_line(&line, &mut event)?;
                self.line = line; // Its room is used again.
                self.line.clear();
                flow
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The stream is over, and its end was told: what stands behind the last blank line is an event too, although the
    /// definition would drop it. Servers exist that leave their last line feeds out.
    ///
    /// # Errors
    /// [`EventTooLong`].
    pub(crate) fn finish<B>(
        &mut self,
        mut event: impl FnMut(Said<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, EventTooLong> {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            let flow = self.end_line(&line, &mut event)?;
            if flow.is_break() {
                return Ok(flow);
            }
        }
        self.end_line(b"", &mut event)
    }

    fn keep(&mut self, piece: &[u8]) -> Result<(), EventTooLong> {
        if self.line.len() + piece.len() > EVENT_BYTES_MAX {
            return Err(EventTooLong);
        }
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn end_line<B>(
        &mut self,
        line: &[u8],
        event: &mut impl FnMut(Said<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, EventTooLong> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let line = if is_first { line.strip_prefix(&MARK).unwrap_or(line) } else { line };
        if line.is_empty() {
            let flow = match std::mem::take(&mut self.has_data) {
                true => event(Said::Event { name: &self.name, data: &self.data }),
                false => ControlFlow::Continue(()),
            };
            self.data.clear();
            self.name.clear();
            return Ok(flow);
        }
        if let Some(value) = line.strip_prefix(b"data:".as_slice()) {
            self.add_data(value.strip_prefix(b" ").unwrap_or(value))?;
        } else if line[0] == b':' {
            return Ok(event(Said::Comment));
        } else if line == b"data" {
            self.add_data(b"")?;
        } else if let Some(value) = line.strip_prefix(b"event:".as_slice()) {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            self.name.clear();
            self.name.extend_from_slice(&value[..value.len().min(NAME_BYTES_MAX)]);
        }
        // Older builds of llama.cpp write their errors as a field of this name.
        if let Some(data) = line.strip_prefix(b"error:".as_slice()) {
            return Ok(event(Said::Event { name: b"error", data }));
        }
        // `id` and `retry` matter to no engine that we speak to, and other fields are to be ignored.
        Ok(ControlFlow::Continue(()))
    }

    fn add_data(&mut self, value: &[u8]) -> Result<(), EventTooLong> {
        if self.data.len() + value.len() >= EVENT_BYTES_MAX {
            return Err(EventTooLong);
        }
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What chunks say: `data` of events behind their type, comments as `:`.
    fn parse(chunks: &[&[u8]], is_framed: bool) -> Vec<String> {
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        let mut collect = |said: Said<'_>| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            events.push(match said {
                Said::Event { name: b"", data } => text(data),
                Said::Event { name, data } => format!("{}={}", text(name), text(data)),
                Said::Comment => ":".into(),
            });
            ControlFlow::<()>::Continue(())
        };
        for chunk in chunks {
            assert!(parser.push(chunk, &mut collect).expect("short").is_continue());
        }
        if is_framed {
            assert!(parser.finish(&mut collect).expect("short").is_continue());
        }
        events
    }

    #[test]
    fn an_event_is_the_same_wherever_it_is_cut_and_however_its_lines_end() {
        let lf = "\u{feff}event: x\ndata: eins\ndata:zwei ß\n: comment\n\ndata: drei\n\ndata\nid: 7\nretry: 9\ndata:  b\n\nevent: lost\n\ndata: vier\n\n";
        let want = [":", "x=eins\nzwei ß", "drei", "\n b", "vier"];
        for text in [lf.to_owned(), lf.replace('\n', "\r\n"), lf.replace('\n', "\r")] {
            for cut in 0..=text.len() {
                let (a, b) = text.as_bytes().split_at(cut);
                assert_eq!(parse(&[a, b], false), want, "{text:?} cut at {cut}");
            }
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(parse(&bytes, false), want, "{text:?} byte by byte");
        }
    }

    #[test]
    fn what_stands_behind_the_last_blank_line_counts_where_the_end_was_told() {
        for (text, want) in [("data: a\n\ndata: b\n", "b"), ("data: a\n\ndata: b", "b"), ("data: a\n\ndata: b\r", "b")]
        {
            assert_eq!(parse(&[text.as_bytes()], false), ["a"], "{text:?}");
            assert_eq!(parse(&[text.as_bytes()], true), ["a", want], "{text:?}");
        }
        assert_eq!(parse(&[b"data: a\n\nevent: x\n"], true), ["a"], "without data it is none");
    }

    #[test]
    fn a_mark_counts_at_the_begin_alone() {
        assert_eq!(parse(&[b"\xEF", b"\xBB\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\ndata: c\n\n"], false), ["a", "c"]);
    }

    #[test]
    fn whoever_has_enough_hears_no_more() {
        let mut heard = 0;
        let flow = SseParser::default().push(b"data: 1\n\ndata: 2\n\n", |said| {
            heard += 1;
            match said {
                Said::Event { data, .. } => ControlFlow::Break(data.to_vec()),
                Said::Comment => ControlFlow::Continue(()),
            }
        });
        assert_eq!((flow, heard), (Ok(ControlFlow::Break(b"1".to_vec())), 1));
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = SseParser::default();
        let chunk = vec![b'x'; EVENT_BYTES_MAX];
        let ignore = |_: Said<'_>| ControlFlow::<()>::Continue(());
        assert_eq!(parser.push(&chunk, ignore), Ok(ControlFlow::Continue(())));
        assert_eq!(parser.push(b"x", ignore), Err(EventTooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let mut parser = SseParser::default();
            let _ = parser.push(&bytes, |_| ControlFlow::<()>::Continue(()));
            let _ = parser.finish(|_| ControlFlow::<()>::Continue(()));
        }
    }
}
