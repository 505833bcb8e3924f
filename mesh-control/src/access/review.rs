//! Tokens of service accounts, checked by the API server (TokenReview). The agent of a node presents the one that its kubelet gave it: it says for whom
//! it is meant, which service account it is of, and on which node the pod runs that it was made for. What the API server has accepted is remembered for
//! a moment; while the API server is away, for as long as the token lasts, so that certificates are renewed all the same. A token that it has not seen
//! is checked then by its keys ([`super::keys`]). What it has refused is not remembered at all: anybody can make such tokens, and they take nothing's
//! place. Whatever was remembered or checked here, the pod that the token was made for must not have gone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use kube::Client;
use mesh_core::ArcStr;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::discovery::Keys;
use super::pace::Lines;
use super::rights::{self, Bearer};
use super::token::{Caller, TokenError};
use super::who::Who;
use crate::api_server::{Failure, send};
use crate::clock::unix;
use crate::index::View;
use crate::metrics::Metrics;

/// Longer than any token of a service account.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// Reviews under way at once: who has no token may not keep the API server busy.
const REVIEWS: usize = 16;
/// And of tokens that were good: strangers do not stand before them.
const REVIEWS_AGAIN: usize = 8;
/// Tokens remembered, some for each node's agent.
const REMEMBERED: usize = 20_000;
/// The same of waypoints: who may ask for tokens of their service accounts takes no place of an agent's.
const OF_WAYPOINTS: usize = 4_000;

const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// How long things last; tests have other times.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long an answer holds.
    pub fresh: Duration,
    /// For a review to begin and be answered. An agent waits longer.
    pub answer: Duration,
    /// The same, of a token that was good: it is most likely good still.
    pub again: Duration,
    /// How long an answer holds for want of a newer one, while other reviews are answered: who keeps the reviews busy keeps no token good.
    pub busy: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(30),
            answer: Duration::from_secs(5),
            again: Duration::from_secs(2),
            busy: Duration::from_secs(600),
        }
    }
}

/// Checks tokens of service accounts.
pub struct Reviewer {
    client: Client,
    /// For whom tokens may be meant.
    audiences: Vec<String>,
    /// Service accounts of agents, each a namespace and a name. Those of waypoints are in the view.
    agents: Vec<(ArcStr, ArcStr)>,
    places: Semaphore,
    places_again: Semaphore,
    times: Times,
    /// Reviews that were answered.
    answered: AtomicU64,
    /// In the log, about reviews that there were not.
    lines: Lines,
    /// Whose tokens were accepted, and when: by the hash of the token, which is a secret. Agents', then waypoints'. A short
    /// critical section.
    known: Mutex<[HashMap<[u8; 32], Remembered>; 2]>,
    /// For when it cannot be asked.
    keys: Keys,
    metrics: Arc<Metrics>,
}

/// What the API server said: who it is, and the uid of the pod.
type Answer = Result<(Caller, Option<ArcStr>), TokenError>;

/// How the names of service accounts begin.
const ACCOUNT: &str = "system:serviceaccount:";

/// What it has accepted.
#[derive(Clone, Debug)]
struct Remembered {
    caller: Caller,
    pod: Option<ArcStr>,
    at: Instant,
    /// The pod has been known here: if it is not any more, it is gone.
    seen: bool,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { audiences, agents, .. } = self;
        f.debug_struct("Reviewer").field("audiences", audiences).field("agents", agents).finish_non_exhaustive()
    }
}

/// What is read of a token before it is known to be one. Nothing of it is believed until the API server has said so.
#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default)]
    aud: OneOrMany,
    #[serde(default)]
    sub: String,
    exp: i64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        OneOrMany::Many(Vec::new())
    }
}

