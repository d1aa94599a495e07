//! References for people, from what the program itself says: the configuration from its schema, the API from its
//! document.

use std::fmt::Write;

use serde_json::Value;

/// Where a schema refers to another.
fn resolved<'a>(value: &'a Value, whole: &'a Value) -> &'a Value {
    let reference = value["$ref"].as_str().and_then(|path| path.strip_prefix('#'));
    reference.and_then(|path| whole.pointer(path)).unwrap_or(value)
}

fn line(value: &Value) -> String {
    value.as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

/// A field's type in words.
fn kind(field: &Value, whole: &Value) -> String {
    let target = resolved(field, whole);
    let many = |list: &Value| {
        list.as_array().map(|list| list.iter().map(|one| kind(one, whole)).collect::<Vec<_>>().join(" or "))
    };
    if let Some(text) = many(&field["anyOf"]).or_else(|| many(&field["oneOf"])).or_else(|| many(&field["allOf"])) {
        return text;
    }
    if target["enum"].is_array() || target["const"].is_string() {
        let one = std::slice::from_ref(&target["const"]);
        let values = target["enum"].as_array().map_or(one, Vec::as_slice);
        return values.iter().map(|value| format!("`{}`", line(value))).collect::<Vec<_>>().join(", ");
    }
    if let Some(words) = many(&target["oneOf"]).or_else(|| many(&target["anyOf"])) {
        return words;
    }
    match &target["type"] {
        Value::String(name) if name == "array" => format!("list of {}", kind(&target["items"], whole)),
        Value::String(name) if name == "null" => "nothing".to_owned(),
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names = names.iter().map(|name| if name == "null" { "nothing" } else { name.as_str().unwrap_or("?") });
            names.collect::<Vec<_>>().join(" or ")
        }
        _ => "object".to_owned(),
    }
}

/// The parts of a schema that have fields of their own, as `(path, schema)`: a field that is such a part has its own
/// table.
fn inside<'a>(field: &'a Value, whole: &'a Value, path: &str) -> Option<(String, &'a Value)> {
    let target = resolved(field, whole);
    if target["properties"].is_object() {
        return Some((path.to_owned(), target));
    }
    if target["items"].is_object() {
        return inside(&target["items"], whole, &format!("{path}[]"));
    }
    if target["additionalProperties"].is_object() {
        return inside(&target["additionalProperties"], whole, &format!("{path}.NAME"));
    }
    let choices = field["anyOf"].as_array().or(field["allOf"].as_array()).or(target["anyOf"].as_array());
    choices.into_iter().flatten().find_map(|choice| inside(choice, whole, path))
}

/// The configuration's fields, as it is kept in `docs/configuration.md`.
pub fn configuration() -> String {
    let whole: Value = serde_json::from_str(&crate::service::config::config_file::schema()).unwrap_or_default();
    let mut text = String::from(
        "# Configuration\n\nEvery field of the configuration file, from the program's own types (`cargo xtask regen-reference`). The file is \
         YAML; an unknown\nfield is an error that names the nearest right one. `orchestratord check FILE` says what is wrong with a file, \
         `orchestratord schema`\ngives editors the schema, and `orchestratord config diff FILE` says what a file would change in a running \
         service.\n",
    );
    let mut open = vec![(String::new(), &whole)];
    let mut next = 0;
    while let Some((path, schema)) = open.get(next).cloned() {
        next += 1;
        let _ = writeln!(text, "\n## {}\n", if path.is_empty() { "The file".to_owned() } else { format!("`{path}`") });
        if let Some(about) = schema["description"].as_str() {
            let _ = writeln!(text, "{about}\n");
        }
        text += "| field | type | default | meaning |\n|---|---|---|---|\n";
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let inner = inside(field, &whole, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") });
            let default = match (&field["default"], &inner) {
                _ if required.contains(&name.as_str()) => "must be given".to_owned(),
                (_, Some(_)) => "see there".to_owned(),
                (Value::Null, None) => "left out".to_owned(),
                (value, None) => format!("`{value}`").replace('|', "\\|"),
            };
            let _ =
                writeln!(text, "| `{name}` | {} | {default} | {} |", kind(field, &whole), line(&field["description"]));
            open.extend(inner.filter(|(path, _)| !open.iter().any(|(known, _)| known == path)));
        }
    }
    text
}

/// The API's operations, as they are kept in `docs/api.md`.
pub fn api() -> String {
    let whole: Value = serde_json::from_str(&crate::service::http::openapi()).unwrap_or_default();
    let mut text = String::from(
        "# HTTP API\n\nEvery operation, from the program's own document (`.specs/openapi.json`, `cargo xtask regen-reference`). Who may use \
         which is in\n[access.md](access.md). Errors are the envelope `{code, message, engine?, retriable, retry_after_ms?, policy?}`.\n",
    );
    for (path, item) in whole["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let _ = writeln!(text, "\n## `{} {path}`\n\n{}", method.to_uppercase(), line(&operation["summary"]));
            if let Some(about) = operation["description"].as_str() {
                let _ = writeln!(text, "\n{about}");
            }
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let (name, place) = (line(&parameter["name"]), line(&parameter["in"]));
                let _ = writeln!(text, "\nParameter `{name}` ({place}): {}.", kind(&parameter["schema"], &whole));
            }
            let body = operation["requestBody"]["content"].as_object().and_then(|content| content.values().next());
            if let Some(schema) =
                body.map(|body| resolved(&body["schema"], &whole)).filter(|schema| schema["properties"].is_object())
            {
                text += "\n| field of the body | type | meaning |\n|---|---|---|\n";
                for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                    let _ = writeln!(text, "| `{name}` | {} | {} |", kind(field, &whole), line(&field["description"]));
                }
            }
            text += "\n| status | meaning |\n|---|---|\n";
            for (status, response) in operation["responses"].as_object().into_iter().flatten() {
                let _ = writeln!(text, "| {status} | {} |", line(&response["description"]));
            }
        }
    }
    text
}
