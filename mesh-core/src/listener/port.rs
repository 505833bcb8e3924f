//! One port of a gateway: which listener a name means there. The most specific one counts, and it alone: a name that a listener has is not another's,
//! whatever routes that one has (the Gateway API's isolation of listeners).

use std::sync::Arc;

use super::{Encryption, Listener, Serves};
use crate::l7::{HostIndex, HostPattern};

/// What is listened for on a port.
#[derive(Clone, Debug)]
pub enum Port {
    /// HTTP without TLS; the host of each request decides.
    Http(HostIndex<Option<Arc<Listener>>>),
    /// TLS; the name in the client's first message decides. Of who comes in a tunnel without one, one of those `inside` is meant.
    Tls {
        /// By name.
        names: HostIndex<Option<Arc<Listener>>>,
        /// Those that take tunnels of the mesh in place of TLS.
        inside: Vec<Arc<Listener>>,
        /// There are no others.
        only_inside: bool,
    },
    /// Bytes.
    Tcp(Arc<Listener>),
}

/// What a connection was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made<'a> {
    /// The name that TLS asked for; without TLS none.
    For(Option<&'a str>),
    /// What takes a tunnel of the mesh in place of TLS.
    Inside,
}

/// What is meant by who comes in a tunnel of the mesh to a port of TLS, and begins none.
#[derive(Clone, Copy, Debug)]
pub enum Inside<'a> {
    /// Requests; the host of each decides.
    Requests,
    /// Bytes of this listener.
    Bytes(&'a Arc<Listener>),
    /// There is no listener for that.
    Nobody,
    /// Several take bytes, and nothing tells them apart.
    Unclear,
}

/// Why no listener takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Astray {
    /// No listener of the port has the host: 404.
    #[error("no listener has the host")]
    Unknown,
    /// The connection was made for a listener, and the request is for another: 421. The client may connect anew.
    #[error("the connection is another listener's")]
    Misdirected,
}

impl Port {
    /// With its first listener.
    pub(super) fn of(listener: &Arc<Listener>) -> Self {
        let mut port = match (&listener.encryption, &listener.serves) {
            (Encryption::Ends(_) | Encryption::Passes | Encryption::Mesh, _) => {
                Self::Tls { names: HostIndex::default(), inside: Vec::new(), only_inside: true }
            }
            // Closed it takes its names and no more. Of datagrams there is no such port.
            (Encryption::None, Serves::Http(_) | Serves::Datagrams(_) | Serves::Closed(_)) => {
                Self::Http(HostIndex::default())
            }
            (Encryption::None, Serves::Bytes(_)) => Self::Tcp(Arc::clone(listener)),
        };
        port.add(listener);
        port
    }

    /// Adds one of the same family, under those of its names that nobody has yet.
    pub(super) fn add(&mut self, listener: &Arc<Listener>) {
        let plain = listener.encryption == Encryption::None;
        let index = match self {
            Self::Http(index) if plain && !matches!(listener.serves, Serves::Bytes(_)) => index,
            Self::Tls { names, .. } if !plain => names,
            _ => return,
        };
        let mut is_named = false;
        for pattern in &listener.hosts {
            let place = index.entry(pattern);
            is_named |= place.is_none();
            place.get_or_insert_with(|| Arc::clone(listener));
        }
        if let Self::Tls { inside, only_inside, .. } = self
            && is_named
        {
            match listener.encryption {
                // Closed it takes its names, and nothing from others.
                Encryption::Mesh if matches!(listener.serves, Serves::Closed(_)) => {}
                Encryption::Mesh => inside.push(Arc::clone(listener)),
                _ => *only_inside = false,
            }
        }
    }

    /// What is meant in a tunnel of the mesh by who begins no TLS there, and speaks HTTP or does not.
    #[must_use]
    pub fn inside(&self, http: bool) -> Inside<'_> {
        let Self::Tls { inside, .. } = self else { return Inside::Nobody };
        if http && inside.iter().any(|listener| matches!(listener.serves, Serves::Http(_))) {
            return Inside::Requests;
        }
        let mut bytes = inside.iter().filter(|listener| !matches!(listener.serves, Serves::Http(_)));
        match (bytes.next(), bytes.next()) {
            (None, _) => Inside::Nobody,
            (Some(listener), None) => Inside::Bytes(listener),
            (Some(_), Some(_)) => Inside::Unclear,
        }
    }

    /// Whether all of its listeners take tunnels of the mesh, and nobody else.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        matches!(self, Self::Tls { only_inside: true, .. })
    }

    /// The only listener of the port, if whatever comes in tunnels is its: of such a client nothing has to be seen first.
    #[must_use]
    pub fn all_inside(&self) -> Option<&Arc<Listener>> {
        match self {
            Self::Tls { inside, only_inside: true, .. } => match inside.as_slice() {
                [one] if !matches!(one.serves, Serves::Http(_)) => Some(one),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether a listener has a name here.
    pub(super) fn has(&self, listener: &Arc<Listener>) -> bool {
        let is = |found: Option<&Arc<Listener>>| found.is_some_and(|found| Arc::ptr_eq(found, listener));
        match self {
            Self::Tcp(own) => Arc::ptr_eq(own, listener),
            Self::Http(index) | Self::Tls { names: index, .. } => {
                let own = |pattern: &HostPattern| index.get(pattern).and_then(Option::as_ref);
                listener.hosts.iter().any(|pattern| is(own(pattern)))
            }
        }
    }

    /// The listener of a name, which is in lower case; one without a name is for listeners of every name.
    #[must_use]
    pub fn named(&self, name: Option<&str>) -> Option<&Arc<Listener>> {
        match self {
            Self::Tcp(own) => Some(own),
            // The empty name is nobody's but of who takes all.
            Self::Http(index) | Self::Tls { names: index, .. } => {
                index.find(name.unwrap_or_default()).find_map(Option::as_ref)
            }
        }
    }

    /// The listener of a request for `host`, in a connection that was made for `sni` where there is TLS, or for what takes tunnels of the mesh.
    pub fn request(&self, made: Made<'_>, host: &str) -> Result<&Arc<Listener>, Astray> {
        let own = self.named(Some(host)).ok_or(Astray::Unknown)?;
        let is_made = match (self, made) {
            (Self::Http(_), _) => true,
            (Self::Tcp(_), _) => return Err(Astray::Unknown),
            (Self::Tls { .. }, Made::Inside) => own.encryption == Encryption::Mesh,
            (Self::Tls { .. }, Made::For(sni)) => self.named(sni).is_some_and(|made| Arc::ptr_eq(made, own)),
        };
        if is_made { Ok(own) } else { Err(Astray::Misdirected) }
    }
}
