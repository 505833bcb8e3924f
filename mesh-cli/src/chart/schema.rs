//! Checks values against the chart's `values.schema.json`: the part of JSON Schema that it uses, and no keyword that is not known here, so that
//! what Helm refuses is refused. Pure; called by `render`.

use serde_json::Value;

/// Keywords that say nothing about a value.
const SILENT: [&str; 9] =
    ["$schema", "$id", "title", "description", "default", "examples", "$defs", "definitions", "$comment"];

/// All that is wrong with `value`, each with its place.
pub fn problems(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, schema, value, "", &mut found);
    found
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let rules = match schema {
        Value::Object(rules) => rules,
        Value::Bool(true) => return,
        _ => return found.push(format!("{}: nothing may stand here", place(at))),
    };
    for (keyword, rule) in rules {
        let mut complain = |why: String| found.push(format!("{}: {why}", place(at)));
        match keyword.as_str() {
            silent if SILENT.contains(&silent) => {}
            "$ref" => match rule.as_str().and_then(|path| root.pointer(path.strip_prefix('#')?)) {
                Some(schema) => check(root, schema, value, at, found),
                None => complain(format!("the schema refers to {rule}, which it does not have")),
            },
            "type" => {
                let kinds: Vec<&str> = match rule {
                    Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
                    kind => kind.as_str().into_iter().collect(),
                };
                if !kinds.iter().any(|kind| is_a(kind, value)) {
                    complain(format!("it is {}, and must be a {}", shown(value), kinds.join(" or ")));
                }
            }
            "enum" => {
                let known = rule.as_array().map(Vec::as_slice).unwrap_or_default();
                if !known.contains(value) {
                    let known: Vec<_> = known.iter().map(shown).collect();
                    complain(format!("it is {}, and must be one of {}", shown(value), known.join(", ")));
                }
            }
            "const" if rule != value => complain(format!("it is {}, and must be {}", shown(value), shown(rule))),
            "minimum" if value.as_f64() < rule.as_f64() && value.is_number() => {
                complain(format!("{value} is less than {rule}"));
            }
            "maximum" if value.as_f64() > rule.as_f64() && value.is_number() => {
                complain(format!("{value} is more than {rule}"));
            }
            "minLength"
                if value.as_str().is_some_and(|text| (text.chars().count() as u64) < rule.as_u64().unwrap_or(0)) =>
            {
                complain(if rule == 1 { "it is empty".into() } else { format!("it is shorter than {rule}") });
            }
            "pattern" => {
                let fits = rule.as_str().map(regex::Regex::new);
                match (fits, value.as_str()) {
                    (Some(Ok(pattern)), Some(text)) if !pattern.is_match(text) => {
                        complain(format!("it is {text:?}, and must be like {rule}"));
                    }
                    (Some(Ok(_)), _) => {}
                    _ => complain(format!("the schema has a pattern that cannot be read: {rule}")),
                }
            }
            "minItems" if value.as_array().is_some_and(|items| (items.len() as u64) < rule.as_u64().unwrap_or(0)) => {
                complain(format!("fewer than {rule} items"));
            }
            "required" => {
                for name in rule.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    if value.is_object() && value.get(name).is_none() {
                        complain(format!("{name} is missing"));
                    }
                }
            }
            "properties" => {
                for (name, rule) in rule.as_object().into_iter().flatten() {
                    if let Some(inner) = value.get(name) {
                        check(root, rule, inner, &format!("{at}.{name}"), found);
                    }
                }
            }
            "additionalProperties" => {
                let known: Vec<&str> = rules
                    .get("properties")
                    .and_then(Value::as_object)
                    .map(|p| p.keys().map(String::as_str).collect())
                    .unwrap_or_default();
                for (name, inner) in value.as_object().into_iter().flatten() {
                    if known.contains(&name.as_str()) {
                        continue;
                    }
                    match rule {
                        Value::Bool(false) => found.push(format!(
                            "{}: there is no such value; there are {}",
                            place(&format!("{at}.{name}")),
                            known.join(", ")
                        )),
                        rule => check(root, rule, inner, &format!("{at}.{name}"), found),
                    }
                }
            }
            "items" => {
                for (n, inner) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, inner, &format!("{at}[{n}]"), found);
                }
            }
            "anyOf" | "oneOf" => {
                let choices = rule.as_array().map(Vec::as_slice).unwrap_or_default();
                let fits = choices.iter().filter(|choice| {
                    let mut inner = Vec::new();
                    check(root, choice, value, at, &mut inner);
                    inner.is_empty()
                });
                let fits = fits.count();
                if fits == 0 || (fits > 1 && keyword == "oneOf") {
                    complain(format!("{} has none of the allowed forms", shown(value)));
                }
            }
            "const" | "minimum" | "maximum" | "minLength" | "minItems" => {}
            other => complain(format!("the schema uses {other}, which this program cannot check")),
        }
    }
}

fn place(at: &str) -> &str {
    match at.trim_start_matches('.') {
        "" => "values",
        at => at,
    }
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        "null" => value.is_null(),
        _ => false,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "a map".into(),
        Value::Array(_) => "a list".into(),
        other => other.to_string(),
    }
}
