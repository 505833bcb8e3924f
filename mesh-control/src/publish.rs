//! From updates of the source to what is served: one task joins each update and publishes the result, first to the authority and the
//! checks of tokens, then to the streams.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::diagnosis::{Diagnosis, Severity};
use crate::index::l7::backend_tls;
use crate::index::{Join, Settings, View};
use crate::lookup::is_pending;
use crate::manifest::file::{diagnosis, of_file};
use crate::metrics::Metrics;
use crate::source::{Source, Update};
use crate::verdict::{self, Verdicts};
use crate::world::World;

/// How long a start waits for the Secrets that gateways name, and for the addresses of hosts.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the results go.
#[derive(Clone, Debug)]
pub struct Outlets {
    /// For tokens and the authority.
    pub view: watch::Sender<Arc<View>>,
    /// For streams.
    pub world: watch::Sender<Arc<World>>,
    /// For the status.
    pub diagnoses: Arc<ArcSwap<Vec<Diagnosis>>>,
    /// For whoever tells the objects.
    pub verdicts: watch::Sender<Arc<Verdicts>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Outlets {
    /// Outlets with nothing in them.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            view: watch::Sender::new(Arc::default()),
            world: watch::Sender::new(Arc::default()),
            diagnoses: Arc::default(),
            verdicts: watch::Sender::new(Arc::default()),
            metrics,
        }
    }

    /// Joins an update and publishes it. Returns what is wrong. `settings` are those of the command line.
    pub fn publish(&self, update: Update, join: &mut Join, settings: &Settings) -> Arc<Vec<Diagnosis>> {
        let since = update.since;
        let view = Arc::new(join.build(update.objects, settings));
        let (resolved, problems) = (&view.resolved, &view.problems);
        let of_policy = |key: &_| view.policies_told.get(key).map(backend_tls::PolicyTold::belonging);
        let belonging = |key: &_| resolved.belonging(key, &view.served, &view.listening).or_else(|| of_policy(key));
        let (at_waypoints, bindings) = (&view.at_waypoints, &view.bindings);
        let unknown = &resolved.unknown.union(&view.undecided).cloned().collect();
        let objects = join.objects();
        let mut verdicts = verdict::judge(update.marks, objects, problems, unknown, at_waypoints, belonging, bindings);
        verdict::give(&mut verdicts, &view.given);
        let mut diagnoses = update.diagnoses;
        for (key, problem) in &view.problems {
            let place = update.places.get(key).and_then(|(file, line)| {
                let mut place = of_file(file, Severity::Note, "", None).place?;
                place.line = *line;
                Some(place)
            });
            diagnoses.push(diagnosis(Some(key), problem.clone(), place));
        }
        self.count(&view, &diagnoses);
        let current = self.world.borrow().clone();
        let mut next = current.next(&view);
        next.changes = current.changes.with(next.generation, since);
        self.view.send_replace(view);
        if !next.is_same(&current) || current.generation == 0 {
            self.world.send_replace(Arc::new(next));
        }
        let diagnoses = Arc::new(diagnoses);
        self.diagnoses.store(diagnoses.clone());
        self.verdicts.send_replace(Arc::new(verdicts));
        diagnoses
    }

    fn count(&self, view: &View, diagnoses: &[Diagnosis]) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.updates.inc();
        self.metrics.workloads.set(number(view.workloads.len()));
        self.metrics.services.set(number(view.services.len()));
        self.metrics.policies.set(number(view.policies.len()));
        for (severity, name) in [(Severity::Note, "note"), (Severity::Warning, "warning"), (Severity::Error, "error")] {
            self.metrics.diagnosed(name, diagnoses.iter().filter(|d| d.severity == severity).count());
        }
    }
}

