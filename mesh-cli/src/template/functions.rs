//! The functions that templates may call, and what values look like when they are written. Called by `eval`. There are no more than the chart
//! needs: what is not here is an error that says so.

use serde_json::Value;

use super::yaml;

/// Whether an `if` takes it: nothing, zero, and whatever is empty are not true.
pub fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As text, where a template writes it. Helm writes nothing for what is missing.
pub fn print(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(print).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut items: Vec<_> = map.iter().collect();
            items.sort_by_key(|(key, _)| key.as_str());
            let items: Vec<_> = items.into_iter().map(|(key, value)| format!("{key}:{}", print(value))).collect();
            format!("map[{}]", items.join(" "))
        }
        other => other.to_string(),
    }
}

/// Calls one. The error says what is wrong with the arguments.
pub fn call(name: &str, arguments: &[Value]) -> Result<Value, String> {
    match (name, arguments) {
        ("default", [fallback, value]) => Ok(if is_true(value) { value } else { fallback }.clone()),
        ("required", [Value::String(message), value]) => match value {
            Value::Null => Err(message.clone()),
            Value::String(text) if text.is_empty() => Err(message.clone()),
            value => Ok(value.clone()),
        },
        ("fail", [message]) => Err(print(message)),
        ("not" | "empty", [value]) => Ok(Value::from(!is_true(value))),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => {
            let mut is_equal = false;
            for other in rest {
                is_equal |= equal(first, other)?;
            }
            Ok(Value::from(is_equal))
        }
        ("ne", [one, other]) => equal(one, other).map(|is| Value::from(!is)),
        ("dict", pairs) if pairs.len().is_multiple_of(2) => {
            Ok(Value::Object(pairs.chunks(2).map(|pair| (print(&pair[0]), pair[1].clone())).collect()))
        }
        ("list", items) => Ok(Value::from(items.to_vec())),
        ("hasKey", [Value::Object(map), Value::String(key)]) => Ok(Value::from(map.contains_key(key))),
        ("toYaml", [value]) => Ok(Value::from(yaml::write(value).trim_end_matches('\n'))),
        ("printf", [Value::String(format), arguments @ ..]) => printf(format, arguments).map(Value::from),
        ("toString", [value]) => Ok(Value::from(print(value))),
        ("quote", values) => {
            let words = values.iter().filter(|v| !v.is_null()).map(|v| quote(&print(v)));
            Ok(Value::from(words.collect::<Vec<_>>().join(" ")))
        }
        ("indent", [spaces, text]) => Ok(Value::from(indent(spaces, text)?)),
        ("nindent", [spaces, text]) => Ok(Value::from(format!("\n{}", indent(spaces, text)?))),
        ("trim", [Value::String(text)]) => Ok(Value::from(text.trim())),
        ("lower", [Value::String(text)]) => Ok(Value::from(text.to_lowercase())),
        ("trimSuffix", [Value::String(end), Value::String(text)]) => {
            Ok(Value::from(text.strip_suffix(end.as_str()).unwrap_or(text)))
        }
        _ => {
            let kinds: Vec<_> = arguments.iter().map(kind).collect();
            Err(format!("there is no such function of ({})", kinds.join(", ")))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// Go compares only what is of one kind.
fn equal(one: &Value, other: &Value) -> Result<bool, String> {
    match (one, other) {
        (Value::Null, _) | (_, Value::Null) => Ok(one == other),
        (Value::Number(a), Value::Number(b)) => Ok(a.as_f64() == b.as_f64()),
        (Value::String(_), Value::String(_)) | (Value::Bool(_), Value::Bool(_)) => Ok(one == other),
        _ => Err(format!("{} and {} cannot be compared", kind(one), kind(other))),
    }
}

/// Every line is moved in, empty ones too.
fn indent(spaces: &Value, text: &Value) -> Result<String, String> {
    let spaces = spaces.as_u64().filter(|n| *n <= 200).and_then(|n| usize::try_from(n).ok());
    let pad = " ".repeat(spaces.ok_or("write how many spaces, at most 200")?);
    Ok(format!("{pad}{}", print(text).replace('\n', &format!("\n{pad}"))))
}

/// As Go's `%q`.
fn quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn printf(format: &str, arguments: &[Value]) -> Result<String, String> {
    let (mut out, mut arguments) = (String::new(), arguments.iter());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let verb = chars.next().ok_or("the format ends with %")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        match (verb, arguments.next().ok_or("the format wants more arguments")?) {
            (_, Value::Null) => return Err(format!("there is nothing for %{verb}")),
            ('s', Value::String(text)) => out.push_str(text),
            ('q', Value::String(text)) => out.push_str(&quote(text)),
            ('v', value) => out.push_str(&print(value)),
            ('d', Value::Number(number)) if !number.is_f64() => out.push_str(&number.to_string()),
            (verb, value) => return Err(format!("%{verb} does not fit {}", kind(value))),
        }
    }
    match arguments.next() {
        None => Ok(out),
        Some(_) => Err("the format wants fewer arguments".into()),
    }
}
