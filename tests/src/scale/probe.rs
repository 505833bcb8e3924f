//! The real thing in a process of its own, so that its memory is its own: an agent's subscription and the store behind it, with the agent's allocator.
//! It says on standard output when it is synced, and on each line of standard input what it has.
use anyhow::Result;
use mesh_client::{ClientMetrics, ControlConfig};
use mesh_core::{Change, Snapshot, Store};
use serde_json::json;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What it is to reach.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The control plane.
    #[arg(long)]
    pub control: String,
    /// File of its root certificate.
    #[arg(long)]
    pub root: PathBuf,
    /// File of the token.
    #[arg(long)]
    pub token: PathBuf,
    /// The node.
    #[arg(long)]
    pub node: String,
}

/// A field of /proc/PID/status in KiB.
pub fn memory(pid: &str, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A sum over all workloads that no two different meshes share: by uid, with their revision.
pub fn sum<'a>(workloads: impl Iterator<Item = (&'a str, &'a str)>) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    workloads.fold(0, |sum: u64, workload| {
        let mut hasher = DefaultHasher::new();
        workload.hash(&mut hasher);
        sum.wrapping_add(hasher.finish())
    })
}

/// Runs until standard input ends.
pub fn run(args: Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(subscribe(args))
}

async fn subscribe(args: Args) -> Result<()> {
    let begun = Instant::now();
    let config = Arc::new(ControlConfig::new(args.control, args.root, Some(args.token), args.node));
    let mut store = Store::new();
    let current: Arc<Mutex<Arc<Snapshot>>> = Arc::new(Mutex::new(store.snapshot()));
    let (published, mut is_synced) = (current.clone(), false);
    let heard = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = heard.clone();
    let sink = move |changes: Vec<Change>| {
        counted.fetch_add(changes.len(), std::sync::atomic::Ordering::Relaxed);
        let snapshot = store.apply(changes).snapshot;
        let now = snapshot.is_synced();
        *published.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
        if now && !std::mem::replace(&mut is_synced, true) {
            println!("{}", json!({ "synced_s": begun.elapsed().as_secs_f64() }));
        }
        Ok(())
    };
    // Nobody asks for single addresses.
    let (_want, wanted) = mpsc::channel(1);
    tokio::spawn(mesh_client::run(config, sink, wanted, ClientMetrics::default()));
    let (asked, mut questions) = mpsc::channel(1);
    std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).all(|_| asked.blocking_send(()).is_ok()));
    while questions.recv().await.is_some() {
        // What a start leaves free is given back within a second or two.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let snapshot = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (workloads, services, policies) = snapshot.counts();
        let sum = sum(snapshot.workloads().map(|w| (w.uid.as_str(), w.canonical_revision.as_str())));
        println!(
            "{}",
            json!({ "workloads": workloads, "services": services, "policies": policies, "sum": sum.to_string(),
                "changes": heard.load(std::sync::atomic::Ordering::Relaxed),
                "resident_kib": memory("self", "VmRSS:"), "peak_kib": memory("self", "VmHWM:") })
        );
    }
    Ok(())
}
