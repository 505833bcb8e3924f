//! Keeps the plugin installed on the node: the program, and its entry in the chain. Follows their folders and has put right what others do to
//! them. Started by the worker; what is done is [`super::place`]'s.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_runtime::{Backoff, DrainToken, ReadyGuard, task};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::conflist::OWN;
use super::contest::Contest;
use super::place::{Done, Places, ensure, remove};

/// How often the folder is looked at though nothing was heard of it: a folder that was replaced tells nothing.
const LOOK: Duration = Duration::from_secs(2);
/// At least so long between two looks.
const QUIET: Duration = Duration::from_millis(50);
/// A writer that fights for the chain must not keep us busy: at most so long between two looks then. Meanwhile pods may start uncaptured.
const REST: Duration = LOOK;
/// An edit that failed is tried again after at most this at first, and [`REST`] in the end: what we leave of it in the folder, and take away, is heard of
/// as a change like any other.
const FAILED: Duration = Duration::from_millis(100);
/// At most so long our own file is not put back. The entry stands in the file of others meanwhile, if they leave it there.
const REST_OWN: Duration = Duration::from_secs(300);
/// How long our own file outlives what it is a copy of: who removes a file to write it anew has done so by then.
const BEREFT: Duration = Duration::from_secs(5);

/// When a removal that failed is tried again: within the first, and in the end within the second.
const AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(300)];
/// When what was taken off is looked at again: the worker before this one may just have been putting it back.
const AFTER: Duration = Duration::from_secs(10);

/// How it is, for the admin socket.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The file of the chain that has our entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
    /// Why there is none; or what is wrong though there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Who puts what there is fought by somebody else, and how that ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contested: Option<String>,
    /// It is off the node, by an order or because it is not wanted.
    pub uninstalled: bool,
}

/// Orders and questions to the installer. Without one nothing is installed.
#[derive(Clone, Debug)]
pub struct CniHandle {
    orders: mpsc::Sender<oneshot::Sender<Result<(), String>>>,
    status: watch::Receiver<Status>,
    /// How often the chain was edited.
    pub edits: Arc<AtomicU64>,
}

impl CniHandle {
    /// Takes the plugin off the node until the next start of the agent.
    pub async fn uninstall(&self) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let stopping = || "the agent is stopping".to_owned();
        self.orders.send(reply).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// How it is.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }
}

/// The task.
#[derive(Debug)]
pub struct Installer {
    places: Places,
    orders: mpsc::Receiver<oneshot::Sender<Result<(), String>>>,
    status: watch::Sender<Status>,
    edits: Arc<AtomicU64>,
    /// Since when our own file is a copy of nothing.
    orphaned: Option<Instant>,
    /// Over anything at all, and over our own file.
    contests: (Contest, Contest),
    /// Edits that failed, in a row.
    failing: Backoff,
    /// So long nothing is tried again after the last one.
    paused: Duration,
}

impl Installer {
    /// The task and its handle.
    pub fn new(places: Places) -> (Installer, CniHandle) {
        let (orders, ordered) = mpsc::channel(1);
        let (tells, status) = watch::channel(Status::default());
        let edits = Arc::new(AtomicU64::new(0));
        let handle = CniHandle { orders, status, edits: edits.clone() };
        let contests = (Contest::new(REST), Contest::new(REST_OWN));
        let installer = Installer {
            places,
            orders: ordered,
            status: tells,
            edits,
            orphaned: None,
            contests,
            failing: Backoff::new(FAILED, REST),
            paused: Duration::ZERO,
        };
        (installer, handle)
    }

    /// Starts it; `chained` is met when the chain has our entry for the first time.
    pub fn spawn(self, chained: ReadyGuard, drain: DrainToken) {
        task::spawn_vital("CNI chain", self.run(chained, drain));
    }

    /// Takes off the node what an earlier worker has left, instead: as soon as that is possible, and once.
    pub fn spawn_removal(self, drain: DrainToken) {
        task::spawn_vital("CNI removal", self.clear(drain));
    }

    async fn clear(mut self, drain: DrainToken) {
        let mut asked: Option<oneshot::Sender<Result<(), String>>> = None;
        // All nodes are told to remove it at the same time.
        let (mut again, mut last) = (Backoff::new(AGAIN[0], AGAIN[1]), false);
        loop {
            let removed = self.take_off().await;
            let pause = match &removed {
                Ok(()) if last => None,
                Ok(()) => Some(AFTER),
                Err(_) => Some(again.next(&mut rand::rng())),
            };
            last = removed.is_ok();
            if last {
                again.reset();
            }
            if let Some(reply) = asked.take() {
                let _ = reply.send(removed);
            }
            tokio::select! {
                () = drain.started() => return,
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
                Some(reply) = self.orders.recv() => asked = Some(reply),
            }
        }
    }

    async fn take_off(&self) -> Result<(), String> {
        let places = self.places.clone();
        let removed = blocking(move || remove(&places)).await;
        match &removed {
            Ok(was_there) => {
                if *was_there {
                    tracing::info!("the CNI plugin is taken off this node");
                }
                self.status.send_replace(Status { uninstalled: true, ..Status::default() });
            }
            Err(trouble) => {
                let status = Status { trouble: Some(trouble.clone()), ..Status::default() };
                if self.status.send_replace(status.clone()) != status {
                    tracing::warn!(trouble, "the CNI plugin cannot be taken off this node");
                }
            }
        }
        removed.map(|_| ())
    }

