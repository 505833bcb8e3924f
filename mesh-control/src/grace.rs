//! Mesh settings that are gone stay in force for a while. To delete their ConfigMap by mistake, or to make it anew, must not change the trust domain, the
//! root namespace and who is in the mesh from one moment to the next. Whoever wants the defaults at once writes them: settings that are empty.
//!
//! [`Grace`] stands between a source and whoever publishes (`app`); what it decides is [`Keep`]'s, which is pure.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use mesh_core::{ArcStr, NamespacedName};
use tokio::time::{Instant, sleep_until};

use crate::diagnosis::Problem;
use crate::manifest::file::diagnosis;
use crate::resource::{Key, Kind, MeshConfig, Secured, mesh_config};
use crate::source::{Source, Update};

/// How long settings that are gone stay in force.
pub const GRACE: Duration = Duration::from_secs(300);

/// The last settings, and when they were missed.
#[derive(Debug)]
struct Keep {
    name: NamespacedName,
    grace: Duration,
    last: Option<Secured<MeshConfig>>,
    gone: Option<Instant>,
}

impl Keep {
    /// Whether an update lacks settings that there were.
    fn misses(&self, update: &Update) -> bool {
        self.last.is_some() && !update.objects.mesh_configs.contains_key(&self.name)
    }

    /// Puts settings that are gone back into an update. Returns when they are to be gone for good.
    fn take(&mut self, update: &mut Update, now: Instant) -> Option<Instant> {
        if let Some(config) = update.objects.mesh_configs.get(&self.name) {
            (self.last, self.gone) = (Some(config.clone()), None);
            return None;
        }
        // What could never be read says nothing that could stay.
        let last = self.last.clone().filter(|last| matches!(last, Secured::Readable(_)))?;
        let until = *self.gone.get_or_insert(now) + self.grace;
        if until <= now {
            (self.last, self.gone) = (None, None);
            return None;
        }
        update.objects.mesh_configs.insert(self.name.clone(), last);
        let key = Key { kind: Kind::ConfigMap, namespace: self.name.namespace.clone(), name: self.name.name.clone() };
        let message =
            format!("the mesh settings are gone; they stay in force for {} s, then defaults are", self.grace.as_secs());
        let help = "make them again; for the defaults at once make them empty (`data: {mesh: \"\"}`)";
        update.diagnoses.push(diagnosis(Some(&key), Problem::warning("", message).help(help), None));
        Some(until)
    }
}

type Next<S> = Pin<Box<dyn Future<Output = (S, Option<Update>)> + Send>>;

/// A source whose mesh settings outlast their object by a while.
pub struct Grace<S> {
    keep: Keep,
    /// The next update of the source, which goes on while nobody waits for it.
    next: Option<Next<S>>,
    /// While settings are gone: what was delivered, to be delivered once more without them.
    held: Option<(Instant, Update)>,
}

impl<S> std::fmt::Debug for Grace<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grace").field("keep", &self.keep).finish_non_exhaustive()
    }
}

fn next<S: Source>(mut source: S) -> Next<S> {
    Box::pin(async move {
        let update = source.next().await;
        (source, update)
    })
}

impl<S: Source> Grace<S> {
    /// For settings of the namespace `home`.
    pub fn new(source: S, home: ArcStr, grace: Duration) -> Self {
        let name = NamespacedName::new(home, mesh_config::NAME);
        Self { keep: Keep { name, grace, last: None, gone: None }, next: Some(next(source)), held: None }
    }
}

