//! Who calls: the bearer token of a request, checked. Both services use it; without a valid token nothing else happens.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::access::token::{Caller, Tokens};
use crate::index::View;
use crate::metrics::Metrics;

/// Lines in the log about failed authentication, a second: who has no token may make no noise either.
const LINES: u32 = 10;

/// Checks tokens against the nodes that exist now.
#[derive(Clone, Debug)]
pub struct Access {
    tokens: Arc<Tokens>,
    view: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
    /// The second that lines are counted in, and how many it has had. A short critical section.
    lines: Arc<Mutex<(u64, u32)>>,
}

impl Access {
    /// Checks with `tokens`, against the nodes of `view`.
    pub fn new(tokens: Arc<Tokens>, view: watch::Receiver<Arc<View>>, metrics: Arc<Metrics>) -> Self {
        Self { tokens, view, metrics, lines: Arc::default() }
    }

    /// The node that calls `service`. What is wrong with its token is counted and logged, and told to nobody.
    pub fn caller(&self, service: &'static str, metadata: &MetadataMap, now: SystemTime) -> Result<Caller, Status> {
        let header = metadata.get("authorization").and_then(|v| v.to_str().ok());
        let token = header.and_then(|h| h.strip_prefix("Bearer ").or_else(|| h.strip_prefix("bearer ")));
        let view = self.view();
        let caller = self.tokens.verify(token, now, |node, uid| match view.nodes.get(node) {
            Some(known) => known.as_deref() == uid,
            None => false,
        });
        caller.map_err(|why| {
            self.metrics.authentication_failures.inc();
            if self.may_log(now) {
                tracing::warn!(service, reason = %why, "authentication failed");
            }
            Status::unauthenticated("authentication failed")
        })
    }

    fn may_log(&self, now: SystemTime) -> bool {
        let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut lines = self.lines.lock();
        if lines.0 != second {
            *lines = (second, 0);
        }
        lines.1 = lines.1.saturating_add(1);
        lines.1 <= LINES
    }

    /// What is known now.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }
}
