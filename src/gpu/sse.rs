//! Server-sent events, as engines send them: bytes in, the `data` of each event out.
//!
//! Lines may end in LF, CR or CRLF, wherever the chunks are cut. Memory is bounded by [`EVENT_BYTES_MAX`].

use std::ops::ControlFlow;

/// Longest `data` of one event, in bytes. Engines repeat the prompt in their last event, so this is above the largest
/// prompt's usual size; what is longer is refused.
pub(crate) const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// An event is longer than [`EVENT_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
pub(crate) struct EventTooLong;

/// A parser for one response.
#[derive(Debug, Default)]
pub(crate) struct SseParser {
    /// The unfinished line.
    line: Vec<u8>,
    /// `data` lines of the unfinished event, joined by line feeds.
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
}

impl SseParser {
    /// Takes the next bytes and calls `event` with the data of each event that they complete, until it breaks: then nothing
    /// more is parsed.
    ///
    /// # Errors
    /// [`EventTooLong`]; nothing more can be parsed then.
    pub(crate) fn push<B>(
        &mut self,
        mut bytes: &[u8],
        mut event: impl FnMut(&[u8]) -> ControlFlow<B>,
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
        event: &mut impl FnMut(&[u8]) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, EventTooLong> {
        if line.is_empty() {
            if !std::mem::take(&mut self.has_data) {
                return Ok(ControlFlow::Continue(()));
            }
            let flow = event(&self.data);
            self.data.clear();
            return Ok(flow);
        }
        // Other fields and comments do not matter to any engine that we speak to.
        if let Some(value) = line.strip_prefix(b"data:".as_slice()) {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            if self.data.len() + value.len() >= EVENT_BYTES_MAX {
                return Err(EventTooLong);
            }
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
        }
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        for chunk in chunks {
            let collect = |data: &[u8]| {
                events.push(String::from_utf8_lossy(data).into_owned());
                ControlFlow::<()>::Continue(())
            };
            assert!(parser.push(chunk, collect).expect("short").is_continue());
        }
        events
    }

    #[test]
    fn an_event_is_the_same_wherever_it_is_cut_and_however_its_lines_end() {
        let lf = "event: x\ndata: eins\ndata:zwei ß\n: comment\n\ndata: drei\n\n";
        for text in [lf.to_owned(), lf.replace('\n', "\r\n"), lf.replace('\n', "\r")] {
            for cut in 0..=text.len() {
                let (a, b) = text.as_bytes().split_at(cut);
                assert_eq!(parse(&[a, b]), ["eins\nzwei ß", "drei"], "{text:?} cut at {cut}");
            }
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(parse(&bytes), ["eins\nzwei ß", "drei"], "{text:?} byte by byte");
        }
    }

    #[test]
    fn whoever_has_enough_hears_no_more() {
        let mut heard = 0;
        let flow = SseParser::default().push(b"data: 1\n\ndata: 2\n\n", |data| {
            heard += 1;
            ControlFlow::Break(data.to_vec())
        });
        assert_eq!((flow, heard), (Ok(ControlFlow::Break(b"1".to_vec())), 1));
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = SseParser::default();
        let chunk = vec![b'x'; EVENT_BYTES_MAX];
        let ignore = |_: &[u8]| ControlFlow::<()>::Continue(());
        assert_eq!(parser.push(&chunk, ignore), Ok(ControlFlow::Continue(())));
        assert_eq!(parser.push(b"x", ignore), Err(EventTooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = SseParser::default().push(&bytes, |_| ControlFlow::<()>::Continue(()));
        }
    }
}
