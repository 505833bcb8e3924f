//! Who calls: the bearer token of a request, checked. Both services use it; without a valid token nothing else happens.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::access::token::{Caller, TokenError, Tokens};
use crate::index::View;

/// Checks tokens against the nodes that exist now.
#[derive(Clone, Debug)]
pub struct Access {
    tokens: Arc<Tokens>,
    view: watch::Receiver<Arc<View>>,
}

impl Access {
    /// Checks with `tokens`, against the nodes of `view`.
    pub fn new(tokens: Arc<Tokens>, view: watch::Receiver<Arc<View>>) -> Self {
        Self { tokens, view }
    }

    /// The node that calls. What is wrong is logged by the caller of this and told to nobody.
    pub fn caller(&self, metadata: &MetadataMap, now: SystemTime) -> Result<Caller, TokenError> {
        let header = metadata.get("authorization").and_then(|v| v.to_str().ok());
        let token = header.and_then(|h| h.strip_prefix("Bearer ").or_else(|| h.strip_prefix("bearer ")));
        let view = self.view.borrow().clone();
        self.tokens.verify(token, now, |node, uid| match view.nodes.get(node) {
            Some(known) => known.as_deref() == uid,
            None => false,
        })
    }

    /// What is known now.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }
}

/// The only answer to a bad token.
pub fn unauthenticated() -> Status {
    Status::unauthenticated("authentication failed")
}
