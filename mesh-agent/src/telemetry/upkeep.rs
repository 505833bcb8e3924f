//! The two tasks that telemetry needs: the sweep of series, and the reader of the kernel's events. Spawned by `app` for the life of the
//! process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::ArcStr;
use mesh_runtime::DrainToken;

use super::{Parties, Telemetry};
use crate::bpf::{Events, Kernel};
use crate::state::StateHandle;

/// How often series are looked through. Much shorter than the grace time, and seldom enough to cost nothing.
const SWEEP: Duration = Duration::from_secs(60);
/// Pause after the ring buffer could not be read, so that a persistent error does not spin.
const PAUSE: Duration = Duration::from_secs(1);

/// Forgets the series of gone workloads, about once a minute. Nothing is forgotten before the first configuration is complete.
pub async fn sweep(telemetry: Telemetry, state: Arc<StateHandle>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        if state.is_synced() {
            let removed = telemetry.expire(&state.snapshot_owned(), Instant::now());
            tracing::debug!(removed, held = telemetry.series_held(), "looked through the series");
        }
    }
}

/// Tells what the kernel programs refused, until the drain starts: the ring has one reader. Addresses are those of `network`.
pub async fn follow_kernel(
    telemetry: Telemetry,
    mut events: Events,
    state: Arc<StateHandle>,
    network: ArcStr,
    end: DrainToken,
) {
    let parties = |from, to| Parties::of(&state.snapshot(), &network, from, to);
    loop {
        let event = tokio::select! {
            () = end.started() => return,
            event = events.next() => event,
        };
        match event {
            Ok(event) => telemetry.kernel_event(&event, parties),
            Err(error) => {
                tracing::warn!(%error, "kernel events cannot be read");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl Telemetry {
    /// Prints the kernel's counters and the use of its maps at each scrape.
    pub fn watch_kernel(&self, kernel: &Arc<Kernel>) {
        let (counters, maps) = (kernel.clone(), kernel.clone());
        self.health().watch_kernel_counters(move || counters.counters());
        self.health().watch_maps(move || maps.map_usage());
    }
}
