//! The W3C trace context of a task: who asked for it, and what its engine is told (`traceparent`, version 00).

/// A trace context that is well formed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct TraceParent(String);

impl TraceParent {
    /// Takes a header up; `None` when it is none that the recommendation allows, which is to be ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('-').collect();
        let [version, trace, parent, flags, ..] = parts.as_slice() else { return None };
        let is_hex = |part: &str, len: usize| {
            part.len() == len && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let well_formed = is_hex(version, 2) && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
        let is_some = |part: &str| part.bytes().any(|byte| byte != b'0');
        // Later versions may have more parts; what is known of them stands in front.
        let length_fits = *version != "ff" && (*version != "00" || parts.len() == 4);
        (well_formed && is_some(trace) && is_some(parent) && length_fits)
            .then(|| TraceParent(format!("00-{trace}-{parent}-{flags}")))
    }

    /// The trace that all of it belongs to.
    pub fn trace_id(&self) -> &str {
        &self.0[3..35]
    }

    /// The header.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is passed on: the same trace, with `span` as the parent.
    pub fn child(&self, span: u64) -> String {
        format!("00-{}-{:016x}-{}", self.trace_id(), span.max(1), &self.0[53..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_well_formed_is_taken_over_and_passed_on() {
        let parent = TraceParent::parse(GOOD).expect("well formed");
        assert_eq!(parent.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.child(0xab), "00-4bf92f3577b34da6a3ce929d0e0e4736-00000000000000ab-01");
        assert!(TraceParent::parse(&GOOD.replacen("00", "cc", 1)).is_some(), "a later version");
    }

    #[test]
    fn everything_else_is_ignored() {
        let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for wrong in
            ["", "00", zeros, &GOOD.to_uppercase(), &GOOD[1..], &format!("{GOOD}-x"), &GOOD.replacen("00", "ff", 1)]
        {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }
}
