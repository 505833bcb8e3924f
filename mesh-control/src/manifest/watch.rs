//! Follows a folder. The kernel's events only say *that* something changed; each change leads to a scan of the whole folder once it has been
//! quiet for a moment, so that a half-written file or a half-done copy is mostly not seen at all. A slow look at names and times finds
//! what events do not tell: targets of symbolic links outside the folder, and a folder that was replaced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::folder::{Folder, Seen};
use crate::source::{Source, Update};

/// How long the folder must be quiet.
const QUIET: Duration = Duration::from_millis(40);
/// When a folder that is never quiet is read all the same.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often names and times are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The folder as a source.
#[derive(Debug)]
pub struct FolderSource {
    root: PathBuf,
    folder: Option<Folder>,
    fingerprint: u64,
    started: bool,
    /// What was in the way of the last scan may go without a trace in names and times.
    again: bool,
    watcher: Option<RecommendedWatcher>,
    events: mpsc::Receiver<()>,
    sender: mpsc::Sender<()>,
}

impl FolderSource {
    /// Watches `root`; its first update is what is there now.
    pub fn new(root: &Path) -> Self {
        // One pending event is as good as many.
        let (sender, events) = mpsc::channel(1);
        let folder = Some(Folder::new(root));
        let mut source = Self {
            root: root.to_owned(),
            folder,
            fingerprint: 0,
            started: false,
            again: false,
            watcher: None,
            events,
            sender,
        };
        source.watch();
        source
    }

    /// (Re)installs the watch. Without one the slow look still follows the folder.
    fn watch(&mut self) {
        let sender = self.sender.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|e| e.kind.is_access()) {
                let _ = sender.try_send(());
            }
        });
        let watched = watcher.and_then(|mut w| w.watch(&self.root, RecursiveMode::Recursive).map(|()| w));
        self.watcher = match watched {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(folder = %self.root.display(), %error, "no file events, looking every {LOOK:?}");
                None
            }
        };
    }

    /// Runs `work` on the folder off the async threads.
    async fn with_folder<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Folder) -> T + Send + 'static,
    ) -> Option<T> {
        let mut folder = self.folder.take()?;
        let (folder, result) = tokio::task::spawn_blocking(move || {
            let result = work(&mut folder);
            (folder, result)
        })
        .await
        .ok()?;
        self.folder = Some(folder);
        Some(result)
    }

    /// Waits until something has changed and the folder is quiet again. Says when the first of it was noticed.
    async fn changed(&mut self) -> Option<std::time::Instant> {
        loop {
            match timeout(LOOK, self.events.recv()).await {
                Ok(Some(())) => break,
                Ok(None) => return None,
                Err(_) => {
                    if self.again {
                        break;
                    }
                    if self.with_folder(|f| f.fingerprint()).await? != self.fingerprint {
                        // Whatever the events missed, they may go on missing: the folder may be another one by now.
                        self.watch();
                        break;
                    }
                }
            }
        }
        let since = Instant::now();
        let deadline = since + PATIENCE;
        while Instant::now() < deadline {
            let quiet = (Instant::now() + QUIET).min(deadline);
            match timeout_at(quiet, self.events.recv()).await {
                Ok(Some(())) => {}
                Ok(None) => return None,
                Err(_) => break,
            }
        }
        Some(since.into_std())
    }
}

impl Source for FolderSource {
    async fn next(&mut self) -> Option<Update> {
        let since = if self.started { Some(self.changed().await?) } else { None };
        self.started = true;
        let (fingerprint, seen) = self.with_folder(|f| (f.fingerprint(), f.scan())).await?;
        self.fingerprint = fingerprint;
        let Seen { objects, diagnoses, places, unread, again } = seen;
        self.again = again;
        Some(Update { objects, diagnoses, places, unread, marks: BTreeMap::new(), since })
    }
}
