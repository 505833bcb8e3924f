//! A control plane that comes and goes, as one agent sees it: row F11. Between the real agent and the control plane is a relay that lets nobody through for a
//! second, and everybody for the next.
use super::objects::Size;
use super::plane::Probe;
use super::{Options, Simulation, say};
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How long it is away, and how long it is there.
const TURN: Duration = Duration::from_secs(1);

/// What the agent has done meanwhile.
#[derive(Debug)]
pub struct Flaps {
    /// Bytes that it was sent for everything.
    pub everything: u64,
    /// Bytes that it was sent since.
    pub again: u64,
    /// Connections that it made since.
    pub connections: u64,
    /// Its share of a CPU.
    pub cpu: f64,
}

/// Lets the control plane of a cluster flap so often; `program` is that of [`Options`].
pub fn run(size: Size, flaps: u32, program: PathBuf) -> Result<Flaps> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let options = Options { size, changes: 1, churn: 0, seconds: 0, program };
        let mut simulation = Simulation::start(options).await?;
        let relay = Relay::start(simulation.plane.address).await?;
        let (mut probe, _) = simulation.probe_of(relay.address).await?;
        simulation.compare(&mut probe, "before").await?;
        let everything = relay.bytes.load(Ordering::Relaxed);
        say("flaps");
        let (begun, cpu, connections) = (Instant::now(), probe.cpu(), relay.connections.load(Ordering::Relaxed));
        for _ in 0..flaps {
            relay.open.send_replace(false);
            tokio::time::sleep(TURN).await;
            relay.open.send_replace(true);
            tokio::time::sleep(TURN).await;
        }
        let cpu = (probe.cpu() - cpu) / begun.elapsed().as_secs_f64();
        // It goes on with what has changed.
        let uid = simulation.world.uids.first().context("a pod")?.clone();
        simulation.world.change(&uid, &simulation.api);
        simulation.compare(&mut probe, "after").await?;
        let again = relay.bytes.load(Ordering::Relaxed) - everything;
        let connections = relay.connections.load(Ordering::Relaxed) - connections;
        Ok(Flaps { everything, again, connections, cpu })
    })
}

/// What can be cut.
struct Relay {
    address: SocketAddr,
    open: watch::Sender<bool>,
    /// Towards the agent.
    bytes: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

impl Relay {
    async fn start(control: SocketAddr) -> Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (open, is_open) = watch::channel(true);
        let (bytes, connections) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (to_agent, accepted) = (bytes.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((agent, _)) = listener.accept().await {
                let mut is_open = is_open.clone();
                // Nobody is there: it is closed at once.
                if !*is_open.borrow_and_update() {
                    continue;
                }
                accepted.fetch_add(1, Ordering::Relaxed);
                let bytes = to_agent.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = between(agent, control, &bytes) => {}
                        _ = is_open.changed() => {}
                    }
                });
            }
        });
        Ok(Relay { address, open, bytes, connections })
    }
}

async fn between(mut agent: TcpStream, control: SocketAddr, bytes: &AtomicU64) -> std::io::Result<()> {
    let mut control = TcpStream::connect(control).await?;
    let (mut from_agent, mut to_agent) = agent.split();
    let (mut from_control, mut to_control) = control.split();
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = from_control.read(&mut buffer).await?;
            if read == 0 {
                return to_agent.shutdown().await;
            }
            bytes.fetch_add(read as u64, Ordering::Relaxed);
            to_agent.write_all(buffer.get(..read).unwrap_or_default()).await?;
        }
    };
    let up = async {
        tokio::io::copy(&mut from_agent, &mut to_control).await?;
        to_control.shutdown().await
    };
    tokio::try_join!(down, up).map(drop)
}

impl Probe {
    /// CPU time that it has had, in seconds.
    fn cpu(&self) -> f64 {
        crate::harness::agent::cpu_seconds(self.pid())
    }
}
