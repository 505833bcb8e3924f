//! Values as YAML, with the look that Helm's `toYaml` gives them: keys sorted, lists as far in as their key, quotes only where a plain word would
//! mean something else. It matters where a template puts YAML into a string. Called by `functions` and wherever YAML is printed.

use serde_json::Value;

/// A document, with a new line at its end.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => write_map(map, 0, &mut out),
        Value::Array(items) if !items.is_empty() => write_list(items, 0, &mut out),
        other => write_scalar(other, 0, &mut out),
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn write_map(map: &serde_json::Map<String, Value>, indent: usize, out: &mut String) {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| key.as_str());
    for (n, (key, value)) in entries.into_iter().enumerate() {
        if n > 0 {
            pad(indent, out);
        }
        write_text(key, None, out);
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                pad(indent + 2, out);
                write_map(map, indent + 2, out);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                pad(indent, out);
                write_list(items, indent, out);
            }
            other => {
                out.push(' ');
                write_scalar(other, indent, out);
                end_line(out);
            }
        }
    }
}

fn write_list(items: &[Value], indent: usize, out: &mut String) {
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            pad(indent, out);
        }
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => write_map(map, indent + 2, out),
            Value::Array(inner) if !inner.is_empty() => write_list(inner, indent + 2, out),
            other => {
                write_scalar(other, indent, out);
                end_line(out);
            }
        }
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn end_line(out: &mut String) {
    if !out.ends_with('\n') {
        out.push('\n');
    }
}

fn write_scalar(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::String(text) => write_text(text, Some(indent), out),
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
        other => out.push_str(&other.to_string()),
    }
}

/// Several lines become a block where there is room for one.
fn write_text(text: &str, block: Option<usize>, out: &mut String) {
    let is_block = text.contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control())
        && text.lines().all(|line| !line.ends_with(' '));
    if let (true, Some(indent)) = (is_block, block) {
        out.push_str(match (text.ends_with('\n'), text.ends_with("\n\n")) {
            (false, _) => "|-",
            (true, false) => "|",
            (true, true) => "|+",
        });
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            out.push('\n');
            if !line.is_empty() {
                pad(indent + 2, out);
                out.push_str(line);
            }
        }
        out.push('\n');
    } else if text.chars().any(char::is_control) || means_something_else(text) {
        out.push_str(&Value::from(text).to_string());
    } else if !is_plain(text) {
        out.push_str(&format!("'{}'", text.replace('\'', "''")));
    } else {
        out.push_str(text);
    }
}

/// A plain word like this is no string, for one of the readers of YAML.
fn means_something_else(text: &str) -> bool {
    const WORDS: [&str; 12] = ["", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "<<"];
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_start_matches(['-', '+']).replace('_', "");
    let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let is_number = (digits(&number) || (number.starts_with('.') && digits(&number[1..])))
        && (number.parse::<f64>().is_ok() || ["0x", "0o", "0b"].iter().any(|p| number.starts_with(p)));
    let is_base_60 = number.contains(':') && number.split(':').all(|part| part.parse::<u32>().is_ok());
    let is_date = lower.len() >= 8 && lower.splitn(3, '-').filter(|part| digits(part)).count() == 3;
    let is_special = [".inf", ".nan"].contains(&number.as_str());
    WORDS.contains(&lower.as_str()) || is_number || is_base_60 || is_date || is_special
}

fn is_plain(text: &str) -> bool {
    let mut chars = text.chars();
    let first = chars.next().unwrap_or(' ');
    let starts_well = match first {
        '-' | '?' | ':' => chars.next().is_some_and(|c| c != ' '),
        c => !" ,[]{}#&*!|>'\"%@`=".contains(c),
    };
    starts_well
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.starts_with("---")
        && !text.starts_with("...")
}
