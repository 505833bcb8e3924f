//! Lines for the person who waits: redrawn in place on a terminal, else printed when they change. Called by whatever waits; silent when the answer is
//! for a program. Standard error only.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::output::{elapsed, printable};

/// Where progress goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    Silent,
    Plain,
    Redrawn { width: usize },
}

/// Lines that change while somebody waits.
pub struct Progress {
    mode: Mode,
    begin: Instant,
    timeout: Duration,
    shown: Vec<String>,
}

impl Progress {
    /// Begins to wait for at most `timeout`.
    pub fn new(is_silent: bool, timeout: Duration) -> Progress {
        let mode = match io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb") {
            _ if is_silent => Mode::Silent,
            true => Mode::Redrawn { width: width() },
            false => Mode::Plain,
        };
        Progress { mode, begin: Instant::now(), timeout, shown: Vec::new() }
    }

    /// For how long.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// It takes too long.
    pub fn is_late(&self) -> bool {
        self.begin.elapsed() >= self.timeout
    }

    /// Shows these lines instead of those before.
    pub fn show(&mut self, lines: &[String]) {
        let mut out = String::new();
        match self.mode {
            Mode::Silent => {}
            Mode::Plain => {
                // A message in which only a port changes is no news.
                let shown: Vec<String> = self.shown.iter().map(|line| essence(line)).collect();
                for line in lines.iter().filter(|line| !shown.contains(&essence(line))) {
                    out.push_str(&format!("{}  ({})\n", printable(line), elapsed(self.elapsed())));
                }
            }
            Mode::Redrawn { width } => {
                if !self.shown.is_empty() {
                    out.push_str(&format!("\x1b[{}A\x1b[J", self.shown.len()));
                }
                for line in lines {
                    let time = format!("  {} of {}", elapsed(self.elapsed()), elapsed(self.timeout));
                    let room = width.saturating_sub(time.len() + 1);
                    let line: String = printable(line).replace('\n', " ").chars().take(room).collect();
                    out.push_str(&format!("{line}{time}\n"));
                }
            }
        }
        let _ = io::stderr().write_all(out.as_bytes());
        self.shown = lines.to_vec();
    }
}

/// A line without numbers of four digits and more: ports, times and the like.
fn essence(line: &str) -> String {
    let parts = line.split_inclusive(|c: char| !c.is_ascii_digit());
    parts.map(|part| if part.len() > 4 { &part[part.len() - 1..] } else { part }).collect()
}

/// Of the terminal, as the shell says; lines that wrap could not be redrawn.
fn width() -> usize {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let told = told.or_else(|| {
        // Standard error is asked, which is where the lines go.
        let answer =
            std::process::Command::new("stty").arg("size").stdin(std::fs::File::open("/dev/tty").ok()?).output();
        String::from_utf8(answer.ok()?.stdout).ok()?.split_whitespace().nth(1)?.parse().ok()
    });
    told.filter(|columns: &usize| *columns >= 20).unwrap_or(80)
}

#[cfg(test)]
mod tests {
    use super::essence;

    #[test]
    fn a_port_is_no_news_and_a_count_is() {
        let line =
            |count: u32, port: u32| format!("DaemonSet mesh-agent: {count}/12 ready · n1: dial 127.0.0.1:{port}: ß");
        assert_eq!(essence(&line(1, 57741)), essence(&line(1, 33890)));
        assert_ne!(essence(&line(1, 57741)), essence(&line(2, 57741)));
    }
}
