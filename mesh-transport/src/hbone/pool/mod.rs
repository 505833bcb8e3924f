//! The pool of tunnels that a node dialled: which tunnel a new stream uses, when another one is dialled, when one ends.
//!
//! A dial runs in its own task and all who wait for it share its result; no lock is held while it runs. Called by the outbound proxy.

mod dial;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arcstr::ArcStr;
use mesh_core::identity::Identity;
use mesh_runtime::{failpoint, task};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use self::dial::{InPool, UnderWay, Waiting, dial_tunnel};
use super::driver::{Driver, Timers};
use super::frame::code;
use super::server::InboundRequest;
use super::tunnel::{Closed, Tunnel};
use super::{ConnectRequest, ConnectResponse, HboneError, HboneStream};
use crate::tls::{IdentityCertificate, Revocations};

/// A tunnel counts as saturated this long after its socket could not take a batch.
const CONGESTED: Duration = Duration::from_millis(100);
/// How long who may ask somebody else waits for a sign of the peer: for the answer to its request, and as long again for that to a PING.
const SIGN: Duration = Duration::from_millis(500);
/// Attempts to open a stream when tunnels end under our hands.
const ATTEMPTS: u32 = 4;

/// What makes two connections share a tunnel: nothing of the source or the destination may differ.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Identity of the source workload.
    pub source: Identity,
    /// Enrolment uid of the source pod.
    pub source_uid: ArcStr,
    /// Address that the tunnel is dialled from.
    pub source_ip: IpAddr,
    /// Tunnel address of the destination.
    pub destination: SocketAddr,
    /// Workload uid of the destination.
    pub destination_uid: ArcStr,
    /// Changes when the destination's address changed owner.
    pub destination_generation: u64,
    /// Who may answer.
    pub expected: Arc<[Identity]>,
    /// The thread that the connections live on: what is shared by threads costs a wake-up for each of its messages.
    pub lane: usize,
}

/// Limits and deadlines of the pool.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// TCP connect deadline.
    pub dial_timeout: Duration,
    /// TLS handshake deadline.
    pub tls_timeout: Duration,
    /// Deadline for the peer's SETTINGS.
    pub preface_timeout: Duration,
    /// Deadline for the answer to a CONNECT.
    pub request_timeout: Duration,
    /// A tunnel without streams is closed after this time.
    pub idle_timeout: Duration,
    /// Streams per tunnel, or less if the peer allows less.
    pub max_streams: u32,
    /// Tunnels that one key may have because the first ones are busy; more are dialled only when all streams of these are in use.
    pub max_busy_tunnels: usize,
    /// Tunnels in all.
    pub max_tunnels: usize,
    /// PING interval.
    pub ping_interval: Duration,
    /// A tunnel is closed when a PING is not answered in this time.
    pub ping_timeout: Duration,
    /// Whom to refuse although the certificate is valid.
    pub revocations: Option<Arc<Revocations>>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(5),
            tls_timeout: Duration::from_secs(5),
            preface_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            max_streams: 100,
            max_busy_tunnels: 4,
            max_tunnels: 65_536,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            revocations: None,
        }
    }
}

/// Counts for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Keys known.
    pub keys: usize,
    /// Open tunnels.
    pub tunnels: usize,
    /// Open streams.
    pub streams: usize,
    /// Dials under way.
    pub dialing: usize,
}

type DialResult = Option<Result<(), HboneError>>;

/// A dial under way and how many wait for it.
struct Dial {
    result: watch::Receiver<DialResult>,
    waiting: u32,
    id: u64,
}

#[derive(Default)]
struct Entry {
    tunnels: Vec<Arc<Tunnel>>,
    dials: Vec<Dial>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<TunnelKey, Entry>,
    /// Tunnels and dials in all entries.
    total: usize,
    next_dial: u64,
}

struct Shared {
    config: PoolConfig,
    /// Locked to choose a tunnel or to note a change; never while dialling.
    table: Mutex<Table>,
    draining: AtomicBool,
}

/// The tunnels of this process. Clones share them.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.stats().fmt(f)
    }
}

