//! Names and addresses of one cluster. Whatever keeps clusters apart is decided here and nowhere else; every other file of this folder asks.
//!
//! All addresses are of the benchmarking range 198.18.0.0/15 and of fd00:198::/32, and live in namespaces only. Cluster `c` has
//! hosts 198.18.(32c).0/24, addresses for load balancers 198.18.(32c+1).0/24, pods of node `i` 198.18.(32c+16+i).0/24, services 198.19.(32c).0/19.
use std::fmt;

/// How many clusters a machine may have at a time; the last index is one less.
pub const CLUSTERS: u8 = 8;
/// How many nodes a cluster may have, counted from 1.
pub const NODES: u8 = 8;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// A machine of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Where the parts of the control plane run.
    Control,
    /// A node, from 1.
    Node(u8),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Host::Control => write!(f, "cp"),
            Host::Node(i) => write!(f, "n{i}"),
        }
    }
}

/// The same thing in both families: an address or a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dual {
    pub v4: String,
    pub v6: String,
}

/// One cluster's names and addresses.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub index: u8,
    /// The family that single-stack services and the API server's own address have.
    pub primary: Family,
}

impl Plan {
    /// The network namespace of a host.
    pub fn netns(self, host: Host) -> String {
        format!("{}{host}", self.prefix())
    }

    /// The network namespace of the switch, which holds nothing but a bridge. It is made first and removed last: it says that the cluster exists.
    pub fn switch(self) -> String {
        format!("{}sw", self.prefix())
    }

    /// What the names of namespaces and cgroups of this cluster begin with, and no others.
    pub fn prefix(self) -> String {
        format!("um{}-", self.index)
    }

    /// The cgroup below which all of a node is: its daemons and its pods.
    pub fn cgroup(self, node: u8) -> String {
        self.netns(Host::Node(node))
    }

    /// A host's own address.
    pub fn address(self, host: Host) -> Dual {
        let last = match host {
            Host::Control => 1,
            Host::Node(i) => 10 + i,
        };
        Dual { v4: format!("198.18.{}.{last}", self.base()), v6: format!("fd00:198:{:x}::{last:x}", self.group()) }
    }

    /// A host's network card keeps its address over a reboot, as a real one does: neighbours would ask the old one for seconds.
    pub fn mac(self, host: Host) -> String {
        let last = match host {
            Host::Control => 1,
            Host::Node(i) => 10 + i,
        };
        format!("02:75:6d:{:02x}:00:{last:02x}", self.index)
    }

    /// The range of a node's pods.
    pub fn pods(self, node: u8) -> Dual {
        let third = self.base() + 16 + node;
        Dual { v4: format!("198.18.{third}.0/24"), v6: format!("fd00:198:{:x}:{:x}::/64", self.group(), 16 + node) }
    }

    /// The range of all pods.
    pub fn all_pods(self) -> Dual {
        Dual { v4: format!("198.18.{}.0/20", self.base() + 16), v6: format!("fd00:198:{:x}:10::/60", self.group()) }
    }

    /// The range of services.
    pub fn services(self) -> Dual {
        Dual { v4: format!("198.19.{}.0/19", self.base()), v6: format!("fd00:198:{:x}:ff::/112", self.group()) }
    }

    /// An address of the services' range: 1 is the API server's, 10 the DNS service's.
    pub fn service(self, n: u8) -> Dual {
        Dual { v4: format!("198.19.{}.{n}", self.base()), v6: format!("fd00:198:{:x}:ff::{n:x}", self.group()) }
    }

    /// The `n`th address for services of type LoadBalancer.
    pub fn balancer(self, n: u8) -> Dual {
        Dual { v4: format!("198.18.{}.{n}", self.base() + 1), v6: format!("fd00:198:{:x}:1::{n:x}", self.group()) }
    }

    /// The two members with the primary family's first.
    pub fn ordered(self, dual: &Dual) -> [String; 2] {
        match self.primary {
            Family::V4 => [dual.v4.clone(), dual.v6.clone()],
            Family::V6 => [dual.v6.clone(), dual.v4.clone()],
        }
    }

    /// Both members as command lines want them.
    pub fn joined(self, dual: &Dual) -> String {
        self.ordered(dual).join(",")
    }

    /// The primary family's member.
    pub fn first(self, dual: &Dual) -> String {
        let [first, _] = self.ordered(dual);
        first
    }

    /// The API server as the nodes reach it.
    pub fn api_server(self) -> String {
        let address = self.address(Host::Control);
        match self.primary {
            Family::V4 => format!("https://{}:6443", address.v4),
            Family::V6 => format!("https://[{}]:6443", address.v6),
        }
    }

    fn base(self) -> u8 {
        32 * self.index
    }

    fn group(self) -> u16 {
        0x18 + 0x100 * u16::from(self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    fn number(text: &str) -> (u128, u32) {
        let (address, length) = text.split_once('/').unwrap_or((text, ""));
        match address.parse().expect("an address") {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32 - length.parse().unwrap_or(32)),
            IpAddr::V6(v6) => (u128::from(v6), 128 - length.parse().unwrap_or(128)),
        }
    }

    fn range(text: &str) -> (u128, u128) {
        let (address, bits) = number(text);
        assert_eq!(address, address >> bits << bits, "{text} has bits outside of its prefix");
        (address, address + ((1 << bits) - 1))
    }

    #[test]
    fn no_two_clusters_share_an_address_and_all_are_in_the_ranges_for_tests() {
        let (mut ranges, mut names) = (Vec::new(), BTreeSet::new());
        for index in 0..CLUSTERS {
            let plan = Plan { index, primary: Family::V4 };
            for node in 1..=NODES {
                ranges.push(plan.pods(node));
                assert!(names.insert(plan.netns(Host::Node(node))));
                assert!(range(&plan.all_pods().v4).1 >= range(&plan.pods(node).v4).1);
                assert!(range(&plan.all_pods().v6).1 >= range(&plan.pods(node).v6).1);
            }
            ranges.extend([Host::Control, Host::Node(1), Host::Node(NODES)].map(|host| plan.address(host)));
            ranges.extend([plan.services(), plan.balancer(1), plan.balancer(250)]);
            assert!(range(&plan.services().v6).0 < number(&plan.service(10).v6).0);
        }
        for (at, one) in ranges.iter().enumerate() {
            let in_tests = range("198.18.0.0/15");
            assert!(in_tests.0 <= range(&one.v4).0 && range(&one.v4).1 <= in_tests.1, "{one:?}");
            let in_tests = range("fd00:198::/32");
            assert!(in_tests.0 <= range(&one.v6).0 && range(&one.v6).1 <= in_tests.1, "{one:?}");
            for other in &ranges[at + 1..] {
                for (a, b) in [(&one.v4, &other.v4), (&one.v6, &other.v6)] {
                    assert!(range(a).1 < range(b).0 || range(b).1 < range(a).0, "{a} and {b}");
                }
            }
        }
    }

    #[test]
    fn the_primary_family_comes_first() {
        let plan = Plan { index: 1, primary: Family::V6 };
        assert_eq!(plan.joined(&plan.address(Host::Node(2))), "fd00:198:118::c,198.18.32.12");
        assert_eq!(plan.api_server(), "https://[fd00:198:118::1]:6443");
        let plan = Plan { index: 0, primary: Family::V4 };
        assert_eq!(plan.joined(&plan.service(10)), "198.19.0.10,fd00:198:18:ff::a");
    }
}
