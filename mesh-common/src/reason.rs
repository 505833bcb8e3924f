//! Why a kernel program did what it did: the index into the per-CPU counters and the reason field of events.
//! User space exports every one of them by [`Reason::name`].

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal;)*) => {
        /// One counted outcome of a kernel program.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Reason { $($(#[$doc])* $variant = $value,)* }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The label under which the counter is exported.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// A TCP connect was sent to a slot.
    Captured = 0, "captured";
    /// A DNS query or TCP connect to a nameserver was sent to the agent.
    DnsCaptured = 1, "dns_captured";
    /// DNS went to the original resolver because the agent's heartbeat is stale.
    DnsAgentAway = 2, "dns_agent_away";
    /// Loopback, own address, multicast: left as it is.
    PassedLocal = 3, "passed_local";
    /// An IPv6 link-local destination: its scope cannot be proxied, left as it is.
    PassedLinkLocal = 4, "passed_link_local";
    /// Refused: the pod's quota of slots is used up.
    SlotQuota = 5, "slot_quota";
    /// Refused: the pod has its share of the slots, and of what is left it would have too much.
    SlotMapFull = 6, "slot_map_full";
    /// Refused: no memory for the socket's storage.
    NoSocketStorage = 7, "no_socket_storage";
    /// Refused: the pod has no address of this family.
    NoFamily = 8, "no_family";
    /// Refused: an app connected to a slot or to one of the agent's listeners itself.
    DirectToAgent = 9, "direct_to_agent";
    /// Refused: the socket is bound to a loopback address and wants to leave the pod.
    LoopbackSource = 10, "loopback_source";
    /// Refused: the socket is bound to a device and could not be unbound.
    DeviceBound = 11, "device_bound";
    /// A socket bound to a device was unbound from it so that it could be captured.
    DeviceUnbound = 12, "device_unbound";
    /// Refused: the pod is known but has no configuration of this version yet.
    PodClosed = 13, "pod_closed";
    /// sk_lookup gave a slot connection to the agent.
    SteeredOutbound = 14, "steered_outbound";
    /// sk_lookup gave a connection from the network to the agent's HBONE listener.
    SteeredHbone = 15, "steered_hbone";
    /// sk_lookup gave a plaintext connection from the network to the agent.
    SteeredPlaintext = 16, "steered_plaintext";
    /// sk_lookup gave DNS to the agent.
    SteeredDns = 17, "steered_dns";
    /// Dropped: plaintext from the network to a STRICT port.
    StrictPlaintext = 18, "strict_plaintext";
    /// Dropped: no listener of the agent is there to take the connection.
    ListenerMissing = 19, "listener_missing";
    /// Dropped: a slot or loopback destination that does not come from the pod itself.
    ForeignToSlot = 20, "foreign_to_slot";
    /// Dropped: a port that the mesh keeps for itself, called from the network.
    MeshPort = 21, "mesh_port";
    /// Dropped: the program runs in a namespace that has no row.
    PodMissing = 22, "pod_missing";
    /// UDP from the network, left as it is.
    UdpPassed = 23, "udp_passed";
    /// The client map was full: the app would see the pod's own address as the client.
    ClientMapFull = 24, "client_map_full";
    /// The address of a client was copied into the app's accepted socket.
    ClientShown = 25, "client_shown";
    /// The ring buffer had no room for an event.
    EventLost = 26, "event_lost";
    /// bpf_sk_assign refused the listener (family or protocol of another kind).
    AssignFailed = 27, "assign_failed";
    /// Dropped: a datagram from the network to a STRICT port that the pod did not ask for.
    UdpRefused = 28, "udp_refused";
    /// A connect left as it is because the pod's annotations take it out of the mesh.
    OutboundExcluded = 29, "outbound_excluded";
    /// From the network, left as it is because the pod's annotations take it out of the mesh.
    InboundExcluded = 30, "inbound_excluded";
    /// A probe of the node's kubelet, left as it is.
    ProbePassed = 31, "probe_passed";
    /// A connect of the kubelet to a probe's port for which there was no room among the tickets.
    TicketLost = 32, "ticket_lost";
    /// Refused: an address outside of the pod that nobody in the registry has, where only the registry may be reached.
    NotInRegistry = 33, "not_in_registry";
}

impl Reason {
    /// Number of counters.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The reason with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(index, *reason as usize, "{}", reason.name());
        }
    }
}
