//! Certificates of local identities: asked for once per identity however many pods wait, renewed at half of their life, kept while they are
//! valid whatever the authority does, and never used before they have been checked.
//!
//! Each identity has one task: ask, check, publish, sleep. All tasks share eight permits, so that a node that starts a thousand pods does not
//! flood the authority. One more task looks whether the wall clock was set back to before a certificate begins; peers refuse it then.

mod authority;
mod request;
pub mod schedule;

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use authority::GrpcAuthority;
pub use authority::{Authority, IssueError, Issued};
use mesh_core::{Identity, TrustDomain};
use mesh_runtime::{backoff::Backoff, task};
use mesh_transport::tls::{CertificateError, IdentityCertificate, Roots};
use parking_lot::{Mutex, RwLock};
use rand::Rng;
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{ClientMetrics, ControlConfig, channel::ChannelError};

/// Requests in flight at once.
const CONCURRENCY: usize = 8;
/// An authority that hangs is given up on.
const DEADLINE: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LAST_DELAY: Duration = Duration::from_secs(150);
/// Somebody waiting for a certificate shortens a retry delay to this, never below.
const IMPATIENT: Duration = Duration::from_secs(5);
/// How often the wall clock is compared with the certificates. Renewals that it leads to are spread over [`IMPATIENT`].
const LOOK: Duration = Duration::from_secs(2);

/// Why an identity has no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The authority did not give one.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The request could not be made.
    #[error("certificate request: {0}")]
    Request(String),
    /// What it gave may not be used.
    #[error("the authority's answer is refused: {0}")]
    Refused(#[from] CertificateError),
    /// It gave no roots.
    #[error("the authority's answer is refused: it has {0} elements, a leaf and a root are needed")]
    Incomplete(usize),
}

/// One identity, for `meshctl` and the admin socket.
#[derive(Clone, Debug)]
pub struct CertificateStatus {
    /// Whose.
    pub identity: Identity,
    /// The certificate in use, if there is a valid one.
    pub certificate: Option<Arc<IdentityCertificate>>,
    /// What went wrong last, until something went right.
    pub last_error: Option<String>,
}

/// The wall clock, which says what is valid. Tests bring one that jumps.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Keeps a certificate for each identity of a pod that is here. Cheap to clone; the last clone stops all tasks.
#[derive(Clone)]
pub struct CertificateManager {
    inner: Arc<Inner>,
}

struct Inner {
    authority: Arc<dyn Authority>,
    clock: Clock,
    ttl: Duration,
    aliases: Vec<TrustDomain>,
    metrics: ClientMetrics,
    permits: Arc<Semaphore>,
    generation: AtomicU64,
    /// Read on the data path, written when pods come and go.
    identities: RwLock<HashMap<Identity, Keeper>>,
    /// The last bundle, so that identities share one set of roots. Held for a comparison.
    roots: Mutex<Option<(String, TrustDomain, Arc<Roots>)>>,
}

/// The handle on one identity's task.
struct Keeper {
    slot: Arc<Slot>,
    users: usize,
    task: JoinHandle<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What one identity's task publishes.
struct Slot {
    identity: Identity,
    current: ArcSwapOption<IdentityCertificate>,
    /// Counts publications, to wake those who wait.
    published: watch::Sender<u64>,
    wanted: Notify,
    last_error: Mutex<Option<String>>,
}

impl Slot {
    /// The certificate, unless it has expired. A clock that was set back does not make it unusable.
    fn valid(&self, now: SystemTime) -> Option<Arc<IdentityCertificate>> {
        self.current.load_full().filter(|certificate| now < certificate.not_after)
    }

    /// The certificate, if it has yet to begin.
    fn early(&self, now: SystemTime) -> Option<Arc<IdentityCertificate>> {
        self.current.load_full().filter(|certificate| certificate.is_early(now))
    }
}

impl CertificateManager {
    /// Asks the control plane's authority. Must be called inside a tokio runtime, on which the tasks run.
    pub fn new(config: Arc<ControlConfig>, metrics: ClientMetrics) -> Result<Self, ChannelError> {
        let (ttl, aliases) = (config.certificate_ttl, config.trust_domain_aliases.clone());
        Ok(Self::with_authority(Arc::new(GrpcAuthority::new(config)?), ttl, aliases, metrics))
    }

    /// Asks another authority. Must be called inside a tokio runtime, as all that make a manager.
    #[must_use]
    pub fn with_authority(
        authority: Arc<dyn Authority>,
        ttl: Duration,
        aliases: Vec<TrustDomain>,
        metrics: ClientMetrics,
    ) -> Self {
        Self::with_clock(authority, ttl, aliases, metrics, Arc::new(mesh_runtime::clock::now))
    }

