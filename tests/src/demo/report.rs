//! The demo's face: chapters, facts with a mark, manifests as they are written, progress while something takes its time.
//!
//! Colour and redrawn lines only on a terminal, and no colour with NO_COLOR; the mark is never the only thing that says how it went.
use crate::harness::spawner;
use anyhow::Result;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Collects and shows facts.
pub struct Report {
    colour: bool,
    live: bool,
    start: Instant,
    chapters: usize,
    shown: usize,
    wrong: Vec<String>,
}

/// What a running fact can say about how far it is.
#[derive(Clone, Default)]
pub struct Progress {
    text: Arc<Mutex<String>>,
}

impl Progress {
    /// Replaces the text beside the spinner.
    pub fn say(&self, text: impl Into<String>) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text.into();
    }

    fn now(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for Report {
    fn default() -> Report {
        Report::new()
    }
}

impl Report {
    /// Looks at the terminal and the environment.
    pub fn new() -> Report {
        let live = std::io::stdout().is_terminal();
        let colour = live && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Report { colour, live, start: Instant::now(), chapters: 0, shown: 0, wrong: Vec::new() }
    }

    /// What this is, before anything is shown.
    pub fn title(&self, title: &str, lines: &[String]) {
        say(&self.paint("1", title));
        for line in lines {
            say(&self.paint("2", line));
        }
    }

    /// A heading with a sentence on what is shown.
    pub fn chapter(&mut self, title: &str, sentence: &str) {
        self.chapters += 1;
        say(&format!("\n{}", self.paint("1;36", &format!("{}  {title}", self.chapters))));
        for line in wrap(sentence, WIDTH - 3) {
            say(&format!("   {}", self.paint("2", &line)));
        }
    }

    /// A text that the user would write: a manifest, a command.
    pub fn quote(&self, text: &str) {
        for line in text.lines() {
            say(&format!("     {} {}", self.paint("2", "│"), self.paint("33", line)));
        }
    }

    /// Checks a fact while showing progress; its lines are shown below it. A false fact is shown and remembered.
    pub fn fact(&mut self, text: &str, check: impl FnOnce(&Progress) -> Result<Vec<String>>) -> bool {
        let progress = Progress::default();
        let started = Instant::now();
        let result = {
            let _spinner = self.live.then(|| Spinner::start(text, &progress));
            check(&progress)
        };
        self.shown += 1;
        let took = started.elapsed();
        let took =
            if took > Duration::from_secs(1) { format!(" ({:.1} s)", took.as_secs_f64()) } else { String::new() };
        match result {
            Ok(lines) => {
                say(&format!("   {} {text}{}", self.paint("32", "✓"), self.paint("2", &took)));
                for line in lines {
                    say(&format!("       {line}"));
                }
                true
            }
            Err(e) => {
                say(&format!("   {} {text}{}", self.paint("1;31", "× FALSE:"), self.paint("2", &took)));
                for line in format!("{e:#}").lines().take(12) {
                    say(&format!("       {}", self.paint("31", &plain(line))));
                }
                self.wrong.push(text.to_string());
                false
            }
        }
    }

    /// The last words; whether everything was true.
    pub fn finish(&self) -> bool {
        let seconds = self.start.elapsed().as_secs();
        if self.wrong.is_empty() {
            let line = format!("{} facts shown, all true, in {seconds} s", self.shown);
            say(&format!("\n{}", self.paint("1;32", &line)));
            say(&self.paint("2", "Times are those of an unoptimised build: `cargo xtask bench` measures."));
        } else {
            let line = format!("{} of {} facts are FALSE:", self.wrong.len(), self.shown);
            say(&format!("\n{}", self.paint("1;31", &line)));
            for fact in &self.wrong {
                say(&format!("  × {fact}"));
            }
        }
        self.wrong.is_empty()
    }

    /// A text in a colour, if colours are wanted.
    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_string() }
    }
}

/// Set when the tour is interrupted: what fails from then on fails because the lab goes.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The last words of an interrupted tour; nothing is shown after them.
pub fn interrupt(line: &str) {
    INTERRUPTED.store(true, Ordering::Relaxed);
    eprintln!("\n{line}");
}

/// Writes a line. When nobody reads any more, the lab is removed and the process ends as a closed pipe ends others.
pub fn say(line: &str) {
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
    if writeln!(std::io::stdout(), "{line}").is_err() {
        spawner::clean_all();
        std::process::exit(141);
    }
}

/// What programs and manifests say, without what would drive a terminal.
fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Columns that fit everywhere.
const WIDTH: usize = 110;

/// Breaks a text into lines of at most `width` columns, at spaces.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(last) if last.chars().count() + 1 + word.chars().count() <= width => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// Redraws one line until it is dropped.
struct Spinner {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Spinner {
    fn start(text: &str, progress: &Progress) -> Spinner {
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, text, progress) = (stop.clone(), text.to_string(), progress.clone());
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            for frame in ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"].iter().cycle() {
                if ended.load(Ordering::Relaxed) || INTERRUPTED.load(Ordering::Relaxed) {
                    break;
                }
                if start.elapsed() > Duration::from_millis(150) {
                    let line = format!("   {frame} {text} {} [{:.0} s]", progress.now(), start.elapsed().as_secs_f64());
                    print!("\r\u{1b}[2K{}", line.chars().take(110).collect::<String>());
                    let _ = std::io::stdout().flush();
                }
                std::thread::sleep(Duration::from_millis(80));
            }
            print!("\r\u{1b}[2K");
            let _ = std::io::stdout().flush();
        });
        Spinner { stop, thread: Some(thread) }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_break_at_spaces() {
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensibilities", 4), ["incomprehensibilities"]);
        assert!(wrap("", 4).is_empty());
    }

    #[test]
    #[expect(non_snake_case, reason = "tests carry the ids of their rows")]
    fn hardening_B195_what_others_say_drives_no_terminal() {
        assert_eq!(plain("pod \u{1b}[2Jx\r\u{9b}0m ✓"), "pod \\u{1b}[2Jx\\r\\u{9b}0m ✓");
    }
}
