//! The fields that each engine documents, and what is right for each.

use serde_json::{Value, json};

use super::fakes::Kind;

/// Sampling parameters by the names that the engine has for them.
const SAMPLING: [&str; 6] = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop"];

/// A field, whether it must be there, and what is right for it.
type Rule = (&'static str, bool, fn(&Value) -> bool);

impl Kind {
    /// What is wrong with a body, if anything is: each field of it must be one that the engine documents, in its range.
    pub fn complaint(self, body: &Value) -> Option<String> {
        let number = |value: &Value| value.is_number();
        let (fields, rules): (&Value, Vec<Rule>) = match self {
            Kind::LlamaCpp => (
                body,
                vec![
                    ("prompt", true, Value::is_string),
                    ("n_predict", true, Value::is_u64),
                    ("seed", true, Value::is_u64),
                    ("stream", true, |value| *value == true),
                    ("cache_prompt", true, Value::is_boolean),
                    ("id_slot", true, Value::is_u64),
                    ("repeat_penalty", false, |value| value.as_f64() > Some(0.0)),
                ],
            ),
            Kind::Vllm => (
                body,
                vec![
                    ("model", true, |value| *value == "fake"),
                    ("prompt", true, Value::is_string),
                    ("max_tokens", true, Value::is_u64),
                    ("seed", true, Value::is_u64),
                    ("stream", true, |value| *value == true),
                    ("stream_options", true, |value| {
                        *value == json!({"include_usage": true, "continuous_usage_stats": true})
                    }),
                ],
            ),
            Kind::OpenAi => (
                body,
                vec![
                    ("model", true, |value| *value == "fake"),
                    ("prompt", true, Value::is_string),
                    ("max_tokens", true, Value::is_u64),
                    ("seed", true, Value::is_u64),
                    ("stream", true, |value| *value == true),
                    ("stream_options", true, |value| *value == json!({"include_usage": true})),
                ],
            ),
            Kind::Tgi => {
                if body.as_object().is_none_or(|body| body.len() != 2) || !body["inputs"].is_string() {
                    return Some(format!("the body is not inputs and parameters: {body}"));
                }
                (
                    &body["parameters"],
                    vec![
                        ("max_new_tokens", true, Value::is_u64),
                        ("seed", true, Value::is_u64),
                        ("details", true, |value| *value == true),
                        ("do_sample", true, Value::is_boolean),
                        ("temperature", false, |value| value.as_f64() > Some(0.0)),
                        ("top_p", false, |value| value.as_f64().is_some_and(|value| value > 0.0 && value < 1.0)),
                        ("top_k", false, |value| value.as_u64() > Some(0)),
                        ("min_p", false, |_| false),
                    ],
                )
            }
            Kind::Triton => (
                body,
                vec![
                    ("text_input", true, Value::is_string),
                    ("max_tokens", true, Value::is_u64),
                    ("random_seed", true, Value::is_u64),
                    ("stream", true, |value| *value == true),
                    ("stop", false, |_| false),
                    ("stop_words", false, Value::is_array),
                ],
            ),
        };
        let Some(fields) = fields.as_object() else { return Some(format!("no object: {fields}")) };
        for (name, needed, is_right) in &rules {
            match fields.get(*name) {
                None if *needed => return Some(format!("{name} is missing")),
                Some(value) if !is_right(value) => return Some(format!("{name} is {value}")),
                _ => {}
            }
        }
        let is_sampling =
            |name: &str| SAMPLING.contains(&name) && (self != Kind::LlamaCpp || name != "repetition_penalty");
        let known = |name: &str| rules.iter().any(|(known, ..)| *known == name) || is_sampling(name);
        let unknown = fields.keys().find(|name| !known(name));
        let sampled = ["temperature", "top_p", "top_k", "min_p"]
            .iter()
            .find(|name| fields.get(**name).is_some_and(|value| !number(value)));
        unknown
            .map(|name| format!("{name} is no field of this engine"))
            .or(sampled.map(|name| format!("{name} is no number")))
    }
}
