//! A cluster too large for a machine, simulated on one: `cargo xtask bench --scale`. The control plane is the real one, in a process of its own; its objects
//! come from an API server that is none (`api`), its agents are streams that remember what they were sent (`fleet`), and one agent is real (`probe`).
//!
//! ```text
//! objects -> api  <-list, watch- mesh-control -xDS-> fleet (all nodes but one), probe (the last node)
//! ```
//!
//! Whatever is measured is also checked: in the end everybody has exactly what there is.
mod api;
pub mod flaps;
mod fleet;
mod message;
mod objects;
mod plane;
pub mod probe;

use crate::bench::Column;
use anyhow::{Context, Result, bail, ensure};
use api::Api;
use fleet::{Fleet, State};
use mesh_proto::convert::{self, AddressResource};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
pub use objects::Size;
use objects::World;
use plane::{DEADLINE, Plane, Probe, until};
use rand::Rng;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pods that change while nobody serves.
const MEANWHILE: usize = 10;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Options {
    /// How large the cluster is.
    pub size: Size,
    /// Changes that are measured one by one.
    pub changes: u32,
    /// Changes in a second while there is churn.
    pub churn: u32,
    /// How many seconds of it.
    pub seconds: u32,
    /// The program whose verb `probe` is the real agent.
    pub program: PathBuf,
}

/// Everything that runs.
struct Simulation {
    options: Options,
    folder: tempfile::TempDir,
    api: Api,
    world: World,
    root: String,
    plane: Plane,
    fleet: Arc<Fleet>,
    column: Column,
}

/// Runs everything; what was measured.
pub fn run(options: Options) -> Result<Column> {
    // Each agent is a connection here, and one there.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut simulation = Simulation::start(options).await?;
        let ended = simulation.run().await;
        if ended.is_err() {
            crate::bench::print(std::slice::from_ref(&simulation.column), false);
        }
        ended.map_err(|error| error.context(format!("{}\n{}", simulation.plane.log_text(), simulation.ends())))?;
        Ok(simulation.column)
    })
}

impl Simulation {
    async fn start(options: Options) -> Result<Simulation> {
        let size = options.size;
        ensure!(size.agents > 1 && size.services > 0 && size.pods > size.agents, "too small: {size:?}");
        let folder = tempfile::tempdir()?;
        let api = Api::start().await?;
        say("making the cluster");
        let world = World::fill(size, &api);
        api.forget();
        say("starting the control plane");
        let mut column = Column::new("measured");
        let begun = Instant::now();
        let plane = Plane::start(&api, folder.path(), "first", None).await?;
        column.set("control plane: start to ready, s", begun.elapsed().as_secs_f64());
        column.set("control plane: CPU of the start, s", plane.cpu());
        column.set("control plane: resident memory, no agents, MiB", plane.memory().now);
        let copy = || api.get("configmaps", "undermesh-system", "undermesh-root-cert");
        until("the root's copy", || copy().is_some()).await?;
        let root = copy().and_then(|map| Some(map["data"]["root-cert.pem"].as_str()?.to_owned())).context("a root")?;
        let fleet = Fleet::new(size.agents - 1, world.addresses(), plane.address, &root)?;
        Ok(Simulation { options, folder, api, world, root, plane, fleet, column })
    }

    async fn run(&mut self) -> Result<()> {
        let (mut probe, took) = self.probe().await?;
        self.column.set("one agent: sync, s", took);
        self.compare(&mut probe, "one agent").await?;
        self.sync().await?;
        self.single_changes().await?;
        self.churn().await?;
        self.settle().await?;
        self.compare(&mut probe, "one agent after churn").await?;
        self.restart().await?;
        self.compare(&mut probe, "one agent after the restart").await?;
        self.replica().await?;
        let (mut late, took) = self.probe().await?;
        self.column.set("one agent among all others: sync, s", took);
        self.compare(&mut late, "one agent among all others").await
    }

    async fn probe(&self) -> Result<(Probe, f64)> {
        self.probe_of(self.plane.address).await
    }

    async fn probe_of(&self, control: SocketAddr) -> Result<(Probe, f64)> {
        let node = objects::node(self.options.size.agents - 1);
        Probe::start(&self.options.program, self.folder.path(), &self.root, control, &node).await
    }

    fn ends(&self) -> String {
        let ends = self.fleet.ends();
        format!("streams ended: {}, the last ones: {:?}", ends.len(), ends.iter().rev().take(5).collect::<Vec<_>>())
    }

