//! Hosts whose endpoints are each request's own: those of which the addresses are left to clients (`resolution: NONE`), and those of which only a pattern is known: ServiceEntries with wildcards and `resolution: DYNAMIC_DNS`. The name that a request or the first message of TLS asks
//! for is looked up when it comes, if the pattern means it. Answers are kept for a while; what a name leads to is never the machine itself, what clouds
//! tell machines, nor a pod or service of the mesh: whoever owns a name must not reach what its clients could not ask for.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use arcstr::ArcStr;
use mesh_core::l7::HostPattern;
use mesh_core::outside::is_public;
use mesh_core::service::Mode;
use mesh_core::{Service, Snapshot};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An answer is used so long: how long it is good for, resolvers of systems do not say.
const GOOD_MS: u64 = 30_000;
/// What nobody answers for is not asked for again before.
const BAD_MS: u64 = 1_000;
/// If a name cannot be looked up, its last answer is used for so long.
const LAST_MS: u64 = 300_000;
/// Names that are remembered; clients choose them.
const MOST: usize = 4_096;
/// Addresses of one name that are used.
const MOST_ADDRESSES: usize = 16;
/// Questions at once.
const AT_ONCE: usize = 64;
/// How long one may take.
const ANSWER: Duration = Duration::from_secs(5);

/// A name that was asked for, with addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name, in lower case.
    pub name: ArcStr,
    /// Never none.
    pub addresses: Arc<[IpAddr]>,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoName {
    /// The registry does not know it: no pattern means it, or nothing was asked for.
    #[error("the registry knows no such host")]
    Unknown,
    /// Nobody answers for it, or with nothing that may be used.
    #[error("the host has no address that may be used")]
    NoAddress,
}

/// What has been looked up.
#[derive(Debug)]
pub struct Names {
    known: Mutex<HashMap<ArcStr, Known>>,
    asking: Arc<Semaphore>,
}

#[derive(Debug)]
struct Known {
    addresses: Arc<[IpAddr]>,
    until_ms: u64,
    /// When that was the answer.
    answered_ms: u64,
}

