//! Text of other people in a line of ours: without control characters, cut at a whole character.

use std::fmt::Write as _;

/// The bytes as text; what is no UTF-8 becomes a replacement character.
pub fn lossy(bytes: &[u8], out: &mut String) {
    match std::str::from_utf8(bytes) {
        Ok(text) => out.push_str(text),
        Err(_) => out.push_str(&String::from_utf8_lossy(bytes)),
    }
}

/// At most so many bytes.
#[must_use]
pub fn cut(text: &str, length: usize) -> &str {
    if text.len() <= length {
        return text;
    }
    let end = (0..=length).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

/// In a line of text: no value can end the line, forge another or drive a terminal; quotes and backslashes are escaped, so that a quoted value ends where it
/// ends.
pub fn escaped(text: &str, out: &mut String) {
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\') {
        return out.push_str(text);
    }
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if is_control(c) => drop(write!(out, "\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
}

/// As a text of JSON, with its quotes.
pub fn json(text: &str, out: &mut String) {
    json_cut(text, usize::MAX, out);
}

/// The same, cut so that what is written between the quotes has at most so many bytes.
pub fn json_cut(text: &str, most: usize, out: &mut String) {
    out.push('"');
    let begin = out.len();
    for c in text.chars() {
        let before = out.len();
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_control(c) => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
        if out.len() - begin > most {
            out.truncate(before);
            break;
        }
    }
    out.push('"');
}

/// Control characters, and those that turn the direction of text or end lines in some programs.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
