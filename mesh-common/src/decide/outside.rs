//! Whether what a pod's process wants to reach is for the registry to know. Called by the connect and sendmsg hooks for pods that may reach nothing else.

use crate::{
    ports,
    row::{POD_INBOUND_ONLY, POD_REGISTRY_ONLY, Pod},
    slot,
};

use super::Attempt;

/// True if the destination must be somebody's that the registry knows. What stays in the pod or on its link, and the pod's own nameservers, need not be.
/// What the pod's annotations take out of the mesh must: they say how something is reached, not whether.
#[inline(always)]
pub fn needs_registry(pod: &Pod, attempt: &Attempt) -> bool {
    let to = &attempt.destination;
    if pod.flags & POD_REGISTRY_ONLY == 0 || pod.flags & POD_INBOUND_ONLY != 0 {
        return false;
    }
    let is_near = to.is_unspecified()
        || to.is_loopback()
        || to.is_multicast_or_broadcast()
        || to.is_v6_link_local()
        || slot::is_v6_range(to)
        || pod.owns(to);
    let is_resolver = attempt.port == ports::RESOLVER && pod.nameserver_slot(to).is_some();
    !is_near && !is_resolver
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::{Address, row::POD_CLOSED};

    #[test]
    fn features_sb_3_what_leaves_the_pod_must_be_known() {
        let ip = |text: &str| Address::from(text.parse::<IpAddr>().expect("an address"));
        let mut pod = Pod { flags: POD_REGISTRY_ONLY, ..Pod::default() };
        pod.addresses[0] = ip("198.18.0.2");
        pod.addresses[1] = ip("fd00:198::2");
        pod.nameservers[0] = ip("198.18.53.53");
        let table = [
            ("198.51.100.7", 443, true),
            ("::ffff:198.51.100.7", 443, true),
            ("2001:db8::7", 443, true),
            // Inside of the mesh it is for the registry as well.
            ("198.18.0.3", 80, true),
            // What clouds tell their machines.
            ("169.254.169.254", 80, true),
            ("198.18.53.53", 53, false),
            ("198.18.53.53", 443, true),
            ("198.51.100.53", 53, true),
            ("198.18.0.2", 80, false),
            ("fd00:198::2", 80, false),
            ("127.0.0.1", 80, false),
            ("127.128.0.1", 15001, false),
            ("::1", 80, false),
            ("0.0.0.0", 80, false),
            ("::", 80, false),
            ("224.0.0.251", 5353, false),
            ("255.255.255.255", 67, false),
            ("ff02::fb", 5353, false),
            ("fe80::1", 80, false),
        ];
        for (to, port, expected) in table {
            let attempt = Attempt { destination: ip(to), port, source: Address::UNSPECIFIED, agent_alive: true };
            assert_eq!(needs_registry(&pod, &attempt), expected, "{to}:{port}");
            let away = Attempt { agent_alive: false, ..attempt };
            let closed = Pod { flags: POD_REGISTRY_ONLY | POD_CLOSED, ..pod };
            assert_eq!(needs_registry(&closed, &away), expected, "{to}:{port}, without an agent");
            for flags in [0, POD_REGISTRY_ONLY | POD_INBOUND_ONLY] {
                assert!(!needs_registry(&Pod { flags, ..pod }, &attempt), "{to}:{port}, flags {flags}");
            }
        }
    }
}
