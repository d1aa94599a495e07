//! What the processes of engines are given: memory, CPUs, a user, and an environment that is built name by name. The
//! service's own environment has keys in it, of other engines too, and engines run code that comes with models.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::section;
use crate::config::{Config, ConfigError, PoolConfig};
use crate::core::text::line::Line;

section! {
    /// What the processes of a pool's engines are given of the host, and as whom they run.
    pub struct ProcessConfig {
        /// Most host memory of one engine with all that it starts, in bytes, by a cgroup of its own.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub memory_bytes_max: Option<u64> = None,
        /// Whether it runs on the CPUs that its devices are near to (NUMA) and no others.
        pub numa_affinity: bool = true,
        /// Variables of its environment, by their names; they go before those that it inherits. Whoever may see the
        /// configuration sees them: secrets are better inherited.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub env: BTreeMap<String, String> = BTreeMap::new(),
        /// Variables of the service's environment that it gets beside those that every engine gets: names, and
        /// beginnings of names such as `SGLANG_*`. What looks like a secret is given by its whole name alone: it has
        /// `TOKEN`, `SECRET`, `PASSWORD`, `PASSWD`, `PASSPHRASE`, `CRED`, `APIKEY`, `AUTH` or `BEARER` in its name, or
        /// `KEY`, `KEYS`, `PASS`, `PWD` or `PAT` as a word behind a `_`. The keys of other pools' engines and the
        /// service's own variables are not given.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub env_inherit: Vec<String> = Vec::new(),
        /// The user of `/etc/passwd` that it runs as, with that user's group and no other. Left out, it is the
        /// service's. The service must be root, or have CAP_SETUID, CAP_SETGID and CAP_KILL.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub user: Option<String> = None,
    }
}

/// Variables that every engine gets where the service has them: where things lie, language and time, and settings that
/// many read.
const COMMON: [&str; 25] = [
    "DO_NOT_TRACK",
    "HF_DATASETS_OFFLINE",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "HOME",
    "HUGGINGFACE_HUB_CACHE",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "SHELL",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "TZDIR",
    "USER",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
];

/// Beginnings of further ones: settings of drivers, libraries and engines.
const COMMON_BEGINNINGS: [&str; 27] = [
    "CONDA_",
    "CUDA_",
    "FLASHINFER_",
    "GGML_",
    "GLOO_",
    "HIP_",
    "HSA_",
    "KMP_",
    "LC_",
    "LLAMA",
    "MKL_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "OPENBLAS_",
    "PYENV_",
    "PYTHON",
    "ROCM_",
    "ROCR_",
    "SGLANG_",
    "SGL_",
    "TORCH",
    "TRANSFORMERS_",
    "TRITON_",
    "TRTLLM_",
    "UCX_",
    "VLLM_",
];

/// The service's own variables, and those by which a service manager tells it something. No engine gets them.
const OWN: [&str; 5] =
    ["CREDENTIALS_DIRECTORY", "INVOCATION_ID", "JOURNAL_STREAM", "NOTIFY_SOCKET", "SYSTEMD_EXEC_PID"];
const OWN_BEGINNINGS: [&str; 4] = ["LISTEN_", "ORCHESTRATORD_", "OTEL_", "WATCHDOG_"];

/// What tells, anywhere in a name, that a variable is a secret.
const SECRET_PARTS: [&str; 9] =
    ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CRED", "APIKEY", "AUTH", "BEARER"];

/// What tells it as a word of its own.
const SECRET_WORDS: [&str; 5] = ["KEY", "KEYS", "PASS", "PWD", "PAT"];

/// Variables that are another user's where an engine runs as another.
const OF_THE_USER: [&str; 8] =
    ["HOME", "LOGNAME", "SHELL", "TMPDIR", "USER", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"];

/// What the service sets by itself: the devices that an engine may see are a law.
const SET: [&str; 2] = ["CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"];

/// Most variables that a pool names, and longest name and value, in bytes.
const NAMES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 256;
const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Characters of a wrong name that are shown.
const NAME_CHARS_SHOWN: usize = 64;

/// Longest name of a user, in bytes.
const USER_BYTES_MAX: usize = 32;

impl ProcessConfig {
    /// Whether an engine gets this variable of the service's environment.
    pub fn inherits(&self, name: &str) -> bool {
        let is_named = self.env_inherit.iter().any(|entry| entry == name);
        if is_own(name) || is_named {
            return is_named && !is_own(name);
        }
        let is_anothers = self.user.is_some() && OF_THE_USER.contains(&name);
        let is_given = is_common(name) || self.env_inherit.iter().any(|entry| takes(entry, name));
        is_given && !is_anothers && !is_secret(name)
    }

    /// Whether it decides about the environment or the user of processes.
    pub fn decides(&self) -> bool {
        !self.env.is_empty() || !self.env_inherit.is_empty() || self.user.is_some()
    }
}

fn is_own(name: &str) -> bool {
    OWN.contains(&name) || OWN_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

fn is_common(name: &str) -> bool {
    COMMON.contains(&name) || COMMON_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let is_word = |word: &str| SECRET_WORDS.contains(&word);
    name.split('_').skip(1).any(is_word) || SECRET_PARTS.iter().any(|part| name.contains(part))
}

/// Whether an entry of `env_inherit` gives a variable, by its name or by the beginning of it.
fn takes(entry: &str, name: &str) -> bool {
    match entry.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning) && !is_secret(name),
        None => entry == name,
    }
}