#[derive(Debug, Deserialize)]
struct Review {
    #[serde(default)]
    status: ReviewStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReviewStatus {
    authenticated: bool,
    audiences: Vec<String>,
    user: ReviewUser,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReviewUser {
    username: String,
    extra: BTreeMap<String, Vec<String>>,
}

impl Reviewer {
    /// Accepts tokens for any of `audiences`: of any of `agents`, each a namespace and a name, and of pods that serve waypoints.
    pub fn new(client: Client, audiences: Vec<String>, agents: &[(String, String)]) -> Self {
        let agents = agents.iter().map(|(ns, name)| (ns.as_str().into(), name.as_str().into())).collect();
        Self {
            client,
            audiences,
            agents,
            places: Semaphore::new(REVIEWS),
            places_again: Semaphore::new(REVIEWS_AGAIN),
            times: Times::default(),
            answered: AtomicU64::new(0),
            lines: Lines::default(),
            known: Mutex::default(),
            keys: Keys::default(),
            metrics: Arc::default(),
        }
    }

    /// The same, which checks tokens by `keys` if no review can be had, and counts that.
    #[must_use]
    pub fn or_by(self, keys: Keys, metrics: Arc<Metrics>) -> Self {
        Self { keys, metrics, ..self }
    }

    /// The same, with other times.
    #[must_use]
    pub fn times(self, times: Times) -> Self {
        Self { times, ..self }
    }

    /// Whose token it is, in the mesh as `view` knows it.
    pub async fn verify(&self, token: Option<&str>, now: SystemTime, view: &View) -> Result<Caller, TokenError> {
        let token = token.filter(|t| !t.is_empty()).ok_or(TokenError::Missing)?;
        let claims = self.plausible(token, now, view)?;
        let hash = digest(token);
        let caller = match self.recall(&hash, view) {
            Some(known) if known.at.elapsed() < self.times.fresh => known.caller,
            known => {
                let (places, patience) = match known {
                    Some(_) => (&self.places_again, self.times.again),
                    None => (&self.places, self.times.answer),
                };
                let answered = self.answered.load(Ordering::Relaxed);
                match self.review(token, &claims, places, patience, view).await {
                    Ok(answer) => {
                        self.remember(hash, &answer, now);
                        answer?.0
                    }
                    Err(failure) => {
                        if self.lines.admit() {
                            tracing::warn!(%failure, "the API server reviews no tokens");
                        }
                        let others = self.answered.load(Ordering::Relaxed) != answered;
                        let is_enough = |known: &Remembered| !others || known.at.elapsed() < self.times.busy;
                        match known.filter(is_enough) {
                            // It has an opinion, and is not asked for it in the right way.
                            _ if !failure.is_away() => return Err(TokenError::Unreviewed),
                            // It was good, and its time is not over: that is all that can be known now.
                            Some(known) => known.caller,
                            None => self.vouch(token, now, view)?,
                        }
                    }
                }
            }
        };
        if caller.who.stands(view) { Ok(caller) } else { Err(TokenError::Gone) }
    }

    /// What is remembered of a token, unless its pod has gone since.
    fn recall(&self, hash: &[u8; 32], view: &View) -> Option<Remembered> {
        let mut all = self.known.lock();
        let all = all.iter_mut().find(|all| all.contains_key(hash))?;
        let known = all.get_mut(hash)?;
        let is_there = match &known.caller.who {
            Who::Node { .. } => known.pod.as_ref().is_some_and(|pod| view.agents.contains_key(pod)),
            Who::Waypoint { .. } => known.caller.who.stands(view),
        };
        if known.seen && !is_there {
            all.remove(hash);
            return None;
        }
        known.seen = is_there;
        Some(known.clone())
    }

    /// Checks a token without the API server.
    fn vouch(&self, token: &str, now: SystemTime, view: &View) -> Result<Caller, TokenError> {
        let keys = self.keys.get().ok_or(TokenError::Unreviewed)?;
        let caller = keys.0.vouch(token, &self.audiences, now)?.caller(&self.agents, view)?;
        self.metrics.vouched.inc();
        Ok(caller)
    }

    /// Refuses what the API server would refuse too, without asking it.
    fn plausible(&self, token: &str, now: SystemTime, view: &View) -> Result<Claims, TokenError> {
        let mut parts = token.split('.');
        let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::Malformed);
        };
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenError::Malformed)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| TokenError::Malformed)?;
        let audiences = match &claims.aud {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        };
        if !audiences.iter().any(|a| self.audiences.contains(a)) {
            Err(TokenError::Audience)
        } else if !account(&claims.sub).is_some_and(|(ns, name)| rights::is_known(&self.agents, ns, name, view)) {
            Err(TokenError::Account)
        } else if unix(now) >= claims.exp {
            Err(TokenError::Expired)
        } else {
            Ok(claims)
        }
    }

    async fn review(
        &self,
        token: &str,
        claims: &Claims,
        places: &Semaphore,
        patience: Duration,
        view: &View,
    ) -> Result<Answer, Failure> {
        let deadline = Instant::now() + patience;
        let place = tokio::time::timeout_at(deadline, places.acquire()).await;
        let _place = place.map_err(|_| Failure::new("too many reviews are under way"))?.map_err(Failure::new)?;
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": self.audiences },
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let left = deadline.saturating_duration_since(Instant::now());
        let review: Review = send(&self.client, Method::POST, path, "application/json", &review, left).await?;
        self.answered.fetch_add(1, Ordering::Relaxed);
        Ok(self.judge(&review.status, claims.exp, view))
    }

    fn judge(&self, status: &ReviewStatus, expires: i64, view: &View) -> Answer {
        if !status.authenticated {
            return Err(TokenError::Signature);
        }
        // A server that knows nothing of audiences names none.
        if !status.audiences.iter().any(|a| self.audiences.contains(a)) {
            return Err(TokenError::Audience);
        }
        let (namespace, account) = account(&status.user.username).ok_or(TokenError::Account)?;
        let extra = |key: &str| match status.user.extra.get(key).map(Vec::as_slice) {
            Some([one]) if !one.is_empty() => Some(one.clone()),
            _ => None,
        };
        let bearer = Bearer {
            namespace: namespace.into(),
            account: account.into(),
            pod: extra(POD_NAME).map(ArcStr::from),
            uid: extra(POD_UID).map(ArcStr::from),
            node: extra(NODE_NAME).map(|node| (node.into(), extra(NODE_UID))),
        };
        let pod = bearer.uid.clone();
        Ok((Caller::new(rights::bearer(bearer, &self.agents, view)?, expires), pod))
    }

    fn remember(&self, hash: [u8; 32], answer: &Answer, now: SystemTime) {
        let [agents, waypoints] = &mut *self.known.lock();
        let Ok((caller, pod)) = answer else {
            agents.remove(&hash);
            waypoints.remove(&hash);
            return;
        };
        let (known, most) = match caller.who {
            Who::Node { .. } => (agents, REMEMBERED),
            Who::Waypoint { .. } => (waypoints, OF_WAYPOINTS),
        };
        if known.len() >= most && !known.contains_key(&hash) {
            known.retain(|_, known| !known.caller.remaining(now).is_zero());
        }
        if known.len() >= most && !known.contains_key(&hash) {
            // Each of them was accepted: the one that is good for the shortest time is the least loss.
            let first = known.iter().min_by_key(|(_, known)| known.caller.remaining(now)).map(|(hash, _)| *hash);
            first.map(|first| known.remove(&first));
        }
        let seen = known.get(&hash).is_some_and(|known| known.seen);
        known.insert(hash, Remembered { caller: caller.clone(), pod: pod.clone(), at: Instant::now(), seen });
    }
}

