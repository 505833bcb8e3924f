//! The address plan of a lab. Every lab has a fabric of its own, so all labs use the same addresses, side by side.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A v4 and a v6 address of the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dual {
    /// In 198.18.0.0/15.
    pub v4: Ipv4Addr,
    /// In fd00:198::/32.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// Both, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// Address of node `n` (from 1) on the fabric.
pub fn node(n: u8) -> Dual {
    Dual { v4: Ipv4Addr::new(198, 18, 0, n), v6: Ipv6Addr::new(0xfd00, 0x198, 0, 0, 0, 0, 0, n.into()) }
}

/// Address of the control plane on the fabric.
pub const fn control() -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, 100)
}

/// The node's own address inside its pod range; its pods' gateway and resolver.
pub fn gateway(n: u8) -> Dual {
    Dual { v4: Ipv4Addr::new(198, 18, n, 1), v6: Ipv6Addr::new(0xfd00, 0x198, n.into(), 0, 0, 0, 0, 1) }
}

/// Address of pod number `k` (from 0) of node `n`.
pub fn pod(n: u8, k: u8) -> Dual {
    let host = 10 + k;
    Dual { v4: Ipv4Addr::new(198, 18, n, host), v6: Ipv6Addr::new(0xfd00, 0x198, n.into(), 0, 0, 0, 0, host.into()) }
}

/// Address of service number `k` (from 0).
pub fn service(k: u16) -> Dual {
    let [high, low] = (20 + k).to_be_bytes();
    Dual { v4: Ipv4Addr::new(198, 19, high, low), v6: Ipv6Addr::new(0xfd00, 0x198, 0xffff, 0, 0, 0, 0, 20 + k) }
}

/// The ranges of the pods of nodes 1 to `nodes` and of the services, for `--mesh-ranges`. The nodes' own addresses and the outside are in none.
pub fn mesh_ranges(nodes: u8) -> String {
    let mut ranges = vec!["198.19.0.0/16".to_owned(), "fd00:198:ffff::/64".to_owned()];
    for n in 1..=nodes {
        ranges.extend([format!("198.18.{n}.0/24"), format!("fd00:198:{n:x}::/64")]);
    }
    ranges.join(",")
}

/// The cluster DNS service.
pub const DNS: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);

/// A machine that is in no pod or service range: the outside world.
pub fn outside() -> Dual {
    Dual { v4: Ipv4Addr::new(198, 18, 250, 10), v6: Ipv6Addr::new(0xfd00, 0x198, 250, 0, 0, 0, 0, 10) }
}

/// The network of an address: /24 or /64, whatever fits its family in the lab's plan.
pub fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
        IpAddr::V6(ip) => {
            let s = ip.segments();
            Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0).into()
        }
    }
}
