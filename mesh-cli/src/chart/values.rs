//! Values as Helm reads them: `-f` files over the chart's own, `--set` over both. Pure; called by `install` with the texts of the files.

use serde_json::{Map, Value};

/// `over` on top of `under`: maps key by key, everything else as a whole. Nothing (`null`) takes a key away that is there, and is a value where none is.
pub fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                match (under.get_mut(&key), value) {
                    (Some(_), Value::Null) => drop(under.remove(&key)),
                    (Some(old), value @ Value::Object(_)) if old.is_object() => overlay(old, value),
                    (_, value) => drop(under.insert(key, value)),
                }
            }
        }
        (under, over) => *under = over,
    }
}

/// Reads a file of values.
pub fn read(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    // As in YAML 1.1: `yes` and `off` are booleans, and what begins with 0 is octal. Two entries with one key, of which Helm takes the last, are a mistake.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    match serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())? {
        Value::Null => Ok(Value::Object(Map::new())),
        value @ Value::Object(_) => Ok(value),
        _ => Err("a file of values is a map".into()),
    }
}

/// How what follows `=` is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Typing {
    /// `--set`: `true`, `null` and `7` are what they look like.
    Guess,
    /// `--set-string`.
    Text,
}

/// Sets `a.b[0].c=x,d={x,y}` in `values`. A backslash takes the meaning from `.`, `,`, `=` and the rest; braces mean a list right behind `=` only.
pub fn set(values: &mut Value, expression: &str, typing: Typing) -> Result<(), String> {
    let mut rest = Some(expression);
    while let Some(part) = rest {
        let pair = cut(part, '=').filter(|(path, _)| cut(path, ',').is_none());
        let (path, text) = pair.ok_or_else(|| format!("{part:?}: write name=value"))?;
        let (value, next) = match text.strip_prefix('{') {
            Some(list) => {
                let (items, next) = cut(list, '}').ok_or_else(|| format!("{part:?}: a list ends with }}"))?;
                // One item at least: braces with nothing in them are a list of an empty text. The comma behind may be left out.
                let items = split(items, ',');
                let next = Some(next.strip_prefix(',').unwrap_or(next)).filter(|next| !next.is_empty());
                (items.into_iter().map(|item| typed(item, typing)).collect(), next)
            }
            None => {
                let (text, next) = cut(text, ',').map_or((text, None), |(text, next)| (text, Some(next)));
                (typed(text, typing), next)
            }
        };
        let steps = steps(path).map_err(|why| format!("{part:?}: {why}"))?;
        place(values, &steps, value).map_err(|why| format!("{part:?}: {why}"))?;
        rest = next;
    }
    Ok(())
}

enum Step {
    Key(String),
    Item(usize),
}

fn steps(path: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    for part in split(path, '.') {
        let (name, items) = match part.find('[') {
            Some(at) if !part[..at].ends_with('\\') => part.split_at(at),
            _ => (part, ""),
        };
        if name.is_empty() {
            return Err("a name is missing".into());
        }
        steps.push(Step::Key(plain(name)));
        for item in items.split('[').skip(1) {
            let number = item.strip_suffix(']').and_then(|n| n.parse().ok()).filter(|n| *n < 1024);
            steps.push(Step::Item(number.ok_or("write the number of an item as [0]")?));
        }
    }
    Ok(steps)
}

fn place(at: &mut Value, steps: &[Step], value: Value) -> Result<(), String> {
    let Some((step, rest)) = steps.split_first() else {
        *at = value;
        return Ok(());
    };
    match step {
        Step::Key(key) => {
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
            let Value::Object(map) = at else { return Err(format!("what {key:?} is to be set in is not a map")) };
            // Nothing stays as nothing: it has to take a default away when it is laid over it.
            place(map.entry(key.clone()).or_insert(Value::Null), rest, value)
        }
        Step::Item(number) => {
            if at.is_null() {
                *at = Value::Array(Vec::new());
            }
            let Value::Array(items) = at else { return Err(format!("what [{number}] is to be set in is not a list")) };
            if items.len() <= *number {
                items.resize(number + 1, Value::Null);
            }
            place(&mut items[*number], rest, value)
        }
    }
}

fn typed(text: &str, typing: Typing) -> Value {
    let text = plain(text);
    if typing == Typing::Text {
        return Value::String(text);
    }
    match text.to_ascii_lowercase().as_str() {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        "0" => Value::from(0),
        // A number that begins with zero is a name: Helm reads it so.
        _ if !text.starts_with('0') => text.parse::<i64>().map(Value::from).unwrap_or(Value::String(text)),
        _ => Value::String(text),
    }
}

/// Without the backslashes.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

/// Cuts at every `at` that is not escaped.
fn split(text: &str, at: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((part, tail)) = cut(rest, at) {
        parts.push(part);
        rest = tail;
    }
    parts.push(rest);
    parts
}

fn cut(text: &str, at: char) -> Option<(&str, &str)> {
    let mut is_escaped = false;
    for (n, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == at => return Some((&text[..n], &text[n + c.len_utf8()..])),
            _ => {}
        }
    }
    None
}
