//! How long a connection to an endpoint is kept, and for how many requests: as is said of its place.

use std::time::Duration;

use mesh_core::l7::cluster::Pool as Said;
use mesh_runtime::ticks;

use super::choose::Endpoint;
use crate::settings::Settings;

/// A moment, in [`ticks`].
#[derive(Clone, Copy)]
pub(super) struct Since(u64);

impl Since {
    pub(super) fn now() -> Self {
        Self(ticks::now_ms())
    }

    fn elapsed(self) -> Duration {
        Duration::from_millis(ticks::now_ms().saturating_sub(self.0))
    }
}

/// What a connection has behind it, and what it may have.
#[derive(Clone, Copy)]
pub(super) struct Life {
    /// When it was made.
    since: Since,
    /// Requests that it has served, with the one that it serves.
    served: u32,
    /// How many it may serve.
    most: u32,
    /// How old it may become.
    lifetime: Option<Duration>,
    /// How long it may wait.
    idle: Duration,
}

impl Life {
    pub(super) fn begin(endpoint: &Endpoint, settings: &Settings) -> Self {
        let said = endpoint.found.as_ref().filter(|found| found.now.is_said()).map(|found| &found.now.policy().pool);
        Self {
            since: Since::now(),
            served: 1,
            most: said.map_or(u32::MAX, |said| said.requests_per_connection),
            lifetime: said.and_then(|said| said.lifetime),
            idle: idle(said, settings.upstream_idle),
        }
    }

    /// The same before its first request.
    pub(super) fn unused(self) -> Self {
        Self { served: 0, ..self }
    }

    /// Whether the request that it serves is its first.
    pub(super) fn is_first(&self) -> bool {
        self.served <= 1
    }

    /// Whether it takes another request.
    pub(super) fn goes_on(&self) -> bool {
        self.served < self.most && self.is_young()
    }

    /// Whether it may become older.
    pub(super) fn is_young(&self) -> bool {
        self.lifetime.is_none_or(|limit| self.since.elapsed() < limit)
    }

    /// Whether it has waited for as long as it may, since then.
    pub(super) fn has_waited(&self, since: Since) -> bool {
        since.elapsed() >= self.idle
    }

    /// With one request more.
    pub(super) fn next(self) -> Self {
        Self { served: self.served.saturating_add(1), ..self }
    }
}

/// A connection waits no longer, whatever is said: those of clients that are gone are never used again, and have places that others need.
const LONGEST: Duration = Duration::from_secs(3600);

/// How long a connection may wait. What is said counts, but not just Istio's hour, which comes where nobody has said anything: for that long the connections of each
/// client to each endpoint would take memory. An hour that is said comes as a little more.
fn idle(said: Option<&Said>, usual: Duration) -> Duration {
    match said.map(|said| said.idle_timeout) {
        Some(idle) if idle != Said::default().idle_timeout => idle.unwrap_or(LONGEST).min(LONGEST),
        _ => usual,
    }
}

#[cfg(test)]
impl Life {
    pub(super) fn forever() -> Self {
        Self { since: Since::now(), served: 1, most: u32::MAX, lifetime: None, idle: LONGEST }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_DR_10_connections_wait_as_long_as_is_said() {
        let usual = Duration::from_secs(60);
        let said = |idle_timeout| Said { idle_timeout, ..Said::default() };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (said, expected) in [
            (None, usual),
            (Some(Said::default()), usual),
            (Some(said(seconds(5))), Duration::from_secs(5)),
            (Some(said(seconds(600))), Duration::from_secs(600)),
            (Some(said(seconds(7200))), LONGEST),
            (Some(said(Some(Duration::from_nanos(3_600_000_000_001)))), LONGEST),
            (Some(said(None)), LONGEST),
        ] {
            assert_eq!(idle(said.as_ref(), usual), expected, "{said:?}");
        }
    }
}