    /// Asks another authority and another clock.
    #[must_use]
    pub fn with_clock(
        authority: Arc<dyn Authority>,
        ttl: Duration,
        aliases: Vec<TrustDomain>,
        metrics: ClientMetrics,
        clock: Clock,
    ) -> Self {
        let inner = Inner {
            authority,
            clock,
            ttl,
            aliases,
            metrics,
            permits: Arc::new(Semaphore::new(CONCURRENCY)),
            generation: AtomicU64::new(0),
            identities: RwLock::default(),
            roots: Mutex::default(),
        };
        let inner = Arc::new(inner);
        task::spawn_vital("certificate clock", look(Arc::downgrade(&inner)));
        Self { inner }
    }

    /// The certificate in use, if there is a valid one. Never waits.
    #[must_use]
    pub fn current(&self, identity: &Identity) -> Option<Arc<IdentityCertificate>> {
        self.inner.identities.read().get(identity)?.slot.valid(self.inner.now())
    }

    /// The certificate in use, or the next one that is. Waits for as long as it takes: the caller has the deadline, and finds the reason in
    /// [`CertificateManager::last_error`]. An identity of which no pod is here is never asked for, so that nothing is kept, or fetched, for one
    /// that has just gone.
    pub async fn certificate(&self, identity: &Identity) -> Arc<IdentityCertificate> {
        loop {
            let slot = self.inner.identities.read().get(identity).map(|keeper| Arc::clone(&keeper.slot));
            let Some(slot) = slot else { return std::future::pending().await };
            let mut published = slot.published.subscribe();
            if let Some(certificate) = slot.valid(self.inner.now()) {
                return certificate;
            }
            slot.wanted.notify_one();
            drop(slot);
            if published.changed().await.is_err() {
                // Forgotten meanwhile: the pod is gone, and its connections are about to be.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A pod of this identity has come: its certificate will be wanted. Each call is undone by one `forget`.
    pub fn prefetch(&self, identity: &Identity) {
        let mut identities = self.inner.identities.write();
        identities.entry(identity.clone()).or_insert_with(|| self.start(identity)).users += 1;
        self.inner.metrics.identities.set(identities.len() as i64);
    }

    /// A pod of this identity is gone. With the last one the key is dropped and renewal ends; connections keep what they hold.
    pub fn forget(&self, identity: &Identity) {
        let mut identities = self.inner.identities.write();
        if let Some(keeper) = identities.get_mut(identity) {
            keeper.users = keeper.users.saturating_sub(1);
            if keeper.users == 0 {
                identities.remove(identity);
            }
        }
        self.inner.metrics.identities.set(identities.len() as i64);
    }

    /// Why the identity's last request failed, if it did.
    #[must_use]
    pub fn last_error(&self, identity: &Identity) -> Option<String> {
        self.inner.identities.read().get(identity)?.slot.last_error.lock().clone()
    }

    /// All identities, sorted.
    #[must_use]
    pub fn list(&self) -> Vec<CertificateStatus> {
        let now = self.inner.now();
        let identities = self.inner.identities.read();
        let status = |keeper: &Keeper| CertificateStatus {
            identity: keeper.slot.identity.clone(),
            certificate: keeper.slot.valid(now),
            last_error: keeper.slot.last_error.lock().clone(),
        };
        let mut list: Vec<_> = identities.values().map(status).collect();
        list.sort_by(|a, b| a.identity.cmp(&b.identity));
        list
    }

    fn start(&self, identity: &Identity) -> Keeper {
        let slot = Arc::new(Slot {
            identity: identity.clone(),
            current: ArcSwapOption::empty(),
            published: watch::Sender::new(0),
            wanted: Notify::new(),
            last_error: Mutex::default(),
        });
        // The task must not keep the manager alive, which owns the task.
        let task = task::spawn_vital("certificate", keep(Arc::downgrade(&self.inner), Arc::downgrade(&slot)));
        Keeper { slot, users: 0, task }
    }
}

/// Wakes the tasks whose certificates have yet to begin: a clock was ahead when they were made, and nobody accepts them until it has made up
/// for it.
async fn look(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(inner) = inner.upgrade() else { return };
        let now = inner.now();
        let identities = inner.identities.read();
        let early = identities.values().filter(|keeper| keeper.slot.early(now).is_some());
        early.for_each(|keeper| keeper.slot.wanted.notify_one());
    }
}

/// One identity's life.
async fn keep(inner: Weak<Inner>, slot: Weak<Slot>) {
    let mut backoff = Backoff::new(FIRST_DELAY, LAST_DELAY);
    loop {
        let (Some(inner), Some(held)) = (inner.upgrade(), slot.upgrade()) else { return };
        let early = held.early(inner.now());
        let outcome = inner.renew(&held.identity, early.as_deref()).await;
        let renewed = outcome.is_ok();
        let delay = match outcome {
            Ok(certificate) => {
                backoff.reset();
                let now = inner.now();
                let delay = schedule::renew_after(certificate.not_before, certificate.not_after, now, &mut rand::rng());
                tracing::debug!(identity = %held.identity, renew_s = delay.as_secs(), "certificate issued");
                inner.metrics.certificate("issued");
                held.current.store(Some(Arc::new(certificate)));
                *held.last_error.lock() = None;
                held.published.send_modify(|count| *count += 1);
                delay
            }
            Err(error) => {
                let delay = schedule::retry_after(&mut backoff, &mut rand::rng());
                tracing::warn!(identity = %held.identity, retry_ms = delay.as_millis() as u64, %error, "no certificate");
                inner.metrics.certificate(match error {
                    RenewError::Refused(_) | RenewError::Incomplete(_) => "refused",
                    RenewError::Issue(_) | RenewError::Request(_) => "failed",
                });
                *held.last_error.lock() = Some(error.to_string());
                delay
            }
        };
        // While it sleeps the task owns nothing, so that dropping the manager ends it.
        let clock = inner.clock.clone();
        drop(inner);
        let weak = Arc::downgrade(&held);
        drop(held);
        sleep(weak, clock, delay, renewed).await;
    }
}

/// Sleeps, but not while somebody waits for a certificate that there is not, nor while the one that there is has yet to begin. If the authority's
/// clock is another one than ours, asking it for one that has begun is of no use: `renewed` says that the last answer was good.
async fn sleep(slot: Weak<Slot>, clock: Clock, delay: Duration, renewed: bool) {
    let answered = Instant::now();
    let wake = answered + delay;
    loop {
        let Some(held) = slot.upgrade() else { return };
        if held.published.receiver_count() > 0 && held.valid(clock()).is_none() {
            drop(held);
            return tokio::time::sleep_until(wake.min(answered + IMPATIENT)).await;
        }
        if renewed && held.early(clock()).is_some() {
            let spread = IMPATIENT.mul_f64(rand::rng().random());
            return tokio::time::sleep_until(wake.min(Instant::now() + spread)).await;
        }
        tokio::select! {
            () = tokio::time::sleep_until(wake) => return,
            () = held.wanted.notified() => {}
        }
    }
}

impl Inner {
    fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// A new certificate. Instead of `early` it is as good as that one for what was made with it: connections go on through tunnels that are
    /// open, while those to peers that have not noticed the clock yet could not make one.
    async fn renew(
        &self,
        identity: &Identity,
        early: Option<&IdentityCertificate>,
    ) -> Result<IdentityCertificate, RenewError> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let request = request::create(identity).map_err(|e| RenewError::Request(e.to_string()))?;
        let (authority, asking, ttl, csr) = (Arc::clone(&self.authority), identity.clone(), self.ttl, request.csr);
        // A task of its own, so that it ends by itself when the identity is forgotten meanwhile: a channel connects only while somebody
        // asks through it, and would keep the socket of an attempt left half way, and its outcome for whoever asks next.
        let issued = task::spawn("certificate request", async move {
            let _permit = permit;
            tokio::time::timeout(DEADLINE, authority.issue(&asking, csr, ttl)).await.map_err(|_| IssueError::Deadline)
        });
        let broken = |e: tokio::task::JoinError| IssueError::Unavailable { problem: e.to_string() };
        let chain = issued.await.map_err(broken)???;
        let Some((roots, certificates)) = chain.split_last().filter(|(_, rest)| !rest.is_empty()) else {
            return Err(RenewError::Incomplete(chain.len()));
        };
        let roots = self.roots(roots, identity)?;
        let same = early.filter(|early| Arc::ptr_eq(early.roots(), &roots)).map(|early| early.generation);
        let generation = same.unwrap_or_else(|| self.generation.fetch_add(1, Ordering::Relaxed) + 1);
        let pem = certificates.join("\n");
        let certificate = IdentityCertificate::from_pem(
            identity.clone(),
            pem.as_bytes(),
            request.key.as_bytes(),
            roots,
            generation,
            self.now(),
        )?;
        Ok(certificate)
    }

    fn roots(&self, bundle: &str, identity: &Identity) -> Result<Arc<Roots>, CertificateError> {
        let mut last = self.roots.lock();
        if let Some((text, domain, roots)) = &*last
            && text == bundle
            && *domain == identity.trust_domain
        {
            return Ok(Arc::clone(roots));
        }
        let domain = identity.trust_domain.clone();
        let mut domains = vec![domain.clone()];
        domains.extend(self.aliases.iter().filter(|alias| **alias != domain).cloned());
        let roots = Arc::new(Roots::from_pem(bundle.as_bytes(), domains)?);
        *last = Some((bundle.to_owned(), domain, Arc::clone(&roots)));
        Ok(roots)
    }
}
