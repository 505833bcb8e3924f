//! When a connection that is no HTTP has been silent, or has lasted, for as long as is said of its place. Silence is looked at from time to time, because nothing has
//! to be done then for the bytes that pass.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mesh_transport::copy::ByteCounters;
use tokio::time::Instant;

use crate::upstream::Endpoint;

/// In which part of the time it is looked at again: it is found out so much later at most.
const PARTS: u32 = 8;
/// It is not looked at more often.
const OFTEN: Duration = Duration::from_millis(10);

/// How long a connection may be silent, and how long it may last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    silence: Option<Duration>,
    lifetime: Option<Duration>,
}

/// Which of both is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Nobody has said anything for so long.
    Silent,
    /// It has lasted for so long, whatever was said.
    Old,
}

/// What is said of an endpoint's place.
#[must_use]
pub fn limits(endpoint: &Endpoint) -> Limits {
    let said = endpoint.found.as_ref().map(|found| &found.now.policy().pool);
    said.map_or_else(Limits::default, |pool| Limits { silence: pool.silence, lifetime: pool.lifetime })
}

/// Waits until one of both is over for a connection that begins now; for ever if nothing is said.
pub async fn wait(counters: &ByteCounters, limits: Limits) -> Over {
    let old = async {
        match limits.lifetime {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = silent(counters, limits.silence) => Over::Silent,
        () = old => Over::Old,
    }
}

async fn silent(counters: &ByteCounters, limit: Option<Duration>) {
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
            over = wait(&counters, Limits { silence: Some(limit), lifetime: None }) => assert_eq!(over, Over::Silent),
            () = talk => {}
        }
        let seconds = began.elapsed().as_secs();
        assert!((78..=79).contains(&seconds), "{seconds}");
        let forever = wait(&counters, Limits::default());
        assert!(tokio::time::timeout(Duration::from_secs(1 << 30), forever).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn features_DR_9_what_talks_all_the_time_is_old_at_its_time() {
        let (counters, began) = (ByteCounters::default(), Instant::now());
        let limits = Limits { silence: Some(Duration::from_secs(8)), lifetime: Some(Duration::from_secs(60)) };
        let talk = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                counters.sent.fetch_add(1, Relaxed);
            }
        };
        tokio::select! {
            over = wait(&counters, limits) => assert_eq!((over, began.elapsed().as_secs()), (Over::Old, 60)),
            () = talk => {}
        }
    }
}
