//! Which listeners of a Gateway count, and why the others do not: in the Gateway API's words, because this is what is done as well as what is told.

use crate::index::routing::backends::is_granted;
use crate::resource::routing::Routes;
use crate::resource::routing::gateway::{Gateway, Listener, Mode};
use crate::resource::routing::reference::ObjectReference;
use crate::resource::{Key, Kind};
use mesh_core::{NamespacedName, ports};

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
        }
    }
}

/// What is spoken on one port can be told apart by names only within one of these.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Http,
    Tls,
    Tcp,
}

fn family(listener: &Listener) -> Option<Family> {
    match listener.protocol.as_str() {
        "HTTP" => Some(Family::Http),
        "HTTPS" | "TLS" => Some(Family::Tls),
        "TCP" => Some(Family::Tcp),
        _ => None,
    }
}

/// Each listener, in its order. Of two that contradict each other the first counts.
pub fn of(gateway: &Gateway) -> Vec<(&Listener, Standing)> {
    let mut all: Vec<(&Listener, Standing)> = Vec::new();
    for listener in &gateway.listeners {
        let counts = all.iter().filter(|(_, standing)| *standing == Standing::Serves).map(|(known, _)| *known);
        let standing = one(listener, counts);
        all.push((listener, standing));
    }
    all
}

fn one<'a>(listener: &Listener, mut before: impl Iterator<Item = &'a Listener>) -> Standing {
    let refused = |reason, why: String| Standing::Refused(reason, why);
    if listener.protocol == "HBONE" {
        return Standing::Tunnels;
    }
    let Some(family) = family(listener) else {
        return refused(Reason::UnsupportedProtocol, format!("{} is not served", listener.protocol));
    };
    if ports::is_mesh_port(listener.port) {
        return refused(Reason::PortUnavailable, format!("port {} is one of the mesh's own", listener.port));
    }
    let host = |listener: &Listener| listener.hostname.as_deref().map(str::to_ascii_lowercase);
    let other = before.find_map(|known| {
        let same = known.port == listener.port;
        match self::family(known) == Some(family) {
            false if same => Some((Reason::ProtocolConflict, known)),
            true if same && (host(known) == host(listener) || family == Family::Tcp) => {
                Some((Reason::HostnameConflict, known))
            }
            _ => None,
        }
    });
    match other {
        None => Standing::Serves,
        Some((reason, other)) => {
            let why =
                format!("port {} is that of {:?} already, which speaks {}", other.port, other.name, other.protocol);
            refused(reason, why)
        }
    }
}

/// Whether a Gateway may show the certificate that it names.
pub fn may_show(reference: &ObjectReference, gateway: &NamespacedName, routes: &Routes) -> bool {
    let (group, kind) = (reference.group.as_deref().unwrap_or_default(), reference.kind.as_deref().unwrap_or("Secret"));
    let namespace = reference.namespace.as_deref().unwrap_or(&gateway.namespace);
    let key = Key { kind: Kind::Gateway, namespace: gateway.namespace.clone(), name: gateway.name.clone() };
    (group, kind) == ("", "Secret")
        && (namespace == &*gateway.namespace
            || is_granted(routes, &key, (group, kind, namespace, reference.name.as_str())))
}

/// Whether TLS is passed on.
pub fn passes(listener: &Listener) -> bool {
    listener.tls.as_ref().is_some_and(|tls| tls.mode == Some(Mode::Passthrough))
}
