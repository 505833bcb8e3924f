//! Secrets and ConfigMaps of a cluster with certificates that gateways name, and no others: each is followed by its name, so that one that is replaced is in use a moment later and nothing else
//! is ever read. What follows one ends when nobody names it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::Client;
use mesh_runtime::task;
use serde_json::Value as Json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::decode::{Item, decode};
use super::source::resource;
use super::watch::{Event, Follower, Resource, Tuning};
use crate::index::View;
use crate::resource::{Key, Object, Secrets};

/// At once; of more the first ones by name. What is left out is missing.
const MOST: usize = 2000;
/// Events on their way.
const EVENTS: usize = 256;

/// One that is followed.
struct Followed {
    tag: u64,
    task: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Follows what the view names, for ever. What is known is in `secrets`.
pub async fn follow(
    client: Client,
    mut view: watch::Receiver<Arc<View>>,
    secrets: watch::Sender<Arc<Secrets>>,
    tuning: Tuning,
) {
    let (sender, mut events) = mpsc::channel(EVENTS);
    let mut followed: BTreeMap<Key, Followed> = BTreeMap::new();
    let (mut names, mut next) = (BTreeMap::<u64, Key>::new(), 0_u64);
    loop {
        let wanted = view.borrow_and_update().secrets.clone();
        let ranked = fairly(&wanted, |name| name.namespace.as_str());
        let (wanted, left_out) = ranked.split_at(ranked.len().min(MOST));
        let wanted: BTreeSet<&Key> = wanted.iter().copied().collect();
        let gone: Vec<Key> = followed.keys().filter(|name| !wanted.contains(name)).cloned().collect();
        for name in gone {
            if let Some(one) = followed.remove(&name) {
                names.remove(&one.tag);
            }
            secrets.send_if_modified(|known| change(known, |known| known.forget(&name)));
        }
        for name in left_out {
            let why = "more Secrets and ConfigMaps are named than can be followed";
            secrets.send_if_modified(|known| change(known, |known| known.fail(name, why.into())));
        }
        for name in wanted {
            if followed.contains_key(name) {
                continue;
            }
            next += 1;
            names.insert(next, name.clone());
            let kind = name.kind;
            let follower = Follower {
                client: client.clone(),
                resource: named(name),
                decode: move |version: &str, object: Json| decode(kind, version, object),
                tag: next,
                events: sender.clone(),
                tuning,
            };
            followed.insert(name.clone(), Followed { tag: next, task: task::spawn("follow a secret", follower.run()) });
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            event = events.recv() => {
                let Some((tag, event)) = event else { return };
                // Of one that nobody names any more there may be an event on its way.
                if let Some(name) = names.get(&tag) {
                    secrets.send_if_modified(|known| change(known, |known| take(known, name, event)));
                }
            }
        }
    }
}

fn named(name: &Key) -> Resource {
    let fields = Some(format!("metadata.name={}", name.name).into());
    Resource { namespace: Some(name.namespace.clone()), fields, ..resource(name.kind) }
}

/// Whether it is another afterwards.
fn change(known: &mut Arc<Secrets>, change: impl FnOnce(&mut Secrets)) -> bool {
    let mut after = Secrets::clone(known);
    change(&mut after);
    let is_new = after != **known;
    if is_new {
        *known = Arc::new(after);
    }
    is_new
}

/// Of each namespace the first, then of each the second, and so on: none takes the places of all others.
pub(crate) fn fairly<'a, T: Ord>(all: &'a BTreeSet<T>, namespace: impl Fn(&'a T) -> &'a str) -> Vec<&'a T> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let rank = |one: &'a T| {
        let count = counts.entry(namespace(one)).or_default();
        *count += 1;
        (*count, one)
    };
    let mut ranked: Vec<(usize, &T)> = all.iter().map(rank).collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, one)| one).collect()
}