impl<S: Source> Source for Grace<S> {
    async fn next(&mut self) -> Option<Update> {
        let mut coming = self.next.take()?;
        let due = self.held.as_ref().map(|(until, _)| *until);
        let over = async {
            match due {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let mut update = tokio::select! {
            // News before what is over: the settings may be back.
            biased;
            (source, update) = &mut coming => {
                self.next = update.is_some().then(|| next(source));
                update?
            }
            () = over => {
                self.next = Some(coming);
                self.held.take()?.1
            }
        };
        // A copy is only needed where settings are put back.
        let plain = self.keep.misses(&update).then(|| copy(&update));
        let until = self.keep.take(&mut update, Instant::now());
        self.held = until.zip(plain);
        Some(update)
    }
}

fn copy(update: &Update) -> Update {
    Update {
        objects: update.objects.clone(),
        diagnoses: update.diagnoses.clone(),
        places: update.places.clone(),
        unread: update.unread.clone(),
        marks: update.marks.clone(),
        since: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::file;
    use crate::resource::catalog::{Catalog, Scan};
    use tokio::sync::mpsc;

    /// Delivers what texts say.
    struct Texts(Catalog, mpsc::Receiver<&'static str>);

    impl Source for Texts {
        async fn next(&mut self) -> Option<Update> {
            let text = self.1.recv().await?;
            Some(update(&mut self.0, text))
        }
    }

    fn update(catalog: &mut Catalog, text: &str) -> Update {
        let read = file::read("mesh.yaml", text.as_bytes());
        let scan = Scan { found: read.found.into_iter().map(|(f, _)| f).collect(), ..Scan::default() };
        Update { objects: catalog.apply(&scan).0, diagnoses: read.diagnoses, ..Update::default() }
    }

    const SET: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\ndata: {mesh: \"rootNamespace: a\"}\n";
    const OTHER: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\ndata: {mesh: \"rootNamespace: b\"}\n";
    const EMPTY: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\ndata: {mesh: \"\"}\n";
    const NONE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

    /// The root namespace that is said, and whether something is wrong.
    fn said(update: &Update) -> (Option<String>, bool) {
        let config = update.objects.mesh_configs.values().next();
        let Some(Secured::Readable(config)) = config else { return (None, !update.diagnoses.is_empty()) };
        (config.root_namespace.as_ref().map(ToString::to_string), !update.diagnoses.is_empty())
    }

    #[test]
    fn settings_that_are_gone_stay_for_a_while() {
        let name = NamespacedName::new("undermesh-system", "undermesh");
        let mut keep = Keep { name, grace: GRACE, last: None, gone: None };
        let mut catalog = Catalog::default();
        let start = Instant::now();
        let a = || Some("a".to_owned());
        for (what, seconds, text, expected, left) in [
            ("none yet", 0, NONE, (None, false), None),
            ("set", 1, SET, (a(), false), None),
            ("gone", 10, NONE, (a(), true), Some(300)),
            ("something else changes", 110, NONE, (a(), true), Some(200)),
            ("made anew", 120, OTHER, (Some("b".to_owned()), false), None),
            ("the defaults, as they are wanted", 121, EMPTY, (None, false), None),
            ("set again", 122, SET, (a(), false), None),
            ("gone again", 130, NONE, (a(), true), Some(300)),
            ("nearly over", 429, NONE, (a(), true), Some(1)),
            ("over", 430, NONE, (None, false), None),
            ("and it stays so", 440, NONE, (None, false), None),
        ] {
            let now = start + Duration::from_secs(seconds);
            let mut update = update(&mut catalog, text);
            let until = keep.take(&mut update, now);
            assert_eq!(said(&update), expected, "{what}");
            assert_eq!(until.map(|until| (until - now).as_secs()), left, "{what}");
        }
        // What never could be read says nothing that could stay.
        let bad = SET.replace("rootNamespace", "rootNamespaze");
        for text in [bad.as_str(), NONE] {
            let mut update = update(&mut Catalog::default(), text);
            assert_eq!(keep.take(&mut update, start), None);
        }
    }

    #[tokio::test]
    async fn settings_go_by_themselves_when_nothing_else_happens() {
        let (texts, read) = mpsc::channel(8);
        let grace = Duration::from_secs(2);
        let mut source = Grace::new(Texts(Catalog::default(), read), "undermesh-system".into(), grace);
        let start = Instant::now();
        for (text, expected) in [(SET, (Some("a".to_owned()), false)), (NONE, (Some("a".to_owned()), true))] {
            texts.send(text).await.unwrap();
            assert_eq!(said(&source.next().await.unwrap()), expected);
        }
        assert_eq!(said(&source.next().await.unwrap()), (None, false));
        assert!(start.elapsed() >= grace);
        texts.send(OTHER).await.unwrap();
        assert_eq!(said(&source.next().await.unwrap()), (Some("b".to_owned()), false));
        drop(texts);
        assert!(source.next().await.is_none() && source.next().await.is_none());
    }
}