    /// The real agent must have what there is, soon.
    async fn compare(&mut self, probe: &mut Probe, who: &str) -> Result<()> {
        let revisions: Vec<_> = self.world.pods.iter().map(|(uid, (_, r))| (uid, objects::revision_of(*r))).collect();
        let sum = probe::sum(revisions.iter().map(|(uid, revision)| (uid.as_str(), revision.as_str()))).to_string();
        let begun = Instant::now();
        loop {
            let said = probe.ask().await?;
            let (services, workloads) = (said["services"].as_u64(), said["workloads"].as_u64());
            if said["sum"] == sum.as_str() && services == Some(self.options.size.services.into()) {
                let mib = |field: &str| said[field].as_f64().unwrap_or(f64::NAN) / 1024.0;
                self.column.set(&format!("{who}: resident memory, MiB"), mib("resident_kib"));
                self.column.set(&format!("{who}: at its peak, MiB"), mib("peak_kib"));
                return Ok(());
            }
            ensure!(begun.elapsed() < DEADLINE, "{who}: {workloads:?} workloads, not those that there are: {said}");
        }
    }

    fn is_full(state: &State, addresses: usize) -> bool {
        state.held[0] == addresses && state.held[1] > 0
    }

    /// All connect at once, and get everything.
    async fn sync(&mut self) -> Result<()> {
        say("all agents connect");
        self.plane.forget_peak();
        let (addresses, cpu) = (self.world.addresses(), self.plane.cpu());
        let begun = Instant::now();
        self.fleet.start();
        let mut waiting: Vec<_> = self.fleet.agents.to_vec();
        let mut times = Vec::new();
        until("all agents have everything", || {
            let now = begun.elapsed().as_secs_f64();
            let before = waiting.len();
            waiting.retain(|agent| !Self::is_full(&agent.state(), addresses));
            times.extend(std::iter::repeat_n(now, before - waiting.len()));
            waiting.is_empty()
        })
        .await?;
        self.column.set("all agents at once: full sync, median, s", part(&times, 0.5));
        self.column.set("all agents at once: full sync, the last, s", part(&times, 1.0));
        let bytes = self.fleet.heard().1 as f64 / f64::from(1 << 30);
        self.column.set("all agents at once: state sent, GiB", bytes);
        self.column.set("all agents at once: CPU of the control plane, s", self.plane.cpu() - cpu);
        self.column.set("all agents at once: streams that were opened again", self.fleet.ends().len() as f64);
        self.memory("control plane: after the sync");
        self.settle().await
    }

    fn memory(&mut self, when: &str) {
        let memory = self.plane.memory();
        self.column.set(&format!("{when}, resident memory, MiB"), memory.now);
        self.column.set(&format!("{when}, at its peak, MiB"), memory.peak);
    }

    /// Somebody's pod, which nothing has happened to in this round.
    fn some(&self, touched: &mut HashSet<String>) -> Option<String> {
        let mut tries = (0..1000).map(|_| rand::rng().random_range(0..self.world.uids.len()));
        tries.find_map(|at| self.world.uids.get(at).filter(|uid| touched.insert((*uid).clone())).cloned())
    }

    /// One pod changes, and then nothing until everybody knows.
    async fn single_changes(&mut self) -> Result<()> {
        say("single changes");
        self.plane.forget_peak();
        let mut touched = HashSet::new();
        let mut all = Vec::new();
        for _ in 0..self.options.changes {
            let uid = self.some(&mut touched).context("a pod")?;
            self.fleet.touch(&uid);
            self.world.change(&uid, &self.api);
            let fleet = self.fleet.clone();
            until("a change at all agents", || fleet.agents.iter().all(|agent| !agent.state().delays.is_empty()))
                .await?;
            let delays = self.fleet.delays();
            ensure!(delays.len() == self.fleet.agents.len(), "{} agents heard of a change", delays.len());
            all.extend(delays.iter().map(|micros| f64::from(*micros) / 1e3));
        }
        let sent = self.fleet.heard().0;
        let wanted = self.fleet.agents.len() * self.options.changes as usize;
        ensure!(sent == wanted, "{sent} resources sent for {wanted}");
        for (name, share) in [("median", 0.5), ("p99", 0.99), ("the last", 1.0)] {
            self.column.set(&format!("one change at all agents, {name}, ms"), part(&all, share));
        }
        Ok(())
    }

    /// Pods change, come and go, so many in a second.
    async fn churn(&mut self) -> Result<()> {
        say("churn");
        let cpu = self.plane.cpu();
        let (begun, count) = (Instant::now(), self.options.churn * self.options.seconds);
        let mut touched = HashSet::new();
        for n in 0..count {
            tokio::time::sleep_until((begun + Duration::from_secs(n.into()) / self.options.churn).into()).await;
            match n % 10 {
                0 => {
                    let uid = self.world.coming();
                    self.fleet.touch(&uid);
                    touched.insert(self.world.add(&self.api));
                }
                n => {
                    let uid = self.some(&mut touched).context("a pod that nothing has happened to")?;
                    self.fleet.touch(&uid);
                    match n {
                        1 => self.world.delete(&uid, &self.api),
                        _ => self.world.change(&uid, &self.api),
                    }
                }
            }
        }
        let cpu = (self.plane.cpu() - cpu) / begun.elapsed().as_secs_f64();
        self.column.set("churn: changes a second that were made", f64::from(count) / begun.elapsed().as_secs_f64());
        self.column.set("churn: CPU of the control plane, cores", cpu);
        let wanted = self.fleet.agents.len() * count as usize;
        let fleet = self.fleet.clone();
        until("all changes at all agents", || {
            fleet.agents.iter().map(|agent| agent.state().delays.len()).sum::<usize>() >= wanted
        })
        .await?;
        let delays: Vec<f64> = self.fleet.delays().iter().map(|micros| f64::from(*micros) / 1e3).collect();
        ensure!(delays.len() == wanted, "{} changes heard of instead of {wanted}", delays.len());
        for (name, share) in [("median", 0.5), ("p99", 0.99), ("the last", 1.0)] {
            self.column.set(&format!("churn: a change at all agents, {name}, ms"), part(&delays, share));
        }
        self.memory("control plane: churn");
        ensure!(self.fleet.ends().is_empty(), "streams ended");
        Ok(())
    }

