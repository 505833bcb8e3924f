//! `cargo xtask bench`: builds release binaries and becomes the bench.
use crate::{profile, run};
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
    /// Instead of all that: HTTP requests through our gateway, and through a real Envoy: the binary. Needs wrk and h2load.
    #[arg(long, conflicts_with_all = ["ztunnel", "only", "skip_direct"])]
    envoy: Option<PathBuf>,
    /// The same with a real HAProxy: the binary.
    #[arg(long, conflicts_with_all = ["ztunnel", "only", "skip_direct"])]
    haproxy: Option<PathBuf>,
    /// Instead of all that: full load of HTTP requests on our gateway for so many seconds. Needs wrk and h2load.
    #[arg(long, conflicts_with_all = ["ztunnel", "only", "skip_direct", "envoy", "haproxy"])]
    soak: Option<u32>,
    /// Instead of all that: make the profile anew that mesh-waypoint is compiled with for release. Needs wrk and h2load.
    #[arg(long, conflicts_with_all = ["ztunnel", "only", "skip_direct", "envoy", "haproxy", "soak", "scale"])]
    train: bool,
    /// Instead of all that: a cluster that is simulated, with its API server and its agents, against the real control plane. Needs no root.
    #[arg(long, conflicts_with_all = ["ztunnel", "only", "skip_direct"])]
    scale: bool,
    /// With --scale: nodes, each with an agent.
    #[arg(long, default_value_t = 1000, requires = "scale")]
    agents: u32,
    /// With --scale: services.
    #[arg(long, default_value_t = 5000, requires = "scale")]
    services: u32,
    /// With --scale: pods.
    #[arg(long, default_value_t = 100_000, requires = "scale")]
    pods: u32,
    /// With --scale: changes in a second while there is churn.
    #[arg(long, default_value_t = 100, requires = "scale")]
    churn: u32,
    /// With --scale: seconds of churn.
    #[arg(long, default_value_t = 60, requires = "scale")]
    churn_seconds: u32,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.scale {
        return scale(args);
    }
    run::need(&["cargo", "rustc", "cc"])?;
    run::need_root("bench")?;
    if args.train {
        return profile::train(args.seconds);
    }
    profile::build(&["mesh-agent", "mesh-control", "mesh-waypoint", "mesh-tests"])?;
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
    for (name, path) in [("--envoy", &args.envoy), ("--haproxy", &args.haproxy)] {
        if let Some(path) = path {
            bench.arg(name).arg(path);
        }
    }
    if let Some(soak) = args.soak {
        bench.arg("--soak").arg(soak.to_string());
    }
    Err(bench.exec()).context("start the bench")
}

fn scale(args: &Args) -> Result<()> {
    run::need(&["cargo", "rustc", "cc"])?;
    profile::build(&["mesh-control", "mesh-tests"])?;
    let mut scale = Command::new(run::binary_dir("release")?.join("scale"));
    let sizes = [
        ("--agents", args.agents),
        ("--services", args.services),
        ("--pods", args.pods),
        ("--churn", args.churn),
        ("--seconds", args.churn_seconds),
    ];
    for (name, value) in sizes {
        scale.arg(name).arg(value.to_string());
    }
    Err(scale.exec()).context("start the simulation")
}