impl Default for Names {
    fn default() -> Self {
        Self { known: Mutex::default(), asking: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// Whether names of a service are looked up for each request.
#[must_use]
pub fn is_pattern(service: &Service) -> bool {
    service.hostname.starts_with("*.")
}

/// Whether endpoints of a service are each request's own: looked up by its name, or where its client wanted to go.
#[must_use]
pub fn is_open(service: &Service) -> bool {
    is_pattern(service) || is_passed(service)
}

/// Whether it leaves to clients which of its addresses they mean: `resolution: NONE` of a ServiceEntry.
fn is_passed(service: &Service) -> bool {
    service.load_balancing.mode == Mode::Passthrough
}

/// Where the client wanted to go itself, if the service leaves that to it: to an address that is the service's, and neither the machine's own nor a pod's.
/// `None` if the service has endpoints of its own. Who has come by the service's name has named no address.
#[must_use]
pub fn passed(
    service: &Service,
    wanted: Option<IpAddr>,
    (snapshot, network): (&Snapshot, &str),
) -> Option<Result<Named, NoName>> {
    if !is_passed(service) {
        return None;
    }
    let is_its = |ip: &IpAddr| {
        let is_pod = snapshot.workload_by_address(network, ip).is_some_and(|workload| workload.is_pod());
        let owner = snapshot.service_by_address(network, ip);
        is_public(*ip) && !is_pod && owner.is_some_and(|owner| owner.key() == service.key())
    };
    let wanted = wanted.map(|ip| ip.to_canonical()).filter(is_its);
    Some(wanted.ok_or(NoName::NoAddress).map(|ip| Named { name: service.hostname.clone(), addresses: Arc::new([ip]) }))
}

/// As the system does it, which cannot be stopped: the turn is over when it has answered, not when nobody waits for that any more.
pub async fn by_the_system(name: ArcStr, turn: OwnedSemaphorePermit) -> io::Result<Vec<IpAddr>> {
    let asked = tokio::task::spawn_blocking(move || -> io::Result<Vec<IpAddr>> {
        let _turn = turn;
        Ok((&*absolute(&name), 0).to_socket_addrs()?.map(|address| address.ip()).collect())
    });
    asked.await.map_err(io::Error::other)?
}

/// A name that no domain is appended to in which the system looks for others; one without a dot is one of those.
fn absolute(name: &str) -> String {
    if name.contains('.') && !name.ends_with('.') { format!("{name}.") } else { name.to_owned() }
}

impl Names {
    /// Where a name leads that was asked for at a service; `None` if the service has endpoints of its own.
    pub async fn find<F: Future<Output = io::Result<Vec<IpAddr>>>>(
        &self,
        service: &Service,
        name: Option<&str>,
        (snapshot, network): (&Snapshot, &str),
        now_ms: u64,
        resolve: impl FnOnce(ArcStr, OwnedSemaphorePermit) -> F,
    ) -> Result<Option<Named>, NoName> {
        if !is_pattern(service) {
            return Ok(None);
        }
        let name = name.ok_or(NoName::Unknown)?.trim_end_matches('.').to_ascii_lowercase();
        let pattern = HostPattern::parse(&service.hostname).ok_or(NoName::Unknown)?;
        if name.len() > 253 || !pattern.matches(&name) {
            return Err(NoName::Unknown);
        }
        let name = ArcStr::from(name);
        let kept =
            self.known.lock().get(&name).filter(|known| now_ms < known.until_ms).map(|known| known.addresses.clone());
        let addresses = match kept {
            Some(addresses) => addresses,
            None => self.ask(&name, now_ms, resolve).await,
        };
        let is_theirs = |ip: &&IpAddr| {
            let is_pod = snapshot.workload_by_address(network, ip).is_some_and(|workload| workload.is_pod());
            !is_pod && snapshot.service_by_address(network, ip).is_none()
        };
        let addresses: Arc<[IpAddr]> = addresses.iter().filter(is_theirs).copied().collect();
        match addresses.is_empty() {
            true => Err(NoName::NoAddress),
            false => Ok(Some(Named { name, addresses })),
        }
    }

    async fn ask<F: Future<Output = io::Result<Vec<IpAddr>>>>(
        &self,
        name: &ArcStr,
        now_ms: u64,
        resolve: impl FnOnce(ArcStr, OwnedSemaphorePermit) -> F,
    ) -> Arc<[IpAddr]> {
        // While it is asked anew others take the last answer: each of them would wait for a resolver that is away.
        self.last(name, now_ms, ANSWER.as_millis() as u64);
        let began = tokio::time::Instant::now();
        let asked = async {
            let turn = Arc::clone(&self.asking).acquire_owned().await.map_err(io::Error::other)?;
            resolve(name.clone(), turn).await
        };
        let asked = tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|late| Err(late.into()));
        let now_ms = now_ms + began.elapsed().as_millis() as u64;
        let found = match asked {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%name, %error, "the host of a request cannot be looked up");
                if let Some(last) = self.last(name, now_ms, BAD_MS) {
                    return last;
                }
                Vec::new()
            }
        };
        let usable = found.into_iter().map(|ip| ip.to_canonical()).filter(|ip| is_public(*ip)).take(MOST_ADDRESSES);
        let addresses: Arc<[IpAddr]> = usable.collect();
        let good = if addresses.is_empty() { BAD_MS } else { GOOD_MS };
        let mut known = self.known.lock();
        if known.len() >= MOST && !known.contains_key(name) {
            known.retain(|_, one| now_ms < one.until_ms);
            // Whoever asks for many names keeps no other one from being remembered.
            let first = known.iter().min_by_key(|(_, one)| one.until_ms).map(|(name, _)| name.clone());
            first.filter(|_| known.len() >= MOST).and_then(|first| known.remove(&first));
        }
        known
            .insert(name.clone(), Known { addresses: addresses.clone(), until_ms: now_ms + good, answered_ms: now_ms });
        addresses
    }

