//! `cargo xtask cluster measure`: what the traffic of pods notices when something happens to the mesh. The cluster must be up and the mesh installed.
//!
//! `bed` makes the pods and the load, `events` does what is measured, `table` says what it was. Two paths carry load: from a pod to one
//! on the same node (n1), and to one on another (n2). What happens, happens to the agent of n1, which both of them go through.
mod bed;
mod events;
mod table;

use super::Cluster;
use anyhow::{Result, ensure};
use bed::Bed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use table::Row;

/// What may happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Event {
    /// The namespace is labelled while it is called in plaintext that its policy forbids.
    Label,
    /// A policy denies what goes on.
    Deny,
    /// The agent's process that does the work is killed.
    KillWorker,
    /// The first process of the agent's container is killed.
    Kill,
    /// The DaemonSet is restarted.
    Rollout,
    /// A node loses its power, and its agent comes late.
    Reboot,
}

const ALL: [Event; 6] = [Event::Label, Event::Deny, Event::KillWorker, Event::Kill, Event::Rollout, Event::Reboot];

/// Options of the verb.
#[derive(clap::Args)]
pub struct Options {
    /// What happens, one after the other [default: all].
    events: Vec<Event>,
    /// New connections a second on each path.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Long connections on each path.
    #[arg(long, default_value_t = 50)]
    long: u32,
    /// Seconds of load before something happens.
    #[arg(long, default_value_t = 5)]
    before: u64,
    /// Seconds of load after it; a rollout's connections may live that long.
    #[arg(long, default_value_t = 40)]
    after: u64,
    /// How often something is killed.
    #[arg(long, default_value_t = 3)]
    kills: u32,
    /// Seconds from one kill to the next.
    #[arg(long, default_value_t = 15)]
    every: u64,
    /// Seconds that the agent of a node that was rebooted stays away.
    #[arg(long, default_value_t = 30)]
    late: u64,
    /// Load from release binaries.
    #[arg(long)]
    release: bool,
    /// Load from the binary as it was built last.
    #[arg(long)]
    no_build: bool,
    /// Leave the pods there.
    #[arg(long)]
    keep: bool,
    /// One JSON line for each row.
    #[arg(long)]
    json: bool,
}

impl Options {
    fn before(&self) -> Duration {
        Duration::from_secs(self.before)
    }

    fn after(&self) -> Duration {
        Duration::from_secs(self.after)
    }
}

/// Runs the verb.
pub fn run(cluster: &Cluster, options: &Options) -> Result<()> {
    ensure!(super::node::all(cluster).len() > 1, "the paths need two nodes");
    let events = if options.events.is_empty() { &ALL[..] } else { &options.events[..] };
    let bed = Bed::make(cluster, options)?;
    let result = events.iter().try_for_each(|event| -> Result<()> {
        let rows: Vec<Row> = events::measure(&bed, *event, options)?;
        table::print(&rows, options.json);
        Ok(())
    });
    if !options.keep {
        bed.remove()?;
    }
    result
}

/// The machine's clock, which the pods have too.
#[expect(
    clippy::disallowed_methods,
    reason = "compared with what programs in pods write down; nothing of the mesh depends on it"
)]
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
