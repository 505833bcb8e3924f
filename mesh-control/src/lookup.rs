//! Addresses of names that ServiceEntries leave to DNS: looked up here, once for all agents and waypoints, and joined with the objects. A name that nobody answers for any
//! more keeps its addresses for a while, and as long as nothing at all is answered; nobody's name leads to the control plane's own machine, or to what clouds tell machines about themselves.
//!
//! ```text
//! view (names of entries) -> follow: resolve ── addresses ──> WithAddresses: the objects again, with the addresses ──> join
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use mesh_core::{ArcStr, NamespacedName};
use mesh_runtime::backoff::Backoff;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cluster::secrets::fairly;
use crate::index::View;
use crate::resource::meta;
use crate::resource::routing::service_entry::{Addresses, ServiceEntry, is_name};
use crate::resource::routing::{Routed, Routes};
use crate::source::{Source, Update};
use mesh_core::outside::is_public;

/// Between looks at a name, where the mesh settings say nothing: how long an answer is good for, resolvers of systems do not say.
const LOOK: Duration = Duration::from_secs(30);
/// Addresses of a name that cannot be looked up any more are used so long while anything is answered; two looks at least.
const LONGEST: Duration = Duration::from_secs(600);
/// How long one name may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Names that are looked up; of more the first ones.
const MOST: usize = 1000;
/// Addresses of one name.
const MOST_ADDRESSES: usize = 64;
/// At once.
const AT_ONCE: usize = 16;
/// Between rounds of looking; no longer than between looks.
const ROUND: Duration = Duration::from_secs(5);

struct Known {
    due: Instant,
    answered: Option<Instant>,
    /// The last look found nothing: when the next one is due is the backoff's to say.
    failed: bool,
    backoff: Backoff,
}

/// How often is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    look: Duration,
    round: Duration,
    longest: Duration,
}

impl Pace {
    /// As the mesh settings say.
    fn of(refresh: Option<Duration>) -> Self {
        let look = refresh.unwrap_or(LOOK);
        Self { look, round: ROUND.min(look), longest: LONGEST.max(look.saturating_mul(2)) }
    }
}

/// As the system does it.
pub async fn by_the_system(name: ArcStr) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((&*name, 0)).await?.map(|address| address.ip()).collect())
}