/// How long is waited for a peer that gives no sign. One that is only slow with the request is waited for in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As long as the pool's deadlines say: nobody else can be asked.
    Usual,
    /// No longer than [`SIGN`] twice, once there is a tunnel.
    Sign,
    /// The same, and for the tunnel no longer than until then. Its dial goes on, for those who come next.
    Until(Instant),
}

/// The TCP connection that a dial is to make.
type BoxedDial = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send>;

/// What [`Pool::choose`] decided.
enum Choice {
    Use(Arc<Tunnel>),
    Wait(watch::Receiver<DialResult>, u64),
    Full,
}

impl Pool {
    /// An empty pool.
    pub fn new(config: PoolConfig) -> Self {
        Self { shared: Arc::new(Shared { config, table: Mutex::default(), draining: AtomicBool::new(false) }) }
    }

    /// Opens a stream: through a tunnel of `key` with room, or through a new one that `dial` begins. `dial` is called at most once, and only if needed.
    ///
    /// A request that the peer has not looked at goes to another tunnel. One whose tunnel is lost before the answer goes, once, to a tunnel made after the
    /// loss: whether the peer has acted on it is not known, but no byte of the application is sent before the answer, so all that can have happened is
    /// a connection without bytes. If this call had dialled the tunnel itself, it has no other dial, and goes only where others have dialled meanwhile.
    pub fn connect<D, F>(
        &self,
        key: &TunnelKey,
        cert: Arc<IdentityCertificate>,
        dial: D,
        request: ConnectRequest,
    ) -> impl Future<Output = Result<(HboneStream, ConnectResponse), HboneError>>
    where
        D: FnOnce() -> F + Send + 'static,
        F: Future<Output = io::Result<TcpStream>> + Send + 'static,
    {
        self.connect_with(key, cert, dial, request, Patience::Usual)
    }

