//! What is written where: data on standard output, progress and problems on standard error; colour only for people; nothing that a cluster says
//! reaches a terminal unescaped. Every command uses it.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// How an answer looks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// As JSON.
    Json,
    /// As YAML.
    Yaml,
}

/// When colour is used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How bad something is, as a sign and a colour. The sign says it without the colour.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Mark {
    /// Fine.
    Good,
    /// Nobody has looked.
    Unknown,
    /// Worth a look.
    Warning,
    /// Broken.
    Bad,
}

impl Mark {
    fn sign(self) -> &'static str {
        match self {
            Mark::Good => "√",
            Mark::Unknown => "?",
            Mark::Warning => "‼",
            Mark::Bad => "×",
        }
    }

    fn code(self) -> &'static str {
        match self {
            Mark::Good => "32",
            Mark::Unknown | Mark::Warning => "33",
            Mark::Bad => "31",
        }
    }
}

/// Paints or does not.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    is_on: bool,
}

impl Paint {
    /// For standard output.
    pub fn of(colour: Colour) -> Paint {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let is_on = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto if is_set("NO_COLOR") => false,
            Colour::Auto if is_set("CLICOLOR_FORCE") => true,
            Colour::Auto => io::stdout().is_terminal() && !is_dumb,
        };
        Paint { is_on }
    }

    /// Without colour.
    pub fn plain() -> Paint {
        Paint { is_on: false }
    }

    /// The sign of a mark.
    pub fn mark(self, mark: Mark) -> String {
        match self.is_on {
            true => format!("\x1b[{}m{}\x1b[0m", mark.code(), mark.sign()),
            false => mark.sign().to_owned(),
        }
    }
}

/// Writes data. That nobody reads it any more is no error: a pipe to `head` is closed early.
pub fn data(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// One line for the person who waits.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(text));
}

/// Text that a terminal takes as text: control characters and marks of direction are escaped; very long lines are cut.
pub fn printable(text: &str) -> String {
    const LIMIT: usize = 2000;
    let mut out = String::with_capacity(text.len());
    let mut count = 0;
    for c in text.chars() {
        count = if c == '\n' { 0 } else { count + 1 };
        if count > LIMIT {
            if count == LIMIT + 1 {
                out.push('…');
            }
            continue;
        }
        let is_mark =
            matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c == '\n' || !(c.is_control() || is_mark) {
            out.push(c);
        } else {
            out.extend(c.escape_unicode());
        }
    }
    out
}

/// Rows under a header, as kubectl prints them: three spaces between columns, no lines.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cells: Vec<Vec<String>> = std::iter::once(header.iter().map(|cell| (*cell).to_owned()).collect())
        .chain(rows.iter().map(|row| row.iter().map(|cell| printable(cell).replace('\n', " ")).collect()))
        .collect();
    let width = |column: usize| cells.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let mut out = String::new();
    for row in &cells {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = width(column).unwrap_or(0).saturating_sub(cell.chars().count()) + 3;
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', pad));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A time as people write it.
pub fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_by_people_and_awk() {
        let rows = [vec!["n1".into(), "1/1".into()], vec!["node-12".into(), String::new()]];
        assert_eq!(table(&["NODE", "READY"], &rows), "NODE      READY\nn1        1/1\nnode-12\n");
    }

    #[test]
    fn hardening_b195_names_do_not_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\u{202e}c\rd"), "a\\u{1b}[2Jb\\u{202e}c\\u{d}d");
        assert_eq!(printable("two\nlines"), "two\nlines");
        assert_eq!(printable("a\u{200f}b\u{61c}"), "a\\u{200f}b\\u{61c}");
        // A line may be too long; the ones after it are read all the same.
        let cut = printable(&format!("{}\nlast", "x".repeat(3000)));
        assert_eq!(cut, format!("{}…\nlast", "x".repeat(2000)));
        let many = "a node that is not clean\n".repeat(300);
        assert_eq!(printable(&many), many);
        let rows = [vec!["a\nb\x07".into()]];
        assert_eq!(table(&["N"], &rows), "N\na b\\u{7}\n");
    }

    #[test]
    fn a_mark_says_what_it_means_without_colour() {
        let marks = [Mark::Good, Mark::Unknown, Mark::Warning, Mark::Bad].map(|mark| Paint::plain().mark(mark));
        assert_eq!(marks, ["√", "?", "‼", "×"]);
        assert_eq!(Paint { is_on: true }.mark(Mark::Bad), "\x1b[31m×\x1b[0m");
    }
}
