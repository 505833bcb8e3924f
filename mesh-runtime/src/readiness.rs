//! What a process still waits for before it may be called ready, by name, so that "not ready" always says why.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// The set of pending conditions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeMap<String, usize>>>,
    ready: Arc<watch::Sender<bool>>,
}

/// Keeps the process unready until it is dropped.
#[derive(Debug)]
pub struct ReadyGuard {
    name: String,
    readiness: Readiness,
}

impl Default for Readiness {
    fn default() -> Self {
        Readiness { pending: Arc::default(), ready: Arc::new(watch::Sender::new(true)) }
    }
}

impl Readiness {
    /// Nothing pending: ready.
    pub fn new() -> Self {
        Readiness::default()
    }

    /// Adds a condition called `name`; it is met when the guard is dropped. The same name may be pending several times.
    #[must_use = "the condition is met when the guard is dropped"]
    pub fn task(&self, name: impl Into<String>) -> ReadyGuard {
        let name = name.into();
        let mut pending = self.pending.lock();
        *pending.entry(name.clone()).or_default() += 1;
        self.ready.send_replace(false);
        drop(pending);
        ReadyGuard { name, readiness: self.clone() }
    }

    /// Names of the conditions not met yet, sorted; empty means ready.
    pub fn pending(&self) -> Vec<String> {
        self.pending.lock().keys().cloned().collect()
    }

    /// Completes when nothing is pending.
    pub async fn ready(&self) {
        let mut ready = self.ready.subscribe();
        // The sender lives in self, so waiting cannot fail.
        let _ = ready.wait_for(|ready| *ready).await;
    }
}

impl ReadyGuard {
    /// The condition is met: the same as dropping, but readable.
    pub fn met(self) {}
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        let mut pending = self.readiness.pending.lock();
        if let Some(count) = pending.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.name);
            }
        }
        self.readiness.ready.send_replace(pending.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_guard_is_dropped() {
        let readiness = Readiness::new();
        assert!(readiness.pending().is_empty());
        let (state, first, second) = (readiness.task("state"), readiness.task("kernel"), readiness.task("kernel"));
        assert_eq!(readiness.pending(), ["kernel", "state"]);
        state.met();
        first.met();
        assert_eq!(readiness.pending(), ["kernel"]);
        second.met();
        readiness.ready().await;
        assert!(readiness.pending().is_empty());
    }
}