    /// The same, of a peer that others may stand in for: one that has stopped is told from one that is slow with this request, and waited for as
    /// `patience` says ([`HboneError::Silent`]).
    pub async fn connect_with<D, F>(
        &self,
        key: &TunnelKey,
        cert: Arc<IdentityCertificate>,
        dial: D,
        request: ConnectRequest,
        patience: Patience,
    ) -> Result<(HboneStream, ConnectResponse), HboneError>
    where
        D: FnOnce() -> F + Send + 'static,
        F: Future<Output = io::Result<TcpStream>> + Send + 'static,
    {
        let hurry = patience != Patience::Usual;
        let mut dial = Some(dial);
        let mut last = HboneError::Overloaded;
        let (mut deadline, mut lost_at) = (None, None);
        for _ in 0..ATTEMPTS {
            let start = || dial.take().map(|dial| -> BoxedDial { Box::new(move || Box::pin(dial())) });
            let tunnel = match self.choose(key, &cert, lost_at, start) {
                Choice::Use(tunnel) => tunnel,
                Choice::Full => return Err(last),
                Choice::Wait(result, id) => {
                    let limit = match (deadline, patience) {
                        (Some(deadline), _) => Some((deadline, HboneError::RequestTimeout)),
                        (None, Patience::Until(until)) => Some((until, HboneError::Silent)),
                        (None, _) => None,
                    };
                    self.dialled(key, result, id, limit).await?;
                    continue;
                }
            };
            if hurry && tunnel.is_silent() {
                return Err(HboneError::Silent);
            }
            let Some(stream) = tunnel.open(&request) else { continue };
            let stream = HboneStream::new(tunnel.clone(), stream);
            // All requests share the time of the first.
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.shared.config.request_timeout);
            let first = if hurry { deadline.min(Instant::now() + SIGN) } else { deadline };
            let mut answer = tokio::time::timeout_at(first, stream.answer()).await;
            if hurry && answer.is_err() {
                answer = Box::pin(answer_or_sign(&tunnel, &stream, deadline)).await;
            }
            match answer {
                Ok(Ok(response)) => return Ok((stream, response)),
                Ok(Err(HboneError::Silent)) => {
                    stream.cancel();
                    return Err(HboneError::Silent);
                }
                // The peer has not looked at the request: another tunnel may take it.
                Ok(Err(HboneError::Reset(code::REFUSED_STREAM))) => {
                    tunnel.retire();
                    last = HboneError::Reset(code::REFUSED_STREAM);
                }
                // Nothing was heard of the request. An answer or a reset is final, even if the tunnel was lost since.
                Ok(Err(error @ HboneError::Closed(_))) if lost_at.is_none() && tunnel.lost_at().is_some() => {
                    (lost_at, last) = (tunnel.lost_at(), error);
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    stream.cancel();
                    return Err(HboneError::RequestTimeout);
                }
            }
        }
        Err(last)
    }

    /// Waits for the end of a dial, or until it is too late for it.
    async fn dialled(
        &self,
        key: &TunnelKey,
        mut result: watch::Receiver<DialResult>,
        id: u64,
        limit: Option<(Instant, HboneError)>,
    ) -> Result<(), HboneError> {
        let _waiting = Waiting { pool: self, key, id };
        let end = async {
            match result.wait_for(Option::is_some).await.map(|result| result.clone()) {
                Ok(Some(Err(error))) => Err(error),
                Ok(_) => Ok(()),
                Err(_) => Err(HboneError::Closed("dial was dropped".into())),
            }
        };
        match limit {
            Some((deadline, late)) => tokio::time::timeout_at(deadline, end).await.unwrap_or(Err(late)),
            None => end.await,
        }
    }

    /// The least loaded tunnel with room, of those made after `since`; else a dial to wait for; else a new dial. A tunnel that is saturated by bytes
    /// still serves, but another one is dialled beside it for those who come next.
    fn choose(
        &self,
        key: &TunnelKey,
        cert: &Arc<IdentityCertificate>,
        since: Option<std::time::Instant>,
        start: impl FnOnce() -> Option<BoxedDial>,
    ) -> Choice {
        let config = &self.shared.config;
        let mut table = self.shared.table.lock();
        let table = &mut *table;
        if self.shared.draining.load(Relaxed) {
            return Choice::Full;
        }
        if !table.entries.contains_key(key) {
            table.entries.insert(key.clone(), Entry::default());
        }
        let Some(entry) = table.entries.get_mut(key) else { return Choice::Full };
        // What was proven with a former certificate and its roots is not proven to a new connection; streams that are open go on.
        entry.tunnels.iter().filter(|tunnel| tunnel.generation < cert.generation).for_each(|tunnel| tunnel.retire());
        let best = entry
            .tunnels
            .iter()
            .filter(|tunnel| since.is_none_or(|since| tunnel.made_at >= since) && tunnel.has_room())
            .min_by_key(|tunnel| (tunnel.congested(CONGESTED), tunnel.active()))
            .cloned();
        let busy = best.as_ref().is_none_or(|best| best.congested(CONGESTED) && best.active() > 0);
        let wanted = match &best {
            Some(_) => busy && entry.dials.is_empty() && entry.tunnels.len() < config.max_busy_tunnels,
            None => !entry.dials.iter().any(|dial| dial.waiting < config.max_streams),
        };
        if wanted
            && table.total < config.max_tunnels
            && let Some(dial) = start()
        {
            table.next_dial += 1;
            table.total += 1;
            let id = table.next_dial;
            let result = self.spawn_dial(key.clone(), cert.clone(), dial, id);
            entry.dials.push(Dial { result, waiting: 0, id });
        }
        if let Some(best) = best {
            return Choice::Use(best);
        }
        let Some(dial) = entry.dials.iter_mut().min_by_key(|dial| dial.waiting) else {
            if entry.tunnels.is_empty() {
                table.entries.remove(key);
            }
            return Choice::Full;
        };
        dial.waiting += 1;
        Choice::Wait(dial.result.clone(), dial.id)
    }

    fn spawn_dial(
        &self,
        key: TunnelKey,
        cert: Arc<IdentityCertificate>,
        dial: BoxedDial,
        id: u64,
    ) -> watch::Receiver<DialResult> {
        let (sender, receiver) = watch::channel(None);
        let pool = self.clone();
        task::spawn("tunnel to a peer", async move {
            // Notes the end of the dial even if it panics or is dropped with the runtime.
            let mut under_way = UnderWay { pool: &pool, key: &key, id, tunnel: None };
            failpoint::pass("dial");
            let made = dial_tunnel(&pool.shared.config, &key, &cert, dial).await;
            let (tunnel, tls) = match made {
                Ok(made) => made,
                Err(error) => {
                    drop(under_way);
                    sender.send_replace(Some(Err(error)));
                    return;
                }
            };
            let config = &pool.shared.config;
            let timers = Timers {
                preface: config.preface_timeout,
                ping_interval: config.ping_interval,
                ping_timeout: config.ping_timeout,
                idle: Some(config.idle_timeout),
            };
            // Writes the preface, which must precede the first request.
            let driver =
                Driver::new(tunnel.clone(), tls.opener, &tls.received, tls.opened, 0, timers, |_: InboundRequest| {})
                    .retire_at(tls.expires.min(cert.not_after));
            let _admission = tls.admission;
            let _entry = InPool { pool: &pool, key: &key, tunnel: &tunnel };
            under_way.tunnel = Some(tunnel.clone());
            drop(under_way);
            sender.send_replace(Some(Ok(())));
            drop(sender);
            // Those who waited put their requests into the first packet.
            tokio::task::yield_now().await;
            driver.run().await;
        });
        receiver
    }

    /// Closes every tunnel of this source pod, streams included. Returns how many.
    pub fn purge_source(&self, uid: &str) -> usize {
        self.purge(|key| key.source_uid == uid)
    }

    /// Closes every tunnel whose key `matches`, streams included. Returns how many. No other use of the pool goes on meanwhile.
    pub fn purge(&self, matches: impl Fn(&TunnelKey) -> bool) -> usize {
        let mut table = self.shared.table.lock();
        let mut purged = Vec::new();
        table.entries.retain(|key, entry| {
            if !matches(key) {
                return true;
            }
            // A dial under way finds its entry gone and ends its tunnel.
            purged.push((std::mem::take(&mut entry.tunnels), entry.dials.len()));
            false
        });
        let tunnels: Vec<_> = purged.iter().flat_map(|(tunnels, _)| tunnels.clone()).collect();
        table.total -= tunnels.len() + purged.iter().map(|(_, dials)| dials).sum::<usize>();
        drop(table);
        for tunnel in &tunnels {
            tunnel.close(Closed::Purged);
        }
        tunnels.len()
    }

    /// Tells all peers that no more streams come; open streams go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Relaxed);
        for entry in self.shared.table.lock().entries.values() {
            entry.tunnels.iter().for_each(|tunnel| tunnel.drain());
        }
    }

    /// Counts for metrics.
    pub fn stats(&self) -> PoolStats {
        let table = self.shared.table.lock();
        let mut stats = PoolStats { keys: table.entries.len(), ..PoolStats::default() };
        for entry in table.entries.values() {
            stats.tunnels += entry.tunnels.len();
            stats.dialing += entry.dials.len();
            stats.streams += entry.tunnels.iter().map(|tunnel| tunnel.active() as usize).sum::<usize>();
        }
        stats
    }

    /// Changes an entry and removes it if nothing is left of it.
    fn change(&self, key: &TunnelKey, change: impl FnOnce(&mut Entry) -> isize) {
        let mut table = self.shared.table.lock();
        let Some(entry) = table.entries.get_mut(key) else { return };
        let difference = change(entry);
        if entry.tunnels.is_empty() && entry.dials.is_empty() {
            table.entries.remove(key);
        }
        table.total = table.total.saturating_add_signed(difference);
    }
}

/// The answer to a request that has taken long already, or that the peer gives no sign at all.
async fn answer_or_sign(
    tunnel: &Tunnel,
    stream: &HboneStream,
    deadline: Instant,
) -> Result<Result<ConnectResponse, HboneError>, Elapsed> {
    let mark = tunnel.ask_for_a_sign();
    let sign_by = deadline.min(Instant::now() + SIGN);
    if let Ok(answer) = tokio::time::timeout_at(sign_by, stream.answer()).await {
        return Ok(answer);
    }
    if tunnel.is_silent_since(mark) {
        return Ok(Err(HboneError::Silent));
    }
    tokio::time::timeout_at(deadline, stream.answer()).await
}
