//! Keys of issuers that RequestAuthentications name by a place: fetched here, once for all waypoints, and joined with the objects. What cannot be fetched leaves
//! the keys that were there for a day; without any, tokens of the issuer are refused.
//!
//! ```text
//! view (places that are named) -> follow: fetch, guarded ── keys ──> companions: the objects again, with the keys ──> join
//! ```

mod fetch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use mesh_runtime::backoff::Backoff;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::index::View;
use crate::resource::token_keys::{self, Keys, Place};
use fetch::Client;
pub use fetch::FetchError;
use mesh_core::outside::is_public;

/// Between looks at a place whose keys are known, as in Istio.
const LOOK: Duration = Duration::from_secs(20 * 60);
/// Keys that are older are good for nothing.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Places that are looked at; of more the first ones by name.
const MOST: usize = 1000;
/// At once.
const AT_ONCE: usize = 8;

/// What is known of a place.
struct Known {
    /// How long it may take.
    patience: Duration,
    due: Instant,
    fetched: Option<Instant>,
    backoff: Backoff,
}

impl Known {
    /// Nothing yet.
    fn new(patience: Duration) -> Self {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        Self { patience, due: Instant::now(), fetched: None, backoff }
    }
}

/// Fetches keys for ever, of the places that the view names.
pub async fn follow(mut view: watch::Receiver<Arc<View>>, keys: watch::Sender<Arc<Keys>>) {
    let client = match Client::new(is_public) {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "keys of issuers cannot be fetched");
            return std::future::pending().await;
        }
    };
    let mut known: BTreeMap<Place, Known> = BTreeMap::new();
    loop {
        let wanted = wanted(&view.borrow_and_update());
        known.retain(|place, _| wanted.contains_key(place));
        for (place, patience) in wanted {
            known.entry(place).or_insert_with(|| Known::new(patience)).patience = patience;
        }
        let now = Instant::now();
        let due: Vec<Place> = known.iter().filter(|(_, one)| one.due <= now).map(|(place, _)| place.clone()).collect();
        for places in due.chunks(AT_ONCE) {
            look(&client, places, &mut known, &keys).await;
        }
        // What is named no more, or is too old, is known no more.
        let is_good =
            |place: &Place| known.get(place).and_then(|one| one.fetched).is_some_and(|at| at.elapsed() < LONGEST);
        keys.send_if_modified(|keys| {
            let before = keys.len();
            Arc::make_mut(keys).retain(|place, _| is_good(place));
            keys.len() != before
        });
        let next = known.values().map(|one| one.due).min();
        let wait = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            changed = view.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

async fn look(client: &Client, places: &[Place], known: &mut BTreeMap<Place, Known>, keys: &watch::Sender<Arc<Keys>>) {
    let fetch = |(place, patience): (Place, Duration)| async move {
        let fetched = tokio::time::timeout(patience, client.keys(&place)).await;
        (place, fetched.unwrap_or(Err(FetchError::Late)))
    };
    let asked = places.iter().filter_map(|place| Some((place.clone(), known.get(place)?.patience)));
    let mut answers: FuturesUnordered<_> = asked.map(fetch).collect();
    while let Some((place, answer)) = answers.next().await {
        let Some(one) = known.get_mut(&place) else { continue };
        match answer {
            Ok(text) => {
                one.backoff.reset();
                one.fetched = Some(Instant::now());
                one.due = Instant::now() + LOOK.mul_f64(rand::rng().random_range(0.9..1.1));
                keys.send_if_modified(|keys| {
                    let is_new = keys.get(&place) != Some(&text);
                    if is_new {
                        Arc::make_mut(keys).insert(place, text);
                    }
                    is_new
                });
            }
            Err(error) => {
                tracing::warn!(?place, %error, "keys of an issuer cannot be fetched");
                one.due = Instant::now() + one.backoff.next(&mut rand::rng());
            }
        }
    }
}

fn wanted(view: &View) -> BTreeMap<Place, Duration> {
    let objects = view.routes.request_authentications.values();
    token_keys::places(
        objects.flat_map(|object| &object.spec.jwt_rules).filter(|rule| Place::of(rule).is_some()).take(MOST),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn features_RA_1_a_place_has_as_long_as_its_rules_say() {
        // Nobody accepts: the connection comes about, and no answer.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = Place::Keys(format!("http://{}/keys", listener.local_addr().unwrap()));
        let mut known: BTreeMap<_, _> = [(place.clone(), Known::new(Duration::from_millis(50)))].into();
        let (keys, _) = watch::channel(Arc::default());
        let (client, places) = (Client::new(|_| true).unwrap(), [place]);
        let asked = look(&client, &places, &mut known, &keys);
        tokio::time::timeout(Duration::from_secs(3), asked).await.expect("it has 50 ms");
        assert!(
            keys.borrow().is_empty() && known.values().all(|one| one.fetched.is_none() && one.due > Instant::now())
        );
    }
}
