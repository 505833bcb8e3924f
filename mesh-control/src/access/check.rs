//! Who calls: the bearer token of a request, checked. Both services use it; without a valid token nothing else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap};
use rand::Rng;
use tokio::sync::watch;
use tonic::Status;

use crate::access::pace::Lines;
use crate::access::review::Reviewer;
use crate::access::token::{Caller, TokenError, Tokens};
use crate::access::who::Who;
use crate::index::View;
use crate::metrics::Metrics;

/// Whether somebody on a connection has ever shown a valid token. The listener gives one to each connection and ends those that stay strangers.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<AtomicBool>);

impl Known {
    /// Whether a token was shown.
    pub fn is_known(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// It need not show one.
    pub fn introduce(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whose tokens are accepted.
#[derive(Clone, Debug)]
pub enum Verifier {
    /// Our own, made for each node and each waypoint.
    Own(Arc<Tokens>),
    /// Those of service accounts, which the API server reviews.
    Cluster(Arc<Reviewer>),
}

/// Checks tokens against the nodes and waypoints that exist now.
#[derive(Clone, Debug)]
pub struct Access {
    verifier: Verifier,
    view: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
    lines: Lines,
}

impl Access {
    /// Checks with `verifier`, against those of `view`.
    pub fn new(verifier: Verifier, view: watch::Receiver<Arc<View>>, metrics: Arc<Metrics>) -> Self {
        Self { verifier, view, metrics, lines: Lines::default() }
    }

    /// Who calls `service`. What is wrong with its token is counted and logged, and told to nobody.
    pub async fn caller(
        &self,
        service: &'static str,
        headers: &HeaderMap,
        extensions: &Extensions,
        now: SystemTime,
    ) -> Result<Caller, Status> {
        let header = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let token = header.and_then(|h| h.strip_prefix("Bearer ").or_else(|| h.strip_prefix("bearer ")));
        let view = self.view();
        let caller = match &self.verifier {
            Verifier::Own(tokens) => tokens.verify(token, now, |who| who.stands(&view)),
            Verifier::Cluster(reviewer) => reviewer.verify(token, now, &view).await,
        };
        if let (Ok(_), Some(connection)) = (&caller, extensions.get::<Known>()) {
            connection.introduce();
        }
        caller.map_err(|why| {
            self.metrics.authentication_failures.inc();
            if self.lines.admit() {
                tracing::warn!(service, reason = %why, "authentication failed");
            }
            match why {
                // It may be good: the caller is to try again.
                TokenError::Unreviewed => Status::unavailable("tokens cannot be checked now"),
                _ => Status::unauthenticated("authentication failed"),
            }
        })
    }

    /// Returns once the caller's token is worth nothing any more: its node or waypoint is gone, or another one of the same name, or its time is nearly
    /// over. Nearly, so that the nodes, whose tokens are renewed together, do not come back together.
    pub async fn end_of(&self, caller: &Caller, now: SystemTime) -> Status {
        let mut view = self.view.clone();
        let gone = view.wait_for(|view| !caller.who.stands(view));
        let remaining = caller.remaining(now).mul_f64(rand::rng().random_range(0.9..1.0));
        tokio::select! {
            gone = gone => match gone {
                Ok(_) => match caller.who {
                    Who::Node { .. } => Status::unauthenticated("the node is not known any more"),
                    Who::Waypoint { .. } => Status::unauthenticated("the waypoint is not known any more"),
                },
                // No view any more: the process ends, and with it the stream.
                Err(_) => Status::unavailable("shutting down"),
            },
            () = tokio::time::sleep(remaining) => Status::unauthenticated("the token expires"),
        }
    }

    /// What is known now.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }
}
