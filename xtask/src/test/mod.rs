//! `cargo xtask test`: builds every binary, runs every test, then says how many passed, names what was skipped and what took longest. Tests with a
//! cluster run beside the others (`binaries`).
mod binaries;
mod tally;

use crate::run;
use anyhow::{Context, Result, bail};
use binaries::{Binary, Rows};
use std::io::IsTerminal;
use std::process::{Command, Stdio};
use std::time::Instant;
use tally::{Tally, pass};

/// What tells the tests how much of their long forms to run.
const SOAK: &str = "UNDERMESH_SOAK";
/// So many binaries are named for their time.
const SLOWEST: usize = 8;

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
    let rows = Rows::of(build()?);
    let built = start.elapsed();
    let mut outcome = std::thread::scope(|scope| {
        let clusters = scope.spawn(|| row(args, &rows.clusters, true));
        let mut outcome = row(args, &rows.plain, false);
        outcome.add(doc(args));
        // A row that ends by a panic has tests that nobody saw.
        outcome.add(clusters.join().unwrap_or_else(|_| Outcome::lost("the tests with a cluster")));
        outcome
    });
    outcome.add(row(args, &rows.alone, false));
    let Outcome { tally, mut times, lost } = outcome;
    times.sort_by(|one, other| other.1.total_cmp(&one.1));
    let slowest: Vec<String> = times.iter().take(SLOWEST).map(|(name, took)| format!("{name} {took:.0} s")).collect();
    println!("\nbuilt in {} s; slowest: {}", built.as_secs(), slowest.join(", "));
    let skipped =
        if tally.skipped.is_empty() { "none skipped".into() } else { format!("{} SKIPPED", tally.skipped.len()) };
    println!("{} passed, {} failed, {skipped}, in {} s", tally.passed, tally.failed, start.elapsed().as_secs());
    for reason in &tally.skipped {
        println!("  {reason}");
    }
    match &args.filter {
        _ if !tally.broken.is_empty() => bail!("tests failed: {}", tally.broken.join(", ")),
        _ if !lost.is_empty() => bail!("did not end well: {}", lost.join(", ")),
        Some(filter) if tally.passed == 0 => bail!("no test's name contains `{filter}`"),
        _ => Ok(()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("a number above 0 and up to 1 is wanted".into()),
    }
}

/// Builds the tests, and says where they are.
fn build() -> Result<Vec<Binary>> {
    let mut command = run::cargo()?;
    command.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let built = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output().context("start cargo test")?;
    if !built.status.success() {
        bail!("cargo could not build the tests");
    }
    let found = binaries::read(&String::from_utf8_lossy(&built.stdout))?;
    if found.is_empty() {
        bail!("cargo has built no tests");
    }
    Ok(found)
}

/// What came of a row.
#[derive(Debug, Default)]
struct Outcome {
    tally: Tally,
    /// Seconds.
    times: Vec<(String, f64)>,
    /// What ended badly by itself, whatever its tests say.
    lost: Vec<String>,
}

impl Outcome {
    fn lost(name: &str) -> Self {
        Self { lost: vec![name.into()], ..Self::default() }
    }

    fn add(&mut self, other: Outcome) {
        self.tally.add(other.tally);
        self.times.extend(other.times);
        self.lost.extend(other.lost);
    }
}

/// Runs binaries one after the other. Lines of what runs `beside` something else say whose they are.
fn row(args: &Args, binaries: &[Binary], beside: bool) -> Outcome {
    let mut outcome = Outcome::default();
    for binary in binaries {
        let name = format!("{} {}", binary.package, binary.name);
        let mut command = Command::new(&binary.path);
        // As cargo runs it.
        command.current_dir(&binary.folder).env("CARGO_MANIFEST_DIR", &binary.folder);
        command.env("CARGO", std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        outcome.add(one(args, &name, command, beside));
    }
    outcome
}

/// The examples in documentation.
fn doc(args: &Args) -> Outcome {
    match run::cargo() {
        Ok(mut command) => {
            command.args(["test", "--workspace", "--doc", "--quiet", "--"]);
            one(args, "documentation", command, false)
        }
        Err(_) => Outcome::lost("documentation"),
    }
}

fn one(args: &Args, name: &str, mut command: Command, beside: bool) -> Outcome {
    let tag = if beside { format!("[{name}] ") } else { String::new() };
    println!("{tag}running {name}");
    if std::io::stdout().is_terminal() {
        command.arg("--color=always");
    }
    command.args(&args.filter).env_remove(SOAK);
    if let Some(share) = args.soak {
        command.env(SOAK, share.to_string());
    }
    let start = Instant::now();
    let Ok(mut child) = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() else {
        return Outcome::lost(name);
    };
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else { return Outcome::lost(name) };
    let tally = std::thread::scope(|scope| {
        let err = scope.spawn(|| pass(err, |line| eprintln!("{tag}{line}")));
        let mut tally = pass(out, |line| println!("{tag}{line}"));
        tally.add(err.join().unwrap_or_default());
        tally
    });
    let is_well = child.wait().is_ok_and(|status| status.success());
    let lost = if is_well || !tally.broken.is_empty() { vec![] } else { vec![name.to_owned()] };
    Outcome { tally, times: vec![(name.to_owned(), start.elapsed().as_secs_f64())], lost }
}
