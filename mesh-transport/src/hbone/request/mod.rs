//! What a CONNECT request and its answer carry, and the strict readers of those header values.
//!
//! Header values come from an authenticated but not trusted peer: everything is bounded, what decides access
//! ([`Forwarded::identity`]) is believed by whoever knows that the peer is a waypoint.

mod authority;
mod baggage;
mod forwarded;
mod trace;

use std::net::SocketAddr;

use authority::canonical;
pub use authority::{Authority, AuthorityProblem};
pub use baggage::{Baggage, WorkloadKind};
pub use forwarded::{Claimed, Forwarded};
pub use trace::TraceParent;

/// A CONNECT to send.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    /// Where to: an address, or `host:port` towards gateways.
    pub authority: Authority,
    /// Labels of the source.
    pub baggage: Baggage,
    /// The client behind us.
    pub forwarded: Option<Forwarded>,
    /// The trace to continue; `None` starts one.
    pub traceparent: Option<TraceParent>,
    /// How many proxies the connection has passed, for one that leads it on; 0 is not said.
    pub hops: u8,
}

impl ConnectRequest {
    /// A request for an address with nothing else.
    pub fn to(target: SocketAddr) -> Self {
        Self {
            authority: Authority::Address(canonical(target)),
            baggage: Baggage::default(),
            forwarded: None,
            traceparent: None,
            hops: 0,
        }
    }
}

/// What came with a 200.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectResponse {
    /// Labels of the workload that serves.
    pub baggage: Baggage,
}

/// Reads header values; what was read prints to something that reads the same.
pub(crate) fn fuzz_values(data: &[u8]) {
    let baggage = Baggage::parse(data);
    assert_eq!(Baggage::parse(baggage.to_string().as_bytes()), baggage.normal());
    if let Some(forwarded) = Forwarded::parse(data)
        && (forwarded != Forwarded::default())
    {
        assert_eq!(Forwarded::parse(forwarded.to_string().as_bytes()).as_ref(), Some(&forwarded));
    }
    if let Some(traceparent) = TraceParent::parse(data) {
        assert_eq!(traceparent.to_string().as_bytes(), data);
    }
    if let Some(authority) = std::str::from_utf8(data).ok().and_then(Authority::parse) {
        assert_eq!(Authority::parse(&authority.to_string()), Some(authority));
    }
}
