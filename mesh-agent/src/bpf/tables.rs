//! The maps as user space sees them: typed tables that any thread may use. Opened from their pins once the object has made them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use mesh_common::{
    Address, Reason,
    peers::Peers,
    ports,
    row::{
        self, Client, Control, DestinationKey, FlowKey, Pod, PortKey, ProbeKey, RangeKey, RegistryKey, Slot, SlotKey,
        SlotUse, SocketState, maps,
    },
    slot,
};

use super::{
    config::{KernelError, Limits},
    links::replace_pin,
    object::{bpf, shared_maps},
    pins::Pins,
    sys::{self, Table},
};

/// All shared maps.
#[derive(Debug)]
pub struct Tables {
    pub pods: Table<u64, Pod>,
    pub inbound_ports: Table<PortKey, u32>,
    pub slots: Table<SlotKey, Slot>,
    pub slot_of: Table<DestinationKey, u32>,
    pub slot_use: Table<u64, SlotUse>,
    pub slot_freed: Table<u64, u64>,
    pub slot_pool: Table<u32, u64>,
    pub udp_peers: Table<u64, Peers>,
    pub clients: Table<FlowKey, Client>,
    pub port_rules: Table<PortKey, u32>,
    pub range_rules: Table<RangeKey, u32>,
    pub registry: Table<RegistryKey, u32>,
    pub udp_callers: Table<FlowKey, u64>,
    pub probes: Table<ProbeKey, u64>,
    pub tickets: Table<FlowKey, u64>,
    pub sockets: Table<i32, SocketState>,
    pub control: Table<u32, Control>,
    counters: OwnedFd,
    events: OwnedFd,
    cpus: usize,
    limits: Limits,
}

impl Tables {
    /// Opens every map by its pin.
    pub fn open(pins: &Pins, limits: Limits) -> Result<Self, KernelError> {
        fn table<K: aya::Pod, V: aya::Pod>(pins: &Pins, name: &str) -> Result<Table<K, V>, KernelError> {
            sys::open_pin(&pins.maps().join(name)).and_then(Table::new).map_err(|source| bpf("open", name, source))
        }
        let raw = |name: &str| sys::open_pin(&pins.maps().join(name)).map_err(|source| bpf("open", name, source));
        Ok(Self {
            pods: table(pins, maps::PODS)?,
            inbound_ports: table(pins, maps::INBOUND_PORTS)?,
            slots: table(pins, maps::SLOTS)?,
            slot_of: table(pins, maps::SLOT_OF)?,
            slot_use: table(pins, maps::SLOT_USE)?,
            slot_freed: table(pins, maps::SLOT_FREED)?,
            slot_pool: table(pins, maps::SLOT_POOL)?,
            udp_peers: table(pins, maps::UDP_PEERS)?,
            clients: table(pins, maps::CLIENTS)?,
            port_rules: table(pins, maps::PORT_RULES)?,
            range_rules: table(pins, maps::RANGE_RULES)?,
            registry: table(pins, maps::REGISTRY)?,
            udp_callers: table(pins, maps::UDP_CALLERS)?,
            probes: table(pins, maps::PROBES)?,
            tickets: table(pins, maps::TICKETS)?,
            sockets: table(pins, maps::SOCKETS)?,
            control: table(pins, maps::CONTROL)?,
            counters: raw(maps::COUNTERS)?,
            events: raw(maps::EVENTS)?,
            cpus: aya::util::nr_cpus().map_err(|(_, source)| bpf("count", "cpus", source))?,
            limits,
        })
    }

    /// What a slot address stands for.
    pub fn original_destination(&self, cookie: u64, local: SocketAddr) -> Option<SocketAddr> {
        let number = slot::number(&Address::from(local.ip()));
        if let Some(index) = slot::nameserver(number) {
            let pod = self.pods.get(&cookie).ok()??;
            let nameserver = pod.nameservers[index as usize];
            return (!nameserver.is_unspecified() && local.port() == pod.dns_port)
                .then(|| SocketAddr::new(nameserver.into(), ports::RESOLVER));
        }
        if !slot::is_flow(number) {
            return None;
        }
        let row = self.slots.get(&SlotKey { cookie, slot: number, reserved: 0 }).ok()??;
        Some(SocketAddr::new(IpAddr::from(row.address), row.port))
    }

    /// How many slots are each pod's own, and how many all pods share.
    pub fn shares(&self) -> (u64, u64) {
        let (share, pool) = self.limits.shares();
        (share.into(), pool.into())
    }

    /// All counters.
    pub fn counters(&self) -> Vec<(Reason, u64)> {
        let read = |reason: Reason| sys::per_cpu(self.counters.as_fd(), reason as u32, self.cpus).unwrap_or(0);
        Reason::ALL.iter().map(|reason| (*reason, read(*reason))).collect()
    }

