//! Housekeeping of the worker: what telemetry reads, and the periodic work that belongs to no connection and no pod.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, UNIX_EPOCH};

use mesh_client::CertificateManager;
use mesh_core::ArcStr;
use mesh_runtime::lanes::Lanes;
use mesh_runtime::{DrainToken, task};
use tokio::time::{MissedTickBehavior, interval};

use super::crl::CrlFile;
use crate::bpf::{Foreign, Kernel, Repair};
use crate::enrol::node::chain;
use crate::proxy::ProxyShared;
use crate::state::StateHandle;
use crate::telemetry::{CertificateExpiry, RevocationHealth, Telemetry, follow_kernel, sweep};

const HEARTBEAT: Duration = Duration::from_secs(1);
const VERIFY: Duration = Duration::from_secs(5);
const COLLECT: Duration = Duration::from_secs(5);

/// Lets telemetry read its numbers from their owners.
pub fn watch_health(
    telemetry: &Telemetry,
    kernel: &Arc<Kernel>,
    proxy: &Arc<ProxyShared>,
    certificates: &CertificateManager,
) {
    telemetry.watch_kernel(kernel);
    let health = telemetry.health();
    // Weak: the proxy holds the telemetry.
    let source = Arc::downgrade(proxy);
    health.watch_tunnels(move || source.upgrade().map_or(0, |proxy| proxy.pool.stats().tunnels as u64));
    let source = certificates.clone();
    health.watch_certificates(move || {
        let held = source.list().into_iter().filter_map(|status| status.certificate);
        let expiry = held.map(|certificate| CertificateExpiry {
            identity: certificate.identity.to_string(),
            not_after: certificate.not_after.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64),
        });
        expiry.collect()
    });
}

/// The same for revoked certificates.
pub fn watch_crl(telemetry: &Telemetry, crl: &CrlFile) {
    let (revocations, failures) = (crl.revocations().clone(), crl.failures());
    telemetry.health().watch_revocations(move || {
        let (refused_servers, refused_clients) = revocations.refused();
        let failures = failures.load(Relaxed);
        RevocationHealth { lists: revocations.lists() as u64, refused_servers, refused_clients, failures }
    });
}

/// Starts the periodic work. Ticks that were missed while the process was stopped are not made up for. At the start of the drain the kernel is another
/// agent's, which reads its events.
pub fn keep(
    lanes: &Lanes,
    kernel: &Arc<Kernel>,
    telemetry: &Telemetry,
    state: &Arc<StateHandle>,
    network: ArcStr,
    drain: DrainToken,
) {
    // The kernel must know whether the data plane is alive, and there is one heartbeat for all of it: a single lane that hangs has pods whose queries
    // nobody answers, while the original resolver answers those of all.
    let (lanes, beating) = (lanes.clone(), kernel.clone());
    task::spawn_vital("heartbeat", async move {
        let mut ticks = ticks(HEARTBEAT);
        loop {
            ticks.tick().await;
            if lanes.are_alive() {
                beating.heartbeat();
            }
        }
    });
    task::spawn_vital("kernel verification", verify(kernel.clone(), telemetry.clone()));
    let collected = kernel.clone();
    task::spawn_vital("slot collection", async move {
        let mut ticks = ticks(COLLECT);
        loop {
            ticks.tick().await;
            let kernel = collected.clone();
            let _ = tokio::task::spawn_blocking(move || kernel.collect_slots()).await;
        }
    });
    task::spawn_vital("telemetry sweep", sweep(telemetry.clone(), state.clone()));
    match kernel.events() {
        Ok(events) => {
            let follow = follow_kernel(telemetry.clone(), events, state.clone(), network, drain);
            drop(task::spawn_vital("kernel events", follow));
        }
        Err(error) => tracing::error!(error = %chain(&error), "kernel events cannot be read"),
    }
}

/// Puts right what others changed of ours, and tells what else they run beside it, once each time it changes.
async fn verify(kernel: Arc<Kernel>, telemetry: Telemetry) {
    let mut ticks = ticks(VERIFY);
    let mut known = Vec::new();
    loop {
        ticks.tick().await;
        let looking = kernel.clone();
        let looked = tokio::task::spawn_blocking(move || (looking.verify(), looking.foreign())).await;
        let Ok((repairs, foreign)) = looked else { continue };
        match repairs {
            Ok(repairs) => {
                for Repair { name, what } in &repairs {
                    tracing::error!(name, what, "kernel state changed behind our back");
                }
                telemetry.health().repaired(repairs.len());
            }
            Err(error) => tracing::error!(error = %chain(&error), "cannot verify the kernel state"),
        }
        match foreign {
            Ok(foreign) => {
                tell_foreign(&known, &foreign);
                known = foreign;
            }
            Err(error) => tracing::warn!(error = %chain(&error), "cannot look for programs of others"),
        }
    }
}

fn tell_foreign(known: &[Foreign], found: &[Foreign]) {
    for Foreign { hook, program, name } in found.iter().filter(|one| !known.contains(one)) {
        tracing::warn!(
            hook,
            program,
            name,
            "a program of somebody else runs in the same hook and may change what ours decides"
        );
    }
    for Foreign { hook, program, name } in known.iter().filter(|one| !found.contains(one)) {
        tracing::info!(hook, program, name, "a program of somebody else is gone");
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
