//! Fetches the keys by which the API server signs tokens, from itself, and keeps them for when it is away. Where its documents say that keys are is
//! not heeded: nobody else is ever asked.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use kube::Client;
use mesh_runtime::backoff::Backoff;
use rand::Rng;
use tokio::time::Instant;

use super::keys::{KeySet, MAX_SET_BYTES};
use crate::api_server::{Failure, fetch};
use crate::metrics::Metrics;

const ISSUER: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";
/// For the API server to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Between looks. A new key is published long before it signs.
const LOOK: Duration = Duration::from_secs(300);
/// Keys that are older are good for nothing: no token lasts that long without the API server.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The keys, once they are known. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    current: Arc<ArcSwapOption<(KeySet, Instant)>>,
}

impl Keys {
    /// The keys, unless they are too old.
    pub fn get(&self) -> Option<Arc<(KeySet, Instant)>> {
        self.current.load_full().filter(|known| known.1.elapsed() < LONGEST)
    }

    /// Fetches them once. What cannot be used replaces nothing.
    pub async fn fetch(&self, client: &Client) -> Result<usize, Failure> {
        let issuer = fetch(client, ISSUER, MAX_SET_BYTES, ANSWER).await?;
        let keys = fetch(client, KEYS, MAX_SET_BYTES, ANSWER).await?;
        let refused = |why| Failure::new(format!("the API server's keys for tokens cannot be used: {why}"));
        let set = KeySet::read(&issuer, &keys).map_err(refused)?;
        let count = set.len();
        self.current.store(Some(Arc::new((set, Instant::now()))));
        Ok(count)
    }

    /// Fetches them for ever.
    pub async fn follow(self, client: Client, metrics: Arc<Metrics>) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let mut complaint = String::new();
        loop {
            let delay = match self.fetch(&client).await {
                Ok(_) => {
                    complaint.clear();
                    backoff.reset();
                    LOOK.mul_f64(rand::rng().random_range(0.9..1.1))
                }
                Err(failure) => {
                    let text = failure.to_string();
                    if text != complaint {
                        tracing::warn!(%failure, "no keys to check tokens by while the API server is away, trying again");
                        complaint = text;
                    }
                    backoff.next(&mut rand::rng()) + failure.retry_after.unwrap_or_default()
                }
            };
            let known = self.get().map_or(0, |known| known.0.len());
            metrics.token_keys.set(i64::try_from(known).unwrap_or(i64::MAX));
            tokio::time::sleep(delay).await;
        }
    }
}
