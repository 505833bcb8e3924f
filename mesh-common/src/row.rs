//! Rows of the maps: fixed layout, explicit padding, size asserted. Names and default sizes of the maps stand beside them.

use crate::{Address, slot};

/// How many addresses a pod may have.
pub const POD_ADDRESSES: usize = 4;
/// How many nameservers a pod may have.
pub const NAMESERVERS: usize = slot::NAMESERVERS as usize;
/// How many loopback listeners of the agent are protected from direct calls.
pub const OWN_PORTS: usize = 8;

/// Map names; the agent pins them under the same names.
pub mod maps {
    /// netns cookie -> [`super::Pod`].
    pub const PODS: &str = "PODS";
    /// [`super::PortKey`] -> 1 for STRICT, 0 for PERMISSIVE.
    pub const INBOUND_PORTS: &str = "INBOUND_PORTS";
    /// [`super::SlotKey`] -> [`super::Slot`].
    pub const SLOTS: &str = "SLOTS";
    /// [`super::DestinationKey`] -> slot number.
    pub const SLOT_OF: &str = "SLOT_OF";
    /// netns cookie -> [`super::SlotUse`].
    pub const SLOT_USE: &str = "SLOT_USE";
    /// netns cookie -> number of slots the agent has freed.
    pub const SLOT_FREED: &str = "SLOT_FREED";
    /// [`super::FlowKey`] -> [`super::Client`].
    pub const CLIENTS: &str = "CLIENTS";
    /// socket -> [`super::SocketState`].
    pub const SOCKETS: &str = "SOCKETS";
    /// One [`super::Control`].
    pub const CONTROL: &str = "CONTROL";
    /// Per-CPU counter per [`crate::Reason`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring buffer of [`crate::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// [`super::POOL_TAKEN`] and [`super::POOL_CREDIT`]: the slots that pods hold beyond their shares.
    pub const SLOT_POOL: &str = "SLOT_POOL";
    /// netns cookie -> [`crate::peers::Peers`].
    pub const UDP_PEERS: &str = "UDP_PEERS";
    /// [`super::PortKey`] -> `PORT_*` bits.
    pub const PORT_RULES: &str = "PORT_RULES";
    /// [`super::RangeKey`] -> [`super::RANGE_EXCEPT`] or [`super::RANGE_ONLY`].
    pub const RANGE_RULES: &str = "RANGE_RULES";
    /// [`super::RegistryKey`] -> 1 for what somebody is known to have.
    pub const REGISTRY: &str = "REGISTRY";
    /// [`super::FlowKey`], from a caller to a port of the pod -> monotonic nanoseconds of his last datagram.
    pub const UDP_CALLERS: &str = "UDP_CALLERS";
    /// [`super::ProbeKey`] -> netns cookie.
    pub const PROBES: &str = "PROBES";
    /// [`super::FlowKey`] -> monotonic nanoseconds of the connect.
    pub const TICKETS: &str = "TICKETS";
    /// One per pod: [`super::Listener`] -> socket.
    pub const LISTENERS: &str = "LISTENERS";
}

/// The pod is known, but every new connection of it is refused: its row was carried over from another version of these rows.
pub const POD_CLOSED: u32 = 1;
/// Plaintext from the network is dropped unless a port says otherwise.
pub const POD_STRICT: u32 = 2;

/// The pod is being enrolled or released: its own connects are left alone, while the network already meets (or still meets) the rules.
pub const POD_INBOUND_ONLY: u32 = 4;

/// Where plaintext TCP is refused, datagrams are too, but for answers to the pod's own and DNS.
pub const POD_UDP_DENY: u32 = 8;

/// Which ports are STRICT is not known (yet): where datagrams are refused, they are on every port; TCP is the agent's to judge.
pub const POD_UNDECIDED: u32 = 16;

/// What comes from the network goes past the agent, but for HBONE.
pub const POD_INBOUND_OPEN: u32 = 32;

/// The pod has rules of its own about what is captured: the other flags of them, and rows by port and range.
pub const POD_RULES: u32 = 64;

/// Of its connects only those are captured that a rule names.
pub const POD_OUTBOUND_LISTED: u32 = 128;

