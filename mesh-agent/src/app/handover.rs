//! How a worker gives way to that of another agent on the node, and how it waits for one that is still there. Called by [`super::worker`].

use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::Drain;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{EXIT_UNAVAILABLE, Refusal};
use crate::bpf::Kernel;
use crate::config::Config;
use crate::enrol::ManagerHandle;
use crate::enrol::server::PodFds;
use crate::keeper::Keeper;
use crate::keeper::process::YIELD;

/// How long pods may be on their way when another agent follows.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the worker before may take to be gone.
const FREE: Duration = Duration::from_secs(10);
/// How often to look whether it is.
const AGAIN: Duration = Duration::from_millis(10);

/// Another agent that is to follow this one.
pub struct Successor(Option<Signal>);

impl Successor {
    /// Listens for its coming, if there may be one.
    pub fn expect(expected: bool) -> std::io::Result<Successor> {
        let kind = SignalKind::from_raw(YIELD as i32);
        Ok(Successor(expected.then(|| signal(kind)).transpose()?))
    }

    /// Once only: what was given away stays so.
    pub async fn is_there(&mut self) {
        match &mut self.0 {
            Some(signal) => {
                signal.recv().await;
                self.0 = None;
            }
            None => std::future::pending().await,
        }
    }
}

/// What a worker has to itself, until another one follows.
pub struct Parts {
    /// Who says which pods there are.
    pub enrolment: Drain,
    /// Work for the node as a whole.
    pub leading: Drain,
    /// The operator's.
    pub servers: Drain,
    /// The pods.
    pub manager: ManagerHandle<PodFds>,
    /// Programs and maps.
    pub kernel: Arc<Kernel>,
    /// Holder of the sockets.
    pub keeper: Arc<Keeper>,
}

impl Parts {
    /// Lets go of the kernel, of the ports and of what decides about pods. The pods' connections go on, new ones too.
    pub async fn give_way(&self) {
        tracing::info!("another agent follows: connections go on here until it accepts them");
        self.enrolment.cut();
        if tokio::time::timeout(SETTLE, self.manager.freeze()).await.is_err() {
            tracing::warn!("pods are being captured or released while another agent follows");
        }
        self.leading.cut();
        self.servers.drain(Duration::from_millis(100)).await;
        let (kernel, keeper) = (self.kernel.clone(), self.keeper.clone());
        let given = tokio::task::spawn_blocking(move || {
            kernel.give_way();
            keeper.yielded()
        });
        match given.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot tell the keeper that another agent may follow"),
            Err(error) => tracing::error!(%error, "cannot give way"),
        }
    }
}

/// What to do when the worker before this one, which is dying, still has what only one may have. Without others on the node nobody is waited for:
/// whoever has it is another agent.
pub async fn once_free<T, F: Future<Output = Result<T, Refusal>>>(
    config: &Config,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Refusal> {
    let deadline = tokio::time::Instant::now() + if config.standby.is_some() { FREE } else { Duration::ZERO };
    loop {
        match attempt().await {
            Err(refusal) if refusal.status == EXIT_UNAVAILABLE && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(AGAIN).await;
            }
            result => return result,
        }
    }
}