fn take(known: &mut Secrets, name: &Key, event: Event<Item>) {
    let mut put = |item: Item| match item.outcome {
        _ if item.key.name != name.name => {}
        _ if item.key.kind != name.kind => known.fail(name, "it is for something else".into()),
        Ok(Object::Secret(secret)) => known.insert(name.clone(), secret),
        _ => known.fail(name, "it cannot be read".into()),
    };
    match event {
        Event::Listed(items) => match items.into_iter().next() {
            Some(item) => put(item),
            None => known.remove(name),
        },
        Event::Applied(item) => put(item),
        Event::Deleted(_) | Event::Absent => known.remove(name),
        Event::Failing(why) => {
            tracing::warn!(object = %name, %why, "a certificate of a gateway cannot be followed");
            known.fail(name, why.into());
        }
        Event::Heard => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::Kind;
    use crate::resource::secret::Found;

    fn key(kind: Kind, namespace: &str, name: &str) -> Key {
        Key { kind, namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn no_namespace_takes_the_places_of_all_others() {
        let all = [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("c", "1"), ("c", "2")];
        let all: BTreeSet<Key> = all.iter().map(|(ns, name)| key(Kind::Secret, ns, name)).collect();
        let fair: Vec<String> = fairly(&all, |key| key.namespace.as_str())
            .iter()
            .map(|key| format!("{}{}", key.namespace, key.name))
            .collect();
        assert_eq!(fair, ["a1", "b1", "c1", "a2", "c2", "a3"]);
    }

    #[test]
    fn what_is_heard_of_one_is_known_and_of_others_nothing_is() {
        let (name, other) = (key(Kind::Secret, "shop", "a"), key(Kind::CaBundle, "shop", "a"));
        let item = |name: &str| {
            let object =
                json!({ "metadata": { "name": name, "namespace": "shop" }, "data": { "tls.key": "aHVudGVyMg==" } });
            decode(Kind::Secret, "v1", object).unwrap()
        };
        let mut known = Arc::new(Secrets::asked());
        let mut hear = |event| {
            let changed = change(&mut known, |known| take(known, &name, event));
            assert_eq!(known.get(&other), Found::Unknown);
            let found = match known.get(&name) {
                Found::Here(_) => "here",
                Found::Missing => "missing",
                Found::Failing(_) => "failing",
                Found::Unknown => "unknown",
            };
            (found, changed)
        };
        assert_eq!(hear(Event::Failing("403: no".into())), ("failing", true));
        assert_eq!(hear(Event::Listed(vec![])), ("missing", true));
        assert_eq!(hear(Event::Listed(vec![])), ("missing", false), "nothing new");
        assert_eq!(hear(Event::Applied(item("a"))), ("here", true));
        assert_eq!(hear(Event::Failing("500".into())), ("here", false), "it stays as it was");
        assert_eq!(hear(Event::Deleted(item("a"))), ("missing", true));
        assert_eq!(hear(Event::Listed(vec![item("b")])), ("missing", false), "not what was asked for");
        assert!(!format!("{:?}", item("a")).contains("hunter2"));
    }

    #[test]
    fn one_is_asked_for_by_its_name() {
        for (kind, plural) in [(Kind::Secret, "secrets"), (Kind::CaBundle, "configmaps")] {
            let resource = named(&key(kind, "shop", "web-cert"));
            assert_eq!((resource.namespace.as_deref(), resource.plural), (Some("shop"), plural));
            assert_eq!(resource.fields.as_deref(), Some("metadata.name=web-cert"));
            assert!(!resource.is_custom && !resource.metadata_only);
        }
    }

    #[test]
    fn features_GA_roots_of_a_config_map_are_followed_by_its_name() {
        let item = |name: &str, data: Json| {
            let object = json!({ "metadata": { "name": name, "namespace": "shop" }, "data": data });
            decode(Kind::CaBundle, "v1", object).unwrap()
        };
        let (ca, settings) = (key(Kind::CaBundle, "shop", "ca"), key(Kind::CaBundle, "shop", "undermesh"));
        let mut known = Secrets::asked();
        take(&mut known, &ca, Event::Listed(vec![item("ca", json!({}))]));
        assert!(matches!(known.get(&ca), Found::Here(one) if one.believed == Err("it has no ca.crt".into())));
        // The mesh settings are no certificates.
        take(&mut known, &settings, Event::Listed(vec![item("undermesh", json!({}))]));
        assert!(matches!(known.get(&settings), Found::Failing(_)));
    }
}