/// Of what comes from the network only what a rule names is captured.
pub const POD_INBOUND_LISTED: u32 = 256;

/// Istio's node agent redirects the pod's traffic by iptables besides, to the ports that it takes for the agent's.
pub const POD_REDIRECTED: u32 = 512;

/// The pod may reach only what the registry knows.
pub const POD_REGISTRY_ONLY: u32 = 1024;

/// All flags of a pod's rules.
pub const POD_ALL_RULES: u32 = POD_INBOUND_OPEN | POD_RULES | POD_OUTBOUND_LISTED | POD_INBOUND_LISTED;

/// A port to which the pod's connects are not captured.
pub const PORT_OUT_EXCEPT: u32 = 1;
/// A port to which the pod's connects are captured, whatever the address.
pub const PORT_OUT_ALSO: u32 = 2;
/// A port of the pod that is not captured.
pub const PORT_IN_EXCEPT: u32 = 4;
/// A port of the pod that is captured where only such are.
pub const PORT_IN_ONLY: u32 = 8;

/// A range to which the pod's connects are not captured.
pub const RANGE_EXCEPT: u32 = 1;
/// A range to which the pod's connects are captured where only such are.
pub const RANGE_ONLY: u32 = 2;

/// What the hooks know of an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// The key of this row, see [`Pod::is_of`].
    pub cookie: u64,
    /// `POD_*` bits.
    pub flags: u32,
    /// Number of slots the pod may hold.
    pub slot_quota: u32,
    /// The pod's addresses; unused ones are unspecified.
    pub addresses: [Address; POD_ADDRESSES],
    /// The pod's nameservers; unused ones are unspecified.
    pub nameservers: [Address; NAMESERVERS],
    /// Ports on which the agent listens on loopback inside the pod, host byte order, 0 if unused.
    pub own_ports: [u16; OWN_PORTS],
    /// Port of slots for TCP, host byte order.
    pub outbound_port: u16,
    /// Port of slots for DNS, host byte order: the port that the agent's UDP socket is bound to; 0 if DNS is not captured.
    pub dns_port: u16,
    /// So many of them nobody else can take.
    pub slot_share: u32,
}
const _: () = assert!(size_of::<Pod>() == 168 && NAMESERVERS.is_power_of_two());

impl Pod {
    /// True if this is the row of that pod. A row that is replaced gives its memory to the next row written, whosever that is, and the
    /// kernel does not wait for programs that still read it. So a program asks this last, before it lets anything pass; the cookie is
    /// what is written first.
    #[inline(always)]
    pub fn is_of(&self, cookie: u64) -> bool {
        // SAFETY: reads a field of a valid row. Volatile, so that it is read after the fields that a decision was made of.
        let current = unsafe { core::ptr::read_volatile(&raw const self.cookie) };
        current == cookie
    }

    /// True if the address is one of the pod's.
    #[inline(always)]
    pub fn owns(&self, address: &Address) -> bool {
        !address.is_unspecified()
            && (address.same(&self.addresses[0])
                || address.same(&self.addresses[1])
                || address.same(&self.addresses[2])
                || address.same(&self.addresses[3]))
    }

    /// True if the pod has an address of the family.
    #[inline(always)]
    pub fn has_family(&self, v4: bool) -> bool {
        has(&self.addresses[0], v4)
            || has(&self.addresses[1], v4)
            || has(&self.addresses[2], v4)
            || has(&self.addresses[3], v4)
    }

    /// The nameserver with an index below [`NAMESERVERS`].
    #[inline(always)]
    pub fn nameserver(&self, index: u32) -> Address {
        // SAFETY: reads a local. Volatile, so that the mask, which the compiler can prove needless, stays for the verifier, which cannot.
        let index = unsafe { core::ptr::read_volatile(&raw const index) } & (slot::NAMESERVERS - 1);
        self.nameservers[index as usize]
    }

    /// The slot that stands for a nameserver of the pod.
    #[inline(always)]
    pub fn nameserver_slot(&self, address: &Address) -> Option<u32> {
        if address.is_unspecified() {
            None
        } else if address.same(&self.nameservers[0]) {
            Some(slot::DNS_FIRST)
        } else if address.same(&self.nameservers[1]) {
            Some(slot::DNS_FIRST + 1)
        } else if address.same(&self.nameservers[2]) {
            Some(slot::DNS_FIRST + 2)
        } else if address.same(&self.nameservers[3]) {
            Some(slot::DNS_FIRST + 3)
        } else {
            None
        }
    }