    async fn run(mut self, chained: ReadyGuard, drain: DrainToken) {
        let mut chained = Some(chained);
        // One pending event is as good as many.
        let (sender, mut events) = mpsc::channel(1);
        let mut watcher = None;
        loop {
            // A folder that was replaced tells nothing any more.
            let folders = folders(&self.places);
            watcher = watcher.filter(|(_, followed)| *followed == folders);
            watcher = watcher.or_else(|| Some((follow(&self.places, &sender)?, folders)));
            if !self.status.borrow().uninstalled {
                self.look().await;
                if self.status.borrow().chain.is_some()
                    && let Some(chained) = chained.take()
                {
                    chained.met();
                }
            }
            let (quiet, look) = self.pauses(Instant::now());
            tokio::select! {
                () = drain.started() => return,
                () = due(&mut events, quiet, look) => {}
                Some(reply) = self.orders.recv() => {
                    let _ = reply.send(self.take_off().await);
                }
            }
        }
    }

    /// Between an event and the look at it, and until the next look without one.
    fn pauses(&self, now: Instant) -> (Duration, Duration) {
        let (any, own) = (self.contests.0.rest(now), self.contests.1.rest(now));
        (any.max(QUIET).max(self.paused), if own.is_zero() { LOOK } else { own.clamp(QUIET, LOOK) })
    }

    /// What people should know of who fights with us.
    fn contested(&self, now: Instant) -> Option<String> {
        let (any, own) = &self.contests;
        if own.is_open(now) {
            return Some(format!(
                "somebody takes {OWN} away again and again, as Cilium does unless it is told cni.exclusive=false: tell it, or have no such file \
                 (agent.cni.ownFile=false, --cni-own-file off); it is put back ever more seldom"
            ));
        }
        any.is_open(now).then(|| {
            format!(
                "somebody takes our entry or our program away again and again: {}, {}: only one program may keep the node's CNI",
                self.places.conf_dir.display(),
                self.places.bin_dir.display()
            )
        })
    }

    async fn look(&mut self) {
        let places = self.places.clone();
        let bereft = self.orphaned.is_some_and(|since| since.elapsed() >= BEREFT);
        let rests = !self.contests.1.rest(Instant::now()).is_zero();
        let looked = blocking(move || ensure(&places, bereft, rests)).await;
        let now = Instant::now();
        if looked.as_ref().is_ok_and(|done| done.edited) {
            self.contests.0.put(now);
        }
        if looked.as_ref().is_ok_and(|done| done.own_put) {
            self.contests.1.put(now);
        }
        if looked.as_ref().is_err_and(|trouble| trouble.edit) {
            self.paused = self.failing.next(&mut rand::rng());
        } else {
            self.failing.reset();
            self.paused = Duration::ZERO;
        }
        let contested = self.contested(now);
        let is_orphaned = looked.as_ref().is_ok_and(|done| done.orphaned);
        self.orphaned = is_orphaned.then(|| self.orphaned.unwrap_or_else(Instant::now));
        let status = match looked {
            Ok(Done { chain, edited, remark, .. }) => {
                if edited {
                    self.edits.fetch_add(1, Relaxed);
                    match contested {
                        None => tracing::info!(chain, "the CNI chain has our entry"),
                        Some(_) => tracing::debug!(chain, "the CNI chain has our entry again"),
                    }
                }
                Status { chain: Some(chain), trouble: remark, contested, uninstalled: false }
            }
            Err(trouble) => Status { trouble: Some(trouble.why), contested, ..Status::default() },
        };
        let last = self.status.send_replace(status.clone());
        // Once, and not whenever the one or the other has just won.
        if let (None, Some(why)) = (&last.contested, &status.contested) {
            tracing::warn!(why, "the CNI chain is fought over");
        }
        let changed = (last.trouble, last.chain.is_some()) != (status.trouble.clone(), status.chain.is_some());
        match (&status.trouble, &status.chain) {
            _ if !changed => {}
            (None, _) => {}
            (Some(trouble), Some(chain)) => tracing::warn!(chain, trouble, "not all is well with the CNI chain"),
            (Some(trouble), None) => tracing::warn!(
                trouble,
                "the CNI chain has no entry of ours: new pods are captured a moment after they start"
            ),
        }
    }
}

/// Waits for an event, and then a moment for what comes with it; or for the next look.
async fn due(events: &mut mpsc::Receiver<()>, quiet: Duration, look: Duration) {
    if tokio::time::timeout(look, events.recv()).await.is_ok() {
        tokio::time::sleep(quiet).await;
    }
}

/// Which folders they are now.
fn folders(places: &Places) -> [Option<(u64, u64)>; 2] {
    let folder = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    [&places.conf_dir, &places.bin_dir].map(|path| fs::metadata(path).ok().map(folder))
}

/// Hears of changes in the two folders, if they are there.
fn follow(places: &Places, sender: &mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let sender = sender.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| event.kind.is_access()) {
            let _ = sender.try_send(());
        }
    })
    .ok()?;
    let watched = [&places.conf_dir, &places.bin_dir].map(|folder| watcher.watch(folder, RecursiveMode::NonRecursive));
    watched.into_iter().all(|result| result.is_ok()).then_some(watcher)
}

async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<String> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string().into()))
}

#[cfg(test)]
mod tests;
