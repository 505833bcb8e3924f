//! `cargo xtask bench`: builds release binaries and becomes the bench.
use crate::run;
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Options, passed on to the bench.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds per measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Also measure two real ztunnels: the binary.
    #[arg(long, requires = "redirect")]
    ztunnel: Option<PathBuf>,
    /// With --ztunnel: the script that sets up redirection inside a pod.
    #[arg(long)]
    redirect: Option<PathBuf>,
    /// Only these measurements: rtt, stream, conn, idle.
    #[arg(long)]
    only: Option<String>,
    /// Leave direct TCP out.
    #[arg(long)]
    skip_direct: bool,
    /// Also a ztunnel and our agent as peers of each other.
    #[arg(long, requires = "ztunnel")]
    interop: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    run::need(&["cargo", "rustc", "cc"])?;
    run::need_root("bench")?;
    eprintln!("building release binaries ...");
    run::check(run::cargo()?.args([
        "build",
        "--quiet",
        "--release",
        "-p",
        "mesh-agent",
        "-p",
        "mesh-control",
        "-p",
        "mesh-tests",
        "--bins",
    ]))?;
    let mut bench = Command::new(run::binary_dir("release")?.join("bench"));
    bench.arg("--seconds").arg(args.seconds.to_string());
    if let (Some(ztunnel), Some(redirect)) = (&args.ztunnel, &args.redirect) {
        bench.arg("--ztunnel").arg(ztunnel).arg("--redirect").arg(redirect);
    }
    if let Some(only) = &args.only {
        bench.arg("--only").arg(only);
    }
    if args.skip_direct {
        bench.arg("--skip-direct");
    }
    if args.interop {
        bench.arg("--interop");
    }
    Err(bench.exec()).context("start the bench")
}
