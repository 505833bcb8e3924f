//! Which listeners of a Gateway and of its ListenerSets count, and why the others do not: in the Gateway API's words, because this is what is done as well as what is told.

use std::collections::BTreeMap;

use super::super::Around;
use crate::index::routing::backends::is_granted;
use crate::resource::routing::Routes;
use crate::resource::routing::gateway::{Gateway, Listener, Mode};
use crate::resource::routing::reference::ObjectReference;
use crate::resource::{Key, Kind};
use mesh_core::{ArcStr, NamespacedName, ports};

/// A reason in one word, and for people.
pub type Why = (&'static str, String);

/// What a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It takes tunnels of the mesh: a waypoint's.
    Tunnels,
    /// It counts.
    Serves,
    /// It does not, and why.
    Refused(Reason, String),
}

/// The Gateway API's words for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are called as in conditions")]
pub enum Reason {
    UnsupportedProtocol,
    PortUnavailable,
    ProtocolConflict,
    HostnameConflict,
    TooManyListeners,
}

impl Reason {
    /// Whether another listener of the same Gateway is why.
    pub fn is_conflict(self) -> bool {
        matches!(self, Reason::ProtocolConflict | Reason::HostnameConflict)
    }

    /// As in conditions.
    pub fn name(self) -> &'static str {
        match self {
            Reason::UnsupportedProtocol => "UnsupportedProtocol",
            Reason::PortUnavailable => "PortUnavailable",
            Reason::ProtocolConflict => "ProtocolConflict",
            Reason::HostnameConflict => "HostnameConflict",
            Reason::TooManyListeners => "TooManyListeners",
        }
    }
}

/// What is spoken on one port can be told apart by names only within one of these.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Http,
    Tls,
    Tcp,
    Udp,
}

fn family(listener: &Listener) -> Option<Family> {
    match listener.protocol.as_str() {
        "HTTP" => Some(Family::Http),
        "HTTPS" | "TLS" => Some(Family::Tls),
        "TCP" => Some(Family::Tcp),
        "UDP" => Some(Family::Udp),
        _ => None,
    }
}

/// Listeners that one Gateway can have, those of its ListenerSets among them: whoever may write one of these must not be able to fill the gateway. What the
/// Gateway leaves of them the namespaces of its sets have in equal shares, and what one does not need the others have: none is kept out because another came first.
const MOST: usize = 1024;

/// One listener, and where it stands.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// The Gateway, or a ListenerSet.
    pub object: Key,
    /// Its place there.
    pub index: usize,
    /// What it says.
    pub listener: &'a Listener,
}

