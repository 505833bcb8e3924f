//! Frees slots that nobody uses. Two steps, so that a connect in flight never loses its slot: first the destination forgets the slot,
//! so that no new connect finds it; in a later pass, if it still has no users, the slot goes.
//!
//! What counts against a pod's quota is counted afresh in each pass: an agent that died between two writes, or a table that was replaced,
//! must not cost a pod its slots for good.

use std::{
    collections::{HashMap, HashSet},
    io,
    time::{Duration, Instant},
};

use mesh_common::row::{self, DestinationKey, Slot, SlotKey};

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
        let taken = Taken::read(tables)?;
        let mut live: HashSet<SlotKey> = tables.slots.keys()?.into_iter().collect();
        for key in &live.clone() {
            let Some(slot) = tables.slots.get(key)? else { continue };
            let idle = slot.users == 0 && now.saturating_sub(slot.used_at) > hold.as_nanos() as u64;
            match (idle, self.retiring.get(key)) {
                (true, None) => {
                    forget(tables, key, &slot)?;
                    self.retiring.insert(*key, Instant::now());
                }
                (true, Some(since)) if since.elapsed() >= GRACE => {
                    self.retiring.remove(key);
                    tables.slots.delete(key)?;
                    live.remove(key);
                    freed += 1;
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
        self.retiring.retain(|key, _| live.contains(key));
        taken.settle(tables, &live)?;
        Ok(freed)
    }

    /// Drops what belongs to a pod.
    pub fn forget(&mut self, cookie: u64) {
        self.retiring.retain(|key, _| key.cookie != cookie);
    }
}

/// Counts what is there, see [`Taken`].
pub fn settle(tables: &Tables) -> io::Result<()> {
    let taken = Taken::read(tables)?;
    taken.settle(tables, &tables.slots.keys()?.into_iter().collect())
}

/// How many slots each pod has taken since its enrolment, and how many were taken beyond the pods' shares. A connect counts before it inserts, and
/// this is read before the slots are: what does both in between counts twice, and what has counted but not inserted yet when the slots are read does
/// not count, each until the next pass.
struct Taken {
    pods: HashMap<u64, u64>,
    pool: u64,
}

impl Taken {
    fn read(tables: &Tables) -> io::Result<Self> {
        let mut pods = HashMap::new();
        for cookie in tables.slot_use.keys()? {
            if let Some(usage) = tables.slot_use.get(&cookie)? {
                pods.insert(cookie, usage.taken);
            }
        }
        Ok(Self { pods, pool: tables.slot_pool.get(&row::POOL_TAKEN)?.unwrap_or(0) })
    }

    /// Writes how many of them are free again, so that what is left are those that live.
    fn settle(self, tables: &Tables, live: &HashSet<SlotKey>) -> io::Result<()> {
        let mut held: HashMap<u64, u64> = HashMap::new();
        for key in live {
            *held.entry(key.cookie).or_default() += 1;
        }
        for (cookie, taken) in self.pods {
            let freed = taken.wrapping_sub(held.get(&cookie).copied().unwrap_or(0));
            match tables.slot_freed.set(&cookie, &freed, sys::EXIST) {
                // The pod is gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        let (share, pool) = tables.shares();
        let of_pool: u64 = held.values().map(|held| held.saturating_sub(share)).sum();
        tables.slot_pool.set(&row::POOL_CREDIT, &(self.pool + pool).saturating_sub(of_pool), sys::ANY)
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
