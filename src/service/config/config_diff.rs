//! What differs between two configurations, line by line, for a person to read.

use serde::Serialize;
use serde_json::Value;

use crate::config::Config;
use crate::core::text::line::Line;

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Difference {
    /// The field, such as `pools.chat.slots`; pools stand by their names.
    pub(crate) path: String,
    /// What it was; `null` where it was not there.
    pub(crate) from: Value,
    /// What it is to be; `null` where it is gone.
    pub(crate) to: Value,
}

/// Every difference, in the order of the fields.
pub(crate) fn differences(from: &Config, to: &Config) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", &by_name(from), &by_name(to), &mut found);
    found
}

/// A configuration with its pools by name, so that one that moved is the same.
fn by_name(config: &Config) -> Value {
    let mut value = serde_json::to_value(config).unwrap_or_default(); // Plain data.
    if let Some(Value::Array(pools)) = value.get_mut("pools").map(Value::take) {
        let named = pools.into_iter().map(|pool| (pool["id"].as_str().unwrap_or_default().to_owned(), pool));
        value["pools"] = Value::Object(named.collect());
    }
    value
}

fn compare(path: &str, from: &Value, to: &Value, found: &mut Vec<Difference>) {
    let inside = |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
    match (from, to) {
        (Value::Object(old), Value::Object(new)) => {
            let gone = old.keys().filter(|field| !new.contains_key(*field));
            for field in gone.chain(new.keys()) {
                let side = |value: &Value| value.get(field).cloned().unwrap_or_default();
                compare(&inside(field), &side(from), &side(to), found);
            }
        }
        _ if from == to => {}
        _ => found.push(Difference { path: path.to_owned(), from: from.clone(), to: to.clone() }),
    }
}

impl Difference {
    /// The same for the log: one bounded line, without the values of an engine's environment, which may be secrets.
    pub(crate) fn logged(&self) -> Line {
        match self.path.contains(".process.env.") || self.path.ends_with(".process.env") {
            true => format!("~ {}: another value", self.path).into(),
            false => self.to_string().into(),
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.from, &self.to) {
            (Value::Null, new) => write!(f, "+ {}: {new}", self.path),
            (old, Value::Null) => write!(f, "- {}: {old}", self.path),
            (old, new) => write!(f, "~ {}: {old} -> {new}", self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PoolConfig;

    #[test]
    fn pools_are_compared_by_name_and_fields_one_by_one() {
        let config = |ids: &[&str], slots| {
            let pool = |id: &&str| PoolConfig { slots, ..PoolConfig::new(*id, "sim", "m") };
            Config { pools: ids.iter().map(pool).collect(), ..Config::default() }
        };
        assert!(differences(&config(&["a", "b"], 1), &config(&["b", "a"], 1)).is_empty());
        let shown: Vec<String> =
            differences(&config(&["a"], 1), &config(&["a"], 2)).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["~ pools.a.slots: 1 -> 2"]);
        let found = differences(&config(&["a"], 1), &config(&["b"], 1));
        assert_eq!(found.iter().map(|one| one.path.as_str()).collect::<Vec<_>>(), ["pools.a", "pools.b"]);
        assert!(found[0].to.is_null() && found[1].from.is_null());
    }
}
