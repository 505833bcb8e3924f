//! What each listener of a Gateway of ours, and of its ListenerSets, is told of itself, in the Gateway API's words. `deploy` writes it. What depends on Secrets is
//! laid over it by the joining, because they change without anything else.

use std::collections::BTreeMap;

use mesh_core::{ArcStr, NamespacedName};

use super::super::Around;
use super::frontend;
use super::standing::{self, Standing};
use crate::index::certificates::{Certified, Part};
use crate::index::routing::Listening;
use crate::index::routing::parents::{Attached, Owner, routes_of};
use crate::resource::routing::gateway::Listener;
use crate::resource::{Key, Kind};

pub use super::standing::Why;

/// What one listener is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenerTold {
    /// Its name.
    pub name: ArcStr,
    /// The kinds of routes that may be attached.
    pub kinds: Vec<&'static str>,
    /// How many are.
    pub attached: usize,
    /// Why nobody listens for it.
    pub refused: Option<Why>,
    /// Another listener of the Gateway has what it asks for.
    pub conflict: Option<Why>,
    /// Something that it refers to is not there, or not for it.
    pub unresolved: Option<Why>,
    /// It is served all the same: clients are believed by something else that it refers to.
    pub partial: bool,
    /// So much is left by which clients are believed.
    pub roots: usize,
}

impl ListenerTold {
    /// Why connections to it are refused, if they are.
    pub fn why_not(&self) -> Option<&Why> {
        let is_fatal = |why: &&Why| !self.partial && (why.0 != "InvalidRouteKinds" || self.kinds.is_empty());
        self.refused.as_ref().or(self.conflict.as_ref()).or(self.unresolved.as_ref().filter(is_fatal))
    }
}

impl ListenerTold {
    /// Something by which clients were to be believed is none. With nothing left nobody is let in.
    fn believes_less(&mut self, why: Why) {
        if self.unresolved.is_none() {
            (self.unresolved, self.partial) = (Some(why), true);
        }
        if self.roots == 0 {
            let why = "nothing is left by which clients are believed".to_owned();
            self.refused.get_or_insert(("NoValidCACertificate", why));
        }
    }
}

/// What a ListenerSet of a Gateway of ours is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetTold {
    /// Its Gateway.
    pub gateway: NamespacedName,
    /// Why that takes none of it.
    pub refused: Option<Why>,
    /// Its listeners; none if it is refused.
    pub listeners: Vec<ListenerTold>,
}

impl SetTold {
    fn of(gateway: &NamespacedName, refused: Option<Why>) -> Self {
        Self { gateway: gateway.clone(), refused, listeners: Vec::new() }
    }

    /// Whether it is attached to its Gateway: any of its listeners can be served.
    pub fn is_accepted(&self) -> bool {
        self.refused.is_none() && self.listeners.iter().any(|one| one.why_not().is_none())
    }
}

/// What all listeners of the Gateways of ours are told, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Those that stand in the Gateway itself.
    pub gateways: BTreeMap<NamespacedName, Vec<ListenerTold>>,
    /// Those of ListenerSets, by these.
    pub sets: BTreeMap<NamespacedName, SetTold>,
}

impl Told {
    fn listeners(&mut self, object: &Key) -> Option<&mut Vec<ListenerTold>> {
        let name = name(object);
        match object.kind {
            Kind::Gateway => self.gateways.get_mut(&name),
            Kind::ListenerSet => self.sets.get_mut(&name).map(|set| &mut set.listeners),
            _ => None,
        }
    }

    fn forget(&mut self, object: &Key) {
        let name = name(object);
        match object.kind {
            Kind::Gateway => drop(self.gateways.remove(&name)),
            Kind::ListenerSet => drop(self.sets.remove(&name)),
            _ => {}
        }
    }
}

/// All listeners of the Gateways of ours, in their order.
pub fn told(around: &Around<'_>) -> Told {
    let mut attached: BTreeMap<(&Key, &str), usize> = BTreeMap::new();
    for route in around.resolved.routes.values() {
        let mut here: Vec<(&Key, &str)> = Vec::new();
        for (_, outcome) in &route.parents {
            let Ok(Attached::Listeners(object, names)) = outcome else { continue };
            here.extend(names.iter().map(|name| (object, name.as_str())));
        }
        // One that names a listener twice is one route.
        here.sort_unstable();
        here.dedup();
        here.into_iter().for_each(|place| *attached.entry(place).or_default() += 1);
    }
    let ours =
        around.routes.gateways.iter().filter(|(_, gateway)| matches!(around.hosts.owner(gateway), Owner::Ours(_)));
    let mut told = Told::default();
    for (name, gateway) in ours {
        told.gateways.insert(name.clone(), Vec::new());
        for set in around.resolved.sets.get(name).into_iter().flatten() {
            told.sets.insert(set.clone(), SetTold::of(name, None));
        }
        for (entry, standing) in standing::of(name, &gateway.spec, around) {
            let (listener, key) = (entry.listener, &entry.object);
            let mut one = ListenerTold {
                attached: attached.get(&(key, listener.name.as_str())).copied().unwrap_or_default(),
                unresolved: unresolved(listener, key, around),
                ..one(listener, standing)
            };
            if let Some(frontend) = frontend::of(gateway, key, listener, around.routes) {
                one.roots = frontend.roots.len();
                frontend.broken.into_iter().for_each(|(_, why)| one.believes_less(why));
            }
            told.listeners(key).into_iter().for_each(|all| all.push(one.clone()));
        }
    }
    for (set, (gateway, why)) in &around.resolved.refused_sets {
        told.sets.insert(set.clone(), SetTold::of(gateway, Some(("NotAllowed", why.clone()))));
    }
    told
}