    /// Name, used and maximum of each hash map.
    pub fn usage(&self) -> Vec<(&'static str, u64, u64)> {
        let pods = self.pods.keys().unwrap_or_default();
        let slots = pods.iter().map(|cookie| self.slots_held(*cookie)).sum();
        let clients = self.clients.keys().map_or(0, |keys| keys.len() as u64);
        let inbound = self.inbound_ports.keys().map_or(0, |keys| keys.len() as u64);
        let tickets = self.tickets.keys().map_or(0, |keys| keys.len() as u64);
        let registry = self.registry.keys().map_or(0, |keys| keys.len() as u64);
        let probes = self.probes.keys().map_or(0, |keys| keys.len() as u64);
        vec![
            (maps::PODS, pods.len() as u64, self.limits.pods.into()),
            (maps::SLOTS, slots, self.limits.slots.into()),
            (maps::CLIENTS, clients, self.limits.clients.into()),
            (maps::INBOUND_PORTS, inbound, self.limits.inbound_ports.into()),
            (maps::PROBES, probes, self.limits.probes.into()),
            (maps::REGISTRY, registry, self.limits.registry.into()),
            (maps::TICKETS, tickets, self.limits.tickets.into()),
        ]
    }

    /// A second descriptor of the event ring, for its reader.
    pub fn events(&self) -> io::Result<OwnedFd> {
        self.events.try_clone()
    }

    /// Pins again what is no longer pinned. Returns the names.
    pub fn repin(&self, pins: &Pins) -> io::Result<Vec<&'static str>> {
        let descriptors = [
            (maps::PODS, self.pods.fd()),
            (maps::INBOUND_PORTS, self.inbound_ports.fd()),
            (maps::SLOTS, self.slots.fd()),
            (maps::SLOT_OF, self.slot_of.fd()),
            (maps::SLOT_USE, self.slot_use.fd()),
            (maps::SLOT_FREED, self.slot_freed.fd()),
            (maps::CLIENTS, self.clients.fd()),
            (maps::SLOT_POOL, self.slot_pool.fd()),
            (maps::PORT_RULES, self.port_rules.fd()),
            (maps::RANGE_RULES, self.range_rules.fd()),
            (maps::REGISTRY, self.registry.fd()),
            (maps::UDP_CALLERS, self.udp_callers.fd()),
            (maps::PROBES, self.probes.fd()),
            (maps::TICKETS, self.tickets.fd()),
            (maps::UDP_PEERS, self.udp_peers.fd()),
            (maps::SOCKETS, self.sockets.fd()),
            (maps::CONTROL, self.control.fd()),
            (maps::COUNTERS, self.counters.as_fd()),
            (maps::EVENTS, self.events.as_fd()),
        ];
        debug_assert_eq!(descriptors.len(), shared_maps(&self.limits).len());
        let mut repinned = Vec::new();
        for (name, map) in descriptors {
            let pin = pins.maps().join(name);
            if !pin.exists() {
                replace_pin(&pin, map)?;
                repinned.push(name);
            }
        }
        Ok(repinned)
    }

    /// Slots of a pod that count against its quota.
    pub fn slots_held(&self, cookie: u64) -> u64 {
        let taken = self.slot_use.get(&cookie).ok().flatten().unwrap_or_default().taken;
        taken.wrapping_sub(self.slot_freed.get(&cookie).ok().flatten().unwrap_or(0))
    }

    /// Deletes every row of a pod.
    pub fn forget(&self, cookie: u64) -> io::Result<()> {
        self.pods.delete(&cookie)?;
        if self.slot_use.get(&cookie)?.is_some_and(|usage| usage.taken > 0) {
            self.forget_slots(cookie)?;
        }
        for key in self.inbound_ports.keys()?.iter().filter(|key| key.cookie == cookie) {
            self.inbound_ports.delete(key)?;
        }
        for key in self.clients.keys()?.iter().filter(|key| key.cookie == cookie) {
            self.clients.delete(key)?;
        }
        super::rules::forget(self, cookie)?;
        self.udp_peers.delete(&cookie)?;
        self.slot_use.delete(&cookie)?;
        self.slot_freed.delete(&cookie)?;
        Ok(())
    }

    /// Looks at the slots of all pods, which are many: only for a pod that ever had one.
    fn forget_slots(&self, cookie: u64) -> io::Result<()> {
        for key in self.slot_of.keys()?.iter().filter(|key| key.cookie == cookie) {
            self.slot_of.delete(key)?;
        }
        for key in self.slots.keys()?.iter().filter(|key| key.cookie == cookie) {
            self.slots.delete(key)?;
        }
        Ok(())
    }

    /// What the app behind a socket of the agent is to see.
    pub fn client_state(client: SocketAddr) -> SocketState {
        SocketState {
            kind: row::SOCKET_AGENT,
            client: Client { address: client.ip().into(), port: client.port().into(), reserved: 0 },
            ..SocketState::default()
        }
    }
}
