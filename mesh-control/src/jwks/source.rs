//! A source whose objects come with the keys that they name: once more when those are others.

use std::sync::Arc;

use mesh_runtime::task;
use tokio::sync::{mpsc, watch};

use crate::resource::token_keys::Keys;
use crate::source::{Source, Update};

/// Another source, with keys.
pub struct WithKeys {
    updates: mpsc::Receiver<Update>,
    keys: watch::Receiver<Arc<Keys>>,
    last: Option<Update>,
}

impl WithKeys {
    /// Objects of `inner`, with these keys. It goes on by itself: what it is about to deliver must not be lost when keys come first.
    pub fn new(mut inner: impl Source, keys: watch::Receiver<Arc<Keys>>) -> Self {
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
        Self { updates, keys, last: None }
    }
}

impl Source for WithKeys {
    async fn next(&mut self) -> Option<Update> {
        tokio::select! {
            update = self.updates.recv() => self.last = Some(update?),
            // Who fetches them ends with the process.
            Ok(()) = self.keys.changed(), if self.last.is_some() => {}
        }
        let mut update = self.last.clone()?;
        update.objects.token_keys = self.keys.borrow_and_update().clone();
        Some(update)
    }
}
