//! What is measured and how. Each path (direct, the mesh, two ztunnels) gets the same lines in the same order.
use super::table::{Column, print};
use super::ztunnel::{self, Peer};
use crate::harness::agent::{cpu_seconds, resident_kib};
use crate::harness::{Lab, LabConfig, Pod, PodSpec, Process};
use anyhow::{Context, Result};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seconds per line.
    pub seconds: u32,
    /// Also two real ztunnels.
    pub ztunnel: Option<Peer>,
    /// How many idle connections to hold.
    pub idle: usize,
    /// Only these measurements, by the word that names each; all if empty.
    pub only: Vec<Line>,
    /// Leave direct TCP out.
    pub skip_direct: bool,
    /// Also a ztunnel and our agent as peers of each other.
    pub interop: bool,
}

/// How long idle connections are watched: long enough that a clock tick of CPU time is little.
const IDLE: Duration = Duration::from_secs(10);

/// After the start, until allocators have given back what it left free.
const SETTLE: Duration = Duration::from_secs(5);

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Line {
    /// Round trips.
    Rtt,
    /// Throughput.
    Stream,
    /// New connections.
    Conn,
    /// Idle connections.
    Idle,
}

impl Options {
    fn wants(&self, line: Line) -> bool {
        self.only.is_empty() || self.only.contains(&line)
    }
}

/// A client on node 1 and a load server on node 2.
pub(super) struct Pair {
    pub lab: Lab,
    pub client: Arc<Pod>,
    pub server: Arc<Pod>,
    _process: Process,
}

impl Pair {
    pub fn start() -> Result<Pair> {
        let lab = Lab::start(LabConfig::default())?;
        let client = lab.add_pod(PodSpec::new("client").service_account("client"))?;
        let server = lab.add_pod(PodSpec::new("server").service_account("server").node(2))?;
        let process = server.serve(["load", "serve"])?;
        Ok(Pair { lab, client, server, _process: process })
    }

    fn target(&self) -> String {
        format!("{}:8080", self.server.address.v4)
    }

    /// Runs one load and reads its result.
    fn load(&self, args: &[&str], seconds: u32) -> Result<Value> {
        let mut all = vec!["load", args[0]];
        let (target, seconds_text) = (self.target(), seconds.to_string());
        all.push(&target);
        all.extend(&args[1..]);
        all.extend(["--seconds", &seconds_text]);
        let process = self.client.start("bench", "lab", all)?;
        let output = process.wait(Duration::from_secs(u64::from(seconds) + 60))?.success()?.stdout;
        serde_json::from_str(output.trim()).with_context(|| format!("result of {args:?}: {output}"))
    }
}

/// Runs everything and prints the table.
pub fn run(options: &Options) -> Result<()> {
    let pair = Pair::start()?;
    // A process outside of every enrolled pod: the test's own, in the client's network namespace but not its cgroup.
    let before = unenrolled_connect(&pair)?;
    let mut columns = Vec::new();
    if !options.skip_direct {
        eprintln!("direct ...");
        columns.push(column("direct TCP", &pair, &[], options)?);
    }
    eprintln!("two nodes through Undermesh ...");
    pair.lab.start_mesh()?;
    pair.lab.enrol_namespace("default")?;
    pair.lab.wait_hbone(&[&pair.client, &pair.server])?;
    let mut workers = Vec::new();
    for node in &pair.lab.nodes {
        workers.push(node.agent()?.worker()?);
    }
    let mut mesh = column("Undermesh", &pair, &workers, options)?;
    let after = unenrolled_connect(&pair)?;
    mesh.notes.push(format!(
        "connect() of a process that is not enrolled: {before:.2} us before, {after:.2} us with the programs attached"
    ));
    drop(pair);
    columns.push(mesh);
    if let Some(peer) = &options.ztunnel {
        eprintln!("two nodes through two ztunnels ...");
        let (pair, processes) = ztunnel::start(peer)?;
        let pids: Vec<i32> = processes.iter().map(Process::pid).collect();
        columns.push(column("two ztunnels", &pair, &pids, options)?);
    }
    print(&columns, options.ztunnel.is_some());
    if let Some(peer) = options.ztunnel.as_ref().filter(|_| options.interop) {
        interoperate(peer, options)?;
    }
    Ok(())
}

/// Our agent and a ztunnel as peers, in both directions.
fn interoperate(peer: &Peer, options: &Options) -> Result<()> {
    let mut columns = Vec::new();
    for (name, ours_calls) in [("Undermesh to ztunnel", true), ("ztunnel to Undermesh", false)] {
        eprintln!("{name} ...");
        let (pair, process) = ztunnel::start_mixed(peer, ours_calls)?;
        let ours = if ours_calls { &pair.client.node } else { &pair.server.node };
        columns.push(column(name, &pair, &[process.pid(), ours.agent()?.worker()?], options)?);
        let lines = ours.agent()?.access_log(&["connection complete", "identity=\"spiffe://"]);
        let line = lines.last().context("no connection with a proven identity in our access log")?;
        eprintln!("{line}");
    }
    print(&columns, false);
    Ok(())
}