/// Looks names up for ever, those that the view names.
pub async fn follow<F, R>(mut view: watch::Receiver<Arc<View>>, addresses: watch::Sender<Arc<Addresses>>, resolve: F)
where
    F: Fn(ArcStr) -> R,
    R: Future<Output = io::Result<Vec<IpAddr>>>,
{
    let mut known: BTreeMap<ArcStr, Known> = BTreeMap::new();
    // When anything was answered last.
    let mut heard = Instant::now();
    loop {
        let (wanted, pace) = {
            let view = view.borrow_and_update();
            (wanted(&view), Pace::of(view.settings.defaults.dns_refresh))
        };
        known.retain(|name, _| wanted.contains(name));
        for name in wanted {
            known.entry(name).or_insert_with(|| Known {
                due: Instant::now(),
                answered: None,
                failed: false,
                backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
            });
        }
        // The settings may have come to ask for more.
        for one in known.values_mut().filter(|one| !one.failed) {
            one.due = one.answered.map_or(one.due, |at| one.due.min(at + pace.look));
        }
        let now = Instant::now();
        let due: Vec<ArcStr> = known.iter().filter(|(_, one)| one.due <= now).map(|(name, _)| name.clone()).collect();
        for names in due.chunks(AT_ONCE) {
            look(&resolve, names, pace, &mut known, &mut heard, &addresses).await;
        }
        // What is named no more, or has not been answered for too long while others were, has no addresses any more. Where nothing is answered it is whoever
        // answers that is away, and not all those hosts.
        let is_late = |one: &Known| one.answered.is_some_and(|at| heard.saturating_duration_since(at) >= pace.longest);
        let is_old = |name: &ArcStr, found: &[IpAddr]| match known.get(name) {
            Some(one) => !found.is_empty() && is_late(one),
            None => true,
        };
        addresses.send_if_modified(|addresses| {
            let any_old = addresses.iter().any(|(name, found)| is_old(name, found));
            if any_old {
                let addresses = Arc::make_mut(addresses);
                addresses.retain(|name, _| known.contains_key(name));
                addresses.iter_mut().filter(|(name, found)| is_old(name, found)).for_each(|(_, found)| found.clear());
            }
            any_old
        });
        // Each round may be a new configuration for everybody: not more often than that.
        let next = known.values().map(|one| one.due).min().map(|at| at.max(Instant::now() + pace.round));
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

async fn look<F, R>(
    resolve: &F,
    names: &[ArcStr],
    pace: Pace,
    known: &mut BTreeMap<ArcStr, Known>,
    heard: &mut Instant,
    addresses: &watch::Sender<Arc<Addresses>>,
) where
    F: Fn(ArcStr) -> R,
    R: Future<Output = io::Result<Vec<IpAddr>>>,
{
    let ask = |name: &ArcStr| {
        let (name, answer) = (name.clone(), resolve(name.clone()));
        async move { (name, tokio::time::timeout(ANSWER, answer).await.unwrap_or_else(|late| Err(late.into()))) }
    };
    let mut answers: FuturesUnordered<_> = names.iter().map(ask).collect();
    while let Some((name, answer)) = answers.next().await {
        let Some(one) = known.get_mut(&name) else { continue };
        let found: Result<BTreeSet<IpAddr>, _> =
            answer.map(|all| all.into_iter().map(|ip| ip.to_canonical()).filter(|ip| is_public(*ip)).collect());
        if found.is_ok() {
            *heard = Instant::now();
        }
        match found {
            Ok(found) if !found.is_empty() => {
                one.backoff.reset();
                one.failed = false;
                (one.answered, one.due) = (Some(Instant::now()), Instant::now() + pace.look);
                let found: Vec<IpAddr> = found.into_iter().take(MOST_ADDRESSES).collect();
                addresses.send_if_modified(|addresses| {
                    let is_new = addresses.get(&name) != Some(&found);
                    if is_new {
                        Arc::make_mut(addresses).insert(name, found);
                    }
                    is_new
                });
            }
            other => {
                let why =
                    other.err().map_or_else(|| "no address that may be used".to_owned(), |error| error.to_string());
                tracing::warn!(%name, why, "a host of a ServiceEntry cannot be looked up");
                one.failed = true;
                // It was asked for: whoever waits for that need not any longer.
                addresses.send_if_modified(|addresses| {
                    let is_new = !addresses.contains_key(&name);
                    if is_new {
                        Arc::make_mut(addresses).insert(name.clone(), Vec::new());
                    }
                    is_new
                });
                one.due = Instant::now() + one.backoff.next(&mut rand::rng());
            }
        }
    }
}

/// Whether a name of the view has not been asked for yet.
pub fn is_pending(view: &View, known: &Addresses) -> bool {
    wanted(view).iter().any(|name| !known.contains_key(name))
}

fn wanted(view: &View) -> BTreeSet<ArcStr> {
    let entries = view.routes.service_entries.values();
    let named = |entry: &Arc<Routed<ServiceEntry>>| {
        let own = entry.spec.names().map(|name| (entry.namespace.clone(), ArcStr::from(name)));
        own.collect::<Vec<_>>()
    };
    let of_selected = view.routes.service_entries.values().flat_map(|entry| selected(entry, &view.routes));
    let all: BTreeSet<(ArcStr, ArcStr)> = entries.flat_map(named).chain(of_selected).collect();
    let fair = fairly(&all, |(namespace, _)| namespace.as_str());
    fair.into_iter().take(MOST).map(|(_, name)| name.clone()).collect()
}

/// Names of WorkloadEntries that an entry selects.
fn selected(entry: &Routed<ServiceEntry>, routes: &Routes) -> Vec<(ArcStr, ArcStr)> {
    let Some(selector) = entry.spec.workload_selector.as_ref().filter(|_| entry.spec.looks_up_selected()) else {
        return Vec::new();
    };
    let from = NamespacedName::new(entry.namespace.clone(), "");
    let here = routes.workload_entries.range(from..).map(|(_, workload)| workload);
    let here = here.take_while(|workload| workload.namespace == entry.namespace);
    let named = here
        .filter(|workload| is_name(&workload.spec.address) && meta::selects(&selector.labels, &workload.spec.labels));
    named.map(|workload| (entry.namespace.clone(), ArcStr::from(workload.spec.address.as_str()))).collect()
}

/// Another source, with addresses.
pub struct WithAddresses<S> {
    inner: S,
    addresses: watch::Receiver<Arc<Addresses>>,
    last: Option<Update>,
}

impl<S: Source> WithAddresses<S> {
    /// Objects of `inner`, with these addresses. `inner` must lose nothing when it is asked and not waited for.
    pub fn new(inner: S, addresses: watch::Receiver<Arc<Addresses>>) -> Self {
        Self { inner, addresses, last: None }
    }
}

impl<S: Source> Source for WithAddresses<S> {
    async fn next(&mut self) -> Option<Update> {
        tokio::select! {
            update = self.inner.next() => self.last = Some(update?),
            // Who looks them up ends with the process.
            Ok(()) = self.addresses.changed(), if self.last.is_some() => {}
        }
        let mut update = self.last.as_mut()?.taken();
        update.objects.looked_up = self.addresses.borrow_and_update().clone();
        Some(update)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

    use super::*;
    use crate::resource::routing::WorkloadEntry;

    fn view(specs: &[&str]) -> Arc<View> {
        let mut routes = Routes::default();
        for (index, spec) in specs.iter().enumerate() {
            let spec: ServiceEntry = serde_saphyr::from_str(spec).unwrap();
            let name = NamespacedName::new("shop", format!("e{index}"));
            let (namespace, short) = (name.namespace.clone(), name.name.clone());
            let marks = Default::default();
            let entry = Routed { namespace, name: short, created: None, marks, uid: None, spec };
            routes.service_entries.insert(name, Arc::new(entry));
        }
        Arc::new(View { routes: Arc::new(routes), ..View::default() })
    }

    /// Time is the test's: an hour is nothing.
    async fn until(addresses: &mut watch::Receiver<Arc<Addresses>>, is: impl FnMut(&Arc<Addresses>) -> bool) {
        let hours = Duration::from_secs(7200);
        tokio::time::timeout(hours, addresses.wait_for(is)).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn features_SE_5_names_are_looked_up_kept_for_a_while_and_forgotten() {
        let first = view(&[
            "{hosts: [a.example.com], resolution: DNS}",
            "{hosts: [b.example.com], resolution: DNS, endpoints: [{address: c.example.com}, {address: 192.0.2.9}]}",
            "{hosts: [d.example.com], resolution: STATIC, endpoints: [{address: 192.0.2.9}]}",
        ]);
        let (tell, views) = watch::channel(first);
        let (send, mut addresses) = watch::channel(Arc::<Addresses>::default());
        let round = Arc::new(AtomicU8::new(1));
        let asked = Arc::clone(&round);
        let resolve = move |name: ArcStr| {
            let round = asked.load(SeqCst);
            async move {
                match (&*name, round) {
                    (_, 9) | ("a.example.com", 0) => Err(io::Error::other("away")),
                    ("a.example.com", round) => Ok(vec![[192, 0, 2, round].into(), [127, 0, 0, 1].into()]),
                    // Its owner would have agents connect to the machine that they run on.
                    _ => Ok(vec![[127, 0, 0, 1].into()]),
                }
            }
        };
        tokio::spawn(follow(views, send, resolve));
        let is = |ip: [u8; 4]| {
            move |found: &Arc<Addresses>| {
                found.values().flatten().eq([&IpAddr::from(ip)]) && found.contains_key("a.example.com")
            }
        };
        let none = |found: &Arc<Addresses>| found.values().all(Vec::is_empty);
        until(&mut addresses, is([192, 0, 2, 1])).await;
        // Of what was asked for in vain that is known.
        until(&mut addresses, |found| found.get("c.example.com").is_some_and(Vec::is_empty)).await;
        round.store(2, SeqCst);
        until(&mut addresses, is([192, 0, 2, 2])).await;
        // Nobody answers anything.
        round.store(9, SeqCst);
        let lost = tokio::time::timeout(6 * LONGEST, addresses.wait_for(none)).await.is_ok();
        assert!(!lost, "what is known stays in use");
        // Others are answered, and this one is not.
        round.store(0, SeqCst);
        until(&mut addresses, none).await;
        round.store(3, SeqCst);
        until(&mut addresses, is([192, 0, 2, 3])).await;
        round.store(0, SeqCst);
        let gone = Instant::now();
        until(&mut addresses, none).await;
        assert!(gone.elapsed() > LONGEST - 2 * LOOK, "{:?}", gone.elapsed());
        round.store(3, SeqCst);
        until(&mut addresses, is([192, 0, 2, 3])).await;
        tell.send_replace(view(&[]));
        until(&mut addresses, |found| found.is_empty()).await;
    }

    #[test]
    fn features_WE_1_names_of_workload_entries_that_are_selected_are_looked_up() {
        let of = |resolution: &str| {
            let spec =
                format!("{{hosts: [db.corp], resolution: {resolution}, workloadSelector: {{labels: {{app: db}}}}}}");
            let mut view = Arc::unwrap_or_clone(view(&[&spec]));
            let routes = Arc::make_mut(&mut view.routes);
            for (namespace, name, spec) in [
                ("shop", "a", "{address: vm1.corp, labels: {app: db}}"),
                ("shop", "b", "{address: 192.0.2.1, labels: {app: db}}"),
                ("shop", "c", "{address: 'unix:///run/db', labels: {app: db}}"),
                ("shop", "d", "{address: other.corp, labels: {app: other}}"),
                ("far", "e", "{address: far.corp, labels: {app: db}}"),
            ] {
                let spec: WorkloadEntry = serde_saphyr::from_str(spec).unwrap();
                let name = NamespacedName::new(namespace, name);
                let (namespace, short) = (name.namespace.clone(), name.name.clone());
                let entry =
                    Routed { namespace, name: short, created: None, marks: Default::default(), uid: None, spec };
                routes.workload_entries.insert(name, Arc::new(entry));
            }
            wanted(&view).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("DNS"), ["vm1.corp"]);
        assert_eq!(of("DNS_ROUND_ROBIN"), ["vm1.corp"]);
        assert_eq!(of("STATIC"), [""; 0]);
    }

    #[test]
    fn features_EX_5_how_often_names_are_looked_up() {
        let seconds = Duration::from_secs;
        for (refresh, look, round, longest) in [
            (None, 30, 5, 600),
            (Some(60), 60, 5, 600),
            (Some(1), 1, 1, 600),
            // An answer is good until the next one is due.
            (Some(3600), 3600, 5, 7200),
        ] {
            let expected = Pace { look: seconds(look), round: seconds(round), longest: seconds(longest) };
            assert_eq!(Pace::of(refresh.map(seconds)), expected, "{refresh:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn features_EX_5_names_are_looked_up_as_often_as_the_settings_say() {
        let paced = |refresh: u64| {
            let mut view = View::clone(&view(&["{hosts: [a.example.com], resolution: DNS}"]));
            view.settings.defaults.dns_refresh = Some(Duration::from_secs(refresh));
            Arc::new(view)
        };
        let (tell, views) = watch::channel(paced(3600));
        let (send, mut addresses) = watch::channel(Arc::<Addresses>::default());
        let asked = Arc::new(AtomicU8::new(0));
        let counted = Arc::clone(&asked);
        let resolve = move |_: ArcStr| {
            let round = counted.fetch_add(1, SeqCst) + 1;
            async move { Ok(vec![IpAddr::from([192, 0, 2, round])]) }
        };
        tokio::spawn(follow(views, send, resolve));
        let begun = Instant::now();
        let is = |round: u8| {
            move |found: &Arc<Addresses>| found.values().any(|all| *all == [IpAddr::from([192, 0, 2, round])])
        };
        until(&mut addresses, is(1)).await;
        until(&mut addresses, is(2)).await;
        assert_eq!(begun.elapsed().as_secs(), 3600, "and until then it had its addresses");
        // An hour is not waited for by settings that have come since.
        tell.send_replace(paced(1));
        until(&mut addresses, is(3)).await;
        until(&mut addresses, is(5)).await;
        assert!(begun.elapsed().as_secs() <= 3610, "{:?}", begun.elapsed());
    }
}
