//! Entry for fuzzing: any bytes as a pod's query, and any bytes as a nameserver's answer.
#![doc(hidden)]

use mesh_core::names::{NameAnswer, RecordType};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::handle::{Action, handle};
use super::wire::{self, Query};
use crate::telemetry::DnsProtocol;

/// A query whose answers are fuzzed: `a.example` A with EDNS.
const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x01a\x07example\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";

/// Takes a message as a query and as an answer, and holds what comes of it against the rules. Panics only on a bug.
pub fn dns_message(data: &[u8]) {
    as_query(data);
    as_answer(data);
}

fn as_query(data: &[u8]) {
    let names = |host: &str, asked: RecordType| {
        assert!(host.len() <= 253, "a name of the wire is at most 255 bytes");
        let addresses = (0..=u8::MAX).map(|i| match asked {
            RecordType::Aaaa => std::net::Ipv6Addr::from(u128::from(i)).into(),
            RecordType::A | RecordType::Other => std::net::Ipv4Addr::new(198, 18, 0, i).into(),
        });
        if host.starts_with('m') { NameAnswer::Addresses(addresses.collect()) } else { NameAnswer::NotMesh }
    };
    match handle(data, DnsProtocol::Udp, names, &mut SmallRng::seed_from_u64(1)) {
        Action::Reply(query, reply) => {
            assert!(reply.len() <= query.datagram(), "a reply fits what the client said");
            assert!(reply.starts_with(&data[..2]) && reply[2] & 0x80 != 0 && reply[12..].starts_with(query.question()));
        }
        Action::Refuse(reply) => assert!(reply.starts_with(&data[..2]) && reply.len() <= data.len().max(12)),
        Action::Forward(query) => {
            let forwarded = query.forwarded(0x5555);
            assert_eq!(forwarded.len(), data.len());
            let again = Query::parse(&forwarded).map_err(|_| ()).map(|again| again.question().to_vec());
            assert_eq!(again, Ok(query.question().to_vec()), "what is forwarded is a query still");
        }
        Action::Drop(_) => {}
    }
}

fn as_answer(data: &[u8]) {
    let Ok(query) = Query::parse(QUESTION) else { unreachable!("a constant") };
    let mut bytes = data.to_vec();
    if let Some(id) = bytes.get_mut(..2) {
        // Most random ids are wrong; the rest of the message is what matters.
        id.copy_from_slice(&[0x12, 0x34]);
    }
    if let Some(answer) = wire::answer(&query, 0x1234, bytes) {
        assert!(answer.lifetime.is_none_or(|seconds| wire::TTL.contains(&seconds)));
        for limit in [512, 65535] {
            let delivered = query.deliver(&answer.bytes, 7, limit);
            assert!(delivered.len() <= limit && delivered[12..].starts_with(query.question()));
        }
    }
}
