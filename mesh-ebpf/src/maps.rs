//! The maps and the settings that the loader patches. Sizes here are placeholders: the agent sets them.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap},
};
use mesh_common::{
    Reason,
    peers::Peers,
    row::{
        self, Client, Control, DestinationKey, FlowKey, Pod, PortKey, ProbeKey, Slot, SlotKey, SlotUse, SocketState,
    },
};

#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(16, 0);
#[map]
pub static INBOUND_PORTS: HashMap<PortKey, u32> = HashMap::with_max_entries(16, 0);
#[map]
pub static SLOTS: HashMap<SlotKey, Slot> = HashMap::with_max_entries(16, 0);
#[map]
pub static SLOT_OF: HashMap<DestinationKey, u32> = HashMap::with_max_entries(16, 0);
#[map]
pub static SLOT_USE: HashMap<u64, SlotUse> = HashMap::with_max_entries(16, 0);
#[map]
pub static SLOT_FREED: HashMap<u64, u64> = HashMap::with_max_entries(16, 0);
#[map]
pub static SLOT_POOL: Array<u64> = Array::with_max_entries(row::POOL, 0);
#[map]
pub static CLIENTS: HashMap<FlowKey, Client> = HashMap::with_max_entries(16, 0);
/// Rows are kilobytes, and few settings need them: unlike those that hooks insert, they are not allocated before the agent does.
#[map]
pub static UDP_PEERS: HashMap<u64, Peers> = HashMap::with_max_entries(16, BPF_F_NO_PREALLOC);
#[map]
pub static PORT_RULES: HashMap<PortKey, u32> = HashMap::with_max_entries(16, BPF_F_NO_PREALLOC);
/// Its key is a `RangeKey`: the length, then these words.
#[map]
pub static RANGE_RULES: LpmTrie<[u32; 6], u32> = LpmTrie::with_max_entries(16, 0);
/// Its key is a `RegistryKey`: the length, then these words.
#[map]
pub static REGISTRY: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(16, 0);
/// Strangers write it: who calls longest ago makes room.
#[map]
pub static UDP_CALLERS: LruHashMap<FlowKey, u64> = LruHashMap::with_max_entries(16, 0);
#[map]
pub static PROBES: HashMap<ProbeKey, u64> = HashMap::with_max_entries(16, BPF_F_NO_PREALLOC);
/// The kubelet closes its sockets and their tickets go; those of one that died in between make room for others.
#[map]
pub static TICKETS: LruHashMap<FlowKey, u64> = LruHashMap::with_max_entries(16, 0);
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNT, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(row::LISTENERS, 0);
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Cookie of the namespace that this instance of sk_lookup is attached to: the hook has no helper for it. For the other programs that of
/// the agent, which is the kubelet's too.
#[unsafe(no_mangle)]
pub static COOKIE: Global<u64> = Global::new(0);

/// bpf_set_retval exists for sock_addr hooks (6.1). Without it a refusal goes to a slot that refuses.
#[unsafe(no_mangle)]
pub static HAVE_SET_RETVAL: Global<u32> = Global::new(1);
