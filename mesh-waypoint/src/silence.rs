//! When a connection that is no HTTP has been silent for as long as is said of its place. Looked at from time to time, because nothing has to be done then for the
//! bytes that pass.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mesh_transport::copy::ByteCounters;
use tokio::time::Instant;

use crate::upstream::Endpoint;

/// In which part of the time it is looked at again: it is found out so much later at most.
const PARTS: u32 = 8;
/// It is not looked at more often.
const OFTEN: Duration = Duration::from_millis(10);

/// What is said of an endpoint's place.
#[must_use]
pub fn limit(endpoint: &Endpoint) -> Option<Duration> {
    endpoint.found.as_ref()?.now.policy().pool.silence
}

/// Waits until neither side has said anything for so long; for ever if nothing is said.
pub async fn wait(counters: &ByteCounters, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    let passed = || (counters.sent.load(Relaxed), counters.received.load(Relaxed));
    let (mut last, mut since) = (passed(), Instant::now());
    while since.elapsed() < limit {
        let left = limit - since.elapsed();
        tokio::time::sleep(left.min((limit / PARTS).max(OFTEN))).await;
        let now = passed();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_says_something_now_and_then_is_not_silent() {
        let (counters, limit) = (ByteCounters::default(), Duration::from_secs(8));
        let began = Instant::now();
        let talk = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(7)).await;
                counters.sent.fetch_add(1, Relaxed);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = wait(&counters, Some(limit)) => {}
            () = talk => {}
        }
        let seconds = began.elapsed().as_secs();
        assert!((78..=79).contains(&seconds), "{seconds}");
        assert!(tokio::time::timeout(Duration::from_secs(1 << 30), wait(&counters, None)).await.is_err());
    }
}
