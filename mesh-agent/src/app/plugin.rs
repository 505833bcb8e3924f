//! What the worker does about the CNI plugin: it keeps it installed and serves it, or takes off the node what an earlier worker has left. Called by
//! [`super::worker`].

use std::sync::Arc;

use mesh_runtime::metrics::Registry;
use mesh_runtime::{DrainToken, Readiness, ReadyGuard, task};

use super::Refusal;
use crate::cni::{self, CniHandle, CniMetrics, CniServer, Installer, Places};
use crate::config::{Chain, Config};
use crate::state::StateHandle;

/// What there is to be done, until it starts.
pub enum Plugin {
    /// It is kept installed.
    Kept(Box<Kept>),
    /// It is not wanted any more.
    Unwanted(Box<Installer>, CniHandle),
}

/// The agent's side of the plugin.
pub struct Kept {
    installer: Installer,
    handle: CniHandle,
    chained: ReadyGuard,
    metrics: CniMetrics,
}

impl Plugin {
    /// By the configuration; none if the node's chain is nothing to this agent.
    pub fn of(config: &Config, readiness: &Readiness, registry: &mut Registry) -> Option<Plugin> {
        let installer = || {
            Installer::new(Places {
                plugin: config.cni_plugin.clone(),
                bin_dir: config.cni_bin_dir.clone(),
                conf_dir: config.cni_conf_dir.clone(),
                socket: config.run_dir.join(cni::SOCKET),
                scope: cni::scope_file(&config.cni_state_dir),
                own_file: config.cni_own_file,
                cache: config.cni_cache_dir.clone(),
            })
        };
        match config.cni {
            Chain::Alone => None,
            Chain::Kept => {
                let (installer, handle) = installer();
                let metrics = CniMetrics::new(registry, &handle);
                let chained = readiness.task("CNI chain");
                Some(Plugin::Kept(Box::new(Kept { installer, handle, chained, metrics })))
            }
            Chain::Cleared => {
                let (installer, handle) = installer();
                Some(Plugin::Unwanted(Box::new(installer), handle))
            }
        }
    }

    /// For the admin socket.
    pub fn handle(&self) -> CniHandle {
        match self {
            Plugin::Kept(kept) => kept.handle.clone(),
            Plugin::Unwanted(_, handle) => handle.clone(),
        }
    }

    /// What keeps it, to be started; one that is not wanted begins to go.
    pub fn kept(self, drain: DrainToken) -> Option<Kept> {
        match self {
            Plugin::Kept(kept) => Some(*kept),
            Plugin::Unwanted(installer, _) => {
                installer.spawn_removal(drain);
                None
            }
        }
    }
}

impl Kept {
    /// The socket first: a plugin that is in the chain finds who answers.
    pub fn start(
        self,
        config: &Config,
        means: cni::Means,
        state: Arc<StateHandle>,
        drain: DrainToken,
    ) -> Result<(), Refusal> {
        let server = CniServer::bind(&config.run_dir).map_err(Refusal::system("socket of the CNI plugin"))?;
        let scope = cni::scope_file(&config.cni_state_dir);
        cni::scope::keep(scope, means.kube.knowledge(), state, self.handle, drain.clone());
        task::spawn_vital("CNI server", server.run(Arc::new(means), self.metrics, drain.clone()));
        self.installer.spawn(self.chained, drain);
        Ok(())
    }
}