fn one(listener: &Listener, standing: Standing) -> ListenerTold {
    let name = listener.name.as_str().into();
    let told = ListenerTold { name, kinds: kinds(listener), ..ListenerTold::default() };
    match standing {
        // To a waypoint no routes are attached, but to services.
        Standing::Tunnels => ListenerTold { kinds: Vec::new(), ..told },
        Standing::Serves => told,
        Standing::Refused(reason, why) if reason.is_conflict() => {
            ListenerTold { conflict: Some((reason.name(), why)), ..told }
        }
        Standing::Refused(reason, why) => ListenerTold { refused: Some((reason.name(), why)), ..told },
    }
}

/// The kinds that fit the protocol, of those that the listener wants.
fn kinds(listener: &Listener) -> Vec<&'static str> {
    let wanted = listener.allowed_routes.as_ref().map(|allowed| allowed.kinds.as_slice()).unwrap_or_default();
    let is_wanted = |kind: &&str| wanted.is_empty() || wanted.iter().any(|one| one.is(kind));
    routes_of(listener).iter().copied().filter(is_wanted).collect()
}

/// What it refers to in vain, as far as that is known without Secrets.
fn unresolved(listener: &Listener, object: &Key, around: &Around<'_>) -> Option<Why> {
    let wanted = listener.allowed_routes.as_ref().map(|allowed| allowed.kinds.as_slice()).unwrap_or_default();
    let fitting = routes_of(listener);
    if let Some(other) = wanted.iter().find(|one| !fitting.iter().any(|kind| one.is(kind))) {
        let why = format!("{} takes no {}: {}", listener.protocol, other.kind, fitting.join(", "));
        return Some(("InvalidRouteKinds", why));
    }
    if standing::passes(listener) {
        return None;
    }
    let references = listener.tls.iter().flat_map(|tls| &tls.certificate_refs);
    let bad = references.filter(|reference| !standing::may_show(reference, object, around.routes)).map(|reference| {
        let namespace = reference.namespace.as_deref().unwrap_or(&object.namespace);
        let is_secret = reference.group.as_deref().unwrap_or_default().is_empty()
            && reference.kind.as_deref().unwrap_or("Secret") == "Secret";
        match is_secret {
            true => ("RefNotPermitted", format!("no ReferenceGrant of {namespace} lets it show {}", reference.name)),
            false => ("InvalidCertificateRef", format!("{} is no Secret", reference.name)),
        }
    });
    bad.into_iter().next()
}

/// Those that are served.
pub fn listening(told: &Told) -> Listening {
    let serves = |one: &&ListenerTold| one.refused.is_none() && one.conflict.is_none() && !one.kinds.is_empty();
    let of = |kind, name: &NamespacedName, all: &[ListenerTold]| {
        let key = Key { kind, namespace: name.namespace.clone(), name: name.name.clone() };
        all.iter().filter(serves).map(|one| (key.clone(), one.name.clone())).collect::<Vec<_>>()
    };
    let gateways = told.gateways.iter().flat_map(|(name, all)| of(Kind::Gateway, name, all));
    gateways.chain(told.sets.iter().flat_map(|(name, set)| of(Kind::ListenerSet, name, &set.listeners))).collect()
}

/// Lays over it what is known of Secrets. A Gateway or ListenerSet of which it is not known yet is left out.
pub fn with_secrets(told: &Told, certified: &Certified) -> Told {
    let mut told = told.clone();
    for bad in &certified.unresolved {
        let all = told.listeners(&bad.object).into_iter().flatten();
        for one in all.filter(|one| one.name == bad.listener) {
            match bad.part {
                Part::Believed => {
                    one.roots = one.roots.saturating_sub(1);
                    one.believes_less(("InvalidCACertificateRef", bad.why.clone()));
                }
                Part::Shown if one.unresolved.is_none() || one.partial => {
                    (one.unresolved, one.partial) = (Some(("InvalidCertificateRef", bad.why.clone())), false);
                }
                Part::Shown => {}
            }
        }
    }
    certified.undecided.iter().for_each(|key| told.forget(key));
    told
}

fn name(key: &Key) -> NamespacedName {
    NamespacedName::new(key.namespace.clone(), key.name.clone())
}
