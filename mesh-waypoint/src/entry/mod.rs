//! How a client came in from outside of the mesh, what is listened for there, on which terms TLS ends, and what is believed of a request's headers. Pure; `edge`
//! does the rest.

pub mod headers;
pub mod terms;
pub mod view;

use std::net::SocketAddr;
use std::sync::OnceLock;

use http::HeaderValue;
use mesh_core::Identity;
use mesh_core::listener::{Clients, Encryption, Made};

pub use view::Edge;

/// One connection of a client.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The port of this pod that it came to.
    pub bind: u16,
    /// Where it comes from; as the PROXY header says, if there is one.
    pub from: SocketAddr,
    /// Its TLS, if there is any.
    pub tls: Option<EntryTls>,
    /// What it has proved, if it comes in a tunnel of the mesh.
    pub client: Option<Identity>,
    written: OnceLock<HeaderValue>,
}

/// What the handshake said.
#[derive(Clone, Debug, Default)]
pub struct EntryTls {
    /// The name that was asked for, in lower case.
    pub name: Option<String>,
    /// The client's certificate as `x-forwarded-client-cert` has it, if it showed one.
    pub client: Option<HeaderValue>,
    /// What the listener asked of clients when the connection was made.
    pub clients: Option<Clients>,
    /// It is that of a tunnel of the mesh, for a listener that takes such in place of its own.
    pub inside: bool,
}

impl Entry {
    /// One that came to this port from there.
    #[must_use]
    pub fn new(bind: u16, from: SocketAddr) -> Self {
        Self { bind, from, tls: None, client: None, written: OnceLock::new() }
    }

    /// The address that it comes from, as headers have it; written once for all of its requests, so [`Entry::from`] is set before the first.
    #[must_use]
    pub fn written(&self) -> &HeaderValue {
        // An address is all visible characters.
        let write = || HeaderValue::from_str(&self.from.ip().to_string()).unwrap_or(HeaderValue::from_static("-"));
        self.written.get_or_init(write)
    }

    /// Whether a listener still asks of clients what it asked of this one. What is shown and believed may be replaced under a connection; what is asked for not.
    #[must_use]
    pub fn fits(&self, encryption: &Encryption) -> bool {
        match (encryption, &self.tls) {
            (Encryption::None, None) => true,
            (Encryption::Ends(tls), Some(came)) => !came.inside && tls.clients == came.clients,
            (Encryption::Mesh, Some(came)) => came.inside,
            _ => false,
        }
    }

    /// What it was made for.
    #[must_use]
    pub fn made(&self) -> Made<'_> {
        if self.tls.as_ref().is_some_and(|tls| tls.inside) { Made::Inside } else { Made::For(self.name()) }
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The name that TLS asked for.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.tls.as_ref()?.name.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::listener::Tls;

    use super::*;

    #[test]
    fn who_came_in_on_other_terms_does_not_stay() {
        let entry = |tls| Entry { tls, ..Entry::new(443, "198.18.0.1:1".parse().unwrap()) };
        let ends = |clients| Encryption::Ends(Tls { clients, ..Tls::with(Vec::new()) });
        let mutual = || Some(Clients { required: true, ..Clients::default() });
        let came = |clients| entry(Some(EntryTls { clients, ..EntryTls::default() }));
        let inside = || entry(Some(EntryTls { inside: true, ..EntryTls::default() }));
        for (entry, encryption, expected) in [
            (entry(None), Encryption::None, true),
            (entry(None), ends(None), false),
            (entry(None), ends(mutual()), false),
            (came(None), ends(None), true),
            (came(None), ends(mutual()), false),
            (came(mutual()), ends(mutual()), true),
            (came(mutual()), Encryption::None, false),
            (came(None), Encryption::Passes, false),
            (inside(), Encryption::Mesh, true),
            (inside(), ends(None), false),
            (inside(), Encryption::None, false),
            (came(None), Encryption::Mesh, false),
            (entry(None), Encryption::Mesh, false),
        ] {
            assert_eq!(entry.fits(&encryption), expected, "{entry:?} {encryption:?}");
        }
    }
}
