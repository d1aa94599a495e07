//! Server-sent events, as engines send them: bytes in, the `data` of each event out.
//!
//! Lines may end in LF, CR or CRLF, wherever the chunks are cut. Memory is bounded by [`EVENT_BYTES_MAX`].

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
    /// Takes the next bytes and calls `event` with the data of each event that they complete.
    ///
    /// # Errors
    /// [`EventTooLong`]; nothing more can be parsed then.
    pub(crate) fn push(&mut self, bytes: &[u8], mut event: impl FnMut(&[u8])) -> Result<(), EventTooLong> {
        for byte in bytes {
            match byte {
                b'\n' if std::mem::take(&mut self.after_cr) => {}
                b'\n' | b'\r' => {
                    self.after_cr = *byte == b'\r';
                    self.end_line(&mut event)?;
                }
                _ => {
                    self.after_cr = false;
                    if self.line.len() == EVENT_BYTES_MAX {
                        return Err(EventTooLong);
                    }
                    self.line.push(*byte);
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self, event: &mut impl FnMut(&[u8])) -> Result<(), EventTooLong> {
        if self.line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                event(&self.data);
                self.data.clear();
            }
            return Ok(());
        }
        // Other fields and comments do not matter to any engine that we speak to.
        if let Some(value) = self.line.strip_prefix(b"data:".as_slice()) {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            if self.data.len() + value.len() >= EVENT_BYTES_MAX {
                return Err(EventTooLong);
            }
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
        }
        self.line.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        for chunk in chunks {
            let collect = |data: &[u8]| events.push(String::from_utf8_lossy(data).into_owned());
            parser.push(chunk, collect).expect("short");
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
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = SseParser::default();
        let chunk = vec![b'x'; EVENT_BYTES_MAX];
        assert_eq!(parser.push(&chunk, |_| ()), Ok(()));
        assert_eq!(parser.push(b"x", |_| ()), Err(EventTooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = SseParser::default().push(&bytes, |_| ());
        }
    }
}
