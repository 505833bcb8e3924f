//! Finding or making the slot of a destination. Called by the connect hook; the agent frees slots (`mesh-agent::bpf::collect`).
//!
//! Two CPUs may make two slots for one destination at once: the one that [`SLOT_OF`] forgets dies when its users are gone.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use core::intrinsics::{AtomicOrdering::Relaxed, atomic_xadd};
use mesh_common::{
    Address, Reason,
    decide::{Place, is_fair, place},
    row::{DestinationKey, POOL_CREDIT, POOL_TAKEN, Pod, Slot, SlotKey, SlotUse},
    slot,
};

use crate::{
    act::now,
    maps::{SLOT_FREED, SLOT_OF, SLOT_POOL, SLOT_USE, SLOTS},
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
    let of_pool = reserve(cookie, pod, usage)?;
    let row = Slot { address: *address, port, reserved: 0, users: 0, used_at: now() };
    let number = insert(cookie, usage, &row);
    if number != 0 && SLOT_OF.insert(destination, number, u64::from(BPF_ANY)).is_ok() {
        return Ok(number);
    }
    if number != 0 {
        let _ = SLOTS.remove(SlotKey { cookie, slot: number, reserved: 0 });
    }
    give_back(usage, of_pool);
    Err(Reason::SlotMapFull)
}

/// Takes one of the slots that the pod may have; true if it is one of the pool. It is counted first and looked at then: so of two CPUs that want the
/// last one at most one gets it.
#[inline(always)]
fn reserve(cookie: u64, pod: &Pod, usage: *mut SlotUse) -> Result<bool, Reason> {
    // SAFETY: the value is a u64 that only the agent writes, as a whole.
    let freed = unsafe { SLOT_FREED.get(&cookie) }.copied().unwrap_or(0);
    // SAFETY: the field is aligned and lives in a map value.
    let taken = unsafe { add(&raw mut (*usage).taken, 1) };
    let of_pool = match place(pod, taken.wrapping_sub(freed)) {
        Ok(Place::Own) => return Ok(false),
        Ok(Place::Pool(of_pool)) => of_pool,
        Err(reason) => {
            give_back(usage, false);
            return Err(reason);
        }
    };
    let Some(pool) = SLOT_POOL.get_ptr_mut(POOL_TAKEN) else {
        give_back(usage, false);
        return Err(Reason::SlotMapFull);
    };
    // SAFETY: the value is aligned and lives in a map.
    let taken = unsafe { add(pool, 1) };
    if is_fair(of_pool, taken, SLOT_POOL.get(POOL_CREDIT).copied().unwrap_or(0)) {
        return Ok(true);
    }
    give_back(usage, true);
    Err(Reason::SlotMapFull)
}

#[inline(always)]
fn give_back(usage: *mut SlotUse, of_pool: bool) {
    // SAFETY: the field is aligned and lives in a map value.
    unsafe { add(&raw mut (*usage).taken, u64::MAX) };
    if of_pool && let Some(pool) = SLOT_POOL.get_ptr_mut(POOL_TAKEN) {
        // SAFETY: the value is aligned and lives in a map.
        unsafe { add(pool, u64::MAX) };
    }
}

/// Adds to a counter that other CPUs add to, and reads it.
///
/// # Safety
///
/// The pointer is to an aligned part of a map value.
#[inline(always)]
unsafe fn add(counter: *mut u64, number: u64) -> u64 {
    // SAFETY: the caller's. Volatile, so that it is read after the sum.
    unsafe {
        atomic_xadd::<u64, u64, { Relaxed }>(counter, number);
        core::ptr::read_volatile(counter)
    }
}

/// Puts a row under a number that is free; 0 if there is none.
#[inline(always)]
fn insert(cookie: u64, usage: *mut SlotUse, row: &Slot) -> u32 {
    // SAFETY: the pointer is a map value that stays mapped while the program runs.
    let next = unsafe { (*usage).next };
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
            Err(_) => break,
        }
    }
    // SAFETY: a plain store; a lost update costs another CPU a few probes.
    unsafe { (*usage).next = next + probe };
    number
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