/// What is wrong between pools: an engine is given no key of another pool's engine.
pub(in crate::config) fn faults(config: &Config, faults: &mut Vec<ConfigError>) {
    let keys: BTreeMap<&str, &str> =
        config.pools.iter().filter_map(|pool| Some((pool.api_key_env.as_deref()?, pool.id.as_str()))).collect();
    for (position, pool) in config.pools.iter().enumerate() {
        let anothers = |key: &&&str| pool.api_key_env.as_deref() != Some(**key);
        for (entry, name) in pool.process.env_inherit.iter().enumerate() {
            let Some(key) = keys.keys().filter(anothers).find(|key| takes(name, key)) else { continue };
            let text =
                format!("{name:?} would give the key of pool {:?} ({key}) to the engines of this one", keys[*key]);
            faults.push(ConfigError::new(format!("pools[{position}].process.env_inherit[{entry}]"), text));
        }
    }
}

/// What is wrong with one pool by itself.
pub(in crate::config) fn pool_faults(pool: &PoolConfig, path: &str, faults: &mut Vec<ConfigError>) {
    let mut fault = |field: &str, text: String| faults.push(ConfigError::new(format!("{path}.{field}"), text));
    if let Some(key) = pool.api_key_env.as_ref().filter(|key| is_common(key) && !is_secret(key)) {
        fault("api_key_env", format!("{key} is given to every engine; use another name, such as {key}_API_KEY"));
    }
    let process = &pool.process;
    for (field, count) in [("process.env", process.env.len()), ("process.env_inherit", process.env_inherit.len())] {
        if count > NAMES_MAX {
            fault(field, format!("at most {NAMES_MAX} variables, not {count}"));
        }
    }
    for (name, value) in process.env.iter().take(NAMES_MAX) {
        if let Some(text) = variable_fault(name, value) {
            fault(&format!("process.env.{}", Line::<NAME_CHARS_SHOWN>::new(name)), text);
        }
    }
    for (entry, name) in process.env_inherit.iter().take(NAMES_MAX).enumerate() {
        if let Some(text) = entry_fault(name) {
            fault(&format!("process.env_inherit[{entry}]"), text);
        }
    }
    if let Some(text) = process.user.as_deref().and_then(user_fault) {
        fault("process.user", text);
    }
}

fn variable_fault(name: &str, value: &str) -> Option<String> {
    if SET.contains(&name) {
        return Some("the service sets it, by the devices of the replica".into());
    }
    if value.len() > VALUE_BYTES_MAX || value.contains('\0') {
        return Some(format!("a value has at most {VALUE_BYTES_MAX} bytes, and no NUL among them"));
    }
    name_fault(name)
}

fn name_fault(name: &str) -> Option<String> {
    let is_name = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.contains('=')
        && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    let text =
        || format!("it is no name of a variable, which has 1 to {NAME_BYTES_MAX} bytes, and neither '=' nor spaces");
    (!is_name).then(text)
}

fn entry_fault(entry: &str) -> Option<String> {
    let beginning = entry.strip_suffix('*').unwrap_or(entry);
    if beginning.is_empty() {
        return Some("name what the engine needs, such as NAME or NAMES_*".into());
    }
    if beginning.contains('*') {
        return Some("a '*' stands at the end alone, as in NAMES_*".into());
    }
    if is_own(beginning) {
        return Some(
            "it is the service's own; where the engine needs a value of this name, set it in process.env".into(),
        );
    }
    if SET.contains(&entry) {
        return Some("the service sets it, by the devices of the replica".into());
    }
    name_fault(beginning)
}

