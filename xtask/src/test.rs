//! `cargo xtask test`: builds every binary, runs every test, then says how many passed and names what was skipped.
use crate::run;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::process::Stdio;
use std::time::Instant;

/// What tells the tests how much of their long forms to run.
const SOAK: &str = "UNDERMESH_SOAK";

/// Options.
#[derive(clap::Args)]
pub struct Args {
    /// Run the long forms of the tests (a day in all), or a share of their length, as --soak=0.1.
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "1", value_parser = share)]
    soak: Option<f64>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    run::need(&["cargo", "rustc", "cc", "ip"])?;
    let start = Instant::now();
    // Cross-process tests start the binaries by path, which `cargo test` alone does not build.
    run::check(run::cargo()?.args(["build", "--workspace", "--bins"]))?;
    let mut command = run::cargo()?;
    command.args(["test", "--workspace", "--no-fail-fast"]);
    if std::io::stdout().is_terminal() {
        command.arg("--color=always");
    }
    command.env_remove(SOAK);
    if let Some(share) = args.soak {
        command.env(SOAK, share.to_string());
    }
    if let Some(filter) = &args.filter {
        command.arg("--").arg(filter);
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start cargo test")?;
    let (out, err) = (child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
    let (out, err) = std::thread::scope(|scope| {
        let err = scope.spawn(|| pass(err, |line| eprintln!("{line}")));
        (pass(out, |line| println!("{line}")), err.join())
    });
    let mut tally = out;
    tally.add(err.unwrap_or_default());
    let status = child.wait().context("wait for cargo test")?;
    let skipped =
        if tally.skipped.is_empty() { "none skipped".into() } else { format!("{} SKIPPED", tally.skipped.len()) };
    println!("\n{} passed, {} failed, {skipped}, in {} s", tally.passed, tally.failed, start.elapsed().as_secs());
    for reason in &tally.skipped {
        println!("  {reason}");
    }
    match (&args.filter, status.success()) {
        (Some(filter), true) if tally.passed == 0 => bail!("no test's name contains `{filter}`"),
        (_, true) => Ok(()),
        (_, false) if tally.broken.is_empty() => bail!("cargo could not build or run the tests"),
        (_, false) => bail!("tests failed: {}", tally.broken.join(", ")),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("a number above 0 and up to 1 is wanted".into()),
    }
}

#[derive(Default, Debug, PartialEq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: Vec<String>,
    broken: Vec<String>,
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

    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.broken.extend(other.broken);
        self.skipped.sort();
        self.skipped.dedup();
    }
}

/// Shows each line as it comes and counts.
fn pass(stream: impl Read, show: impl Fn(&str)) -> Tally {
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
