//! What a new worker takes over from the one before it: the pods that the keeper held, and what the kernel still has captured. Called once,
//! by the start of the worker, before clients may speak.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::check::Checker;
use super::listeners::Listeners;
use super::machine::{Event, Spec};
use super::manager::ManagerHandle;
use super::record::Record;
use super::server::PodFds;
use crate::keeper::{Held, Keeper};

/// Tells the manager about every pod that the keeper held; what cannot be taken over is given up, and its pod is captured anew when a client
/// names it. Blocking.
pub fn held_pods(keeper: &Keeper, checker: &Checker) -> io::Result<Vec<(Spec, PodFds)>> {
    let mut pods = Vec::new();
    for (key, held) in keeper.list()? {
        match take_over(held, checker) {
            Ok(pod) => pods.push(pod),
            Err(error) => {
                tracing::warn!(uid = key, error, "cannot take over what the keeper held");
                keeper.remove(&key)?;
            }
        }
    }
    Ok(pods)
}

/// Hands the manager what an earlier worker left: the pods that the keeper held, and what the kernel still has captured besides.
pub async fn adopt(manager: &ManagerHandle<PodFds>, pods: Vec<(Spec, PodFds)>, captured: Vec<u64>) {
    for (spec, payload) in pods {
        manager.tell(Event::Adopt { spec, payload }).await;
    }
    manager.tell(Event::Captured { cookies: captured }).await;
}

fn take_over(held: Held, checker: &Checker) -> Result<(Spec, PodFds), String> {
    let (spec, kinds) = Record::decode(&held.meta)?;
    let mut lasting = held.lasting;
    let netns: OwnedFd = lasting.pop().ok_or("no network namespace")?;
    let found = checker.check_netns(netns.as_fd(), &spec.pod.ips).map_err(|failure| failure.message)?;
    if found != spec.netns {
        return Err("the network namespace is another one".to_owned());
    }
    // Sockets that perished are opened afresh.
    let adopted = match held.perishable.is_empty() {
        true => None,
        false => Some(Listeners::adopt(&kinds, held.perishable).map_err(|error| error.to_string())?),
    };
    Ok((spec, PodFds { netns, adopted, taken_over: true }))
}