    /// The last answer, if it is not too old; used for so many milliseconds from now, until it is worth asking again.
    fn last(&self, name: &ArcStr, now_ms: u64, more_ms: u64) -> Option<Arc<[IpAddr]>> {
        let mut known = self.known.lock();
        let last = known
            .get_mut(name)
            .filter(|last| !last.addresses.is_empty() && now_ms.saturating_sub(last.answered_ms) < LAST_MS)?;
        last.until_ms = now_ms + more_ms;
        Some(Arc::clone(&last.addresses))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use futures_util::FutureExt;
    use mesh_core::service::ServiceAddress;
    use mesh_core::{Change, Store, Workload};

    use super::*;

    #[tokio::test]
    async fn features_SE_5_only_names_of_the_pattern_are_looked_up_and_lead_out_of_the_mesh() {
        let mut pod = Workload::new("c//Pod/shop/cart", "shop", "cart");
        pod.addresses = vec![[198, 18, 0, 1].into()];
        let mut cart = Service::new("shop", "cart", "cart.shop.svc.cluster.local");
        cart.addresses = vec![ServiceAddress { network: "".into(), cidr: IpAddr::from([198, 19, 0, 1]).into() }];
        let mut store = Store::new();
        let snapshot = store.apply(vec![Change::Workload(pod), Change::Service(cart.clone())]).snapshot;
        let (names, asked) = (Names::default(), AtomicU32::new(0));
        let wild = Service::new("shop", "wild", "*.example.com");
        let find = async |service: &Service, name: Option<&str>, now_ms: u64| {
            let resolve = async |name: ArcStr, _: OwnedSemaphorePermit| {
                asked.fetch_add(1, SeqCst);
                match name.split('.').next().unwrap_or_default() {
                    "a" => Ok(vec![[192, 0, 2, 1].into(), [127, 0, 0, 1].into()]),
                    "pod" => Ok(vec![[198, 18, 0, 1].into(), [198, 19, 0, 1].into()]),
                    "own" => Ok(vec![[169, 254, 169, 254].into()]),
                    _ => Err(io::Error::other("no such name")),
                }
            };
            let found = names.find(service, name, (&snapshot, ""), now_ms, resolve).await;
            found.map(|found| found.map(|found| (found.name.to_string(), found.addresses.to_vec())))
        };
        let a = || Ok(Some(("a.example.com".to_owned(), vec![IpAddr::from([192, 0, 2, 1])])));
        assert_eq!(find(&cart, Some("cart"), 0).await, Ok(None));
        assert_eq!(find(&wild, Some("A.example.com."), 0).await, a());
        assert_eq!((find(&wild, Some("a.example.com"), GOOD_MS - 1).await, asked.load(SeqCst)), (a(), 1));
        assert_eq!((find(&wild, Some("a.example.com"), GOOD_MS).await, asked.load(SeqCst)), (a(), 2));
        for name in [None, Some("example.com"), Some("a.example.org"), Some("192.0.2.1"), Some("")] {
            assert_eq!(find(&wild, name, 0).await, Err(NoName::Unknown), "{name:?}");
        }
        assert_eq!(asked.load(SeqCst), 2, "nobody is asked about others");
        for name in ["pod.example.com", "own.example.com", "none.example.com"] {
            assert_eq!(find(&wild, Some(name), 0).await, Err(NoName::NoAddress), "{name}");
        }
        let before = asked.load(SeqCst);
        find(&wild, Some("none.example.com"), BAD_MS - 1).await.unwrap_err();
        assert_eq!(asked.load(SeqCst), before);
    }

    #[tokio::test]
    async fn names_that_clients_choose_take_no_more_than_there_is_room_for() {
        let (names, wild) = (Names::default(), Service::new("shop", "wild", "*.example.com"));
        let snapshot = Store::new().snapshot();
        let find = async |name: String, now_ms: u64| {
            let resolve = async |_: ArcStr, _: OwnedSemaphorePermit| Ok(vec![[192, 0, 2, 1].into()]);
            names.find(&wild, Some(&name), (&snapshot, ""), now_ms, resolve).await.unwrap()
        };
        for number in 0..MOST + 10 {
            assert!(find(format!("n{number}.example.com"), 0).await.is_some());
        }
        assert_eq!(names.known.lock().len(), MOST);
        // The latest are remembered, whoever has asked for the others.
        let latest = format!("n{}.example.com", MOST + 9);
        assert!(names.known.lock().contains_key(&*latest));
        find("later.example.com".into(), 2 * GOOD_MS).await;
        assert_eq!(names.known.lock().len(), 1);
    }

    #[tokio::test]
    async fn the_last_answer_is_used_for_a_while_if_there_is_no_other() {
        let (names, wild) = (Names::default(), Service::new("shop", "wild", "*.example.com"));
        let snapshot = Store::new().snapshot();
        let asked = AtomicU32::new(0);
        let find = async |good: bool, now_ms: u64| {
            let resolve = async |_: ArcStr, _: OwnedSemaphorePermit| {
                asked.fetch_add(1, SeqCst);
                if good { Ok(vec![[192, 0, 2, 1].into()]) } else { Err(io::Error::other("no answer")) }
            };
            let found = names.find(&wild, Some("a.example.com"), (&snapshot, ""), now_ms, resolve).await;
            (found.is_ok(), asked.load(SeqCst))
        };
        assert_eq!(find(true, 0).await, (true, 1));
        // Nobody is asked in each request, and then it is too old.
        assert_eq!(find(false, GOOD_MS).await, (true, 2));
        assert_eq!(find(false, GOOD_MS + BAD_MS - 1).await, (true, 2));
        assert_eq!(find(false, GOOD_MS + BAD_MS).await, (true, 3));
        assert_eq!(find(false, LAST_MS).await, (false, 4));
        assert_eq!(find(true, LAST_MS + BAD_MS).await, (true, 5));
    }

    #[tokio::test]
    async fn while_one_asks_anew_others_take_the_last_answer() {
        let (names, wild) = (Names::default(), Service::new("shop", "wild", "*.example.com"));
        let snapshot = Store::new().snapshot();
        let now = async |_: ArcStr, _: OwnedSemaphorePermit| Ok(vec![[192, 0, 2, 1].into()]);
        let never = async |_: ArcStr, _: OwnedSemaphorePermit| std::future::pending::<io::Result<Vec<IpAddr>>>().await;
        let name = Some("a.example.com");
        let first = names.find(&wild, name, (&snapshot, ""), 0, now).await.unwrap();
        let mut asks = Box::pin(names.find(&wild, name, (&snapshot, ""), GOOD_MS, never));
        assert_eq!((&mut asks).now_or_never(), None);
        let other = names.find(&wild, name, (&snapshot, ""), GOOD_MS, never).now_or_never();
        assert_eq!(other, Some(Ok(first)));
    }

    #[test]
    fn what_a_pattern_means_is_looked_for_nowhere_else() {
        for (name, expected) in [("a.example.com", "a.example.com."), ("b.example.", "b.example."), ("c", "c")] {
            assert_eq!(absolute(name), expected);
        }
    }

    #[tokio::test]
    async fn hardening_who_waits_no_longer_gives_no_turn_back_while_the_question_is_asked() {
        let (names, wild) = (Names::default(), Service::new("shop", "wild", "*.example.com"));
        let snapshot = Store::new().snapshot();
        let (tell, mut turns) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..AT_ONCE + 2 {
            let name = format!("n{number}.example.com");
            let resolve = async |_: ArcStr, turn: OwnedSemaphorePermit| {
                // Somebody keeps it who cannot be stopped.
                tell.send(turn).unwrap();
                std::future::pending::<io::Result<Vec<IpAddr>>>().await
            };
            assert_eq!(names.find(&wild, Some(&name), (&snapshot, ""), 0, resolve).now_or_never(), None);
        }
        assert_eq!((turns.len(), names.asking.available_permits()), (AT_ONCE, 0));
        drop(turns.recv().await);
        assert_eq!(names.asking.available_permits(), 1);
    }

    #[test]
    fn an_address_that_is_left_to_the_client_is_one_of_the_service_and_nobody_else_s() {
        let at = |cidr: &str| ServiceAddress { network: "".into(), cidr: cidr.parse().unwrap() };
        let mut db = Service::new("shop", "db", "db.example.com");
        db.addresses = vec![at("203.0.113.0/24"), at("127.0.0.0/8"), at("169.254.0.0/16"), at("2001:db8::/64")];
        db.load_balancing.mode = Mode::Passthrough;
        let mut other = Service::new("shop", "other", "other.example.com");
        other.addresses = vec![at("203.0.113.9/32")];
        let mut pod = Workload::new("c//Pod/shop/cart", "shop", "cart");
        pod.addresses = vec![[203, 0, 113, 8].into()];
        let mut store = Store::new();
        let changes = vec![Change::Workload(pod), Change::Service(db.clone()), Change::Service(other.clone())];
        let snapshot = store.apply(changes).snapshot;
        for (wanted, expected) in [
            (Some("203.0.113.7"), Some("203.0.113.7")),
            (Some("::ffff:203.0.113.7"), Some("203.0.113.7")),
            (Some("2001:db8::7"), Some("2001:db8::7")),
            // A pod's, another service's, not of the service, the machine's own, what clouds tell machines, none.
            (Some("203.0.113.8"), None),
            (Some("203.0.113.9"), None),
            (Some("198.51.100.1"), None),
            (Some("127.0.0.1"), None),
            (Some("169.254.169.254"), None),
            (None, None),
        ] {
            let ip = wanted.map(|text| text.parse::<IpAddr>().unwrap());
            let found = passed(&db, ip, (&snapshot, "")).unwrap();
            let found =
                found.map(|named| named.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            assert_eq!(found, expected.map(str::to_owned).ok_or(NoName::NoAddress), "{wanted:?}");
        }
        assert_eq!(passed(&other, Some([203, 0, 113, 9].into()), (&snapshot, "")), None);
    }
}
