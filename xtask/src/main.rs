//! `cargo xtask <verb>`: the one entry to everything. Each verb is one module; CI runs the same verbs.
mod bench;
mod chart;
mod cluster;
mod conformance;
mod dashboards;
mod demo;
mod ebpf;
mod h2spec;
mod image;
mod profile;
mod run;
mod setup;
mod test;
mod tidy;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The one entry to everything", max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring what building the kernel programs needs, and say what is missing.
    Setup,
    /// Build the kernel programs into the kept object.
    Ebpf {
        /// Fail if the kept object is stale instead of replacing it.
        #[arg(long)]
        check: bool,
    },
    /// Run the tour: two nodes, Bookinfo, every fact checked. Needs root.
    Demo(demo::Args),
    /// Build what the tests need and run them all. Privileged ones need root, else they say SKIPPED.
    Test(test::Args),
    /// Measure the mesh against direct TCP, and against two ztunnels if they are given. Needs root.
    Bench(bench::Args),
    /// Make the images of the product, or of Bookinfo, with no daemon.
    Image(image::Args),
    /// Lint the chart, and render it and the dashboards into the files that are kept.
    Chart(chart::Args),
    /// Run a real Kubernetes cluster on this machine. Needs root.
    Cluster(cluster::Args),
    /// Run the Gateway API's conformance suite against the mesh of a cluster. Needs root.
    Conformance(conformance::Args),
    /// Check the rules of the tree that no compiler checks.
    Tidy(tidy::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Ebpf { check } => ebpf::run(check),
        Verb::Demo(args) => demo::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Image(args) => image::run(&args),
        Verb::Chart(args) => chart::run(&args),
        Verb::Cluster(args) => cluster::run(&args),
        Verb::Conformance(args) => conformance::run(&args),
        Verb::Tidy(args) => tidy::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
