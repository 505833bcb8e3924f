//! How a client came in from outside of the mesh, what is listened for there, on which terms TLS ends, and what is believed of a request's headers. Pure; `edge`
//! does the rest.

pub mod headers;
pub mod terms;
pub mod view;

use std::net::SocketAddr;

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
}

impl Entry {
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
