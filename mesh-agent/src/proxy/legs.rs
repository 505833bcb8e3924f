//! Looks at the plain connections over the network from time to time, so that what happens on a long one is seen before its end. Tunnels are looked at by
//! their drivers. One task for all pods: a connection costs one system call each round, and its own task nothing.

use std::sync::Weak;
use std::time::Duration;

use mesh_transport::path::Watch;

use super::shared::ProxyShared;

/// As often as tunnels are looked at: at each of their PINGs.
const ROUND: Duration = Duration::from_secs(10);
/// Looks before other tasks get their turn.
const TURN: usize = 256;

/// Runs until the shared state is gone.
pub async fn run(shared: Weak<ProxyShared>) {
    loop {
        tokio::time::sleep(ROUND).await;
        let Some(shared) = shared.upgrade() else { return };
        look(&shared).await;
    }
}

/// Looks at each connection once.
pub async fn look(shared: &ProxyShared) {
    for pod in shared.pods() {
        // Listed first: connections come and go under the same lock.
        let mut watches: Vec<Watch> = Vec::new();
        pod.connections.for_each(|live| watches.extend(live.watch().cloned()));
        for turn in watches.chunks(TURN) {
            turn.iter().for_each(Watch::look);
            tokio::task::yield_now().await;
        }
    }
}
