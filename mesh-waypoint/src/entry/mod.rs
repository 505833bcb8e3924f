//! How a client came in from outside of the mesh, what is listened for there, on which terms TLS ends, and what is believed of a request's headers. Pure; `edge`
//! does the rest.

pub mod headers;
pub mod terms;
pub mod view;

use std::net::SocketAddr;

use mesh_core::listener::{Clients, Encryption};

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
}

/// What the handshake said.
#[derive(Clone, Debug, Default)]
pub struct EntryTls {
    /// The name that was asked for, in lower case.
    pub name: Option<String>,
    /// The client's certificate as `x-forwarded-client-cert` has it, if it showed one.
    pub client: Option<String>,
    /// What the listener asked of clients when the connection was made.
    pub clients: Option<Clients>,
}

impl Entry {
    /// Whether a listener still asks of clients what it asked of this one. What is shown and believed may be replaced under a connection; what is asked for not.
    #[must_use]
    pub fn fits(&self, encryption: &Encryption) -> bool {
        match (encryption, &self.tls) {
            (Encryption::None, None) => true,
            (Encryption::Ends(tls), Some(came)) => tls.clients == came.clients,
            _ => false,
        }
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
        let entry = |tls| Entry { bind: 443, from: "198.18.0.1:1".parse().unwrap(), tls };
        let ends = |clients| Encryption::Ends(Tls { clients, ..Tls::with(Vec::new()) });
        let mutual = || Some(Clients { required: true, ..Clients::default() });
        let came = |clients| entry(Some(EntryTls { clients, ..EntryTls::default() }));
        for (entry, encryption, expected) in [
            (entry(None), Encryption::None, true),
            (entry(None), ends(None), false),
            (entry(None), ends(mutual()), false),
            (came(None), ends(None), true),
            (came(None), ends(mutual()), false),
            (came(mutual()), ends(mutual()), true),
            (came(mutual()), Encryption::None, false),
            (came(None), Encryption::Passes, false),
        ] {
            assert_eq!(entry.fits(&encryption), expected, "{entry:?} {encryption:?}");
        }
    }
}