fn column(name: &str, pair: &Pair, processes: &[i32], options: &Options) -> Result<Column> {
    let mut run = Run { pair, processes, options, column: Column::new(name) };
    if !processes.is_empty() {
        std::thread::sleep(SETTLE);
        run.column.set("resident memory of both, idle, MiB", run.memory());
    }
    if options.wants(Line::Rtt) {
        run.round_trips()?;
    }
    if options.wants(Line::Stream) {
        run.streams()?;
    }
    if options.wants(Line::Conn) {
        run.connections()?;
    }
    if options.wants(Line::Idle) && !processes.is_empty() {
        run.idle()?;
    }
    Ok(run.column)
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

/// One column in the making.
struct Run<'a> {
    pair: &'a Pair,
    /// What carries the traffic; empty for direct TCP.
    processes: &'a [i32],
    options: &'a Options,
    column: Column,
}

impl Run<'_> {
    fn cpu(&self) -> f64 {
        self.processes.iter().map(|pid| cpu_seconds(*pid)).sum()
    }

    fn memory(&self) -> f64 {
        self.processes.iter().map(|pid| resident_kib(*pid)).sum::<u64>() as f64 / 1024.0
    }

    fn round_trips(&mut self) -> Result<()> {
        for bytes in ["64", "16384"] {
            let value = self.pair.load(&["rtt", "--bytes", bytes], self.options.seconds)?;
            self.column.set(&format!("round trip {bytes} B, p50, us"), number(&value, "/p50_us"));
            self.column.set(&format!("round trip {bytes} B, p99, us"), number(&value, "/p99_us"));
        }
        Ok(())
    }

    fn streams(&mut self) -> Result<()> {
        for connections in ["1", "4"] {
            let start = self.cpu();
            let value = self.pair.load(&["stream", "--connections", connections], self.options.seconds)?;
            self.column.set(&format!("stream, {connections} connections, Gbit/s"), number(&value, "/gbit_s"));
            if !self.processes.is_empty() && connections == "4" {
                let gigabytes = number(&value, "/bytes") / 1e9;
                self.column.set("CPU of both per GB, ms", (self.cpu() - start) * 1000.0 / gigabytes);
            }
        }
        Ok(())
    }

    fn connections(&mut self) -> Result<()> {
        for clients in ["1", "16"] {
            let start = self.cpu();
            let value = self.pair.load(&["conn", "--clients", clients], self.options.seconds)?;
            self.column.set(&format!("new connections, {clients} clients, /s"), number(&value, "/per_second"));
            let errors = number(&value, "/errors");
            if errors > 0.0 {
                self.column.notes.push(format!("{errors} errors with {clients} clients"));
            }
            if !self.processes.is_empty() && clients == "16" {
                let thousands = number(&value, "/per_second") * f64::from(self.options.seconds) / 1000.0;
                self.column.set("CPU of both per 1000 connections, ms", (self.cpu() - start) * 1000.0 / thousands);
            }
        }
        Ok(())
    }

    fn idle(&mut self) -> Result<()> {
        self.column.set("resident memory of both after load, MiB", self.memory());
        // A connection to one address needs a port each: below the 28,000 of the ephemeral range. The file limit may be lower.
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.1 as usize;
        let count = self.options.idle.min(limit.saturating_sub(1000)).to_string();
        let args = ["load", "idle", &self.pair.target(), "--count", &count];
        let idle = self.pair.client.start("idle", "lab", args)?;
        idle.wait_for("open", Duration::from_secs(120))?;
        let start = self.cpu();
        std::thread::sleep(IDLE);
        self.column.set(&format!("resident memory of both, {count} idle connections, MiB"), self.memory());
        let busy = (self.cpu() - start) / IDLE.as_secs_f64();
        self.column.set("CPU of both while idle, %", busy * 100.0);
        idle.close_stdin();
        let ended = idle.wait(Duration::from_secs(120))?.stdout;
        let broken = ended.lines().last().and_then(|l| serde_json::from_str::<Value>(l).ok());
        let broken = broken.map_or(f64::NAN, |v| number(&v, "/broken"));
        if broken != 0.0 {
            self.column.notes.push(format!("{broken} idle connections broken"));
        }
        Ok(())
    }
}

/// Median cost of a refused connect() on loopback by a process in no pod's cgroup.
fn unenrolled_connect(pair: &Pair) -> Result<f64> {
    use crate::harness::process::Program;
    let program = Program::ours("connect-cost", "lab")?
        .args(["load", "connect-cost", "127.0.0.1:9", "--seconds", "2"])
        .netns(&pair.lab.node(1).netns)
        .cgroup(pair.lab.node(1).pods_cgroup());
    let output = pair.lab.spawn(program)?.wait(Duration::from_secs(30))?.success()?.stdout;
    let value: Value = serde_json::from_str(output.trim()).context("result of connect-cost")?;
    value["p50_us"].as_f64().context("no median")
}
