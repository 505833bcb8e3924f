//! What to do with a query: a pure function of its bytes and of what the mesh knows. No sockets, no clock.
//!
//! ```text
//!  bytes -> not a query -> Drop | Refuse(error)
//!        -> a name of the mesh -> Reply(addresses, or no data: other types of such names never leave the node)
//!        -> anything else, or nothing known yet -> Forward to the nameserver that the pod had asked
//! ```

use std::net::IpAddr;

use mesh_core::names::{NameAnswer, RecordType};
use rand::Rng;
use rand::seq::SliceRandom;

use super::wire::{NotQuery, Query, class, code, kind};
use crate::telemetry::{DnsEvent, DnsProtocol};

/// How long clients may keep an answer of the mesh, in seconds; what cluster DNS usually says.
pub(crate) const ANSWER_TTL: u32 = 30;
/// Longest message over TCP.
const MAX_MESSAGE: usize = 65535;

/// What to do.
#[derive(Debug)]
pub(crate) enum Action<'a> {
    /// Send this.
    Reply(Query<'a>, Vec<u8>),
    /// Send this error; the message is not one we serve.
    Refuse(Vec<u8>),
    /// Ask the nameserver.
    Forward(Query<'a>),
    /// Say nothing.
    Drop(DnsEvent),
}

/// Decides. `names` says what the mesh knows of a host (lower case, no last dot), and is asked at most once.
pub(crate) fn handle<'a>(
    message: &'a [u8],
    protocol: DnsProtocol,
    names: impl FnOnce(&str, RecordType) -> NameAnswer,
    random: &mut impl Rng,
) -> Action<'a> {
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(NotQuery::Error(reply)) => return Action::Refuse(reply),
        Err(NotQuery::Ignore) if message.len() >= 4 => return Action::Drop(DnsEvent::Reflected),
        Err(NotQuery::Ignore) => return Action::Drop(DnsEvent::Malformed),
    };
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return Action::Reply(query, query.error(code::BAD_VERSION));
    }
    let Some(host) = query.host() else { return Action::Forward(query) };
    let asked = match (query.class, query.kind) {
        (class::IN | class::ANY, kind::A) => RecordType::A,
        (class::IN | class::ANY, kind::AAAA) => RecordType::Aaaa,
        _ => RecordType::Other,
    };
    let limit = match protocol {
        DnsProtocol::Udp => query.datagram(),
        DnsProtocol::Tcp => MAX_MESSAGE,
    };
    match names(&host, asked) {
        NameAnswer::NotMesh => Action::Forward(query),
        NameAnswer::NoData => Action::Reply(query, query.addresses(&[], ANSWER_TTL, limit)),
        NameAnswer::Addresses(mut addresses) => {
            addresses.retain(|address| match asked {
                RecordType::A => address.is_ipv4(),
                RecordType::Aaaa => address.is_ipv6(),
                RecordType::Other => false,
            });
            shuffle(&mut addresses, random);
            Action::Reply(query, query.addresses(&addresses, ANSWER_TTL, limit))
        }
    }
}

/// Headless services are balanced by their clients, who mostly take the first address.
fn shuffle(addresses: &mut [IpAddr], random: &mut impl Rng) {
    if addresses.len() > 1 {
        addresses.shuffle(random);
    }
}
