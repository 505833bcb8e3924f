//! `scale`: what `cargo xtask bench --scale` runs, and the real agent of that simulation.
use clap::Parser;
use mesh_tests::bench;
use mesh_tests::scale::{self, Options, Size, probe};

/// The agent's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Nodes, each with an agent.
    #[arg(long, default_value_t = 1000)]
    agents: u32,
    /// Services.
    #[arg(long, default_value_t = 5000)]
    services: u32,
    /// Pods.
    #[arg(long, default_value_t = 100_000)]
    pods: u32,
    /// Changes that are measured one by one.
    #[arg(long, default_value_t = 20)]
    changes: u32,
    /// Changes in a second while there is churn.
    #[arg(long, default_value_t = 100)]
    churn: u32,
    /// Seconds of churn.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// One agent's subscription and state.
    Probe(probe::Args),
}

fn main() -> anyhow::Result<()> {
    let Args { verb, agents, services, pods, changes, churn, seconds } = Args::parse();
    if let Some(Verb::Probe(args)) = verb {
        return probe::run(args);
    }
    let size = Size { agents, services, pods };
    let program = std::env::current_exe()?;
    let column = scale::run(Options { size, changes, churn, seconds, program })?;
    bench::print(&[column], false);
    Ok(())
}
