//! A source whose objects come with what they name and what is not among them: keys of tokens (`jwks`), and on a cluster Secrets (`cluster::secrets`). They
//! come once more when that is another.

use std::sync::Arc;

use mesh_runtime::task;
use tokio::sync::{mpsc, watch};

use crate::resource::Secrets;
use crate::resource::token_keys::Keys;
use crate::source::{Source, Update};

/// Another source, with what its objects name.
pub struct WithCompanions {
    updates: mpsc::Receiver<Update>,
    keys: watch::Receiver<Arc<Keys>>,
    /// `None`: those of the source are all that there are.
    secrets: Option<watch::Receiver<Arc<Secrets>>>,
    last: Option<Update>,
}

impl WithCompanions {
    /// Objects of `inner`, with these. It goes on by itself: what it is about to deliver must not be lost when others come first.
    pub fn new(
        mut inner: impl Source,
        keys: watch::Receiver<Arc<Keys>>,
        secrets: Option<watch::Receiver<Arc<Secrets>>>,
    ) -> Self {
        let (tell, updates) = mpsc::channel(1);
        task::spawn_vital("source", async move {
            loop {
                let next = tokio::select! {
                    next = inner.next() => next,
                    () = tell.closed() => return,
                };
                let Some(update) = next else { return };
                if tell.send(update).await.is_err() {
                    return;
                }
            }
        });
        Self { updates, keys, secrets, last: None }
    }
}

impl Source for WithCompanions {
    async fn next(&mut self) -> Option<Update> {
        let secrets = async {
            match &mut self.secrets {
                Some(secrets) => secrets.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            update = self.updates.recv() => self.last = Some(update?),
            // Who fetches them ends with the process.
            Ok(()) = self.keys.changed(), if self.last.is_some() => {}
            Ok(()) = secrets, if self.last.is_some() => {}
        }
        let mut update = self.last.as_mut()?.taken();
        update.objects.token_keys = self.keys.borrow_and_update().clone();
        if let Some(secrets) = &mut self.secrets {
            update.objects.secrets = Secrets::clone(&secrets.borrow_and_update());
        }
        Some(update)
    }
}
