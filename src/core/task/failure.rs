//! Why attempts are lost and workers die, told apart by whose fault it is and what helps.

use serde::{Deserialize, Serialize};

/// What an attempt was lost to, or a worker died of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// A panic of ours.
    Bug,
    /// The engine could not be loaded: a wrong configuration, a missing file, a failed self-test.
    Load,
    /// Its process ended with an exit code.
    ExitCode,
    /// Its process was ended by a signal.
    Signal,
    /// The host had no memory left for it.
    OutOfMemory,
    /// Its device had no memory left for it: there is room for fewer tasks than its slots (ORCH-3039).
    OutOfVram,
    /// Its device was lost.
    DeviceLost,
    /// It could not be reached.
    Unreachable,
    /// Its connection broke, or it failed in the middle of a run without a word about why.
    Lost,
    /// It said something that its protocol does not have.
    Garbled,
    /// It did not go on, or did not stop, within its time.
    Hung,
    /// The client asked for something that the engine does not take. Never a reason to restart anything.
    Client,
    /// The engine had too much to do and took nothing. Costs no attempt.
    Busy,
    /// The context that its runs share was full: fewer at once have room.
    ContextFull,
    /// A panic of the engine's code, which runs in our process.
    EnginePanic,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Cause; 15] = [
        Cause::Bug,
        Cause::Load,
        Cause::ExitCode,
        Cause::Signal,
        Cause::OutOfMemory,
        Cause::OutOfVram,
        Cause::DeviceLost,
        Cause::Unreachable,
        Cause::Lost,
        Cause::Garbled,
        Cause::Hung,
        Cause::Client,
        Cause::Busy,
        Cause::ContextFull,
        Cause::EnginePanic,
    ];

    /// The cause as it is written in JSON, logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Bug => "bug",
            Cause::Load => "load",
            Cause::ExitCode => "exit_code",
            Cause::Signal => "signal",
            Cause::OutOfMemory => "out_of_memory",
            Cause::OutOfVram => "out_of_vram",
            Cause::DeviceLost => "device_lost",
            Cause::Unreachable => "unreachable",
            Cause::Lost => "lost",
            Cause::Garbled => "garbled",
            Cause::Hung => "hung",
            Cause::Client => "client",
            Cause::Busy => "busy",
            Cause::ContextFull => "context_full",
            Cause::EnginePanic => "engine_panic",
        }
    }

    /// The cause's place in a table with one row for each.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The cause that an engine's own words give away: what it said before it ended, or in an error. `None` when they
    /// say nothing of the kind. Engines have no common codes for these; the words are those of llama.cpp, PyTorch, CUDA
    /// and glibc.
    pub fn of_words(text: &str) -> Option<Cause> {
        const DEVICE_LOST: [&str; 6] = [
            "gpu is lost",
            "device lost",
            "fallen off the bus",
            "uncorrectable ecc",
            "unspecified launch failure",
            "cuda_error_device_unavailable",
        ];
        const OUT_OF_MEMORY: [&str; 7] = [
            "out of memory",
            "outofmemory",
            "out_of_memory",
            "cannot allocate memory",
            "bad_alloc",
            "failed to allocate",
            "unable to allocate",
        ];
        // Whose memory it was, where that is said.
        const ON_DEVICE: [&str; 10] =
            ["cuda", "cublas", "cudnn", "vram", "gpu", "hip", "rocm", "vulkan", "nccl", "torch.outofmemory"];
        const VRAM: [&str; 3] =
            ["no available memory for the cache blocks", "cublas_status_alloc_failed", "kv cache is larger"];
        const ON_HOST: [&str; 4] = ["bad_alloc", "cannot allocate memory", "pinned", "cuda_host"];
        let text = text.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if says(&DEVICE_LOST) {
            return Some(Cause::DeviceLost);
        }
        let is_on_device = says(&ON_DEVICE) && !says(&ON_HOST);
        match says(&OUT_OF_MEMORY) {
            true if is_on_device => Some(Cause::OutOfVram),
            true => Some(Cause::OutOfMemory),
            false => says(&VRAM).then_some(Cause::OutOfVram),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_words_are_understood() {
        let cases = [
            ("CUDA error: out of memory", Some(Cause::OutOfVram)),
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", Some(Cause::OutOfVram)),
            ("ValueError: No available memory for the cache blocks.", Some(Cause::OutOfVram)),
            ("ggml_gallocr_reserve_n: failed to allocate CUDA0 buffer", Some(Cause::OutOfVram)),
            ("failed to allocate CUDA_Host buffer, pinned", Some(Cause::OutOfMemory)),
            ("fork: Cannot allocate memory", Some(Cause::OutOfMemory)),
            ("ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer", Some(Cause::OutOfMemory)),
            ("terminate called after throwing an instance of 'std::bad_alloc'", Some(Cause::OutOfMemory)),
            ("NVRM: Xid 79, GPU has fallen off the bus.", Some(Cause::DeviceLost)),
            ("CUDA error: uncorrectable ECC error encountered, out of memory", Some(Cause::DeviceLost)),
            ("no such file: model.gguf", None),
        ];
        for (text, want) in cases {
            assert_eq!(Cause::of_words(text), want, "{text}");
        }
    }

    #[test]
    fn each_cause_has_a_name_and_a_row_of_its_own() {
        assert!(Cause::ALL.iter().enumerate().all(|(row, cause)| cause.index() == row));
        let names: std::collections::BTreeSet<_> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
    }
}
