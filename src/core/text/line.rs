//! Text from outside (an engine, a file, another node): one line of bounded length without control characters.
//!
//! Whatever takes such text into errors, logs, metrics or views holds it as a [`Line`], and a `Line` cannot be made
//! without being cut and cleaned. So the bound holds behind every decoding, and no door has to remember it.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// One line of at most `CHARS` characters and a note of what was cut.
///
/// Control characters, line separators and characters that change the direction of what follows are spaces in it. What
/// is cut ends with the length and a hash of the whole, so that two long texts that begin alike stay different.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Line<const CHARS: usize = 300>(Box<str>);

/// A name or a version that an engine reports.
pub type Name = Line<128>;

/// The message of an error, with what it quotes.
pub type Message = Line<2000>;

/// The last lines that a process wrote, as one.
pub type LastLines = Line<4096>;

impl<const CHARS: usize> Line<CHARS> {
    /// Takes a text in.
    pub fn new(text: &str) -> Self {
        let clean = |c: char| if is_plain(c) { c } else { ' ' };
        let Some((end, _)) = text.char_indices().nth(CHARS) else {
            return Line(text.chars().map(clean).collect::<String>().into());
        };
        let mut line: String = text[..end].chars().map(clean).collect();
        line.push_str(&format!("… ({} bytes, {:08x})", text.len(), xxh3_64(text.as_bytes()) as u32));
        Line(line.into())
    }

    /// The line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a character may be shown as it is: it neither controls a terminal, nor ends a line, nor changes the
/// direction of text.
pub fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{61c}' | '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The begin of what somebody sent, in quotation marks, for an answer that says what is wrong with it.
pub fn quoted(text: &str) -> String {
    format!("{:?}", Line::<100>::new(text).as_str())
}

impl<const CHARS: usize> Default for Line<CHARS> {
    fn default() -> Self {
        Line("".into())
    }
}

impl<const CHARS: usize> From<&str> for Line<CHARS> {
    fn from(text: &str) -> Self {
        Line::new(text)
    }
}

impl<const CHARS: usize> From<&String> for Line<CHARS> {
    fn from(text: &String) -> Self {
        Line::new(text)
    }
}

impl<const CHARS: usize> From<String> for Line<CHARS> {
    fn from(text: String) -> Self {
        Line::new(&text)
    }
}

impl<const CHARS: usize> From<Line<CHARS>> for String {
    fn from(line: Line<CHARS>) -> Self {
        line.0.into()
    }
}

impl<'de, const CHARS: usize> Deserialize<'de> for Line<CHARS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Line::from)
    }
}

impl<const CHARS: usize> Deref for Line<CHARS> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const CHARS: usize> fmt::Display for Line<CHARS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<const CHARS: usize> fmt::Debug for Line<CHARS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl<const CHARS: usize> PartialEq<str> for Line<CHARS> {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other
    }
}

impl<const CHARS: usize> PartialEq<&str> for Line<CHARS> {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == **other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_one_line_and_bounded_whatever_it_is_made_of() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2_000 {
            let text: String = (0..random.usize(0..900)).map(|_| random.char(..)).collect();
            for line in [Line::<300>::new(&text), Line::<300>::from(text.clone())] {
                assert!(line.chars().all(is_plain), "{line:?}");
                assert!(line.chars().count() <= 300 + 40, "{}", line.len());
            }
        }
        let controls: String = (0..=0x9f_u8).map(char::from).filter(|c| c.is_control()).collect();
        assert!(Line::<300>::new(&controls).chars().all(|c| c == ' '));
    }

    #[test]
    fn what_fits_stays_and_what_is_cut_stays_different() {
        assert_eq!(Name::new("b8123-cuda"), "b8123-cuda");
        assert_eq!(Name::new("a\r\nlevel=ERROR \u{1b}[2J"), "a  level=ERROR  [2J");
        let long = "x".repeat(128);
        assert_eq!(Name::new(&long).as_str(), long);
        let (one, other) = (Name::new(&(long.clone() + "1")), Name::new(&(long.clone() + "2")));
        assert!(one != other && one.starts_with(&long) && one.contains("(129 bytes"), "{one}");
    }

    #[test]
    fn it_is_cut_behind_every_decoding() {
        let line: Line<10> = serde_json::from_str(r#""0123456789\u001b]0;title""#).unwrap();
        assert!(line.starts_with("0123456789…") && line.chars().all(is_plain), "{line}");
        assert_eq!(serde_json::to_string(&Line::<10>::new("a\nb")).unwrap(), r#""a b""#);
    }

    #[test]
    fn what_is_quoted_is_short() {
        assert_eq!(quoted("a\"b\n"), r#""a\"b ""#);
        assert!(quoted(&"m".repeat(4 << 20)).len() < 160);
    }
}
