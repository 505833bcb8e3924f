//! Frees slots that nobody uses. Two steps, so that a connect in flight never loses its slot: first the destination forgets the slot,
//! so that no new connect finds it; in a later pass, if it still has no users, the slot goes.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use mesh_common::row::{DestinationKey, Slot, SlotKey};

use super::{sys, tables::Tables};

/// Between the two steps: far longer than a connect needs from its hook to its SYN.
const GRACE: Duration = Duration::from_millis(500);

/// Slots between the two steps.
#[derive(Debug, Default)]
pub struct Collector {
    retiring: HashMap<SlotKey, Instant>,
}

impl Collector {
    /// One pass at monotonic nanoseconds `now`. Returns how many slots were freed.
    pub fn pass(&mut self, tables: &Tables, now: u64, hold: Duration) -> io::Result<usize> {
        let mut freed = 0;
        let keys = tables.slots.keys()?;
        for key in &keys {
            let Some(slot) = tables.slots.get(key)? else { continue };
            let idle = slot.users == 0 && now.saturating_sub(slot.used_at) > hold.as_nanos() as u64;
            match (idle, self.retiring.get(key)) {
                (true, None) => {
                    forget(tables, key, &slot)?;
                    self.retiring.insert(*key, Instant::now());
                }
                (true, Some(since)) if since.elapsed() >= GRACE => {
                    self.retiring.remove(key);
                    if tables.slots.delete(key)? {
                        let count = tables.slot_freed.get(&key.cookie)?.unwrap_or(0);
                        tables.slot_freed.set(&key.cookie, &(count + 1), sys::ANY)?;
                        freed += 1;
                    }
                }
                (true, Some(_)) => {}
                (false, Some(_)) => {
                    self.retiring.remove(key);
                    // Somebody came in between: let others find it too, unless there is a newer one.
                    let _ = tables.slot_of.set(&destination(key, &slot), &key.slot, sys::NOEXIST);
                }
                (false, None) => {}
            }
        }
        let live: std::collections::HashSet<_> = keys.into_iter().collect();
        self.retiring.retain(|key, _| live.contains(key));
        Ok(freed)
    }

    /// Drops what belongs to a pod.
    pub fn forget(&mut self, cookie: u64) {
        self.retiring.retain(|key, _| key.cookie != cookie);
    }
}

fn forget(tables: &Tables, key: &SlotKey, slot: &Slot) -> io::Result<()> {
    let destination = destination(key, slot);
    if tables.slot_of.get(&destination)? == Some(key.slot) {
        tables.slot_of.delete(&destination)?;
    }
    Ok(())
}

fn destination(key: &SlotKey, slot: &Slot) -> DestinationKey {
    DestinationKey { cookie: key.cookie, address: slot.address, port: slot.port.into(), reserved: 0 }
}