fn user_fault(user: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let is_name = (1..=USER_BYTES_MAX).contains(&user.len()) && user.bytes().all(is_plain) && !user.starts_with('-');
    match (is_name, user) {
        (false, _) => Some(format!(
            "it is no name of a user, which has 1 to {USER_BYTES_MAX} letters, digits, '_', '-' and '.', and no '-' first"
        )),
        (true, "root") => Some("no engine is run as root on purpose; make a user for it".into()),
        (true, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inheriting(entries: &[&str]) -> ProcessConfig {
        ProcessConfig { env_inherit: entries.iter().map(ToString::to_string).collect(), ..ProcessConfig::default() }
    }

    #[test]
    fn an_engine_gets_settings_and_no_secrets_by_default() {
        let process = ProcessConfig::default();
        for name in ["PATH", "HOME", "LC_ALL", "CUDA_HOME", "NCCL_DEBUG", "HF_HOME", "PYTHONPATH", "VLLM_CACHE_ROOT"] {
            assert!(process.inherits(name), "{name}");
        }
        for name in [
            "ENGINE_A_KEY",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "VLLM_API_KEY",
            "LLAMA_API_KEY",
            "PYTHON_KEYRING_SECRET",
            "NVIDIA_password",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "ORCHESTRATORD_KEY",
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "LISTEN_FDS",
            "CREDENTIALS_DIRECTORY",
            "INVOCATION_ID",
            "JOURNAL_STREAM",
            "http_proxy",
            "RUST_LOG",
            "SOMETHING",
            "",
        ] {
            assert!(!process.inherits(name), "{name}");
        }
    }

    #[test]
    fn a_secret_is_given_by_its_whole_name_alone_and_what_is_ours_by_none() {
        let process = inheriting(&["HF_TOKEN", "MY_*", "OTEL_EXPORTER_OTLP_HEADERS", "O*"]);
        assert!(process.inherits("HF_TOKEN") && process.inherits("MY_FLAG"));
        for name in
            ["MY_KEY", "MY_TOKENS", "HF_TOKEN_PATH", "OTEL_EXPORTER_OTLP_HEADERS", "ORCHESTRATORD_KEY", "my_flag"]
        {
            assert!(!process.inherits(name), "{name}");
        }
    }

    #[test]
    fn another_users_engine_has_another_home() {
        let process = ProcessConfig { user: Some("llm".into()), ..inheriting(&["XDG_CACHE_HOME"]) };
        assert!(process.inherits("PATH") && process.inherits("XDG_CACHE_HOME"), "what is named is given");
        assert!(!process.inherits("HOME") && !process.inherits("USER") && !process.inherits("XDG_CONFIG_HOME"));
    }

    /// The faults of two pools, of which the first has an engine's key in `A_KEY`, or in `key`.
    fn found(key: &str, process: ProcessConfig) -> String {
        let first = PoolConfig { api_key_env: Some(key.into()), ..PoolConfig::new("a", "sim", "m") };
        let second = PoolConfig { process, ..PoolConfig::new("b", "sim", "m") };
        let config = Config { pools: vec![first, second], ..Config::default() };
        config.faults().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn the_key_of_another_pool_is_not_given() {
        assert_eq!(found("A_KEY", inheriting(&["HF_TOKEN", "A_*", "NCCL_*"])), "", "a beginning gives no secret");
        let named = found("A_KEY", inheriting(&["B", "A_KEY"]));
        assert!(
            named.starts_with("pools[1].process.env_inherit[1]: ") && named.contains("pool \"a\" (A_KEY)"),
            "{named}"
        );
        let begun = found("A_ENTRY", inheriting(&["A_*"]));
        assert!(begun.starts_with("pools[1].process.env_inherit[0]: ") && begun.contains("(A_ENTRY)"), "{begun}");
        let common = found("HF_HOME", ProcessConfig::default());
        assert!(common.starts_with("pools[0].api_key_env: HF_HOME is given to every engine"), "{common}");
        let own = PoolConfig {
            api_key_env: Some("VLLM_API_KEY".into()),
            process: inheriting(&["VLLM_API_KEY"]),
            ..PoolConfig::new("a", "sim", "m")
        };
        assert!(Config { pools: vec![own], ..Config::default() }.faults().is_empty(), "its own key is its own to give");
    }

    #[test]
    fn what_is_no_name_is_found_where_it_is() {
        for entry in ["", "*", "A=B", "A B", "A\0", "*_A", "A*B*", "ORCHESTRATORD_KEY", "OTEL_*", "NOTIFY_SOCKET"] {
            let text = found("A_KEY", inheriting(&[entry]));
            assert!(text.starts_with("pools[1].process.env_inherit[0]: "), "{entry:?}: {text}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for (name, value) in
            [("", "x"), ("A=B", "x"), ("A\n", "x"), ("A", "\0"), ("CUDA_VISIBLE_DEVICES", "0"), (long.as_str(), "")]
        {
            let env = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let text = found("A_KEY", ProcessConfig { env, ..ProcessConfig::default() });
            assert!(text.starts_with("pools[1].process.env."), "{name:?}: {text}");
        }
        let env = BTreeMap::from([("OTEL_SERVICE_NAME".to_owned(), "engine".to_owned())]);
        assert_eq!(found("A_KEY", ProcessConfig { env, ..ProcessConfig::default() }), "", "a value of its own");
        let many = (0..=NAMES_MAX).map(|number| format!("N{number}")).collect();
        let text = found("A_KEY", ProcessConfig { env_inherit: many, ..ProcessConfig::default() });
        assert!(text.starts_with("pools[1].process.env_inherit: at most 256"), "{text}");
        for user in ["", "-x", "a b", "root", "a:b", "../x"] {
            let text = found("A_KEY", ProcessConfig { user: Some(user.into()), ..ProcessConfig::default() });
            assert!(text.starts_with("pools[1].process.user: "), "{user:?}: {text}");
        }
    }
}
