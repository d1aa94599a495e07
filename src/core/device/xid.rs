//! What the driver's XID numbers mean and do. The driver reports each as a bare number; what stands here follows
//! NVIDIA's "XID Errors" catalogue and its recommended actions.

use serde::Serialize;

/// What an XID does to the device and to what runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum XidEffect {
    /// Nothing now: it is counted and logged.
    Note,
    /// A process on the device has lost its context, the device is well: engines on it are looked at, and those that do
    /// not answer are started again.
    Process,
    /// The device's memory is not to be trusted: its engines end, their tasks resume elsewhere. The driver does not say
    /// when it has been reset; behind its wait a load with its self-test is the trial.
    Memory,
    /// The device does not work as it is: as for memory.
    Reset,
    /// The device is not there any more: as for memory. It comes back with its host or its slot.
    Lost,
}

impl XidEffect {
    /// Whether the device may be used on.
    pub const fn leaves_usable(self) -> bool {
        matches!(self, XidEffect::Note | XidEffect::Process)
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XidRule {
    /// The number.
    pub number: u64,
    /// What it does.
    pub effect: XidEffect,
    /// What it means, in a few words.
    pub meaning: &'static str,
}

const fn row(number: u64, effect: XidEffect, meaning: &'static str) -> XidRule {
    XidRule { number, effect, meaning }
}

use XidEffect::{Lost, Memory, Note, Process, Reset};

/// The numbers that are known, ascending.
pub const XIDS: [XidRule; 30] = [
    row(8, Process, "a channel did not go on in time"),
    row(13, Process, "graphics engine exception, mostly an illegal access of a kernel"),
    row(31, Process, "memory page fault, mostly an illegal address of a kernel"),
    row(32, Process, "invalid or corrupted push buffer"),
    row(38, Reset, "driver firmware error"),
    row(43, Process, "a process's channel was reset"),
    row(44, Reset, "graphics engine fault while the context was switched"),
    row(45, Process, "a process's work was removed behind another error"),
    row(48, Memory, "double-bit ECC error"),
    row(54, Reset, "auxiliary power is not connected"),
    row(61, Reset, "internal micro-controller breakpoint"),
    row(62, Reset, "internal micro-controller halt"),
    row(63, Note, "a memory row or page was retired; it takes effect with the next reset"),
    row(64, Memory, "a memory row or page could not be retired"),
    row(68, Process, "video processor exception"),
    row(69, Process, "graphics engine class error"),
    row(74, Reset, "NVLink error"),
    row(79, Lost, "the GPU has fallen off the bus"),
    row(92, Note, "a high rate of single-bit ECC errors"),
    row(94, Process, "contained ECC error: only the process that hit it is affected"),
    row(95, Memory, "uncontained ECC error"),
    row(109, Process, "context switch timeout"),
    row(110, Reset, "security fault"),
    row(119, Reset, "the GPU's system processor does not answer"),
    row(120, Reset, "error of the GPU's system processor"),
    row(136, Reset, "link training failed"),
    row(140, Memory, "unrecovered ECC error"),
    row(143, Reset, "the GPU could not be initialised"),
    row(154, Note, "the recommended recovery action has changed"),
    row(155, Reset, "NVLink software-defined error"),
];

/// What this number means. One that is not known is treated as one that leaves the device usable and its processes
/// suspect.
pub fn xid(number: u64) -> XidRule {
    let found = XIDS.binary_search_by_key(&number, |rule| rule.number);
    found.map_or(row(number, Process, "not in the table"), |at| XIDS[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_one_row_and_they_ascend() {
        assert!(XIDS.windows(2).all(|rows| rows[0].number < rows[1].number));
        assert!(XIDS.iter().all(|rule| xid(rule.number) == *rule && !rule.meaning.is_empty()));
    }

    #[test]
    fn what_operators_must_tell_apart_is_told_apart() {
        let cases = [
            (13, Process),
            (31, Process),
            (48, Memory),
            (63, Note),
            (64, Memory),
            (74, Reset),
            (79, Lost),
            (94, Process),
            (95, Memory),
        ];
        for (number, effect) in cases {
            assert_eq!(xid(number).effect, effect, "{number}");
        }
        assert_eq!(xid(424_242).effect, Process, "an unknown one ends nothing by itself");
        assert!([Note, Process].iter().all(|effect| effect.leaves_usable()));
        assert!(![Memory, Reset, Lost].iter().any(|effect| effect.leaves_usable()));
    }
}
