//! The processes that are measured: control planes, and the one agent that is real.
use super::api::Api;
use super::message::token;
use super::probe;
use crate::harness::process::binary_path;
use anyhow::{Context, Result, bail};
use serde_json::Value as Json;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Nothing here takes longer on any machine.
pub const DEADLINE: Duration = Duration::from_secs(900);
const STEP: Duration = Duration::from_millis(5);

/// Waits for a condition, not for ever; how long it took.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<Duration> {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > DEADLINE {
            bail!("{what}: not within {DEADLINE:?}");
        }
        tokio::time::sleep(STEP).await;
    }
    Ok(begun.elapsed())
}

/// Memory of a process in MiB: now, and at its peak.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident now.
    pub now: f64,
    /// At most so far.
    pub peak: f64,
}

/// A control plane.
pub struct Plane {
    /// Where it serves.
    pub address: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Plane {
    /// Starts one, at an address if one is given, and returns when it is ready to serve.
    pub async fn start(api: &Api, folder: &Path, name: &str, address: Option<SocketAddr>) -> Result<Plane> {
        let address = match address {
            Some(address) => address,
            None => free().await?,
        };
        let metrics = free().await?;
        let log = folder.join(format!("{name}.log"));
        let child = Command::new(binary_path("mesh-control")?)
            .arg("--kube")
            .arg("--kubeconfig")
            .arg(api.kubeconfig(folder)?)
            .args(["--webhook", "127.0.0.1:0", "--listen", &address.to_string(), "--metrics", &metrics.to_string()])
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .kill_on_drop(true)
            .spawn()
            .context("start mesh-control")?;
        let mut plane = Plane { address, child, log };
        let begun = Instant::now();
        while !is_ready(metrics).await {
            if plane.child.try_wait()?.is_some() || begun.elapsed() > DEADLINE {
                bail!("mesh-control is not ready: {}", plane.log_text());
            }
            tokio::time::sleep(STEP).await;
        }
        Ok(plane)
    }

    fn pid(&self) -> String {
        self.child.id().map(|id| id.to_string()).unwrap_or_default()
    }

    /// Its memory.
    pub fn memory(&self) -> Memory {
        let mib = |field| probe::memory(&self.pid(), field) as f64 / 1024.0;
        Memory { now: mib("VmRSS:"), peak: mib("VmHWM:") }
    }

    /// CPU time that it has had, in seconds.
    pub fn cpu(&self) -> f64 {
        crate::harness::agent::cpu_seconds(self.pid().parse().unwrap_or(0))
    }

    /// Its peak begins now.
    pub fn forget_peak(&self) {
        // Where that is not allowed the peak is that of the whole life.
        let _ = std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5");
    }

    /// Ends it as a crash does.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill mesh-control")
    }

    /// What it has written.
    pub fn log_text(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// An address on which nothing listens.
async fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}

async fn is_ready(metrics: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(metrics).await.ok()?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut lines = BufReader::new(stream).lines();
        lines.next_line().await.ok()?
    };
    ask.await.is_some_and(|line| line.contains(" 200"))
}

/// The agent that is real.
pub struct Probe {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Probe {
    /// Starts it for `node`; it connects to `control`. Returns with it how many seconds it took until it was synced.
    pub async fn start(
        program: &Path,
        folder: &Path,
        root: &str,
        control: SocketAddr,
        node: &str,
    ) -> Result<(Probe, f64)> {
        let (root_file, token_file) = (folder.join("root.pem"), folder.join("token"));
        std::fs::write(&root_file, root)?;
        std::fs::write(&token_file, token(node))?;
        let mut child = Command::new(program)
            .args(["probe", "--control", &control.to_string(), "--node", node, "--root"])
            .arg(root_file)
            .arg("--token")
            .arg(token_file)
            // The settings that an agent gives itself.
            .env("_RJEM_MALLOC_CONF", "background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_max:1024,tcache_nslots_small_min:20,tcache_nslots_small_max:200,tcache_gc_incr_bytes:65536")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start the probe")?;
        let input = child.stdin.take().context("its standard input")?;
        let output = BufReader::new(child.stdout.take().context("its standard output")?).lines();
        let mut probe = Probe { child, input, output };
        let synced = probe.line().await?["synced_s"].as_f64().context("how long it took")?;
        Ok((probe, synced))
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id().and_then(|id| id.try_into().ok()).unwrap_or(0)
    }

    async fn line(&mut self) -> Result<Json> {
        let line =
            tokio::time::timeout(DEADLINE, self.output.next_line()).await.context("the probe says nothing")??;
        let status = self.child.try_wait()?;
        Ok(serde_json::from_str(&line.with_context(|| format!("the probe has ended: {status:?}"))?)?)
    }

    /// What it has.
    pub async fn ask(&mut self) -> Result<Json> {
        self.input.write_all(b"\n").await?;
        self.line().await
    }
}