/// Namespace and name of the service account that a user is.
fn account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(ACCOUNT)?.split_once(':')
}

fn digest(token: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hardening_F17_tokens_that_were_accepted_are_remembered_however_many_others_come() {
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let reviewer = Reviewer::new(client, Vec::new(), &[]);
        let now = mesh_runtime::clock::now();
        let good =
            |seconds: i64| Ok((Caller::new(Who::Node { name: "n".into(), uid: None }, unix(now) + seconds), None));
        let hash = |kind: u8, number: usize| {
            let mut hash = [kind; 32];
            hash[..8].copy_from_slice(&number.to_be_bytes());
            hash
        };
        let has = |hash: [u8; 32]| reviewer.known.lock().iter().any(|known| known.contains_key(&hash));
        reviewer.remember(hash(0, 0), &good(3600), now);
        (0..REMEMBERED + 1).for_each(|n| reviewer.remember(hash(1, n), &Err(TokenError::Signature), now));
        assert!(has(hash(0, 0)) && reviewer.known.lock()[0].len() == 1);
        // Of more than there is room for, those go that are over, then the one that is over next.
        reviewer.remember(hash(2, 0), &good(0), now);
        reviewer.remember(hash(2, 1), &good(60), now);
        (3..REMEMBERED).for_each(|n| reviewer.remember(hash(3, n), &good(120), now));
        assert!(has(hash(2, 0)) && has(hash(2, 1)));
        reviewer.remember(hash(4, 0), &good(120), now);
        assert!(!has(hash(2, 0)) && has(hash(2, 1)));
        reviewer.remember(hash(4, 1), &good(120), now);
        assert!(has(hash(0, 0)) && has(hash(4, 1)) && !has(hash(2, 1)));
        // Tokens of waypoints take no place of an agent's.
        let gateway = mesh_core::NamespacedName::new("shop", "wp");
        let of_waypoint = Who::Waypoint { gateway: gateway.clone(), uid: None, pod: Some((gateway, "u".into())) };
        let longer = Ok((Caller::new(of_waypoint, unix(now) + 9999), None));
        (0..OF_WAYPOINTS + 9).for_each(|n| reviewer.remember(hash(5, n), &longer, now));
        assert_eq!(reviewer.known.lock().each_ref().map(HashMap::len), [REMEMBERED, OF_WAYPOINTS]);
        // What is refused is good no longer.
        reviewer.remember(hash(0, 0), &Err(TokenError::Signature), now);
        assert!(!has(hash(0, 0)));
    }
}
