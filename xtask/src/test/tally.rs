//! What test binaries say of their tests: how many passed, which failed, what was skipped and why. `cargo xtask test` shows their lines and counts.
use std::io::{BufRead, BufReader, Read};

/// Of one output, or of several.
#[derive(Default, Debug, PartialEq)]
pub struct Tally {
    /// How many passed.
    pub passed: u64,
    /// How many did not.
    pub failed: u64,
    /// Why those that did not run did not, each reason once.
    pub skipped: Vec<String>,
    /// The names of those that failed.
    pub broken: Vec<String>,
}

impl Tally {
    fn line(&mut self, line: &str) {
        if let Some(at) = line.find("SKIPPED: ") {
            self.skipped.push(line[at..].to_string());
        }
        if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix("... FAILED")) {
            self.broken.push(name.trim().to_string());
        }
        let Some(counts) = line.trim_start_matches('\n').strip_prefix("test result: ") else { return };
        for part in counts.split([';', '.']) {
            let words: Vec<&str> = part.split_whitespace().collect();
            match words[..] {
                [n, "passed"] => self.passed += n.parse::<u64>().unwrap_or(0),
                [n, "failed"] => self.failed += n.parse::<u64>().unwrap_or(0),
                _ => {}
            }
        }
    }

    /// Both together.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.broken.extend(other.broken);
        self.skipped.sort();
        self.skipped.dedup();
    }
}

/// Shows each line as it comes and counts.
pub fn pass(stream: impl Read, show: impl Fn(&str)) -> Tally {
    let mut tally = Tally::default();
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_string();
        show(&line);
        tally.line(&plain(&line));
        bytes.clear();
    }
    tally
}

/// Without colour sequences.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_skips_are_read_from_the_output() {
        let text = "test a ... ok\ntest b::c ... \u{1b}[31mFAILED\u{1b}[0m\nSKIPPED: d: needs root\n\
            test result: ok. 12 passed; 0 failed; 0 ignored\ntest result: \u{1b}[31mFAILED\u{1b}[0m. 3 passed; 1 failed; 0 ignored\n";
        let tally = pass(text.as_bytes(), |_| {});
        assert_eq!(
            tally,
            Tally {
                passed: 15,
                failed: 1,
                skipped: vec!["SKIPPED: d: needs root".into()],
                broken: vec!["b::c".into()]
            }
        );
    }
}