/// Publishes whatever the source delivers, until it ends. `first` is called after the first update that could be read as a whole. Until then nothing
/// is served: what could not be read may be what restricts traffic, and agents that are up hold on to what they know of it.
pub async fn run(mut source: impl Source, settings: Settings, outlets: Outlets, first: impl FnOnce()) {
    let mut first = Some(first);
    let mut reported = HashSet::new();
    let mut join = Join::default();
    let mut patience = None;
    loop {
        let next = match patience.filter(|_| first.is_some()) {
            None => source.next().await,
            Some(until) => match timeout_at(until, source.next()).await {
                Ok(next) => next,
                Err(_) => {
                    tracing::warn!(
                        "some Secrets that gateways name, or hosts of ServiceEntries, could not be asked for yet"
                    );
                    if let Some(first) = first.take() {
                        first();
                    }
                    continue;
                }
            },
        };
        let Some(mut update) = next else { return };
        update.unread.extend(settings.unread(&update.objects));
        if first.is_some() && !update.unread.is_empty() {
            let unread = update.unread.join(", ");
            tracing::error!(%unread, "cannot begin before everything can be read");
            outlets.diagnoses.store(Arc::new(update.diagnoses));
            reported = report(&outlets.diagnoses.load(), &reported);
            continue;
        }
        let (settings, joined) = (settings.clone(), outlets.clone());
        // Joining a large mesh takes a while; streams go on meanwhile.
        let (known, mut work) = (std::mem::take(&mut reported), std::mem::take(&mut join));
        let publish = move || {
            let diagnoses = joined.publish(update, &mut work, &settings);
            let reported = report(&diagnoses, &known);
            (diagnoses, reported, work)
        };
        let diagnoses = match tokio::task::spawn_blocking(publish).await {
            Ok((diagnoses, now, work)) => {
                (reported, join) = (now, work);
                diagnoses
            }
            // What is served stays as it was; the next change may be readable again.
            Err(error) => {
                tracing::error!(%error, "the configuration could not be taken over");
                continue;
            }
        };
        let view = outlets.view.borrow().clone();
        tracing::info!(
            workloads = view.workloads.len(),
            services = view.services.len(),
            policies = view.policies.len(),
            diagnoses = diagnoses.len(),
            generation = outlets.world.borrow().generation,
            "configuration taken over"
        );
        // Gateways that are up would lose certificates which are only not heard of yet.
        // So would clients of hosts whose addresses were known until now.
        let lacks = first.is_some() && (view.unheard_secrets || is_pending(&view, &join.objects().looked_up));
        let is_waiting = lacks && Instant::now() < *patience.get_or_insert_with(|| Instant::now() + PATIENCE);
        if !is_waiting && let Some(first) = first.take() {
            first();
        }
    }
}

