//! Text for terminals and lines of the log: control characters become escapes that can be read and do nothing.

use std::borrow::Cow;
use std::fmt::Write;

use crate::core::text::line::is_plain;

/// A text for a terminal: whatever controls it, but for the end of a line and a tabulator, is shown as an escape.
pub(crate) fn for_terminal(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

/// An event as one line of the log: whatever would end it early is shown as an escape. Colours stay where the log has
/// its own.
pub(crate) fn one_line(event: &str, has_colours: bool) -> Cow<'_, str> {
    let (text, end) = event.strip_suffix('\n').map_or((event, ""), |text| (text, "\n"));
    if text.chars().all(is_plain) {
        return Cow::Borrowed(event);
    }
    let mut line = String::with_capacity(event.len() + 16);
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        line.push_str(&escape(&rest[..at], |_| false));
        let colour = if has_colours { colour_bytes(&rest[at..]) } else { 0 };
        match colour {
            0 => line.push_str("\\x1b"),
            _ => line.push_str(&rest[at..at + colour]),
        }
        rest = &rest[at + colour.max(1)..];
    }
    line.push_str(&escape(rest, |_| false));
    line.push_str(end);
    Cow::Owned(line)
}

/// Length of the sequence that sets a colour and with which the text begins; 0 when it begins with another.
fn colour_bytes(text: &str) -> usize {
    let Some(parameters) = text.strip_prefix("\u{1b}[") else { return 0 };
    let digits = parameters.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
    if parameters.as_bytes().get(digits) == Some(&b'm') { 2 + digits + 1 } else { 0 }
}

fn escape(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_good = |c: char| is_plain(c) || stays(c);
    if text.chars().all(is_good) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        // Writing into memory does not fail.
        let _ = match c {
            _ if is_good(c) => write!(escaped, "{c}"),
            '\n' => write!(escaped, "\\n"),
            '\r' => write!(escaped, "\\r"),
            '\t' => write!(escaped, "\\t"),
            '\0'..='\u{7f}' => write!(escaped, "\\x{:02x}", c as u32),
            _ => write!(escaped, "\\u{{{:x}}}", c as u32),
        };
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_gets_there() {
        assert_eq!(for_terminal("a\tb\n"), "a\tb\n");
        assert_eq!(for_terminal("\u{1b}]52;c;eA==\u{7}\r\u{9b}2J"), "\\x1b]52;c;eA==\\x07\\r\\u{9b}2J");
        for c in '\0'..='\u{ff}' {
            let shown = for_terminal(&c.to_string()).into_owned();
            assert!(shown.chars().all(|c| is_plain(c) || matches!(c, '\n' | '\t')), "{c:?} is {shown:?}");
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        assert_eq!(one_line("INFO plain\n", true), "INFO plain\n");
        let forged = one_line("INFO version=1\n2026 ERROR fake{x=1} 7\r\u{1b}[2J\n", true).into_owned();
        assert_eq!(forged, "INFO version=1\\n2026 ERROR fake{x=1} 7\\r\\x1b[2J\n");
        assert_eq!(one_line("\u{1b}[2m12:00\u{1b}[0m \u{1b}[31m\n", true), "\u{1b}[2m12:00\u{1b}[0m \u{1b}[31m\n");
        assert_eq!(one_line("\u{1b}[31\u{1b}", true), "\\x1b[31\\x1b");
        assert_eq!(one_line("\u{1b}[31mred\n", false), "\\x1b[31mred\n");
    }
}