/// Each listener of a Gateway, and after these those of its ListenerSets, in the order in which they count. Of two that contradict each other the first does.
pub fn of<'a>(name: &NamespacedName, gateway: &'a Gateway, around: &Around<'a>) -> Vec<(Entry<'a>, Standing)> {
    let key = |kind, name: &NamespacedName| Key { kind, namespace: name.namespace.clone(), name: name.name.clone() };
    let sets = around.resolved.sets.get(name).into_iter().flatten();
    let sets: Vec<_> = sets
        .filter_map(|name| {
            Some((key(Kind::ListenerSet, name), &*around.routes.listener_sets.get(name)?.spec.listeners))
        })
        .collect();
    let mut wanted: BTreeMap<ArcStr, usize> = BTreeMap::new();
    for (key, listeners) in &sets {
        *wanted.entry(key.namespace.clone()).or_default() += listeners.len();
    }
    let share = share(MOST.saturating_sub(gateway.listeners.len()), wanted.into_values().collect());
    let mut taken: BTreeMap<ArcStr, usize> = BTreeMap::new();
    let mut standing: Vec<(Entry<'a>, Standing)> = Vec::new();
    let own = (key(Kind::Gateway, name), &*gateway.listeners);
    for (object, listeners) in std::iter::once(own).chain(sets) {
        for (index, listener) in listeners.iter().enumerate() {
            let entry = Entry { object: object.clone(), index, listener };
            let counts = standing.iter().filter(|(_, standing)| *standing == Standing::Serves).map(|(known, _)| known);
            let has_room = match object.kind {
                Kind::ListenerSet => {
                    let taken = taken.entry(object.namespace.clone()).or_default();
                    *taken += 1;
                    *taken <= share
                }
                _ => standing.len() < MOST,
            };
            let found = if has_room { one(&entry, counts) } else { too_many(name, &object.namespace) };
            standing.push((entry, found));
        }
    }
    standing
}

/// The most that each of several may have, so that together they have no more than there is.
fn share(mut there_is: usize, mut wanted: Vec<usize>) -> usize {
    wanted.sort_unstable();
    for (before, count) in wanted.iter().enumerate() {
        let equal = there_is / (wanted.len() - before);
        if *count > equal {
            return equal;
        }
        there_is -= count;
    }
    MOST
}

fn too_many(gateway: &NamespacedName, namespace: &str) -> Standing {
    let why = format!("Gateway {gateway} has {MOST} listeners at most, and namespace {namespace} its share of them");
    Standing::Refused(Reason::TooManyListeners, why)
}

fn one<'a>(entry: &Entry<'_>, mut before: impl Iterator<Item = &'a Entry<'a>>) -> Standing {
    let listener = entry.listener;
    let refused = |reason, why: String| Standing::Refused(reason, why);
    if listener.protocol == "HBONE" {
        return match entry.object.kind {
            Kind::ListenerSet => refused(
                Reason::UnsupportedProtocol,
                "only a Gateway itself is a waypoint, and takes tunnels".to_owned(),
            ),
            _ if listener.port != ports::HBONE => {
                let why =
                    format!("tunnels of the mesh come to port {}: nobody listens on {}", ports::HBONE, listener.port);
                refused(Reason::PortUnavailable, why)
            }
            _ => Standing::Tunnels,
        };
    }
    let Some(family) = family(listener) else {
        return refused(Reason::UnsupportedProtocol, format!("{} is not served", listener.protocol));
    };
    if ports::is_mesh_port(listener.port) {
        return refused(Reason::PortUnavailable, format!("port {} is one of the mesh's own", listener.port));
    }
    let host = |listener: &Listener| listener.hostname.as_deref().map(str::to_ascii_lowercase);
    let other = before.find_map(|entry| {
        let known = entry.listener;
        // A port of UDP is another one.
        let same = known.port == listener.port && (known.protocol == "UDP") == (listener.protocol == "UDP");
        match self::family(known) == Some(family) {
            false if same => Some((Reason::ProtocolConflict, entry)),
            true if same && (host(known) == host(listener) || matches!(family, Family::Tcp | Family::Udp)) => {
                Some((Reason::HostnameConflict, entry))
            }
            _ => None,
        }
    });
    match other {
        None => Standing::Serves,
        Some((reason, other)) => {
            let (port, protocol) = (other.listener.port, &other.listener.protocol);
            // What others have written beside it is not its writer's business.
            let whose = match other.object == entry.object {
                true => format!("that of {:?}", other.listener.name),
                false if other.object.kind == Kind::Gateway => "one of the Gateway's".to_owned(),
                false => "another ListenerSet's".to_owned(),
            };
            let what = match (reason, &listener.hostname) {
                (Reason::HostnameConflict, Some(host)) if family != Family::Tcp => format!("{host} on port {port}"),
                _ => format!("port {port}"),
            };
            refused(reason, format!("{what} is {whose} already, which speaks {protocol}"))
        }
    }
}

/// Whether a Gateway or a ListenerSet may show the certificate that it names. What one may show the other may not for that.
pub fn may_show(reference: &ObjectReference, object: &Key, routes: &Routes) -> bool {
    let (group, kind) = (reference.group.as_deref().unwrap_or_default(), reference.kind.as_deref().unwrap_or("Secret"));
    let namespace = reference.namespace.as_deref().unwrap_or(&object.namespace);
    (group, kind) == ("", "Secret")
        && (namespace == &*object.namespace
            || is_granted(routes, object, (group, kind, namespace, reference.name.as_str())))
}

/// Whether TLS is passed on.
pub fn passes(listener: &Listener) -> bool {
    listener.tls.as_ref().is_some_and(|tls| tls.mode == Some(Mode::Passthrough))
}
