//! A second attempt beside the log of the first: what it repeats is compared byte for byte, what goes beyond is new.
//!
//! Engines may cut the same text into other pieces the second time (several tokens in one event, by how busy they are),
//! so bytes are compared and not pieces.

use crate::actors::task::event_log::{Entry, EventLog, Sealed};

/// How far an attempt has repeated what the log has from earlier ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replay {
    /// The entry to look at next.
    entry: usize,
    /// Bytes of text that were repeated, or appended by the attempt itself.
    bytes: usize,
    /// Tokens that were repeated whole, or appended by the attempt itself.
    tokens: u32,
}

/// What a piece of text is beside a log that may have it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeated {
    /// The log has all of it; it ends in the token of this index.
    Same(u32),
    /// The log has other text in the token of this index.
    Differs(u32),
    /// The log has this many bytes of it, which may be none, and nothing behind them.
    New(usize),
}

impl EventLog {
    /// Compares an attempt's next piece of text with the log. `replay` is the attempt's own, and moves on.
    pub fn repeat(&self, replay: &mut Replay, text: &str) -> Repeated {
        let known = &self.text.as_bytes()[replay.bytes..];
        let common = known.len().min(text.len());
        let same = known[..common].iter().zip(text.as_bytes()).take_while(|(known, new)| known == new).count();
        let last = self.advance(replay, same);
        if same < common {
            return Repeated::Differs(replay.tokens);
        }
        if same < text.len() { Repeated::New(same) } else { Repeated::Same(last) }
    }

    /// Moves on by so many bytes; returns the index of the token in which they end.
    fn advance(&self, replay: &mut Replay, bytes: usize) -> u32 {
        replay.bytes += bytes;
        let mut last = replay.tokens;
        while let Some(entry) = self.entries.get(replay.entry) {
            if let Entry::Token { index, end } = *entry {
                last = index;
                if end as usize > replay.bytes {
                    break;
                }
                replay.tokens = index + 1;
                if end as usize == replay.bytes {
                    replay.entry += 1;
                    break; // What follows is not repeated yet.
                }
            }
            replay.entry += 1;
        }
        last
    }

    /// Whether an attempt has repeated all that the log has; else the index of the first token that it has not.
    pub fn not_repeated(&self, replay: &Replay) -> Option<u32> {
        (replay.bytes < self.text.len()).then_some(replay.tokens)
    }

    /// The place behind all that the log has: an attempt that begins there repeats nothing.
    pub fn behind_all(&self) -> Replay {
        Replay { entry: self.entries.len(), bytes: self.text.len(), tokens: self.tokens }
    }

    /// Appends what an attempt that has repeated the whole log says next, and returns its index.
    ///
    /// # Errors
    /// As [`EventLog::append_token`].
    pub fn append_new(&mut self, replay: &mut Replay, text: &str) -> Result<u32, Sealed> {
        let index = self.append_token(text)?;
        *replay = self.behind_all();
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(log: &mut EventLog, replay: &mut Replay, text: &str) -> Repeated {
        let repeated = log.repeat(replay, text);
        if let Repeated::New(known) = repeated {
            log.append_new(replay, &text[known..]).expect("open");
        }
        repeated
    }

    #[test]
    fn a_second_attempt_repeats_the_first_and_goes_on_behind_it() {
        let (mut log, mut first) = (EventLog::default(), Replay::default());
        for text in ["a", "bc"] {
            assert_eq!(say(&mut log, &mut first, text), Repeated::New(0));
        }
        let mut second = Replay::default();
        assert_eq!(log.not_repeated(&second), Some(0));
        assert_eq!(["a", "bc"].map(|text| say(&mut log, &mut second, text)), [0, 1].map(Repeated::Same));
        assert_eq!(log.not_repeated(&second), None);
        assert_eq!(
            ["d", "e"].map(|text| say(&mut log, &mut second, text)),
            [Repeated::New(0); 2],
            "its own is not repeated"
        );
        assert_eq!(log.tokens(), 4);
        let mut third = Replay::default();
        assert_eq!(["a", "bx"].map(|text| log.repeat(&mut third, text)), [Repeated::Same(0), Repeated::Differs(1)]);
    }

    #[test]
    fn the_same_text_in_other_pieces_is_the_same() {
        let (mut log, mut first) = (EventLog::default(), Replay::default());
        for text in ["ab", "c", "déf"] {
            say(&mut log, &mut first, text);
        }
        let mut second = Replay::default();
        let pieces = ["a", "bc", "d", "éfgh", "i"].map(|text| say(&mut log, &mut second, text));
        let (same, new) = (Repeated::Same, Repeated::New);
        assert_eq!(pieces, [same(0), same(1), same(2), new("éf".len()), new(0)]);
        assert_eq!((log.text(), log.tokens()), ("abcdéfghi", 5), "the rest of a piece is a token of its own");
    }

    #[test]
    fn however_texts_are_cut_they_are_compared_byte_for_byte() {
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let text: String =
                (0..random.usize(1..40)).map(|_| random.choice(['a', 'b', 'é', '😀']).unwrap()).collect();
            let mut cut = |text: &str| {
                let mut pieces = vec![String::new()];
                for character in text.chars() {
                    if random.bool() {
                        pieces.push(String::new());
                    }
                    pieces.last_mut().unwrap().push(character);
                }
                pieces.retain(|piece| !piece.is_empty());
                pieces
            };
            let (one, other) = (cut(&text), cut(&text));
            let shown = one.len() / 2;
            let (mut log, mut first) = (EventLog::default(), Replay::default());
            for piece in &one[..shown] {
                say(&mut log, &mut first, piece);
            }
            let shown_bytes = log.text().len();
            let mut second = Replay::default();
            for piece in &other {
                let before = log.not_repeated(&second);
                let repeated = say(&mut log, &mut second, piece);
                assert!(!matches!(repeated, Repeated::Differs(_)), "seed {seed}");
                assert_eq!(before.is_none(), matches!(repeated, Repeated::New(0)), "seed {seed}");
            }
            assert_eq!((log.text(), log.not_repeated(&second)), (text.as_str(), None), "seed {seed}");
            // One that says something else in what was shown is caught there, and nothing of it is taken.
            let wrong = text.char_indices().map(|(at, character)| if at == shown_bytes / 2 { 'x' } else { character });
            let wrong: String = wrong.collect();
            if wrong == text || shown_bytes == 0 {
                continue;
            }
            let mut third = Replay::default();
            let caught = cut(&wrong).iter().any(|piece| matches!(log.repeat(&mut third, piece), Repeated::Differs(_)));
            assert!(caught, "seed {seed}");
        }
    }
}