    /// True if the agent listens on this port on the pod's loopback.
    #[inline(always)]
    pub fn is_own_port(&self, port: u16) -> bool {
        port != 0
            && (port == self.own_ports[0]
                || port == self.own_ports[1]
                || port == self.own_ports[2]
                || port == self.own_ports[3]
                || port == self.own_ports[4]
                || port == self.own_ports[5]
                || port == self.own_ports[6]
                || port == self.own_ports[7])
    }
}

#[inline(always)]
fn has(address: &Address, v4: bool) -> bool {
    !address.is_unspecified() && address.is_v4() == v4
}

/// Key of the per-port mode of a pod.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct PortKey {
    /// The pod's netns cookie.
    pub cookie: u64,
    /// Destination port, host byte order.
    pub port: u32,
    /// Explicit padding.
    pub reserved: u32,
}
const _: () = assert!(size_of::<PortKey>() == 16);

/// Key of a rule about a range of addresses: a prefix, longest match first. Words of four bytes, because the kernel wants the length in
/// front and nothing between.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct RangeKey {
    /// Bits that count: those of the cookie, and of the address as many as the range has.
    pub prefix: u32,
    /// The pod's netns cookie, low and high half.
    pub cookie: [u32; 2],
    /// First address of the range; IPv4 as everywhere.
    pub address: Address,
}
const _: () = assert!(size_of::<RangeKey>() == 28 && align_of::<RangeKey>() == 4);

impl RangeKey {
    /// Bits of the cookie.
    pub const OF_POD: u32 = 64;

    /// The key of `bits` of an address, counted as for IPv6.
    #[inline(always)]
    pub const fn new(cookie: u64, address: Address, bits: u32) -> Self {
        Self { prefix: Self::OF_POD + bits, cookie: [cookie as u32, (cookie >> 32) as u32], address }
    }

    /// Whose it is.
    pub const fn owner(&self) -> u64 {
        self.cookie[0] as u64 | (self.cookie[1] as u64) << 32
    }
}

/// Key of what somebody is known to have, the same for all pods: a prefix, longest match first.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct RegistryKey {
    /// Bits of the address that count, as for IPv6.
    pub prefix: u32,
    /// First address of the range; IPv4 as everywhere.
    pub address: Address,
}
const _: () = assert!(size_of::<RegistryKey>() == 20 && align_of::<RegistryKey>() == 4);

/// Key of what the kubelet may ask a pod.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct ProbeKey {
    /// The pod's address.
    pub address: Address,
    /// Host byte order.
    pub port: u32,
}
const _: () = assert!(size_of::<ProbeKey>() == 20);

/// How long after the connect of the kubelet its ticket is good: as long as its first packets may come again.
pub const TICKET_NANOSECONDS: u64 = 30_000_000_000;

/// Key of a slot.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct SlotKey {
    /// The pod's netns cookie.
    pub cookie: u64,
    /// Slot number.
    pub slot: u32,
    /// Explicit padding.
    pub reserved: u32,
}
const _: () = assert!(size_of::<SlotKey>() == 16);

/// A slot: the destination that an app asked for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot {
    /// Original destination.
    pub address: Address,
    /// Original port, host byte order.
    pub port: u16,
    /// Explicit padding.
    pub reserved: u16,
    /// TCP sockets between SYN and close; changed atomically by sockops only.
    pub users: u32,
    /// Monotonic nanoseconds of the last connect.
    pub used_at: u64,
}
const _: () = assert!(size_of::<Slot>() == 32);

/// Key from a destination to its slot.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct DestinationKey {
    /// The pod's netns cookie.
    pub cookie: u64,
    /// Original destination.
    pub address: Address,
    /// Original port, host byte order.
    pub port: u32,
    /// Explicit padding.
    pub reserved: u32,
}
const _: () = assert!(size_of::<DestinationKey>() == 32);