    /// Everybody has exactly what there is: one is looked at closely, the others are compared with it.
    async fn settle(&mut self) -> Result<()> {
        let begun = Instant::now();
        while let Err(error) = self.check() {
            ensure!(begun.elapsed() < DEADLINE, "not settled: {error:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let addresses = self.world.addresses();
        let first = self.fleet.agents.first().context("an agent")?;
        let digest = {
            let state = first.state();
            let bodies = state.bodies.as_ref().context("bodies")?;
            ensure!(bodies.len() == addresses && Self::is_full(&state, addresses), "{:?} of {addresses}", state.held);
            for (uid, (_, revision)) in &self.world.pods {
                let body = bodies.get(&self.fleet.number(0, uid)).with_context(|| format!("no {uid}"))?;
                match convert::address(body)? {
                    AddressResource::Workload(w)
                        if w.uid == uid.as_str()
                            && w.canonical_revision == objects::revision_of(*revision).as_str()
                            && w.services.len() == 1
                            && !w.authorization_policies.is_empty() => {}
                    other => bail!("{uid} in revision {revision}: {other:?}"),
                }
            }
            state.digest()
        };
        for (number, agent) in self.fleet.agents.iter().enumerate() {
            let state = agent.state();
            ensure!(state.digest() == digest, "agent {number} has something else: {:?}", state.held);
        }
        Ok(())
    }

    /// Until all streams have been answered again, and what was sent for it.
    async fn resumed(&mut self, what: &str, begun: Instant, changed: usize) -> Result<()> {
        let (fleet, cpu) = (self.fleet.clone(), self.plane.cpu());
        let is_answered = || {
            let is = |a: &Arc<fleet::Agent>| a.answered.load(std::sync::atomic::Ordering::Relaxed) == 2;
            fleet.agents.iter().all(is)
        };
        until("all agents are served again", is_answered).await?;
        self.column.set(&format!("{what}: until all agents were served, s"), begun.elapsed().as_secs_f64());
        self.column.set(&format!("{what}: CPU of the control plane for that, s"), self.plane.cpu() - cpu);
        self.memory(&format!("control plane: {what}"));
        self.settle().await?;
        let (sent, bytes) = self.fleet.heard();
        self.column
            .set(&format!("{what}: sent to an agent, KiB"), bytes as f64 / 1024.0 / self.fleet.agents.len() as f64);
        self.column.set(
            &format!("{what}: resources sent that agents had"),
            (sent as f64) - (changed * self.fleet.agents.len()) as f64,
        );
        ensure!(sent == changed * self.fleet.agents.len(), "{what}: {sent} resources sent, {changed} had changed");
        Ok(())
    }

    /// The control plane crashes, and another one begins with what the API server has.
    async fn restart(&mut self) -> Result<()> {
        say("restart");
        self.fleet.heard();
        let begun = Instant::now();
        self.plane.kill().await?;
        self.plane = Plane::start(&self.api, self.folder.path(), "second", Some(self.plane.address)).await?;
        self.column.set("restart: the new one is ready, s", begun.elapsed().as_secs_f64());
        self.resumed("restart", begun, 0).await?;
        Ok(())
    }

    /// All agents go to another replica, and some pods have changed meanwhile.
    async fn replica(&mut self) -> Result<()> {
        say("another replica");
        self.plane.kill().await?;
        let mut touched = HashSet::new();
        for _ in 0..MEANWHILE {
            let uid = self.some(&mut touched).context("a pod")?;
            self.world.change(&uid, &self.api);
        }
        self.plane = Plane::start(&self.api, self.folder.path(), "third", None).await?;
        let begun = Instant::now();
        self.fleet.move_to(self.plane.address);
        self.resumed("another replica", begun, MEANWHILE).await?;
        self.fleet.ends();
        Ok(())
    }
}

/// The value below which `share` of the values are.
fn part(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share).ceil() as usize;
    values.get(at.clamp(1, values.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

fn say(what: &str) {
    eprintln!("{what} ...");
}