/// Prints what has not been `reported` yet, on standard error. Returns what is reported now.
fn report(diagnoses: &[Diagnosis], reported: &HashSet<String>) -> HashSet<String> {
    let texts: Vec<String> = diagnoses.iter().map(ToString::to_string).collect();
    // A standard error that nobody reads any more must not end the publishing.
    let mut out = std::io::stderr().lock();
    for text in texts.iter().filter(|text| !reported.contains(*text)) {
        let _ = writeln!(out, "{text}\n");
    }
    let left = texts.len();
    let now: HashSet<String> = texts.into_iter().collect();
    let resolved = reported.iter().filter(|r| !now.contains(*r)).count();
    if resolved > 0 {
        let _ = writeln!(out, "{resolved} resolved, {left} left\n");
    }
    now
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::manifest::file;
    use crate::resource::catalog::{Catalog, Scan};

    /// Delivers what texts say, one after the other, and remembers whether anything was begun before the last of them.
    struct Texts {
        catalog: Catalog,
        left: Vec<&'static str>,
        is_begun: Arc<AtomicBool>,
        begun_early: Arc<AtomicBool>,
    }

    impl Source for Texts {
        async fn next(&mut self) -> Option<Update> {
            let text = self.left.pop()?;
            self.begun_early.fetch_or(self.is_begun.load(Ordering::Relaxed), Ordering::Relaxed);
            let read = file::read("mesh.yaml", text.as_bytes());
            let scan = Scan { found: read.found.into_iter().map(|(f, _)| f).collect(), ..Scan::default() };
            Some(Update { objects: self.catalog.apply(&scan).0, diagnoses: read.diagnoses, ..Update::default() })
        }
    }

    #[tokio::test]
    async fn a_start_waits_for_mesh_settings_that_can_be_read() {
        const GOOD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\ndata: {mesh: \"trustDomain: a\"}\n";
        const BAD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\ndata: {mesh: \"trustDomain: A\"}\n";
        const ELSEWHERE: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: shop}\ndata: {mesh: \"trustDomain: A\"}\n";
        for (texts, early, domain) in [
            (vec![GOOD, BAD], false, "a"),
            (vec![BAD, GOOD], true, "a"),
            (vec![GOOD, ELSEWHERE], true, "a"),
            (vec!["", GOOD], true, "cluster.local"),
        ] {
            let (is_begun, begun_early) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let source = Texts {
                catalog: Catalog::default(),
                left: texts.clone(),
                is_begun: is_begun.clone(),
                begun_early: begun_early.clone(),
            };
            let outlets = Outlets::new(Arc::default());
            let view = outlets.view.subscribe();
            let first = is_begun.clone();
            run(source, Settings::default(), outlets, move || first.store(true, Ordering::Relaxed)).await;
            let begun = (is_begun.load(Ordering::Relaxed), begun_early.load(Ordering::Relaxed));
            assert_eq!(begun, (true, early), "{texts:?}");
            assert_eq!(view.borrow().settings.trust_domain.as_str(), domain, "{texts:?}");
        }
    }

    /// Delivers one object, with these addresses of names one after the other.
    struct Named(Vec<&'static [&'static str]>, Arc<AtomicBool>, Arc<AtomicBool>);

    impl Source for Named {
        async fn next(&mut self) -> Option<Update> {
            let Some(names) = self.0.pop() else {
                // Nothing more is said for as long as anybody waits.
                tokio::time::sleep(2 * PATIENCE).await;
                return None;
            };
            self.2.fetch_or(self.1.load(Ordering::Relaxed), Ordering::Relaxed);
            const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: o, namespace: shop}\nspec: {hosts: [a.example.com, b.example.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}\n";
            let read = file::read("mesh.yaml", ENTRY.as_bytes());
            let scan = Scan { found: read.found.into_iter().map(|(f, _)| f).collect(), ..Scan::default() };
            let mut objects = Catalog::default().apply(&scan).0;
            let address = |name: &&str| ((*name).into(), vec![std::net::IpAddr::from([192, 0, 2, 1])]);
            objects.looked_up = Arc::new(names.iter().map(address).collect());
            Some(Update { objects, ..Update::default() })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_waits_for_the_addresses_of_hosts_for_a_while() {
        let (a, both): (&[&str], &[&str]) = (&["a.example.com"], &["a.example.com", "b.example.com"]);
        for (updates, early) in [
            (vec![both, a, &[]], false),
            // Another one than the last finds that it was begun.
            (vec![a, both], true),
            // Nobody answers for one of them.
            (vec![a], false),
        ] {
            let (is_begun, begun_early) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let source = Named(updates.clone(), is_begun.clone(), begun_early.clone());
            let (started, first, own) = (Instant::now(), is_begun.clone(), Arc::new(std::sync::Mutex::new(None)));
            let at = own.clone();
            let begin = move || {
                first.store(true, Ordering::Relaxed);
                *at.lock().unwrap() = Some(started.elapsed());
            };
            run(source, Settings::default(), Outlets::new(Arc::default()), begin).await;
            assert_eq!((is_begun.load(Ordering::Relaxed), begun_early.load(Ordering::Relaxed)), (true, early));
            let waited = own.lock().unwrap().unwrap() >= PATIENCE;
            assert_eq!(waited, updates == [a], "{updates:?}");
        }
    }
}