/// How many slots a pod has taken; written by the connect hook only. Taken minus freed is what counts against its quota and its share.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotUse {
    /// Where the next search for a free number starts.
    pub next: u64,
    /// Slots taken since enrolment.
    pub taken: u64,
}
const _: () = assert!(size_of::<SlotUse>() == 16);

/// Index in the pool of slots: how many were taken beyond their pods' shares, ever; written by the connect hook only.
pub const POOL_TAKEN: u32 = 0;
/// Index in the pool of slots: how many may have been taken; written by the agent only. What lies between the two is free.
pub const POOL_CREDIT: u32 = 1;
/// Entries of the pool of slots.
pub const POOL: u32 = 2;

/// Key of a connection inside a namespace, from the side that connects.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct FlowKey {
    /// The namespace's cookie.
    pub cookie: u64,
    /// Who connects.
    pub source: Address,
    /// Who accepts.
    pub destination: Address,
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    /// Explicit padding.
    pub reserved: u32,
}
const _: () = assert!(size_of::<FlowKey>() == 48);

/// The real client of a connection that the agent makes to an app.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Client {
    /// The client's address.
    pub address: Address,
    /// The client's port, host byte order.
    pub port: u32,
    /// Explicit padding.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Client>() == 24);

/// Nothing is known of the socket.
pub const SOCKET_EMPTY: u32 = 0;
/// An app's socket that was sent to the slot in `key`, not yet counted as a user.
pub const SOCKET_CAPTURED: u32 = 1;
/// As before, and counted.
pub const SOCKET_COUNTED: u32 = 2;
/// A socket of the agent: `client` is to be shown to the app.
pub const SOCKET_AGENT: u32 = 3;
/// As before, and the client stands in the client map.
pub const SOCKET_PUBLISHED: u32 = 4;
/// An app's accepted socket: `client` is its real client.
pub const SOCKET_ACCEPTED: u32 = 5;

/// What is kept with a socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketState {
    /// `SOCKET_*`.
    pub kind: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Of a captured socket.
    pub key: SlotKey,
    /// Of the agent's and of accepted sockets.
    pub client: Client,
}
const _: () = assert!(size_of::<SocketState>() == 48);

/// Settings that all programs read.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Control {
    /// Monotonic nanoseconds of the agent's last sign of life.
    pub heartbeat: u64,
    /// Nanoseconds after which the agent counts as away.
    pub stale_after: u64,
}
const _: () = assert!(size_of::<Control>() == 16);

/// Index into the pod's listener map.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listener {
    /// Slots over IPv4.
    OutboundV4 = 0,
    /// Slots over IPv6.
    OutboundV6 = 1,
    /// Plaintext from the network over IPv4.
    PlaintextV4 = 2,
    /// Plaintext from the network over IPv6.
    PlaintextV6 = 3,
    /// HBONE over IPv4.
    HboneV4 = 4,
    /// HBONE over IPv6.
    HboneV6 = 5,
    /// DNS over UDP and IPv4.
    DnsUdpV4 = 6,
    /// DNS over UDP and IPv6.
    DnsUdpV6 = 7,
    /// DNS over TCP and IPv4.
    DnsTcpV4 = 8,
    /// DNS over TCP and IPv6.
    DnsTcpV6 = 9,
}

/// Entries of the listener map.
pub const LISTENERS: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_knows_whose_it_is() {
        let row = Pod { cookie: 7, ..Pod::default() };
        assert!(row.is_of(7) && !row.is_of(8) && !Pod::default().is_of(7));
        let cookie = 0x1234_5678_9abc_def0;
        assert_eq!(RangeKey::new(cookie, Address::UNSPECIFIED, 0).owner(), cookie);
    }
}

#[cfg(feature = "user")]
mod user {
    use super::*;
    use crate::peers::Peers;

    macro_rules! pods {
        ($($row:ty),*) => {$(
            // SAFETY: the row is `repr(C)`, has no implicit padding (its size is asserted above) and any bytes are a value of it.
            unsafe impl aya::Pod for $row {}
        )*};
    }
    pods!(
        Pod,
        PortKey,
        RangeKey,
        ProbeKey,
        RegistryKey,
        SlotKey,
        Slot,
        DestinationKey,
        SlotUse,
        FlowKey,
        Client,
        SocketState,
        Control,
        Peers
    );
}
