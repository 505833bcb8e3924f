//! What is wrong with an object, where, and what to write instead. The reader of manifests makes diagnoses, the index adds some
//! about meaning; the process prints them on stderr and exports them as JSON.
//!
//! A [`Problem`] names a field; a [`Diagnosis`] is a problem with its object and, when the object came from a file, the place in it.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; the object is used as written.
    Note,
    /// The object is used, but not all of it does what it says.
    Warning,
    /// The object, or the part named, is not used.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// One thing wrong with one field of an object, wherever the object came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The field, as `spec.rules[0].to[1].operation.ports[0]`; empty for the object as a whole.
    pub field: String,
    /// What is wrong, lower case, without a full stop.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Problem {
    /// An error at `field`.
    pub fn error(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, field: field.into(), message: message.into(), help: None }
    }

    /// A warning at `field`.
    pub fn warning(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(field, message) }
    }

    /// A note at `field`.
    pub fn note(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::error(field, message) }
    }

    /// The same problem with a suggestion.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A place in a file and the line of text found there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Path of the file relative to the manifests folder.
    pub file: String,
    /// Line, from 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// Column, from 1; 0 when the line as a whole is meant.
    pub column: u32,
    /// The line's text, shortened, with control characters replaced.
    pub excerpt: String,
    /// How many characters of the excerpt to underline.
    pub width: u32,
}

/// A problem with its object and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// How bad it is.
    pub severity: Severity,
    /// The object, as `AuthorizationPolicy default/deny-all`; empty when it could not be told.
    pub object: String,
    /// The field; see [`Problem::field`].
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Where, for objects read from files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

/// The form of rustc: headline, place, the line with carets, notes.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, printable(&self.message))?;
        let mut margin = 1;
        if let Some(place) = &self.place {
            margin = place.line.max(1).to_string().len();
            write!(f, "\n{:margin$}--> {}", "", printable(&place.file))?;
            if place.line > 0 {
                write!(f, ":{}", place.line)?;
                if place.column > 0 {
                    write!(f, ":{}", place.column)?;
                }
                if !place.excerpt.is_empty() {
                    write!(f, "\n{:margin$} |\n{} | {}", "", place.line, place.excerpt)?;
                    if place.column > 0 {
                        let indent = place.column as usize - 1;
                        write!(f, "\n{:margin$} | {:indent$}{}", "", "", "^".repeat(place.width.max(1) as usize))?;
                    }
                }
            }
        }
        match (self.object.is_empty(), self.field.is_empty()) {
            (true, true) => {}
            (false, true) => write!(f, "\n{:margin$} = in {}", "", printable(&self.object))?,
            (true, false) => write!(f, "\n{:margin$} = field `{}`", "", printable(&self.field))?,
            (false, false) => {
                write!(f, "\n{:margin$} = field `{}` of {}", "", printable(&self.field), printable(&self.object))?;
            }
        }
        if let Some(help) = &self.help {
            write!(f, "\n{:margin$} = help: {}", "", printable(help))?;
        }
        Ok(())
    }
}

/// Text safe for a terminal and a log line: control characters become `\u{..}`, very long text is cut.
pub fn printable(text: &str) -> String {
    const LIMIT: usize = 512;
    let mut out = String::with_capacity(text.len().min(LIMIT));
    for (count, c) in text.chars().enumerate() {
        if count == LIMIT {
            out.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// The word of `known` that was probably meant by `word`.
pub fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let limit = match word.chars().count() {
        0..=2 => 0,
        3..=5 => 1,
        6..=9 => 2,
        _ => 3,
    };
    known.iter().map(|k| (distance(word, k), *k)).filter(|(d, _)| *d <= limit).min().map(|(_, k)| k)
}

/// Optimal string alignment distance without regard to case: edits and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().take(64).flat_map(char::to_lowercase).collect();
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_near_misses_only() {
        let known = ["principals", "namespaces", "ipBlocks", "notIpBlocks"];
        assert_eq!(closest("principles", &known), Some("principals"));
        assert_eq!(closest("ipblocks", &known), Some("ipBlocks"));
        assert_eq!(closest("prinicpals", &known), Some("principals"));
        assert_eq!(closest("hosts", &known), None);
        assert_eq!(closest("", &known), None);
    }

    #[test]
    fn hardening_B195_terminal_escapes_are_neutralised() {
        assert_eq!(printable("a\u{1b}[31mb\nc"), "a\\u{1b}[31mb\\u{a}c");
        assert_eq!(printable("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(printable(&"z".repeat(600)).chars().count(), 513);
    }

    #[test]
    fn display_is_rustc_like() {
        let diagnosis = Diagnosis {
            severity: Severity::Error,
            object: "Service default/web".into(),
            field: "spec.ports[0].port".into(),
            message: "port 70000 is out of range".into(),
            help: Some("write a number from 1 to 65535".into()),
            place: Some(Place {
                file: "web.yaml".into(),
                line: 12,
                column: 11,
                excerpt: "  - port: 70000".into(),
                width: 5,
            }),
        };
        let expected = "\
error: port 70000 is out of range
  --> web.yaml:12:11
   |
12 |   - port: 70000
   |           ^^^^^
   = field `spec.ports[0].port` of Service default/web
   = help: write a number from 1 to 65535";
        assert_eq!(diagnosis.to_string(), expected);
    }
}
