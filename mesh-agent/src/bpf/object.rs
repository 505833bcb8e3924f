//! The kept object: which maps it must find, how it is loaded. `cargo xtask ebpf` builds it from `mesh-ebpf`.

use std::{borrow::Cow, fs, io, os::fd::AsFd, path::Path};

use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use mesh_common::{
    Reason,
    peers::Peers,
    row::{self, maps},
};

use super::{
    config::{KernelError, Limits, Repair},
    pins::Pins,
    sys::{self, MapInfo},
};

/// The programs. Kept in the repository, so that building the agent needs no toolchain for them.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/undermesh.o");

/// Map types, as the kernel numbers them.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;
const SK_STORAGE: u32 = 24;
const RINGBUF: u32 = 27;

/// Name and shape of every map that all programs share.
pub fn shared_maps(limits: &Limits) -> Vec<(&'static str, MapInfo)> {
    fn hash<K, V>(max: u32) -> MapInfo {
        MapInfo { kind: HASH, key: size_of::<K>() as u32, value: size_of::<V>() as u32, max }
    }
    vec![
        (maps::PODS, hash::<u64, row::Pod>(limits.pods)),
        (maps::INBOUND_PORTS, hash::<row::PortKey, u32>(limits.inbound_ports)),
        (maps::SLOTS, hash::<row::SlotKey, row::Slot>(limits.slots)),
        (maps::SLOT_OF, hash::<row::DestinationKey, u32>(limits.slots)),
        (maps::SLOT_USE, hash::<u64, row::SlotUse>(limits.pods)),
        (maps::SLOT_FREED, hash::<u64, u64>(limits.pods)),
        (maps::SLOT_POOL, MapInfo { kind: ARRAY, key: 4, value: 8, max: row::POOL }),
        (maps::CLIENTS, hash::<row::FlowKey, row::Client>(limits.clients)),
        (maps::UDP_PEERS, hash::<u64, Peers>(limits.pods)),
        (maps::PORT_RULES, hash::<row::PortKey, u32>(limits.rules)),
        (maps::RANGE_RULES, MapInfo { kind: LPM_TRIE, ..hash::<row::RangeKey, u32>(limits.rules) }),
        (maps::REGISTRY, MapInfo { kind: LPM_TRIE, ..hash::<row::RegistryKey, u32>(limits.registry) }),
        (maps::UDP_CALLERS, MapInfo { kind: LRU_HASH, ..hash::<row::FlowKey, u64>(limits.udp_callers) }),
        (maps::PROBES, hash::<row::ProbeKey, u64>(limits.probes)),
        (maps::TICKETS, MapInfo { kind: LRU_HASH, ..hash::<row::FlowKey, u64>(limits.tickets) }),
        (maps::SOCKETS, MapInfo { kind: SK_STORAGE, key: 4, value: size_of::<row::SocketState>() as u32, max: 0 }),
        (maps::CONTROL, MapInfo { kind: ARRAY, key: 4, value: size_of::<row::Control>() as u32, max: 1 }),
        (maps::COUNTERS, MapInfo { kind: PERCPU_ARRAY, key: 4, value: 8, max: Reason::COUNT }),
        (maps::EVENTS, MapInfo { kind: RINGBUF, key: 0, value: 0, max: limits.event_bytes }),
    ]
}

/// Removes pins of maps that have another shape than ours: aya would take them unseen.
pub fn discard_foreign_maps(pins: &Pins, limits: &Limits) -> Result<Vec<Repair>, KernelError> {
    let mut repairs = Vec::new();
    for (name, expected) in shared_maps(limits) {
        let path = pins.maps().join(name);
        if !path.exists() {
            continue;
        }
        let found = sys::open_pin(&path).and_then(|map| sys::map_info(map.as_fd()));
        if found.is_ok_and(|found| found == expected) {
            continue;
        }
        fs::remove_file(&path).map_err(|source| KernelError::Io { call: "unlink", path, source })?;
        repairs.push(Repair { name: name.to_owned(), what: "pinned map had another shape and was replaced" });
    }
    Ok(repairs)
}

/// Loads the object, again and again: once for the hooks, then once per pod. Making aya's loader parses the types of the kernel, which
/// costs more than all the rest, so it is made once.
pub struct Loader {
    loader: EbpfLoader<'static>,
    object: Cow<'static, [u8]>,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Loader").finish_non_exhaustive()
    }
}

impl Loader {
    /// A loader that finds or makes the shared maps at their pins.
    pub fn new(pins: &Pins, limits: &Limits, debug_log: bool) -> Result<Self, KernelError> {
        let object = if debug_log { super::log::object()? } else { Cow::Borrowed(OBJECT) };
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.verifier_log_level(VerifierLogLevel::STATS);
        for (name, shape) in shared_maps(limits) {
            loader.map_pin_path(name, pins.maps().join(name));
            if shape.kind != SK_STORAGE {
                loader.map_max_entries(name, shape.max);
            }
        }
        if debug_log {
            // One ring for all instances, so that one reader hears them all.
            loader.map_pin_path(super::log::RING, pins.maps().join(super::log::RING));
        }
        Ok(Self { loader, object })
    }

    /// Parses the object with its maps. Programs are not loaded into the kernel yet.
    pub fn open(&mut self, settings: &Settings, listeners: Option<&Path>) -> Result<Ebpf, KernelError> {
        let have_set_retval: &'static u32 = if settings.have_set_retval { &1 } else { &0 };
        self.loader.override_global("HAVE_SET_RETVAL", have_set_retval, true);
        if let Some(path) = listeners {
            self.loader.map_pin_path(maps::LISTENERS, path.to_owned());
        }
        // The loader wants to keep what it patches in as long as itself, and pods come and go: lend it the cookie for this load only.
        let cookie = Box::into_raw(Box::new(settings.cookie));
        // SAFETY: the pointer is valid until it is freed below.
        self.loader.override_global("COOKIE", unsafe { &*cookie }, true);
        let loaded = self.loader.load(&self.object);
        self.loader.override_global("COOKIE", &0u64, true);
        // SAFETY: the loader was the only one to hold a reference, in the place that was just overwritten; what it loaded has copies.
        drop(unsafe { Box::from_raw(cookie) });
        loaded.map_err(|source| bpf("parse", "undermesh.o", source))
    }
}

/// What is patched into the programs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Cookie of the pod's namespace, for its sk_lookup program; of the agent's for all others.
    pub cookie: u64,
    /// The kernel lets sock_addr hooks choose the errno of a refusal.
    pub have_set_retval: bool,
}

/// An error of aya about a named thing.
pub fn bpf(action: &'static str, name: &str, source: impl std::error::Error + Send + Sync + 'static) -> KernelError {
    KernelError::Bpf { action, name: name.to_owned(), source: Box::new(source) }
}

/// Something that the object must have is not there.
pub fn missing(name: &str) -> KernelError {
    bpf("find", name, io::Error::from(io::ErrorKind::NotFound))
}
