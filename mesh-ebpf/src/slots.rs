//! Finding or making the slot of a destination. Called by the connect hook; the agent frees slots (`mesh-agent::bpf::slots`).
//!
//! Two CPUs may make two slots for one destination at once: the one that [`SLOT_OF`] forgets dies when its users are gone.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use core::intrinsics::{AtomicOrdering::Relaxed, atomic_xadd};
use mesh_common::{
    Address, Reason,
    row::{DestinationKey, Pod, Slot, SlotKey},
    slot,
};

use crate::{
    act::now,
    maps::{SLOT_FREED, SLOT_OF, SLOT_USE, SLOTS},
};

const EEXIST: i32 = -17;
const RANGE: u64 = (slot::LAST - slot::FIRST + 1) as u64;
/// How many taken numbers in a row are skipped before the search gives up.
const PROBES: u64 = 8;

/// The slot of a destination, or why there is none.
#[inline(always)]
pub fn acquire(cookie: u64, pod: &Pod, address: &Address, port: u16) -> Result<u32, Reason> {
    let destination = DestinationKey { cookie, address: *address, port: u32::from(port), reserved: 0 };
    // SAFETY: a preallocated value may be reused under us; the row is compared with what we want before it is used.
    if let Some(number) = unsafe { SLOT_OF.get(&destination) } {
        let number = *number;
        let key = SlotKey { cookie, slot: number, reserved: 0 };
        if let Some(row) = SLOTS.get_ptr_mut(&key) {
            // SAFETY: the pointer is a map value that stays mapped while the program runs.
            let row = unsafe { &mut *row };
            if row.address.same(address) && row.port == port {
                row.used_at = now();
                return Ok(number);
            }
        }
    }
    make(cookie, pod, &destination, address, port)
}

#[inline(always)]
fn make(cookie: u64, pod: &Pod, destination: &DestinationKey, address: &Address, port: u16) -> Result<u32, Reason> {
    let usage = SLOT_USE.get_ptr_mut(&cookie).ok_or(Reason::SlotMapFull)?;
    // SAFETY: the value is a u64 that only the agent writes, as a whole.
    let freed = unsafe { SLOT_FREED.get(&cookie) }.copied().unwrap_or(0);
    // SAFETY: the pointer is a map value that stays mapped while the program runs.
    let (taken, next) = unsafe { ((*usage).taken, (*usage).next) };
    if taken.wrapping_sub(freed) >= u64::from(pod.slot_quota) {
        return Err(Reason::SlotQuota);
    }
    let row = Slot { address: *address, port, reserved: 0, users: 0, used_at: now() };
    let mut number = 0;
    let mut probe = 0;
    while probe < PROBES {
        let candidate = slot::FIRST + ((next + probe) % RANGE) as u32;
        probe += 1;
        match SLOTS.insert(SlotKey { cookie, slot: candidate, reserved: 0 }, row, u64::from(BPF_NOEXIST)) {
            Ok(()) => {
                number = candidate;
                break;
            }
            Err(EEXIST) => {}
            Err(_) => return Err(Reason::SlotMapFull),
        }
    }
    // SAFETY: a plain store; a lost update costs another CPU a few probes.
    unsafe { (*usage).next = next + probe };
    if number == 0 {
        return Err(Reason::SlotMapFull);
    }
    if SLOT_OF.insert(destination, number, u64::from(BPF_ANY)).is_err() {
        let _ = SLOTS.remove(SlotKey { cookie, slot: number, reserved: 0 });
        return Err(Reason::SlotMapFull);
    }
    // SAFETY: the field is aligned and lives in a map value.
    unsafe { atomic_xadd::<u64, u64, { Relaxed }>(&raw mut (*usage).taken, 1) };
    Ok(number)
}

/// A TCP socket begins to use its slot.
#[inline(always)]
pub fn enter(key: &SlotKey) {
    if let Some(row) = SLOTS.get_ptr_mut(key) {
        // SAFETY: the field is aligned and lives in a map value.
        unsafe { atomic_xadd::<u32, u32, { Relaxed }>(&raw mut (*row).users, 1) };
    }
}

/// A TCP socket is closed.
#[inline(always)]
pub fn leave(key: &SlotKey) {
    if let Some(row) = SLOTS.get_ptr_mut(key) {
        // SAFETY: the field is aligned and lives in a map value.
        unsafe {
            atomic_xadd::<u32, u32, { Relaxed }>(&raw mut (*row).users, u32::MAX);
            (*row).used_at = now();
        }
    }
}
