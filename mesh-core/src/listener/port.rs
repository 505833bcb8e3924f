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
    /// TLS; the name in the client's first message decides.
    Tls(HostIndex<Option<Arc<Listener>>>),
    /// Bytes.
    Tcp(Arc<Listener>),
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
            (Encryption::Ends(_) | Encryption::Passes, _) => Self::Tls(HostIndex::default()),
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
            Self::Tls(index) if !plain => index,
            _ => return,
        };
        for pattern in &listener.hosts {
            index.entry(pattern).get_or_insert_with(|| Arc::clone(listener));
        }
    }

    /// Whether a listener has a name here.
    pub(super) fn has(&self, listener: &Arc<Listener>) -> bool {
        let is = |found: Option<&Arc<Listener>>| found.is_some_and(|found| Arc::ptr_eq(found, listener));
        match self {
            Self::Tcp(own) => Arc::ptr_eq(own, listener),
            Self::Http(index) | Self::Tls(index) => {
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
            Self::Http(index) | Self::Tls(index) => index.find(name.unwrap_or_default()).find_map(Option::as_ref),
        }
    }

    /// The listener of a request for `host`, in a connection that was made for `sni` where there is TLS.
    pub fn request(&self, sni: Option<&str>, host: &str) -> Result<&Arc<Listener>, Astray> {
        let own = self.named(Some(host)).ok_or(Astray::Unknown)?;
        match self {
            Self::Http(_) => Ok(own),
            Self::Tcp(_) => Err(Astray::Unknown),
            Self::Tls(_) => {
                let made = self.named(sni).is_some_and(|made| Arc::ptr_eq(made, own));
                if made { Ok(own) } else { Err(Astray::Misdirected) }
            }
        }
    }
}
