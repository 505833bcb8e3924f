//! What a live tap shows, and of which requests and connections: a selector, as an operator writes it, and what is over, as one line of JSON. Pure. The proxies
//! ask the selector of each request while somebody taps ([`Selector::selects`]); `meshctl` reads it, too, to say what is wrong before anybody is asked.
//!
//! ```text
//! query ── Selector::parse ──┐
//! a request that is over ── Seen ── selects? ── Seen::line
//! ```
//! A line has what the access log has by default, less what a client may hold secret: no header, no body, and of a path no query, but where the log writes it.

mod line;
mod selector;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;

pub use selector::{Selector, SelectorError};

/// Longest line in bytes, whatever a client has written into it.
pub const LONGEST_LINE: usize = 8 * 1024;

/// The words that a selector may ask for as flags: Envoy's, which waypoints use, then those of the node proxy's connections. `-` is none.
pub const FLAGS: [&str; 36] = [
    "-",
    "LH",
    "UH",
    "UT",
    "LR",
    "UR",
    "UF",
    "UC",
    "UO",
    "NR",
    "DI",
    "FI",
    "RL",
    "UAEX",
    "RLSE",
    "DC",
    "URX",
    "SI",
    "IH",
    "DPE",
    "UMSDR",
    "RFCF",
    "NFCF",
    "DT",
    "UPE",
    "NC",
    "OM",
    "DF",
    "DO",
    "DENY",
    "CONNECT",
    "TLS_FAILURE",
    "H2_HANDSHAKE_FAILURE",
    "NETWORK_POLICY",
    "IDENTITY_ERROR",
    "CERT_REVOKED",
];

/// What was seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A request of HTTP, at a waypoint or a gateway.
    Request,
    /// A connection, or datagrams of one client, that was copied as it is.
    Connection,
}

impl Kind {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Connection => "connection",
        }
    }
}

/// One end. What is not known is empty.
#[derive(Clone, Copy, Default)]
pub struct End<'a> {
    /// Where it is.
    pub address: Option<SocketAddr>,
    /// Its namespace.
    pub namespace: &'a str,
    /// Who owns its pod.
    pub workload: &'a str,
    /// Its pod.
    pub pod: &'a str,
    /// What it has proved.
    pub identity: Option<&'a dyn fmt::Display>,
}

/// What was asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Method.
    pub method: &'a str,
    /// The host that was asked for.
    pub authority: &'a str,
    /// Without a query.
    pub path: &'a str,
    /// The query, where the log shows it.
    pub query: Option<&'a str>,
}

/// A request or a connection that is over.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// Which of them.
    pub kind: Kind,
    /// When it came, as RFC 3339.
    pub time: &'a dyn fmt::Display,
    /// Who has asked.
    pub source: End<'a>,
    /// Who was asked last, also if it has not answered.
    pub destination: End<'a>,
    /// Namespace and host of the service that was asked for.
    pub service: Option<(&'a str, &'a str)>,
    /// The same of the one that a rule has sent it to, if that is another.
    pub routed: Option<(&'a str, &'a str)>,
    /// What was asked; none of a connection. Of a request that could not be read it is as it was written.
    pub asked: Option<Asked<'a>>,
    /// `HTTP/2`, `tcp` or the like.
    pub protocol: &'a str,
    /// Of HTTP; 0 if there was no answer. None of a connection.
    pub status: Option<u16>,
    /// Of gRPC.
    pub grpc_status: Option<u16>,
    /// Separated by commas; `-` if there are none.
    pub flags: &'a str,
    /// Why it has ended as it did; may be empty.
    pub details: &'a str,
    /// Why there was no connection to who was asked last; may be empty.
    pub failure: &'a str,
    /// Milliseconds to its end.
    pub duration_ms: u64,
    /// Bytes from who has asked.
    pub received: u64,
    /// Bytes to who has asked.
    pub sent: u64,
    /// How often it was sent to an endpoint.
    pub attempts: Option<u32>,
    /// The rule; may be empty.
    pub rule: &'a str,
    /// Of an agent: `outbound` or `inbound`; else empty.
    pub direction: &'a str,
    /// What was checked; else empty.
    pub security: &'a str,
}
