//! What each listener of a Gateway of ours is told of itself, in the Gateway API's words. `deploy::standing` writes it. What depends on Secrets is laid over it
//! by the joining, because they change without anything else.

use std::collections::BTreeMap;

use mesh_core::{ArcStr, NamespacedName};

use super::super::Around;
use super::standing::{self, Standing};
use crate::index::certificates::Certified;
use crate::index::routing::Listening;
use crate::index::routing::parents::{Attached, Owner, routes_of};
use crate::resource::routing::Routed;
use crate::resource::routing::gateway::{Gateway, Listener};
use crate::resource::{Key, Kind};

/// A reason in one word, and for people.
pub type Why = (&'static str, String);

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
}

impl ListenerTold {
    /// Why connections to it are refused, if they are.
    pub fn why_not(&self) -> Option<&Why> {
        let is_fatal = |why: &&Why| why.0 != "InvalidRouteKinds" || self.kinds.is_empty();
        self.refused.as_ref().or(self.conflict.as_ref()).or(self.unresolved.as_ref().filter(is_fatal))
    }
}

/// By Gateway.
pub type Told = BTreeMap<NamespacedName, Vec<ListenerTold>>;

/// All listeners of the Gateways of ours, in their order.
pub fn told(around: &Around<'_>) -> Told {
    let mut attached: BTreeMap<(&NamespacedName, &str), usize> = BTreeMap::new();
    for route in around.resolved.routes.values() {
        let mut here: Vec<(&NamespacedName, &str)> = Vec::new();
        for (_, outcome) in &route.parents {
            let Ok(Attached::Listeners(gateway, names)) = outcome else { continue };
            here.extend(names.iter().map(|name| (gateway, name.as_str())));
        }
        // One that names a listener twice is one route.
        here.sort_unstable();
        here.dedup();
        here.into_iter().for_each(|place| *attached.entry(place).or_default() += 1);
    }
    let ours =
        around.routes.gateways.iter().filter(|(_, gateway)| matches!(around.hosts.owner(gateway), Owner::Ours(_)));
    let of = |(name, gateway): (&NamespacedName, &std::sync::Arc<Routed<Gateway>>)| {
        let of_one = |(listener, standing): (&Listener, Standing)| ListenerTold {
            attached: attached.get(&(name, listener.name.as_str())).copied().unwrap_or_default(),
            unresolved: unresolved(listener, name, around),
            ..one(listener, standing)
        };
        (name.clone(), standing::of(&gateway.spec).into_iter().map(of_one).collect())
    };
    ours.map(of).collect()
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
fn unresolved(listener: &Listener, gateway: &NamespacedName, around: &Around<'_>) -> Option<Why> {
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
    let bad = references.filter(|reference| !standing::may_show(reference, gateway, around.routes)).map(|reference| {
        let namespace = reference.namespace.as_deref().unwrap_or(&gateway.namespace);
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
    let of = |(gateway, all): (&NamespacedName, &Vec<ListenerTold>)| {
        all.iter().filter(serves).map(|one| (gateway.clone(), one.name.clone())).collect::<Vec<_>>()
    };
    told.iter().flat_map(of).collect()
}

/// Lays over it what is known of Secrets. `None` of a Gateway: it is not known yet.
pub fn with_secrets(told: &Told, certified: &Certified) -> Told {
    let mut told = told.clone();
    for bad in certified.unresolved.iter().filter(|bad| bad.object.kind == Kind::Gateway) {
        let all = told.get_mut(&name(&bad.object)).into_iter().flatten();
        for one in all.filter(|one| one.name == bad.listener && one.unresolved.is_none()) {
            one.unresolved = Some(("InvalidCertificateRef", bad.why.clone()));
        }
    }
    for key in certified.undecided.iter().filter(|key| key.kind == Kind::Gateway) {
        told.remove(&name(key));
    }
    told
}

fn name(key: &Key) -> NamespacedName {
    NamespacedName::new(key.namespace.clone(), key.name.clone())
}
