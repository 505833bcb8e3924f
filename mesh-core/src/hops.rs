//! How many proxies of the mesh a connection passes, so that one that is led in a circle ends: bytes have no header to count in, as HTTP has. Waypoints and
//! gateways ask before they go on to another one.
//!
//! A tunnel to a waypoint says the count. A connection to a gateway, in a tunnel or not, says nothing: who comes from a proxy that way has
//! passed as many as may be followed by none that way. So every circle ends, whatever it is made of:
//!
//! ```text
//! client ─ 0 ─▶ gateway ─ tunnel: 1 ─▶ waypoint ─ plain ─▶ gateway (3) ─ tunnel: 4 ─▶ waypoint ─ plain ─✗
//! ```

/// A connection passes no more than this.
pub const MOST: u8 = 4;
/// What is taken for the count of who comes from another proxy and cannot say it.
const UNSAID: u8 = 3;

/// The label by which workloads that are pods of gateways are told of.
pub const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";

/// Who a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// No proxy of the mesh: an application, its agent, or somebody outside.
    Client,
    /// A proxy that says the count.
    Tunnel(u8),
    /// A proxy that cannot.
    Plain,
}

/// Who it goes on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// No proxy of the mesh.
    Endpoint,
    /// A proxy that is told the count.
    Tunnel,
    /// A proxy that cannot be.
    Plain,
}

/// The proxies that a connection has passed before this one.
#[must_use]
pub fn passed(from: From) -> u8 {
    match from {
        From::Client => 0,
        From::Tunnel(count) => count,
        From::Plain => UNSAID,
    }
}

/// The count with which it goes on; `None`: it must not.
#[must_use]
pub fn onward(passed: u8, to: To) -> Option<u8> {
    let next = passed.saturating_add(1);
    let most = match to {
        To::Endpoint => return (passed <= MOST).then_some(passed),
        To::Tunnel => MOST,
        To::Plain => UNSAID,
    };
    (next <= most).then_some(next)
}

#[cfg(test)]
#[allow(non_snake_case)]
mod tests {
    use super::*;

    /// How many proxies a connection passes on these ways between them; it arrives at the first from a client.
    fn walk(ways: impl Iterator<Item = To>) -> (usize, Option<u8>) {
        let mut count = passed(From::Client);
        for (step, way) in ways.enumerate() {
            count = match (way, onward(count, way)) {
                (_, None) => return (step + 1, None),
                (To::Plain, Some(_)) => passed(From::Plain),
                (_, Some(next)) => passed(From::Tunnel(next)),
            };
        }
        (usize::MAX, onward(count, To::Endpoint))
    }

    #[test]
    fn hardening_F53_every_circle_of_proxies_ends() {
        for length in 1..=8_u32 {
            for shape in 0..1_u32 << length {
                let circle = (0..length).map(|at| if shape >> at & 1 == 0 { To::Tunnel } else { To::Plain });
                let circle: Vec<To> = circle.collect();
                // However many come before it.
                for before in 0..3_usize {
                    let way = std::iter::repeat_n(To::Tunnel, before).chain(circle.iter().copied().cycle().take(64));
                    let (proxies, end) = walk(way);
                    assert!(end.is_none() && proxies <= usize::from(MOST) + 2, "{before} {circle:?}: {proxies}");
                }
            }
        }
        // One that says whatever it likes gets no further.
        for said in 0..=u8::MAX {
            assert!(onward(passed(From::Tunnel(said)), To::Tunnel).is_none_or(|next| next <= MOST), "{said}");
        }
        assert_eq!(onward(passed(From::Tunnel(u8::MAX)), To::Endpoint), None);
    }

    #[test]
    fn what_leads_somewhere_gets_there() {
        use To::{Plain, Tunnel};
        for ways in [
            &[][..],
            &[Tunnel],
            &[Plain],
            // Through an ingress gateway, a waypoint, an egress gateway, and the waypoint that stands before what it asks for.
            &[Tunnel, Plain, Tunnel],
            &[Plain, Tunnel],
            &[Tunnel, Tunnel, Plain, Tunnel],
            &[Tunnel, Tunnel, Tunnel, Tunnel],
        ] {
            assert!(walk(ways.iter().copied()).1.is_some(), "{ways:?}");
        }
    }
}
