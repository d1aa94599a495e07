//! The configuration file: YAML in, [`Config`] out, or every fault with file, line and the nearest right name
//! (ORCH-3030).

use std::path::Path;

use crate::config::Config;

/// Least similarity of two names (Jaro-Winkler, 0 to 1) for the one to be offered for the other.
const SIMILAR: f64 = 0.75;

/// What is wrong with a configuration file. One line for each fault, ready to be shown.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct FileFaults(pub Vec<String>);

/// Reads and checks a configuration file.
///
/// # Errors
/// [`FileFaults`]: it cannot be read, it is not YAML of the right shape, or a value is wrong.
pub fn load(path: &Path) -> Result<Config, FileFaults> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| FileFaults(vec![format!("{}: it cannot be read: {error}", path.display())]))?;
    parse(&text, &path.display().to_string())
}

/// Parses and checks a configuration; `name` stands for the file in errors.
///
/// # Errors
/// [`FileFaults`] as for [`load`].
pub fn parse(text: &str, name: &str) -> Result<Config, FileFaults> {
    let config: Config = serde_saphyr::from_str(text).map_err(|error| FileFaults(vec![explain(&error, name)]))?;
    let faults: Vec<String> = config
        .faults()
        .iter()
        .chain(&crate::service::config::engines::faults(&config))
        .map(|fault| format!("{name}: {fault}"))
        .collect();
    if faults.is_empty() { Ok(config) } else { Err(FileFaults(faults)) }
}

/// The JSON Schema of the configuration, as it is kept in `.specs/config.schema.json`.
pub fn schema() -> String {
    let schema = schemars::schema_for!(Config);
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}

fn explain(error: &serde_saphyr::Error, name: &str) -> String {
    let error = error.without_snippet();
    let place = error.location().map_or(String::new(), |at| format!(":{}:{}", at.line(), at.column()));
    if let serde_saphyr::Error::SerdeUnknownField { field, expected, .. } = error {
        return format!("{name}{place}: unknown field {field:?}{}", suggestion(field, expected));
    }
    let text = error.to_string();
    // The library repeats the place behind its text; ours stands in front.
    let text = text.split(" at line ").next().unwrap_or(&text).lines().next().unwrap_or_default().to_owned();
    format!("{name}{place}: {text}")
}

/// `"; did you mean …?"`, or all the names there are when none is similar.
pub(crate) fn suggestion(wrong: &str, known: &[&str]) -> String {
    let score = |name: &str| strsim::jaro_winkler(wrong, name);
    let nearest = known.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b)));
    match nearest.filter(|name| score(name) >= SIMILAR) {
        Some(name) => format!("; did you mean {name:?}?"),
        None => format!("; there is {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        parse(text, "pools.yaml").expect_err("it is wrong").to_string()
    }

    #[test]
    fn an_unknown_field_is_named_with_its_line_and_the_nearest_right_name() {
        let text = "pools:\n  - id: a\n    engine: sim\n    model: m\n    slotz: 4\n";
        let fault = fault(text);
        assert!(fault.starts_with("pools.yaml:5:5: unknown field \"slotz\"; did you mean \"slots\"?"), "{fault}");
    }

    #[test]
    fn a_nested_unknown_field_is_found_too() {
        let text = "pools:\n  - id: a\n    engine: sim\n    model: m\n    queue: { capcity: 3 }\n";
        let fault = fault(text);
        assert!(fault.contains("pools.yaml:5:") && fault.contains("did you mean \"capacity\"?"), "{fault}");
    }

    #[test]
    fn a_wrong_type_a_missing_field_and_broken_yaml_have_their_line() {
        assert!(fault("pools: 7\n").starts_with("pools.yaml:1:"));
        assert!(fault("pools:\n  - id: a\n    engine: sim\n").contains("model"));
        assert!(fault("pools:\n  - id: [a\n").starts_with("pools.yaml:"));
        let policy = fault("pools:\n  - {id: a, engine: sim, model: m, queue: {full_policy: drop}}\n");
        assert!(policy.contains("drop") && policy.contains("drop-lru"), "{policy}");
    }

    #[test]
    fn every_wrong_value_is_reported_at_once() {
        let text = "pools:\n  - {id: a, engine: simm, model: m, slots: 0}\n";
        let fault = fault(text);
        assert!(fault.contains("pools[0].slots") && fault.contains("did you mean \"sim\"?"), "{fault}");
    }

    #[test]
    fn the_shape_of_the_documentation_is_taken() {
        let text = r#"
pools:
  - id: tiny-gpu0
    engine: llamacpp
    model: tiny.gguf
    command: ["llama-server", "--port", "{port}", "--parallel", "{slots}"]
    slots: 4
    replicas: [{ devices: [0] }, { devices: [1] }]
    queue: { capacity: 256, full_policy: reject }
    timeouts: { wall_ms: 60000, idle_ms: 5000 }
"#;
        let config = parse(text, "doc").expect("valid");
        assert_eq!((config.pools[0].slots, config.pools[0].replicas.len()), (4, 2));
    }
}
