//! `cargo xtask demo`: builds the binaries and becomes the demo, which owns the terminal and Ctrl-C from then on.
use crate::run;
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Options, passed on to the demo.
#[derive(clap::Args)]
pub struct Args {
    /// Leave everything running at the end and show commands to try.
    #[arg(long)]
    keep: bool,
    /// Fewer loads, for a quick look.
    #[arg(long)]
    fast: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    run::need(&["cargo", "rustc", "cc"])?;
    run::need_root("demo")?;
    // Cargo shows how far it is: the first build takes minutes.
    run::check(run::cargo()?.args([
        "build",
        "-p",
        "mesh-agent",
        "-p",
        "mesh-control",
        "-p",
        "mesh-waypoint",
        "-p",
        "mesh-tests",
        "--bins",
    ]))?;
    let mut demo = Command::new(run::binary_dir("debug")?.join("demo"));
    for (flag, on) in [("--keep", args.keep), ("--fast", args.fast)] {
        if on {
            demo.arg(flag);
        }
    }
    Err(demo.exec()).context("start the demo")
}
